// Package leash starts servers for tests, and programs as children. They end with
// the process that has started them, in whatever way that ends.
package leash

import (
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
)

// A Server is a program that this process has started.
type Server struct {
	parent   *exec.Cmd
	output   bytes.Buffer  // what the server said; to be read when it is gone
	alive    *os.File      // The server is stopped when this is closed.
	gone     chan struct{} // It is closed when the parent has ended, and the server before it.
	stopOnce sync.Once
}

// script is the parent of a server. It signals the server when its standard
// input ends: when this process closes the other end of the pipe, or ends in
// whatever way. A signal to the whole process group, such as a Ctrl-C, does not
// keep it from doing so. It signals again until the server is gone, because a
// program that has only just started ignores what this script ignores. Then it
// removes the server's directory, unless that is to be kept.
const script = `
trap '' HUP INT QUIT TERM
exec 3<&0
dir=$1 signal=$2
shift 2
"$@" >"$dir/output" 2>&1 3<&- &
server=$!
{ read -r line <&3; while kill -s "$signal" "$server"; do sleep 1; done; } >/dev/null &
watcher=$!
wait "$server"
kill -KILL "$watcher"
cat "$dir/output"
[ -e "$dir/keep" ] || rm -rf "$dir"
`

// Start runs a program, which writes what it says to the file output in dir. It
// is stopped by the signal, and dir is removed when it has ended; see [Keep].
// prepare, if not nil, may change what is run.
func Start(dir, signal string, prepare func(*exec.Cmd), program string, args ...string) (*Server, error) {
	s := &Server{gone: make(chan struct{})}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	// The server does not inherit this process's output: go test would wait for
	// its end.
	s.parent = exec.Command("sh", append([]string{"-c", script, "sh", dir, signal, program}, args...)...)
	s.parent.Stdin = read
	s.parent.Stdout = &s.output
	s.alive = write
	if prepare != nil {
		prepare(s.parent)
	}
	err = s.parent.Start()
	read.Close()
	if err != nil {
		return nil, errors.Join(err, write.Close())
	}
	go func() {
		_ = s.parent.Wait() // Its status is that of the script's last command.
		close(s.gone)
	}()
	return s, nil
}

// Gone is closed when the server has ended.
func (s *Server) Gone() <-chan struct{} { return s.gone }

// Output returns what the server has said. It must be gone.
func (s *Server) Output() string { return s.output.String() }

// Keep keeps a server's directory when the server ends, or no longer.
func Keep(dir string, keep bool) error {
	name := filepath.Join(dir, "keep")
	if !keep {
		return os.Remove(name)
	}
	return os.WriteFile(name, nil, 0o600)
}

// Stop stops the server and waits for its end. A second call does nothing.
func (s *Server) Stop() {
	s.stopOnce.Do(func() { s.alive.Close() })
	<-s.gone
}

// FreeAddr returns a loopback address that is free. Another process may take it.
func FreeAddr() (*net.TCPAddr, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	return listener.Addr().(*net.TCPAddr), listener.Close()
}
