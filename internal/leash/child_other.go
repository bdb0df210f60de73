//go:build !linux

package leash

import (
	"errors"
	"os/exec"
)

// StartChild fails: only Linux kills a child with its parent.
func StartChild(*exec.Cmd) error {
	return errors.New("leash: children that end with this process, in whatever way it ends, can be started on Linux only")
}
