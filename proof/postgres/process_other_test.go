//go:build !linux

package proof

import (
	"errors"
	"os"
)

func pauseSelf() error { return supported() }

func stopped(*node) bool { return false }

func pause(*os.Process) error { return supported() }

func resume(*os.Process) error { return supported() }

func supported() error {
	return errors.New("the proof runs on Linux only: its servers must end with it, in whatever way it ends")
}
