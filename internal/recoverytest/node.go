package recoverytest

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

	"github.com/idempotency-go/idempotency/internal/leash"
)

// node is a server process, and the one that takes its place when it has died.
type node struct {
	config  config
	addr    atomic.Pointer[string]
	process *exec.Cmd
	gone    chan struct{} // It is closed when the process has ended.
	said    *bytes.Buffer // what it said on its standard error; to be read when it is gone
}

// start starts the server and waits until it listens.
func (n *node) start() error {
	text, err := json.Marshal(n.config)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), serverVariable+"="+string(text))
	said, gone := new(bytes.Buffer), make(chan struct{})
	cmd.Stderr = said
	output, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := leash.StartChild(cmd); err != nil {
		return err
	}
	line, err := bufio.NewReader(output).ReadString('\n')
	go func() {
		_ = cmd.Wait() // It is killed: await looks at how it ended.
		close(gone)
	}()
	n.process, n.gone, n.said = cmd, gone, said
	if err != nil {
		n.stop()
		return fmt.Errorf("a server did not start: %w\n%s", err, said)
	}
	addr := strings.TrimSpace(line)
	n.addr.Store(&addr)
	return nil
}

// stop kills the server and waits for its end.
func (n *node) stop() {
	_ = n.process.Process.Kill() // It may have ended.
	<-n.gone
}

// await waits for a server that is to kill itself.
func (n *node) await() error {
	select {
	case <-n.gone:
	case <-time.After(patience):
		return errors.New("the server did not die")
	}
	if n.process.ProcessState.Exited() {
		return fmt.Errorf("the server ended by itself: %s", n.said)
	}
	return nil
}

func (n *node) url(path string) string { return "http://" + *n.addr.Load() + path }
