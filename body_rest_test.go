package idempotency_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

// sum is a handler that reads a body and answers with its length, or as failed does.
type sum struct{ failed http.Handler }

func (s sum) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		s.failed.ServeHTTP(w, r)
		return
	}
	jsonHeader(w)
	fmt.Fprint(w, len(body))
}

// What a handler answers to a body whose rest breaks off is sent and not stored: the
// correct retry must not get it.
func TestRestBreaksOff(t *testing.T) {
	const sent = "0123456789"
	whole := func() *http.Request { return request("k", sent) }
	of := func(body io.Reader) *http.Request {
		r := whole()
		r.Body = io.NopCloser(body)
		return r
	}
	long := idempotency.WithBufferLimit(4)
	first := io.LimitReader(strings.NewReader(sent), 6)
	refusal := script{asJSON, code(400), says(`{"error":"body"}`)}
	tests := map[string]struct {
		broken *http.Request
		opts   []idempotency.Option
		failed script
		status int
	}{
		"the connection is gone":    {of(io.MultiReader(strings.NewReader(sent[:6]), iotest.ErrReader(io.ErrUnexpectedEOF))), nil, refusal, 400},
		"it ends before its length": {of(first), nil, nil, 200},
		"larger than allowed":       {of(http.MaxBytesReader(nil, io.NopCloser(strings.NewReader(sent)), 6)), nil, refusal, 400},
		"nothing was compared":      {of(iotest.ErrReader(io.ErrUnexpectedEOF)), with(idempotency.WithFingerprint(nil)), refusal, 400},
		"a success":                 {of(iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader(sent)))), with(idempotency.WithFingerprint(nil)), script{says("{}")}, 200},
		"flushed":                   {of(iotest.ErrReader(io.ErrUnexpectedEOF)), with(idempotency.WithFingerprint(nil)), script{asJSON, says("{"), flush, says("}")}, 200},
		"every type is stored":      {of(iotest.ErrReader(io.ErrUnexpectedEOF)), with(every, idempotency.WithFingerprint(nil)), script{code(400)}, 400},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			es, backend := &events{}, newCounted(never)
			h := idempotency.New(backend, append(tt.opts, long, es.option(), jsonLog(&log))...)(sum{tt.failed})
			require.Equal(t, tt.status, send(h, tt.broken).Code)
			e, _ := es.last(t)
			require.Equal(t, idempotency.NotStored, e.Outcome)
			require.Equal(t, idempotency.ReasonRequestBody, e.Reason)
			require.Equal(t, tt.status, e.Status)
			require.Equal(t, []string{"request_body "}, warnings(t, &log))
			require.EqualValues(t, 1, backend.releases.Load())

			require.Equal(t, "10", send(h, whole()).Body.String())
			requireReplayed(t, send(h, whole()), "10")
		})
	}
}

// The reason is known from when the body breaks off: an answer that was begun before
// streams from then on.
func TestRestBreaksOffAfterTheHeader(t *testing.T) {
	es := &events{}
	h := idempotency.New(idempotency.NewMemory(), es.option(), quiet, idempotency.WithBufferLimit(1))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		jsonHeader(w)
		io.WriteString(w, "[")
		_, err := io.ReadAll(r.Body)
		require.Error(t, err)
		w.(http.Flusher).Flush()
		require.True(t, w.(interface{ Unwrap() http.ResponseWriter }).Unwrap().(*httptest.ResponseRecorder).Flushed)
		io.WriteString(w, "]")
	}))
	r := request("k", "")
	r.Body = io.NopCloser(io.MultiReader(strings.NewReader("12"), iotest.ErrReader(io.ErrUnexpectedEOF)))
	require.Equal(t, "[]", send(h, r).Body.String())
	e, _ := es.last(t)
	require.Equal(t, idempotency.ReasonRequestBody, e.Reason)
}

// A body that the handler has closed, or stops reading, has not broken off.
func TestRestIsNotRead(t *testing.T) {
	for name, use := range map[string]func(r *http.Request){
		"nothing": func(*http.Request) {},
		"closed": func(r *http.Request) {
			require.NoError(t, r.Body.Close())
			_, err := io.ReadAll(r.Body)
			require.Error(t, err)
		},
		"a limit of the handler's own": func(r *http.Request) {
			_, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, 2))
			require.Error(t, err)
		},
	} {
		for _, http2 := range []bool{false, true} {
			es := &events{}
			server := httptest.NewUnstartedServer(idempotency.New(idempotency.NewMemory(), es.option(), idempotency.WithBufferLimit(2))(
				http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					use(r)
					io.WriteString(w, "{}")
				})))
			server.EnableHTTP2 = http2
			server.StartTLS()
			r, err := http.NewRequest(http.MethodPost, server.URL, strings.NewReader("body"))
			require.NoError(t, err)
			r.Header.Set("Idempotency-Key", "k")
			resp, err := server.Client().Do(r)
			require.NoError(t, err)
			resp.Body.Close()
			server.Close() // It waits for the observer.
			e, _ := es.last(t)
			require.Equal(t, idempotency.Stored, e.Outcome, "%s, %s: %s", resp.Proto, name, e.Reason)
		}
	}
}

// The key is freed, or interrupted, as the mode has it. NoStore alone frees it.
func TestRestBreaksOffInEachMode(t *testing.T) {
	broken := func() *http.Request {
		r := request("k", "body")
		r.Body = io.NopCloser(io.MultiReader(strings.NewReader("bo"), iotest.ErrReader(io.ErrUnexpectedEOF)))
		return r
	}
	refusal, success := script{asJSON, code(400), says("{}")}, script{asJSON, code(201), says("{}")}
	tests := map[string]struct {
		backend       idempotency.Backend
		opts          []idempotency.Option
		failed        script
		reason        idempotency.Reason
		status, retry int
	}{
		"again":                   {newCounted(never), nil, refusal, idempotency.ReasonRequestBody, 400, 200},
		"at most once":            {newCounted(never), with(idempotency.WithAtMostOnce()), refusal, idempotency.ReasonRequestBody, 400, 409},
		"at most once, NoStore":   {newCounted(never), with(idempotency.WithAtMostOnce()), append(script{noStore}, refusal...), idempotency.ReasonNoStore, 400, 200},
		"a Transactor":            {newLedger(never), nil, refusal, idempotency.ReasonRequestBody, 400, 200},
		"a Transactor, a success": {newLedger(never), nil, success, idempotency.ReasonRequestBody, 500, 200},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			es := &events{}
			h := idempotency.New(tt.backend, append(tt.opts, es.option(), quiet, idempotency.WithBufferLimit(1))...)(sum{tt.failed})
			require.Equal(t, tt.status, send(h, broken()).Code)
			e, _ := es.last(t)
			require.Equal(t, idempotency.NotStored, e.Outcome)
			require.Equal(t, tt.reason, e.Reason)
			require.Equal(t, tt.retry, send(h, request("k", "body")).Code)
		})
	}
}

// A client that hangs up in the middle of a body over the limit leaves no answer
// behind, and a server's limit neither.
func TestRestBreaksOffOnAConnection(t *testing.T) {
	observed := make(chan idempotency.Event, 3)
	h := idempotency.New(idempotency.NewMemory(), quiet, idempotency.WithBufferLimit(8),
		idempotency.WithObserver(func(_ context.Context, e idempotency.Event) { observed <- e }))(sum{script{asJSON, code(400), says("{}")}})
	for _, http2 := range []bool{false, true} {
		server := httptest.NewUnstartedServer(http.MaxBytesHandler(h, 100))
		server.EnableHTTP2 = http2
		server.StartTLS()
		defer server.Close()
		post := func(body io.Reader) (*http.Response, error) {
			r, err := http.NewRequest(http.MethodPost, server.URL, body)
			require.NoError(t, err)
			r.ContentLength = 50
			r.Header.Set("Idempotency-Key", fmt.Sprint("hung-up-", http2))
			return server.Client().Do(r)
		}
		_, err := post(io.MultiReader(strings.NewReader(strings.Repeat("x", 20)), iotest.ErrReader(io.ErrUnexpectedEOF)))
		require.Error(t, err)
		require.Equal(t, idempotency.ReasonRequestBody, (<-observed).Reason)
		resp, err := post(strings.NewReader(strings.Repeat("x", 50)))
		require.NoError(t, err)
		resp.Body.Close()
		require.Equal(t, idempotency.Stored, (<-observed).Outcome)

		r, err := http.NewRequest(http.MethodPost, server.URL, strings.NewReader(strings.Repeat("x", 101)))
		require.NoError(t, err)
		r.Header.Set("Idempotency-Key", fmt.Sprint("too-large-", http2))
		resp, err = server.Client().Do(r)
		require.NoError(t, err)
		resp.Body.Close()
		require.Equal(t, idempotency.ReasonRequestBody, (<-observed).Reason)
	}
}

// A body over the limit whose beginning was read outside is noticed by a handler that reads it to its end.
func TestRestOfABodyReadOutside(t *testing.T) {
	tests := map[string]struct {
		eaten  int64
		reads  bool
		reason idempotency.Reason
	}{
		"whole":             {0, true, ""},
		"in part":           {1, true, idempotency.ReasonRequestBody},
		"all that is over":  {5, true, idempotency.ReasonRequestBody},
		"in part, not read": {1, false, ""},
	}
	for name, tt := range tests {
		for _, http2 := range []bool{false, true} {
			observed := make(chan idempotency.Event, 1)
			h := idempotency.New(idempotency.NewMemory(), quiet, limit(4),
				idempotency.WithObserver(func(_ context.Context, e idempotency.Event) { observed <- e }))(
				http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if tt.reads {
						_, _ = io.Copy(io.Discard, r.Body)
					}
					io.WriteString(w, "{}")
				}))
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.CopyN(io.Discard, r.Body, tt.eaten)
				h.ServeHTTP(w, r)
			}))
			server.EnableHTTP2 = http2
			server.StartTLS()
			defer server.Close()
			r, err := http.NewRequest(http.MethodPost, server.URL, strings.NewReader("0123456789"))
			require.NoError(t, err)
			r.Header.Set("Idempotency-Key", "k")
			resp, err := server.Client().Do(r)
			require.NoError(t, err)
			resp.Body.Close()
			require.Equal(t, tt.reason, (<-observed).Reason, "%s, HTTP/2: %t", name, http2)
		}
	}
}

// Trailers reach the handler as without the middleware, declared or not, whatever the
// length of the body.
func TestRequestTrailers(t *testing.T) {
	got := make(chan http.Header, 1)
	read := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err == nil && len(body) == 10 {
			got <- r.Trailer.Clone()
		}
	})
	for name, h := range map[string]http.Handler{
		"bare":            read,
		"within":          idempotency.New(idempotency.NewMemory(), quiet)(read),
		"over the limit":  idempotency.New(idempotency.NewMemory(), quiet, idempotency.WithBufferLimit(4))(read),
		"not compared":    idempotency.New(idempotency.NewMemory(), quiet, idempotency.WithFingerprint(nil))(read),
		"one in another":  idempotency.New(idempotency.NewMemory(), quiet, limit(4))(idempotency.New(idempotency.NewMemory(), quiet, limit(4), idempotency.WithHeader("X-Key"))(read)),
		"one steps aside": idempotency.New(idempotency.NewMemory(), quiet, limit(4))(idempotency.New(idempotency.NewMemory(), quiet, limit(4))(read)),
	} {
		for declared, header := range map[string]string{"declared": "Trailer: X-Sum\r\n", "undeclared": ""} {
			t.Run(name+", "+declared, func(t *testing.T) {
				server := httptest.NewServer(h)
				defer server.Close()
				conn, err := net.Dial("tcp", server.Listener.Addr().String())
				require.NoError(t, err)
				defer conn.Close()
				_, err = io.WriteString(conn, "POST / HTTP/1.1\r\nHost: x\r\nIdempotency-Key: "+declared+"\r\nX-Key: k"+declared+"\r\nTransfer-Encoding: chunked\r\n"+header+
					"\r\na\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n")
				require.NoError(t, err)
				resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
				require.NoError(t, err)
				resp.Body.Close()
				require.Equal(t, http.Header{"X-Sum": {"1"}}, <-got)
			})
		}
		t.Run(name+", HTTP/2", func(t *testing.T) { // It has only those that are declared.
			server := httptest.NewUnstartedServer(h)
			server.EnableHTTP2 = true
			server.StartTLS()
			defer server.Close()
			r, err := http.NewRequest(http.MethodPost, server.URL, io.MultiReader(strings.NewReader("0123456789")))
			require.NoError(t, err)
			r.Header.Set("Idempotency-Key", "http2")
			r.Trailer = http.Header{"X-Sum": {"1"}}
			resp, err := server.Client().Do(r)
			require.NoError(t, err)
			resp.Body.Close()
			require.Equal(t, 2, resp.ProtoMajor)
			require.Equal(t, http.Header{"X-Sum": {"1"}}, <-got)
		})
	}
}
