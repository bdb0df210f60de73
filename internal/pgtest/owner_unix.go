//go:build unix

package pgtest

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"syscall"
)

// owner is the user that a server runs as where this process is root, whom
// PostgreSQL refuses.
func owner() (uid, gid int, err error) {
	u, err := user.Lookup("postgres")
	if err != nil {
		return 0, 0, fmt.Errorf("PostgreSQL does not run as root: %w", err)
	}
	if uid, err = strconv.Atoi(u.Uid); err != nil {
		return 0, 0, err
	}
	gid, err = strconv.Atoi(u.Gid)
	return uid, gid, err
}

func missingHere() error {
	if os.Geteuid() != 0 {
		return nil
	}
	_, _, err := owner()
	return err
}

// own gives dir and what is in it to the server's user.
func own(dir string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	uid, gid, err := owner()
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := os.Chown(dir+"/"+entry.Name(), uid, gid); err != nil {
			return err
		}
	}
	return os.Chown(dir, uid, gid)
}

// asOwner lets cmd run as the server's user.
func asOwner(cmd *exec.Cmd) {
	if uid, gid, err := owner(); err == nil && os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	}
}
