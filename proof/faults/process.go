package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"

	"github.com/idempotency-go/idempotency/internal/leash"
)

// process is a child that ends with the harness.
type process struct {
	cmd  *exec.Cmd
	gone chan struct{}
	once sync.Once
}

// startProcess starts a child whose output goes to log.
func startProcess(log io.Writer, name string, args ...string) (*process, error) {
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := leash.StartChild(cmd); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, gone: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // It is killed, so its status says nothing.
		close(p.gone)
	}()
	return p, nil
}

// signal sends a signal to a child that has not ended.
func (p *process) signal(s syscall.Signal) error {
	err := p.cmd.Process.Signal(s)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// kill kills the child with SIGKILL and waits for its end.
func (p *process) kill() {
	p.once.Do(func() { _ = p.cmd.Process.Kill() })
	<-p.gone
}

// ended reports whether the child has ended.
func (p *process) ended() bool {
	select {
	case <-p.gone:
		return true
	default:
		return false
	}
}

// usedPorts has the ports that freePort has given out.
var usedPorts sync.Map

// freePort returns a loopback port that nothing listens on. It lies below the
// ports that the kernel gives to connections: while a server is down, one of
// those could take its port, or connect to itself.
func freePort() (int, error) {
	for range 100 {
		port := 12000 + rand.IntN(18000)
		if _, taken := usedPorts.LoadOrStore(port, true); taken {
			continue
		}
		listener, err := net.Listen("tcp", loopback(port))
		if err == nil {
			return port, listener.Close()
		}
	}
	return 0, fmt.Errorf("no free port on loopback")
}

// loopback returns the address of a port.
func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
