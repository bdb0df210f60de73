package main

import "syscall"

// pauseSignal and resumeSignal stop a process and let it go on.
const (
	pauseSignal  = syscall.SIGSTOP
	resumeSignal = syscall.SIGCONT
)

// supported is nil where the harness can run.
func supported() error { return nil }
