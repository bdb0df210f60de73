package proof

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"syscall"
)

// pauseSelf stops this process, until resume is called for it. The signal goes to
// this very thread: it would go on for a while if another one took it.
func pauseSelf() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if _, _, failed := syscall.RawSyscall(syscall.SYS_TGKILL, uintptr(os.Getpid()), uintptr(syscall.Gettid()), uintptr(syscall.SIGSTOP)); failed != 0 {
		return failed
	}
	return nil
}

// stopped reports whether a process stands still.
func stopped(n *node) bool {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.Process().Pid)) // It may have ended.
	_, state, _ := bytes.Cut(stat, []byte(") "))
	return bytes.HasPrefix(state, []byte("T"))
}

// pause stops a process, until resume is called for it.
func pause(p *os.Process) error { return p.Signal(syscall.SIGSTOP) }

func resume(p *os.Process) error { return p.Signal(syscall.SIGCONT) }

// supported is nil where servers can be run.
func supported() error { return nil }
