package linear

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// Cut dials connections to Redis that fail: some commands are lost before they
// are sent, some answers after the command took effect, and some commands
// arrive late, mostly after their caller gave up.
type Cut struct {
	faults float64 // the share of commands that meet a fault
	delay  time.Duration

	mu     sync.Mutex
	random *rand.Rand
	late   sync.WaitGroup // commands that are on their way
}

// NewCut returns a dialer. The share of commands that meet a fault is from 0 to
// 1; the delay is the longest of a command that arrives late.
func NewCut(seed uint64, faults float64, delay time.Duration) *Cut {
	return &Cut{faults: faults, delay: delay, random: rand.New(rand.NewPCG(seed, 0))}
}

// Dial connects; it is for the Dialer of a client's options.
func (c *Cut) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &cutConn{Conn: conn, cut: c}, nil
}

// Wait waits until no command is on its way.
func (c *Cut) Wait() { c.late.Wait() }

// The faults that a command meets.
const (
	none = iota
	requestLost
	answerLost
	requestLate
)

// meet chooses what a command meets.
func (c *Cut) meet() (fault int, delay time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.random.Float64() >= c.faults {
		return none, 0
	}
	return requestLost + c.random.IntN(3), time.Duration(c.random.Int64N(int64(c.delay)))
}

// cutConn is a connection to Redis.
type cutConn struct {
	net.Conn
	cut *Cut

	mu     sync.Mutex
	deaf   bool // The answer is lost.
	late   bool // A command is on its way.
	closed bool // The connection is to be closed once the command was sent.
}

// Write sends what the client writes, which is one command. Those that set a
// connection up meet no fault.
func (c *cutConn) Write(b []byte) (int, error) {
	lower := bytes.ToLower(b)
	if !bytes.Contains(lower, []byte("\r\nset\r\n")) && !bytes.Contains(lower, []byte("\r\neval")) {
		return c.Conn.Write(b)
	}
	fault, delay := c.cut.meet()
	switch fault {
	case requestLost:
		return 0, errCut
	case answerLost:
		c.mu.Lock()
		c.deaf = true
		c.mu.Unlock()
	case requestLate:
		c.mu.Lock()
		c.late = true
		c.mu.Unlock()
		late := bytes.Clone(b)
		c.cut.late.Go(func() {
			time.Sleep(delay)
			c.sendLate(late)
		})
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// sendLate sends a command whose caller may be gone, and closes the connection
// where it is.
func (c *cutConn) sendLate(b []byte) {
	_ = c.Conn.SetWriteDeadline(time.Time{}) // The caller's time may be over.
	_, _ = c.Conn.Write(b)                   // There is nobody to be told.
	c.mu.Lock()
	defer c.mu.Unlock()
	c.late = false
	if c.closed {
		_ = c.Conn.Close()
	}
}

// Read reads an answer, or loses it.
func (c *cutConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.deaf {
		return 0, errCut
	}
	return n, err
}

// Close closes the connection, but not before a command that is on its way.
func (c *cutConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.late {
		return nil
	}
	return c.Conn.Close()
}
