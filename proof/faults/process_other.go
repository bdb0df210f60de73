//go:build !linux

package main

import (
	"errors"
	"syscall"
)

const (
	pauseSignal  = syscall.Signal(0)
	resumeSignal = syscall.Signal(0)
)

func supported() error {
	return errors.New("the harness runs on Linux only: its children must end with it, in whatever way it ends")
}

func listenUnreachable() (string, func(), error) { return "", nil, supported() }
