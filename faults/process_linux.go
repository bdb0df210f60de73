package main

import (
	"os/exec"
	"syscall"
)

// dieWithParent has the kernel kill a child when this process ends, in whatever
// way: a child that is stopped could not notice by itself.
func dieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}

// pauseSignal and resumeSignal stop a process and let it go on.
const (
	pauseSignal  = syscall.SIGSTOP
	resumeSignal = syscall.SIGCONT
)

// supported is nil where the harness can run.
func supported() error { return nil }
