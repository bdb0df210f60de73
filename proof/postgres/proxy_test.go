package proof

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"time"
)

// How a connection is cut at a message.
const (
	cutLost      = "lost"      // The message is not delivered.
	cutDelivered = "delivered" // The message is delivered, and then both sides are closed.
	cutKept      = "kept"      // PostgreSQL's side stays until it has answered; its answer is lost.
)

// terminate is the label of the last message of a client.
const terminate = "X"

// cut is where a proxy is to cut.
type cut struct {
	frontend bool   // messages to PostgreSQL are counted, and not those from it
	n        int    // the number of the message, from 1
	label    string // if not "", messages of this label alone are counted
	how      string
	down     time.Duration // nothing else gets through for so long, or until [proxy.heal]

	seen int
	hit  string // the label of the message, once it came
}

// proxy stands between a server and PostgreSQL, and forwards whole messages.
type proxy struct {
	upstream string
	listener net.Listener
	mu       sync.Mutex
	plan     *cut
	down     bool
}

// startProxy starts a proxy on a free port.
func startProxy(upstream string) (*proxy, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &proxy{upstream: upstream, listener: listener}
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go p.serve(client.(*net.TCPConn))
		}
	}()
	return p, nil
}

// arm plans a cut, in place of any other. nil is none.
func (p *proxy) arm(plan *cut) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.plan = plan
}

// hit returns the label of the message at which the proxy has cut, or "".
func (p *proxy) hit() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.plan.hit
}

// heal lets connections through again.
func (p *proxy) heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = false
}

// judge tells how to cut at a message, or "".
func (p *proxy) judge(frontend bool, message []byte) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	plan := p.plan
	if plan == nil || plan.hit != "" || plan.frontend != frontend {
		return ""
	}
	label := labelOf(frontend, message)
	// A pool closes connections at some time that is no request's.
	if label == terminate || plan.label != "" && plan.label != label {
		return ""
	}
	plan.seen++
	if plan.seen != plan.n {
		return ""
	}
	plan.hit = label
	if plan.down > 0 {
		p.down = true
		time.AfterFunc(plan.down, p.heal)
	}
	return plan.how
}

func (p *proxy) isDown() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.down
}

// serve serves one connection.
func (p *proxy) serve(client *net.TCPConn) {
	defer client.Close()
	if p.isDown() {
		return
	}
	conn, err := net.Dial("tcp", p.upstream)
	if err != nil {
		return
	}
	server := conn.(*net.TCPConn)
	defer server.Close()
	var both sync.WaitGroup
	both.Go(func() { p.forward(true, client, server) })
	both.Go(func() { p.forward(false, server, client) })
	both.Wait()
}

// answerTime is how long PostgreSQL is given to answer what needs no answer.
const answerTime = 100 * time.Millisecond

// forward forwards messages one way until the connection ends or is cut.
func (p *proxy) forward(frontend bool, from, to *net.TCPConn) {
	client, server := from, to
	if !frontend {
		client, server = to, from
	}
	source := bufio.NewReader(from)
	for first := frontend; ; first = false {
		message, err := readMessage(source, first)
		if err != nil {
			_ = to.CloseWrite()
			return
		}
		switch p.judge(frontend, message) {
		case cutLost:
			reset(client)
			reset(server)
			return
		case cutDelivered:
			if frontend {
				_ = client.CloseWrite() // before there can be an answer
			}
			_, _ = to.Write(message)
			_ = client.CloseWrite()
			_ = server.CloseWrite()
			return
		case cutKept:
			reset(client)
			_, _ = to.Write(message)
			_ = server.SetReadDeadline(time.Now().Add(answerTime))
			return
		}
		if frontend && p.isDown() { // A second connection of the pool's would get through.
			reset(client)
			reset(server)
			return
		}
		if _, err := to.Write(message); err != nil && frontend {
			return
		}
		// What PostgreSQL sends to a client that is gone is dropped until its side
		// ends.
	}
}

// reset ends a connection so that its other end sees an error, and not an end.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}

// readMessage reads one message of PostgreSQL's protocol: a type, which the first
// of a client does not have, and a length that counts itself.
func readMessage(source *bufio.Reader, first bool) ([]byte, error) {
	head := 5
	if first {
		head = 4
	}
	message, err := source.Peek(head)
	if err != nil {
		return nil, err
	}
	length := int(binary.BigEndian.Uint32(message[head-4:])) + head - 4
	message = make([]byte, length)
	_, err = io.ReadFull(source, message)
	return message, err
}

// labelOf names a message: its type and, where it has one, the text of its first
// statement or the name of what is complete.
func labelOf(frontend bool, message []byte) string {
	if message[0] == 0 {
		return "startup"
	}
	text, _, _ := bytes.Cut(message[5:], []byte{0})
	text, _, _ = bytes.Cut(text, []byte(";"))
	switch kind := string(message[:1]); {
	case frontend && kind == "Q", !frontend && kind == "C":
		return kind + " " + string(text)
	default:
		return kind
	}
}
