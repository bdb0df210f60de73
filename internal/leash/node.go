package leash

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"time"
)

// A Node is a child that is a server of this very program, and the one that takes its
// place when it has died. The program serves if Variable is set, and prints its address.
type Node[Config any] struct {
	Variable string // the name of the environment variable that has the configuration, as JSON
	Config   Config

	addr  atomic.Pointer[string]
	child *exec.Cmd
	gone  chan struct{} // It is closed when the child has ended.
	said  *bytes.Buffer // what it said on its standard error; to be read when it is gone
}

// Start starts the server and waits until it listens.
func (n *Node[Config]) Start() error {
	config, err := json.Marshal(n.Config)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), n.Variable+"="+string(config))
	said, gone := new(bytes.Buffer), make(chan struct{})
	cmd.Stderr = said
	output, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := StartChild(cmd); err != nil {
		return err
	}
	line, err := bufio.NewReader(output).ReadString('\n')
	go func() {
		_ = cmd.Wait() // It is killed: Await looks at how it ended.
		close(gone)
	}()
	n.child, n.gone, n.said = cmd, gone, said
	if err != nil {
		n.Stop()
		return fmt.Errorf("a server did not start: %w\n%s", err, said)
	}
	addr := strings.TrimSpace(line)
	n.addr.Store(&addr)
	return nil
}

// Stop kills the server and waits for its end.
func (n *Node[Config]) Stop() {
	_ = n.child.Process.Kill() // It may have ended.
	<-n.gone
}

// Await waits for a server that is to kill itself.
func (n *Node[Config]) Await(patience time.Duration) error {
	select {
	case <-n.gone:
	case <-time.After(patience):
		return errors.New("the server did not die")
	}
	if n.child.ProcessState.Exited() {
		return fmt.Errorf("the server ended by itself: %s", n.said)
	}
	return nil
}

// Process returns the process of the server.
func (n *Node[Config]) Process() *os.Process { return n.child.Process }

// URL returns where the server, or the last one in its place, serves. It may be called
// while another is started.
func (n *Node[Config]) URL(path string) string { return "http://" + *n.addr.Load() + path }

// Die ends this process as SIGKILL does: nothing is run, flushed or closed.
func Die() {
	self, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = self.Kill()
	}
	if err != nil {
		panic(err)
	}
	select {} // The signal is on its way: nothing more is to be done here.
}
