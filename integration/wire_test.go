package integration

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// wireProtocol is a protocol that net/http speaks by itself.
type wireProtocol struct {
	name  string
	proto string // as http.Response has it
	tls   bool
	set   func(*http.Protocols)
}

var wireProtocols = []wireProtocol{
	{"HTTP/1.1", "HTTP/1.1", false, func(p *http.Protocols) { p.SetHTTP1(true) }},
	{"HTTP/2 over TLS", "HTTP/2.0", true, func(p *http.Protocols) { p.SetHTTP2(true) }},
	{"h2c", "HTTP/2.0", false, func(p *http.Protocols) { p.SetUnencryptedHTTP2(true) }},
}

// wire is a server that speaks one protocol, and a client of it.
type wire struct {
	wireProtocol
	server *httptest.Server
	client *http.Client
	conns  atomic.Int32         // how many connections were made
	begun  chan context.Context // the context of each request, as the server made it
	over   chan struct{}        // one for each request that the server is done with
}

// start starts a server with a handler, and a client that speaks nothing else.
func (p wireProtocol) start(t *testing.T, h http.Handler) *wire {
	w := &wire{wireProtocol: p, begun: make(chan context.Context, 1000), over: make(chan struct{}, 1000)}
	w.server = httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		defer func() { w.over <- struct{}{} }()
		w.begun <- r.Context()
		h.ServeHTTP(rw, r)
	}))
	w.server.Config.Protocols = new(http.Protocols)
	p.set(w.server.Config.Protocols)
	w.server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			w.conns.Add(1)
		}
	}
	transport := &http.Transport{
		Protocols: w.server.Config.Protocols,
		// Where the server must say that it wants the body, nothing else lets go of it.
		ExpectContinueTimeout: time.Hour,
	}
	if p.tls {
		w.server.EnableHTTP2 = true
		w.server.StartTLS()
		roots := x509.NewCertPool()
		roots.AddCert(w.server.Certificate())
		transport.TLSClientConfig = &tls.Config{RootCAs: roots}
	} else {
		w.server.Start()
	}
	w.client = &http.Client{Transport: transport}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		w.server.Close()
	})
	return w
}

// wireAnswer is an answer that was read to its end.
type wireAnswer struct {
	status  int
	header  http.Header
	body    string
	trailer http.Header
}

func (a wireAnswer) replayed() bool { return a.header.Get("Idempotent-Replayed") == "true" }

// request returns a POST with a key ("" is none) and a body.
func (w *wire) request(t *testing.T, key string, body io.Reader) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(wireContext(t), http.MethodPost, w.server.URL+"/payments?currency=EUR", body)
	require.NoError(t, err)
	if key != "" {
		r.Header.Set("Idempotency-Key", key)
	}
	return r
}

// send sends a request and reads the answer.
func (w *wire) send(r *http.Request) (wireAnswer, error) {
	resp, err := w.client.Do(r)
	if err != nil {
		return wireAnswer{}, err
	}
	defer resp.Body.Close()
	if resp.Proto != w.proto {
		return wireAnswer{}, fmt.Errorf("answered in %s, not in %s", resp.Proto, w.proto)
	}
	body, err := io.ReadAll(resp.Body)
	return wireAnswer{resp.StatusCode, resp.Header, string(body), resp.Trailer}, err
}

func (w *wire) mustSend(t *testing.T, r *http.Request) wireAnswer {
	t.Helper()
	a, err := w.send(r)
	require.NoError(t, err)
	return a
}

func (w *wire) post(t *testing.T, key, body string) wireAnswer {
	t.Helper()
	return w.mustSend(t, w.request(t, key, strings.NewReader(body)))
}

// warm sends GETs until one goes over a connection that was used before, and
// returns how many were made: net/http's client keeps a new HTTP/2 connection for
// others a moment after the request that it was made for gets it.
func (w *wire) warm(t *testing.T) (conns int32) {
	t.Helper()
	reused := false
	trace := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) { reused = info.Reused }}
	for range 100 {
		r := w.request(t, "", nil)
		r.Method = http.MethodGet
		w.mustSend(t, r.WithContext(httptrace.WithClientTrace(r.Context(), trace)))
		if reused {
			return w.conns.Load()
		}
	}
	require.FailNow(t, "no connection was used again")
	return 0
}

// wireContext returns a context for a request: a test that waits for its answer in
// vain is to fail, and to say where.
func wireContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// wirePayments is a handler that counts its runs and answers each with its
// number.
type wirePayments struct {
	runs atomic.Int32
	// Where the handler is held half-way:
	running chan context.Context // told the handler's context
	finish  chan struct{}        // waited for
	over    context.Context      // ends with the test, whose server waits for its handlers
}

// newHeldWirePayments returns a handler that is held half-way until its finish is
// closed.
func newHeldWirePayments(t *testing.T) *wirePayments {
	return &wirePayments{running: make(chan context.Context, 100), finish: make(chan struct{}), over: t.Context()}
}

func (p *wirePayments) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n := p.runs.Add(1)
	if p.running != nil {
		p.running <- r.Context()
		select {
		case <-p.finish:
		case <-p.over.Done():
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Location", fmt.Sprintf("/payments/%d", n))
	w.Header()["X-Part"] = []string{"one", "two"}
	w.WriteHeader(http.StatusCreated)
	fmt.Fprintf(w, `{"payment":%d}`, n)
}
