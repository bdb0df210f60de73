package leash

import (
	"os/exec"
	"runtime"
	"sync"
	"syscall"
)

// spawner starts all children from one thread: the kernel kills a child when the
// thread that started it ends, and threads of Go may end at any time.
var spawner = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

// StartChild starts cmd, in a process group of its own, and has the kernel kill it
// when this process ends, in whatever way: a child that is stopped could not
// notice by itself. On other systems than Linux it fails.
func StartChild(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started := make(chan error)
	spawner() <- func() { started <- cmd.Start() }
	return <-started
}
