//go:build !unix

package pgtest

import (
	"errors"
	"os/exec"
)

func missingHere() error { return errors.New("the tests cannot start one on this system") }

func own(string) error { return nil }

func asOwner(*exec.Cmd) {}
