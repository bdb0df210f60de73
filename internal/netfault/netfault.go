// Package netfault gives tests a TCP proxy that can be shut in the ways in which a
// network fails.
package netfault

import (
	"net"
	"sync"
)

// Way is how a proxy is shut.
type Way string

// The ways.
const (
	Refused Way = "refused" // connections are reset, and new ones refused
	Held    Way = "held"    // nothing gets through; it is delivered once the proxy is open, as TCP delivers what was lost for a while
	Late    Way = "late"    // the same for what the server answers; what it is asked gets through
	Dead    Way = "dead"    // nothing gets through; the connections of that time stay silent for ever
	Stale   Way = "stale"   // the connections that are there fall silent for ever; new ones work

	open Way = ""
)

// Proxy is a proxy. It is safe for concurrent use.
type Proxy struct {
	addr, upstream string

	mu       sync.Mutex
	way      Way
	changed  chan struct{} // is closed when way changes
	listener net.Listener  // nil while connections are refused
	links    map[*link]bool
}

// link is a connection through the proxy.
type link struct {
	client, server *net.TCPConn // server is nil if the proxy was dead when the client came
	dead           bool
}

// Start starts an open proxy on a loopback address; its port may be 0.
func Start(addr, upstream string) (*Proxy, error) {
	p := &Proxy{addr: addr, upstream: upstream, changed: make(chan struct{}), links: make(map[*link]bool)}
	return p, p.listen()
}

// Addr returns the address that the proxy listens on.
func (p *Proxy) Addr() string { return p.addr }

// Open opens the proxy.
func (p *Proxy) Open() error { return p.Shut(open) }

// Shut shuts the proxy in a way. If it was shut in another one, there is no moment in
// between in which it was open.
func (p *Proxy) Shut(way Way) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.way = way
	switch way {
	case Refused:
		p.refuse()
		return nil
	case Dead, Stale:
		for l := range p.links {
			l.dead = true
		}
	}
	close(p.changed)
	p.changed = make(chan struct{})
	if p.listener == nil {
		return p.listen()
	}
	return nil
}

// Close closes the proxy for ever.
func (p *Proxy) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.way = Refused
	p.refuse()
}

// refuse is called with mu held.
func (p *Proxy) refuse() {
	if p.listener != nil {
		p.listener.Close()
		p.listener = nil
	}
	for l := range p.links {
		l.reset()
	}
	close(p.changed)
	p.changed = make(chan struct{})
}

// listen is called with mu held, or before anybody else has the proxy.
func (p *Proxy) listen() error {
	listener, err := net.Listen("tcp", p.addr)
	if err != nil {
		return err
	}
	p.listener, p.addr = listener, listener.Addr().String()
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			go p.serve(client.(*net.TCPConn))
		}
	}()
	return nil
}

// serve serves one connection.
func (p *Proxy) serve(client *net.TCPConn) {
	l := &link{client: client}
	defer l.reset()
	p.mu.Lock()
	way := p.way
	p.mu.Unlock()
	if way != Dead {
		conn, err := net.Dial("tcp", p.upstream)
		if err != nil {
			return
		}
		l.server = conn.(*net.TCPConn)
	}
	p.mu.Lock()
	l.dead = l.server == nil || p.way == Dead
	refused := p.way == Refused
	if !refused {
		p.links[l] = true
	}
	p.mu.Unlock()
	if refused {
		return
	}
	defer func() {
		p.mu.Lock()
		delete(p.links, l)
		p.mu.Unlock()
	}()
	answers := make(chan struct{})
	go func() {
		defer close(answers)
		if l.server != nil {
			p.forward(l, l.server, l.client)
			l.reset()
		}
	}()
	p.forward(l, l.client, l.server)
	l.reset()
	<-answers
}

// forward forwards one way until the connection ends.
func (p *Proxy) forward(l *link, from, to *net.TCPConn) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		passes := p.passes(l, from == l.client) // The end of a connection is held, too.
		if n > 0 && passes {
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// passes waits until something gets through, and returns false if it never does.
func (p *Proxy) passes(l *link, asked bool) bool {
	for {
		p.mu.Lock()
		way, dead, changed := p.way, l.dead, p.changed
		p.mu.Unlock()
		switch {
		case dead || way == Refused:
			return false
		case way == Held, way == Late && !asked:
			<-changed
		default:
			return true
		}
	}
}

// reset ends both sides so that each sees an error.
func (l *link) reset() {
	for _, c := range []*net.TCPConn{l.client, l.server} {
		if c != nil {
			_ = c.SetLinger(0)
			_ = c.Close()
		}
	}
}
