package integration

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

// TestProtocols makes the same promises good over each protocol, between
// net/http's server and its client.
func TestProtocols(t *testing.T) {
	cases := []struct {
		name string
		run  func(t *testing.T, p wireProtocol)
	}{
		{"a retry is answered byte for byte", wireReplay},
		{"of many at once, one runs", wireAtOnce},
		{"a key with another request is refused", wireReused},
		{"a key can be required", wireRequired},
		{"a client that hangs up ends nothing", wireHangUp},
		{"a body that breaks off claims nothing", wireBrokenBody},
		{"a body over the limit streams to the handler", wireLargeBody},
		{"a body of unknown length is compared", wireChunkedBody},
		{"a body is asked for where the client waits", wireExpect},
		{"early hints pass through", wireEarlyHints},
		{"events stream", wireEvents},
		{"trailers are sent and not stored", wireTrailers},
		{"safe methods are untouched", wireSafeMethods},
		{"one connection serves them all", wireKeepAlive},
		{"a shutdown waits for what was begun", wireShutdown},
		{"a shutdown can wait for what nobody waits for", wireShutdownAfterHangUp},
	}
	for _, p := range wireProtocols {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			for _, c := range cases {
				t.Run(c.name, func(t *testing.T) {
					t.Parallel()
					c.run(t, p)
				})
			}
		})
	}
}

// requireReplayOf checks that an answer is the first one's replay: all of it but
// its date.
func requireReplayOf(t *testing.T, first, again wireAnswer) {
	t.Helper()
	require.True(t, again.replayed(), "%d %s", again.status, again.body)
	require.False(t, first.replayed())
	require.Equal(t, first.status, again.status)
	require.Equal(t, first.body, again.body)
	was, is := first.header.Clone(), again.header.Clone()
	was.Del("Date")
	is.Del("Date")
	is.Del("Idempotent-Replayed")
	require.Equal(t, was, is)
}

func wireReplay(t *testing.T, p wireProtocol) {
	payments := &wirePayments{}
	w := p.start(t, idempotency.New(idempotency.NewMemory())(payments))
	first := w.post(t, "k", "amount=100")
	require.Equal(t, http.StatusCreated, first.status)
	require.Equal(t, `{"payment":1}`, first.body)
	require.Equal(t, []string{"one", "two"}, first.header["X-Part"])
	for range 3 {
		requireReplayOf(t, first, w.post(t, "k", "amount=100"))
	}
	require.EqualValues(t, 1, payments.runs.Load())
	require.Equal(t, `{"payment":2}`, w.post(t, "another", "amount=100").body)
}

func wireAtOnce(t *testing.T, p wireProtocol) {
	payments := newHeldWirePayments(t)
	withIdempotency := idempotency.New(idempotency.NewMemory())
	mux := http.NewServeMux()
	mux.Handle("POST /payments", withIdempotency(payments))
	mux.HandleFunc("GET /", func(http.ResponseWriter, *http.Request) {})
	w := p.start(t, mux)
	conns := w.warm(t)

	const requests = 40
	type result struct {
		wireAnswer
		err error
	}
	results := make(chan result, requests)
	for range requests {
		r := w.request(t, "k", strings.NewReader("amount=100"))
		go func() {
			a, err := w.send(r)
			results <- result{a, err}
		}()
	}
	// All but one are answered while that one runs.
	for range requests - 1 {
		got := await(t, results, "a 409")
		require.NoError(t, got.err)
		require.Equal(t, http.StatusConflict, got.status)
		require.Equal(t, "1", got.header.Get("Retry-After"))
		require.Equal(t, "application/problem+json", got.header.Get("Content-Type"))
		require.Contains(t, got.body, "#outstanding")
	}
	close(payments.finish)
	first := await(t, results, "the one that ran")
	require.NoError(t, first.err)
	require.Equal(t, http.StatusCreated, first.status)
	requireReplayOf(t, first.wireAnswer, w.post(t, "k", "amount=100"))
	require.EqualValues(t, 1, payments.runs.Load())
	if p.proto == "HTTP/2.0" {
		require.Equal(t, conns, w.conns.Load(), "the requests were to share a connection")
	}
}

func wireReused(t *testing.T, p wireProtocol) {
	payments := &wirePayments{}
	w := p.start(t, idempotency.New(idempotency.NewMemory())(payments))
	first := w.post(t, "k", "amount=100")
	patch := w.request(t, "k", strings.NewReader("amount=100"))
	patch.Method = http.MethodPatch
	query := w.request(t, "k", strings.NewReader("amount=100"))
	query.URL.RawQuery = "currency=USD"
	path := w.request(t, "k", strings.NewReader("amount=100"))
	path.URL.Path = "/refunds"
	for _, r := range []*http.Request{w.request(t, "k", strings.NewReader("amount=999")), patch, query, path} {
		a := w.mustSend(t, r)
		require.Equal(t, http.StatusUnprocessableEntity, a.status)
		require.Contains(t, a.body, "#key-reused")
		require.Empty(t, a.header.Get("Location"), "nothing of the record is shown")
	}
	requireReplayOf(t, first, w.post(t, "k", "amount=100"))
	require.EqualValues(t, 1, payments.runs.Load())
}

func wireRequired(t *testing.T, p wireProtocol) {
	payments := &wirePayments{}
	w := p.start(t, idempotency.New(idempotency.NewMemory(), idempotency.WithRequired())(payments))
	a := w.post(t, "", "amount=100")
	require.Equal(t, http.StatusBadRequest, a.status)
	require.Contains(t, a.body, "#key-missing")
	require.Zero(t, payments.runs.Load())
	require.Equal(t, http.StatusCreated, w.post(t, "k", "amount=100").status)
}

// wireHangUp hangs up by ending the request's context: net/http's client then
// closes an HTTP/1.1 connection, and resets an HTTP/2 stream.
func wireHangUp(t *testing.T, p wireProtocol) {
	payments := newHeldWirePayments(t)
	w := p.start(t, idempotency.New(idempotency.NewMemory())(payments))
	ctx, hangUp := context.WithCancel(wireContext(t))
	r := w.request(t, "k", strings.NewReader("amount=100")).WithContext(ctx)
	answered := make(chan error, 1)
	go func() {
		_, err := w.send(r)
		answered <- err
	}()
	outside, inside := await(t, w.begun, "the request"), await(t, payments.running, "its handler")
	hangUp()
	require.ErrorIs(t, await(t, answered, "the client"), context.Canceled)
	await(t, outside.Done(), "the server to see that the client is gone")
	require.NoError(t, inside.Err(), "the handler's context is to go on")
	require.Equal(t, http.StatusConflict, w.post(t, "k", "amount=100").status)
	<-w.over // The one above.

	close(payments.finish)
	await(t, w.over, "the handler to be done")
	a := w.post(t, "k", "amount=100")
	require.True(t, a.replayed())
	require.Equal(t, http.StatusCreated, a.status)
	require.Equal(t, `{"payment":1}`, a.body)
	require.EqualValues(t, 1, payments.runs.Load())
}

func wireBrokenBody(t *testing.T, p wireProtocol) {
	payments := &wirePayments{}
	outcomes := make(chan idempotency.Outcome, 10)
	w := p.start(t, idempotency.New(idempotency.NewMemory(),
		idempotency.WithObserver(func(_ context.Context, e idempotency.Event) { outcomes <- e.Outcome }))(payments))
	body, client := io.Pipe()
	r := w.request(t, "k", body)
	r.ContentLength = int64(len("amount=100"))
	answered := make(chan error, 1)
	go func() {
		_, err := w.send(r)
		answered <- err
	}()
	_, err := io.WriteString(client, "amou")
	require.NoError(t, err)
	await(t, w.begun, "the request")
	client.CloseWithError(io.ErrUnexpectedEOF)
	require.ErrorIs(t, await(t, answered, "the client"), io.ErrUnexpectedEOF)
	require.Equal(t, idempotency.Rejected, await(t, outcomes, "the outcome"))
	require.Zero(t, payments.runs.Load())
	require.Equal(t, `{"payment":1}`, w.post(t, "k", "amount=100").body, "the key is free")
}

// wireSum answers with how much it was sent, and of what.
type wireSum struct {
	runs    atomic.Int32
	running chan struct{}
}

func (s *wireSum) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.runs.Add(1)
	s.running <- struct{}{}
	digest := sha256.New()
	n, err := io.Copy(digest, r.Body)
	fmt.Fprintf(w, `{"bytes":%d,"sum":"%x","failed":%t}`, n, digest.Sum(nil), err != nil)
}

func wireLargeBody(t *testing.T, p wireProtocol) {
	const limit, length = 4 << 10, 3 << 20
	content := bytes.Repeat([]byte("0123456789abcdef"), length/16)
	sum := sha256.Sum256(content)
	for name, declared := range map[string]int64{"declared": length, "not declared": -1} {
		t.Run(name, func(t *testing.T) {
			handler := &wireSum{running: make(chan struct{}, 1)}
			w := p.start(t, idempotency.New(idempotency.NewMemory(), idempotency.WithBufferLimit(limit))(handler))
			body, client := io.Pipe()
			r := w.request(t, "k", body)
			r.ContentLength = declared
			type result struct {
				wireAnswer
				err error
			}
			results := make(chan result, 1)
			go func() {
				a, err := w.send(r)
				results <- result{a, err}
			}()
			// The handler begins while most is still to be sent. (More than the
			// limit is sent before it, because the client's buffers hold some back.)
			_, err := client.Write(content[:64<<10])
			require.NoError(t, err)
			await(t, handler.running, "the handler to begin")
			_, err = client.Write(content[64<<10:])
			require.NoError(t, err)
			require.NoError(t, client.Close())
			first := await(t, results, "the answer")
			require.NoError(t, first.err)
			require.Equal(t, fmt.Sprintf(`{"bytes":%d,"sum":"%s","failed":false}`, length, hex.EncodeToString(sum[:])), first.body)

			// The replay does not read the rest.
			again := w.request(t, "k", io.NopCloser(bytes.NewReader(content)))
			again.ContentLength = declared
			requireReplayOf(t, first.wireAnswer, w.mustSend(t, again))
			require.EqualValues(t, 1, handler.runs.Load())
		})
	}
}

func wireChunkedBody(t *testing.T, p wireProtocol) {
	lengths := make(chan int64, 10)
	payments := &wirePayments{}
	w := p.start(t, idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		lengths <- r.ContentLength
		body, err := io.ReadAll(r.Body)
		if err != nil || string(body) != "amount=100" {
			w.WriteHeader(http.StatusTeapot)
		}
		payments.ServeHTTP(w, r)
	})))
	post := func(parts ...string) wireAnswer {
		readers := make([]io.Reader, len(parts))
		for i, part := range parts {
			readers[i] = strings.NewReader(part)
		}
		return w.mustSend(t, w.request(t, "k", io.MultiReader(readers...)))
	}
	first := post("amount=100")
	require.Equal(t, http.StatusCreated, first.status)
	require.EqualValues(t, -1, <-lengths, "the body's length was to be unknown")
	requireReplayOf(t, first, post("amount", "=", "100"))
	requireReplayOf(t, first, w.post(t, "k", "amount=100"))
	require.Equal(t, http.StatusUnprocessableEntity, post("amount", "=", "999").status)
	require.EqualValues(t, 1, payments.runs.Load())
}

// wireUnwanted is a body that must not be sent.
type wireUnwanted struct{ t *testing.T }

func (u wireUnwanted) Read([]byte) (int, error) {
	u.t.Error("the body was sent all the same")
	return 0, io.EOF
}

func wireExpect(t *testing.T, p wireProtocol) {
	payments := &wirePayments{}
	w := p.start(t, idempotency.New(idempotency.NewMemory(), idempotency.WithRequired())(payments))
	var asked atomic.Int32
	trace := &httptrace.ClientTrace{Got100Continue: func() { asked.Add(1) }}
	request := func(key string, body io.Reader) *http.Request {
		r := w.request(t, key, body)
		r.ContentLength = int64(len("amount=100"))
		r.Header.Set("Expect", "100-continue")
		return r.WithContext(httptrace.WithClientTrace(r.Context(), trace))
	}
	first := w.mustSend(t, request("k", strings.NewReader("amount=100")))
	require.Equal(t, `{"payment":1}`, first.body)
	requireReplayOf(t, first, w.mustSend(t, request("k", strings.NewReader("amount=100"))))
	require.EqualValues(t, 2, asked.Load(), "each body is compared, and asked for")

	// What is refused by its header alone is refused before its body is sent.
	require.Equal(t, http.StatusBadRequest, w.mustSend(t, request("", wireUnwanted{t})).status)
	require.Equal(t, http.StatusUnprocessableEntity, w.mustSend(t, request(`"no end`, wireUnwanted{t})).status)
	require.EqualValues(t, 2, asked.Load())
	require.EqualValues(t, 1, payments.runs.Load())
}

func wireEarlyHints(t *testing.T, p wireProtocol) {
	const link = "</style.css>; rel=preload; as=style"
	hinted := make(chan struct{})
	var runs atomic.Int32
	w := p.start(t, idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		runs.Add(1)
		w.Header().Set("Link", link)
		w.WriteHeader(http.StatusEarlyHints)
		select {
		case <-hinted: // They are there before the response is.
		case <-t.Context().Done():
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		io.WriteString(w, `{"payment":1}`)
	})))
	var hints []string
	request := func() *http.Request {
		r := w.request(t, "k", strings.NewReader("amount=100"))
		return r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
			Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
				hints = append(hints, fmt.Sprint(code, " ", header.Get("Link")))
				close(hinted) // A second one would panic.
				return nil
			},
		}))
	}
	first := w.mustSend(t, request())
	require.Equal(t, http.StatusCreated, first.status)
	require.Equal(t, []string{"103 " + link}, hints)
	again := w.mustSend(t, request())
	requireReplayOf(t, first, again)
	require.Equal(t, link, again.header.Get("Link"))
	require.Len(t, hints, 1, "a replay comes at once and has no hints")
	require.EqualValues(t, 1, runs.Load())
}

func wireEvents(t *testing.T, p wireProtocol) {
	read := make(chan struct{}, 1)
	var runs atomic.Int32
	w := p.start(t, idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		runs.Add(1)
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, "data: 1\n\n")
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
		select {
		case <-read:
		case <-t.Context().Done():
		}
		io.WriteString(w, "data: 2\n\n")
	})))
	for range 2 { // It is not stored: a retry streams again.
		resp, err := w.client.Do(w.request(t, "k", strings.NewReader("amount=100")))
		require.NoError(t, err)
		defer resp.Body.Close()
		event := make([]byte, len("data: 1\n\n"))
		_, err = io.ReadFull(resp.Body, event)
		require.NoError(t, err)
		require.Equal(t, "data: 1\n\n", string(event))
		read <- struct{}{}
		rest, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Equal(t, "data: 2\n\n", string(rest))
		require.Empty(t, resp.Header.Get("Idempotent-Replayed"))
	}
	require.EqualValues(t, 2, runs.Load())
}

func wireTrailers(t *testing.T, p wireProtocol) {
	for name, handler := range map[string]http.HandlerFunc{
		"declared": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Trailer", "X-Sum")
			io.WriteString(w, `{"payment":1}`)
			w.Header().Set("X-Sum", "13")
		},
		"late": func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, `{"payment":1}`)
			w.Header().Set(http.TrailerPrefix+"X-Sum", "13")
		},
	} {
		t.Run(name, func(t *testing.T) {
			var runs atomic.Int32
			w := p.start(t, idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				runs.Add(1)
				w.Header().Set("Content-Type", "application/json")
				handler(w, r)
				// A body without a length is what an HTTP/1.1 trailer needs.
				http.NewResponseController(w).Flush()
			})))
			for n := range int32(2) {
				a := w.post(t, "k", "amount=100")
				require.Equal(t, `{"payment":1}`, a.body)
				require.Equal(t, http.Header{"X-Sum": {"13"}}, a.trailer)
				require.False(t, a.replayed())
				require.Equal(t, n+1, runs.Load())
			}
		})
	}
}

func wireSafeMethods(t *testing.T, p wireProtocol) {
	payments := &wirePayments{}
	observed := idempotency.WithObserver(func(_ context.Context, e idempotency.Event) {
		t.Error("observed: " + e.Request.Method)
	})
	w := p.start(t, idempotency.New(idempotency.NewMemory(), idempotency.WithRequired(), observed)(payments))
	for n, method := range []string{http.MethodGet, http.MethodGet, http.MethodHead, http.MethodHead} {
		r := w.request(t, "k", nil)
		r.Method = method
		a := w.mustSend(t, r)
		require.Equal(t, http.StatusCreated, a.status)
		require.False(t, a.replayed())
		require.Equal(t, fmt.Sprintf("/payments/%d", n+1), a.header.Get("Location"))
	}
	require.EqualValues(t, 4, payments.runs.Load())
}

func wireKeepAlive(t *testing.T, p wireProtocol) {
	w := p.start(t, idempotency.New(idempotency.NewMemory())(&wirePayments{}))
	conns := w.warm(t)
	first := w.post(t, "k", "amount=100")
	for range 5 {
		requireReplayOf(t, first, w.post(t, "k", "amount=100"))
		require.Equal(t, http.StatusUnprocessableEntity, w.post(t, "k", "amount=999").status)
		require.Equal(t, http.StatusUnprocessableEntity, w.post(t, `"no end`, "amount=100").status)
		get := w.request(t, "", nil)
		get.Method = http.MethodGet
		require.Equal(t, http.StatusCreated, w.mustSend(t, get).status)
	}
	require.Equal(t, conns, w.conns.Load(), "each answer leaves the connection usable")
}

func wireShutdown(t *testing.T, p wireProtocol) {
	payments := newHeldWirePayments(t)
	h := idempotency.New(idempotency.NewMemory())(payments)
	w := p.start(t, h)
	begun := make(chan struct{})
	w.server.Config.RegisterOnShutdown(func() { close(begun) })
	answers := make(chan wireAnswer, 1)
	r := w.request(t, "k", strings.NewReader("amount=100"))
	go func() {
		a, _ := w.send(r)
		answers <- a
	}()
	await(t, payments.running, "the handler")

	down := make(chan error, 1)
	go func() { down <- w.server.Config.Shutdown(wireContext(t)) }()
	await(t, begun, "the shutdown to begin")
	select {
	case err := <-down:
		require.FailNow(t, "the shutdown did not wait", err)
	default:
	}
	close(payments.finish)
	first := await(t, answers, "the answer")
	require.Equal(t, http.StatusCreated, first.status)
	require.NoError(t, await(t, down, "the shutdown"))
	requireWireReplay(t, h)
}

// requireWireReplay checks, without the server, that a response was stored.
func requireWireReplay(t *testing.T, h http.Handler) {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, "/payments?currency=EUR", strings.NewReader("amount=100"))
	r.Header.Set("Idempotency-Key", "k")
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	require.Equal(t, "true", rec.Header().Get("Idempotent-Replayed"))
	require.Equal(t, `{"payment":1}`, rec.Body.String())
}

// wireShutdownAfterHangUp has a handler that goes on after its client went away.
// Over HTTP/2 such a stream is over for net/http, whose Shutdown does not wait
// for its handler: a server that must not cut one short counts its requests.
func wireShutdownAfterHangUp(t *testing.T, p wireProtocol) {
	payments := newHeldWirePayments(t)
	h := idempotency.New(idempotency.NewMemory())(payments)
	var serving sync.WaitGroup
	w := p.start(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		serving.Add(1)
		defer serving.Done()
		h.ServeHTTP(w, r)
	}))
	ctx, hangUp := context.WithCancel(wireContext(t))
	r := w.request(t, "k", strings.NewReader("amount=100")).WithContext(ctx)
	go func() { _, _ = w.send(r) }()
	outside := await(t, w.begun, "the request")
	await(t, payments.running, "the handler")
	hangUp()
	await(t, outside.Done(), "the server to see that the client is gone")

	down := make(chan error, 1)
	go func() {
		err := w.server.Config.Shutdown(wireContext(t))
		serving.Wait()
		down <- err
	}()
	close(payments.finish)
	require.NoError(t, await(t, down, "the shutdown"))
	requireWireReplay(t, h)
}
