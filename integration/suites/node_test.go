package suites

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// leastNode is the oldest major version of Node.js that the clients run on.
const leastNode = 20

// npmFolder returns a folder with the scripts and the packages of node/. It is made once,
// outside of the repository; TestMain removes it.
func npmFolder(t *testing.T) string {
	t.Helper()
	said, err := exec.Command("node", "--version").Output()
	if err != nil {
		t.Skip("SKIPPED: there is no Node.js on the PATH, NOTHING OF NPM IS TESTED.")
	}
	major, _, _ := strings.Cut(strings.TrimPrefix(string(said), "v"), ".")
	if n, err := strconv.Atoi(major); err != nil || n < leastNode {
		t.Skipf("SKIPPED: Node.js is %s, and %d is needed: NOTHING OF NPM IS TESTED.", strings.TrimSpace(string(said)), leastNode)
	}
	dir, err := installNPM()
	if err != nil && strings.Contains(err.Error(), "EUSAGE") {
		require.NoError(t, err, "package-lock.json does not fit package.json")
	}
	if err != nil {
		t.Skipf("SKIPPED: npm's packages cannot be had, NOTHING OF NPM IS TESTED: %v", err)
	}
	return dir
}

var installNPM = sync.OnceValues(func() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "idempotency-npm"); err != nil {
		return "", err
	}
	removeLater = append(removeLater, dir)
	if err := os.CopyFS(filepath.Join(dir, "node"), os.DirFS("node")); err != nil {
		return "", err
	}
	dir = filepath.Join(dir, "node")
	npm := exec.Command("npm", "ci", "--ignore-scripts", "--prefer-offline", "--no-audit", "--no-fund")
	npm.Dir = dir
	if said, err := npm.CombinedOutput(); err != nil {
		return "", fmt.Errorf("npm ci: %w\n%s", err, said)
	}
	return dir, nil
})
