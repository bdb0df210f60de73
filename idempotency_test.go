package idempotency_test

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// payments is a handler that counts its runs and answers each with its number.
type payments struct{ runs atomic.Int32 }

func (p *payments) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n := p.runs.Add(1)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Location", fmt.Sprintf("/payments/%d", n))
	w.WriteHeader(http.StatusCreated)
	fmt.Fprintf(w, `{"payment":%d}`, n)
}

// request returns a POST with a key ("" is none) and a body.
func request(key, body string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/payments?currency=EUR", strings.NewReader(body))
	if key != "" {
		r.Header.Set("Idempotency-Key", key)
	}
	return r
}

func send(h http.Handler, r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// requireProblem checks that a refusal is the problem of the sentinel named.
func requireProblem(t *testing.T, w *httptest.ResponseRecorder, status int, sentinel string) (detail string) {
	t.Helper()
	require.Equal(t, status, w.Code, w.Body)
	require.Equal(t, "application/problem+json", w.Header().Get("Content-Type"))
	var p struct {
		Type, Title, Detail string
		Status              int
	}
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &p))
	require.Equal(t, "https://pkg.go.dev/github.com/idempotency-go/idempotency#"+sentinel, p.Type)
	require.Equal(t, status, p.Status)
	require.NotEmpty(t, p.Title)
	require.NotEmpty(t, p.Detail)
	return p.Detail
}

// hooked is a Backend whose verbs a test can replace.
type hooked struct {
	idempotency.Backend
	claim    func(ctx context.Context, key string, claim idempotency.Claim, lease time.Duration) (idempotency.Record, bool, error)
	renew    func(ctx context.Context, key string, claim idempotency.Claim, lease time.Duration) error
	complete func(ctx context.Context, key string, claim idempotency.Claim, resp *idempotency.Response, expiry time.Duration) error
	release  func(ctx context.Context, key string, claim idempotency.Claim) error
}

func (b *hooked) Claim(ctx context.Context, key string, claim idempotency.Claim, lease time.Duration) (idempotency.Record, bool, error) {
	if b.claim != nil {
		return b.claim(ctx, key, claim, lease)
	}
	return b.Backend.Claim(ctx, key, claim, lease)
}

func (b *hooked) Renew(ctx context.Context, key string, claim idempotency.Claim, lease time.Duration) error {
	if b.renew != nil {
		return b.renew(ctx, key, claim, lease)
	}
	return b.Backend.Renew(ctx, key, claim, lease)
}

func (b *hooked) Complete(ctx context.Context, key string, claim idempotency.Claim, resp *idempotency.Response, expiry time.Duration) error {
	if b.complete != nil {
		return b.complete(ctx, key, claim, resp, expiry)
	}
	return b.Backend.Complete(ctx, key, claim, resp, expiry)
}

func (b *hooked) Release(ctx context.Context, key string, claim idempotency.Claim) error {
	if b.release != nil {
		return b.release(ctx, key, claim)
	}
	return b.Backend.Release(ctx, key, claim)
}

// events is an observer that keeps what it is told.
type events struct {
	mu  sync.Mutex
	all []idempotency.Event
}

func (es *events) option() idempotency.Option {
	return idempotency.WithObserver(func(_ context.Context, e idempotency.Event) {
		es.mu.Lock()
		defer es.mu.Unlock()
		es.all = append(es.all, e)
	})
}

// last returns the newest event and how many there were.
func (es *events) last(t *testing.T) (idempotency.Event, int) {
	t.Helper()
	es.mu.Lock()
	defer es.mu.Unlock()
	require.NotEmpty(t, es.all)
	return es.all[len(es.all)-1], len(es.all)
}

func TestRetryIsReplayed(t *testing.T) {
	forEachBackend(t, func(t *testing.T, newBackend func(*testing.T) idempotency.Backend) {
		p := &payments{}
		h := idempotency.New(newBackend(t))(p)

		first := send(h, request("k", "amount=1"))
		require.Equal(t, http.StatusCreated, first.Code)
		require.Equal(t, `{"payment":1}`, first.Body.String())
		require.NotContains(t, first.Header(), "Idempotent-Replayed")

		for range 3 {
			retry := send(h, request("k", "amount=1"))
			require.Equal(t, []string{"true"}, retry.Header()["Idempotent-Replayed"])
			retry.Header().Del("Idempotent-Replayed")
			require.Equal(t, first.Code, retry.Code)
			require.Equal(t, first.Header(), retry.Header())
			require.Equal(t, first.Body, retry.Body)
		}
		require.EqualValues(t, 1, p.runs.Load())

		require.Equal(t, `{"payment":2}`, send(h, request("another", "amount=1")).Body.String())
	})
}

func TestPassesUntouched(t *testing.T) {
	tests := map[string]struct {
		method string
		header http.Header
		opts   []idempotency.Option
	}{
		"no key":                       {http.MethodPost, http.Header{}, nil},
		"empty key":                    {http.MethodPost, http.Header{"Idempotency-Key": {""}}, nil},
		"blank key":                    {http.MethodPost, http.Header{"Idempotency-Key": {" \t"}}, nil},
		"another method":               {http.MethodPut, http.Header{"Idempotency-Key": {"k"}}, nil},
		"another method, required":     {http.MethodGet, http.Header{}, []idempotency.Option{idempotency.WithRequired()}},
		"another header":               {http.MethodPost, http.Header{"Idempotency-Key": {"k"}}, []idempotency.Option{idempotency.WithHeader("X-Key")}},
		"a method not in the new list": {http.MethodPost, http.Header{"Idempotency-Key": {"k"}}, []idempotency.Option{idempotency.WithMethods(http.MethodPut)}},
		"methods are case-sensitive":   {"post", http.Header{"Idempotency-Key": {"k"}}, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest(tt.method, "/", nil)
			r.Header = tt.header
			w := httptest.NewRecorder()
			runs := 0
			var es events
			backend := &hooked{Backend: idempotency.NewMemory(), claim: func(context.Context, string, idempotency.Claim, time.Duration) (idempotency.Record, bool, error) {
				t.Error("the backend was asked")
				return idempotency.Record{}, false, nil
			}}
			h := idempotency.New(backend, append(tt.opts, es.option())...)(http.HandlerFunc(func(gotW http.ResponseWriter, gotR *http.Request) {
				runs++
				require.Same(t, w, gotW)
				require.Same(t, r, gotR)
			}))
			h.ServeHTTP(w, r)
			require.Equal(t, 1, runs)
			require.Empty(t, es.all, "a request that passes is not observed")
		})
	}
}

func TestPassingAllocatesNothing(t *testing.T) {
	h := idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	w, r := httptest.NewRecorder(), request("", "")
	require.Zero(t, testing.AllocsPerRun(100, func() { h.ServeHTTP(w, r) }))
}

func TestRequired(t *testing.T) {
	p, es := &payments{}, &events{}
	h := idempotency.New(idempotency.NewMemory(), idempotency.WithRequired(), es.option(), idempotency.WithKeyValidator(func(key string) error {
		require.Equal(t, "k", key, "the validator is asked for keys only")
		return nil
	}))(p)

	detail := requireProblem(t, send(h, request("", "b")), http.StatusBadRequest, "ErrKeyMissing")
	require.Contains(t, detail, "Send the request with a key")
	e, n := es.last(t)
	require.Equal(t, 1, n)
	require.Equal(t, idempotency.Rejected, e.Outcome)
	require.Equal(t, http.StatusBadRequest, e.Status)
	require.ErrorIs(t, e.Err, idempotency.ErrKeyMissing)
	require.Zero(t, p.runs.Load())

	require.Equal(t, http.StatusCreated, send(h, request("k", "b")).Code)
}

func TestHeaderMethodsReplayHeader(t *testing.T) {
	p := &payments{}
	h := idempotency.New(idempotency.NewMemory(), idempotency.WithHeader("x-request-KEY"), idempotency.WithMethods("PUT", "MERGE"),
		idempotency.WithReplayHeader("x-again"))(p)
	for i, method := range []string{"PUT", "MERGE"} {
		for _, again := range []string{"", "true"} {
			r := httptest.NewRequest(method, "/", nil)
			r.Header.Set("X-Request-Key", "k"+method)
			w := send(h, r)
			require.Equal(t, fmt.Sprintf(`{"payment":%d}`, i+1), w.Body.String())
			require.Equal(t, again, w.Header().Get("X-Again"))
			require.Empty(t, w.Header().Get("Idempotent-Replayed"))
		}
	}
}

func TestKeyValidator(t *testing.T) {
	p, es := &payments{}, &events{}
	refused := errors.New("keys of this service begin with ord_")
	var asked []string
	h := idempotency.New(idempotency.NewMemory(), es.option(), idempotency.WithKeyValidator(func(key string) error {
		asked = append(asked, key)
		if strings.HasPrefix(key, "ord_") {
			return nil
		}
		return refused
	}))(p)

	detail := requireProblem(t, send(h, request(`"secret key"`, "b")), http.StatusUnprocessableEntity, "ErrKeyInvalid")
	require.Contains(t, detail, refused.Error())
	require.NotContains(t, detail, "secret")
	e, _ := es.last(t)
	require.Equal(t, idempotency.Rejected, e.Outcome)
	require.Equal(t, "secret key", e.Key)
	require.ErrorIs(t, e.Err, idempotency.ErrKeyInvalid)
	require.ErrorIs(t, e.Err, refused)

	requireProblem(t, send(h, request("caf\xc3\xa9", "b")), http.StatusUnprocessableEntity, "ErrKeyInvalid")
	require.Equal(t, http.StatusCreated, send(h, request("ord_1", "b")).Code)
	require.Equal(t, []string{"secret key", "ord_1"}, asked, "the validator sees what passed the built-in checks, unquoted")
}

func TestKeyReused(t *testing.T) {
	post := func(change func(r *http.Request)) *http.Request {
		r := request("k", "amount=1")
		change(r)
		return r
	}
	body := func(s string) func(r *http.Request) {
		return func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(s)), int64(len(s))
		}
	}
	others := map[string]func(r *http.Request){
		"method":          func(r *http.Request) { r.Method = http.MethodPatch },
		"path":            func(r *http.Request) { r.URL.Path = "/refunds" },
		"escaped path":    func(r *http.Request) { r.URL.RawPath = "%2Fpayments" },
		"query":           func(r *http.Request) { r.URL.RawQuery = "currency=USD" },
		"no query":        func(r *http.Request) { r.URL.RawQuery = "" },
		"body":            body("amount=2"),
		"longer body":     body("amount=10"),
		"shorter body":    body("amount="),
		"no body":         func(r *http.Request) { r.Body, r.ContentLength = http.NoBody, 0 },
		"nil body":        func(r *http.Request) { r.Body, r.ContentLength = nil, 0 },
		"query into path": func(r *http.Request) { r.URL.Path, r.URL.RawQuery = "/paymentscurrency=EUR", "" },
		"body into query": func(r *http.Request) { r.URL.RawQuery += "amount=1"; body("")(r) },
	}
	forEachBackend(t, func(t *testing.T, newBackend func(*testing.T) idempotency.Backend) {
		for name, change := range others {
			t.Run(name, func(t *testing.T) {
				p, es := &payments{}, &events{}
				h := idempotency.New(newBackend(t), es.option())(p)
				require.Equal(t, http.StatusCreated, send(h, post(func(*http.Request) {})).Code)

				w := send(h, post(change))
				requireProblem(t, w, http.StatusUnprocessableEntity, "ErrKeyReused")
				require.NotContains(t, w.Body.String(), "payment\"")
				require.Empty(t, w.Header().Get("Location"))
				e, _ := es.last(t)
				require.Equal(t, idempotency.Reused, e.Outcome)
				require.ErrorIs(t, e.Err, idempotency.ErrKeyReused)
				require.EqualValues(t, 1, p.runs.Load())

				require.Equal(t, "true", send(h, post(func(*http.Request) {})).Header().Get("Idempotent-Replayed"), "the record is as it was")
			})
		}
	})
}

// TestReusedOnAnotherRoute has two routes that look alike to the middleware.
func TestReusedOnAnotherRoute(t *testing.T) {
	h := idempotency.New(idempotency.NewMemory())(&payments{})
	mux := http.NewServeMux()
	mux.Handle("/charge/", http.StripPrefix("/charge", h))
	mux.Handle("/refund/", http.StripPrefix("/refund", h))
	on := func(path string) *http.Request {
		r := httptest.NewRequest(http.MethodPost, path, nil)
		r.Header.Set("Idempotency-Key", "k")
		return r
	}
	require.Equal(t, http.StatusCreated, send(mux, on("/charge/1")).Code)
	require.Equal(t, "true", send(mux, on("http://example.com/charge/1")).Header().Get("Idempotent-Replayed"), "the other form of the same target")
	queried := on("/charge/1")
	queried.RequestURI += "?removed=outside"
	require.Equal(t, "true", send(mux, queried).Header().Get("Idempotent-Replayed"), "the query counts as the handler sees it")
	requireProblem(t, send(mux, on("/refund/1")), http.StatusUnprocessableEntity, "ErrKeyReused")
}

func TestNoBufferLimit(t *testing.T) {
	h := idempotency.New(idempotency.NewMemory(), idempotency.WithBufferLimit(math.MaxInt))(&payments{})
	require.Equal(t, http.StatusCreated, send(h, request("k", "amount=1")).Code)
	requireProblem(t, send(h, request("k", "amount=1000")), http.StatusUnprocessableEntity, "ErrKeyReused")
}

func TestReusedWhileOutstanding(t *testing.T) {
	inside, leave := make(chan struct{}), make(chan struct{})
	h := idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(inside)
		<-leave
	}))
	done := make(chan struct{})
	go func() {
		defer close(done)
		send(h, request("k", "a"))
	}()
	<-inside
	requireProblem(t, send(h, request("k", "b")), http.StatusUnprocessableEntity, "ErrKeyReused")
	close(leave)
	<-done
}

func TestFingerprintFunc(t *testing.T) {
	t.Run("compares what it returns, and nothing else", func(t *testing.T) {
		p := &payments{}
		var bodies []string
		h := idempotency.New(idempotency.NewMemory(), idempotency.WithFingerprint(func(r *http.Request, body []byte) []byte {
			bodies = append(bodies, string(body))
			return []byte(r.URL.Query().Get("currency"))
		}))(p)
		require.Equal(t, http.StatusCreated, send(h, request("k", "one")).Code)
		require.Equal(t, "true", send(h, request("k", "two")).Header().Get("Idempotent-Replayed"))
		other := request("k", "one")
		other.URL.RawQuery = "currency=USD"
		requireProblem(t, send(h, other), http.StatusUnprocessableEntity, "ErrKeyReused")
		require.Equal(t, []string{"one", "two", "one"}, bodies)
	})
	t.Run("sees a long body up to the limit, and the handler sees all of it", func(t *testing.T) {
		var saw string
		h := idempotency.New(idempotency.NewMemory(), idempotency.WithBufferLimit(4), idempotency.WithFingerprint(func(_ *http.Request, body []byte) []byte {
			saw = string(body)
			return body
		}))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			require.NoError(t, err)
			require.Equal(t, "123456789", string(body))
		}))
		send(h, request("k", "123456789"))
		require.Equal(t, "1234", saw)
	})
	t.Run("nil compares nothing, nor with what was stored before", func(t *testing.T) {
		backend := idempotency.NewMemory()
		send(idempotency.New(backend)(&payments{}), request("k", "one"))
		w := send(idempotency.New(backend, idempotency.WithFingerprint(nil))(&payments{}), request("k", "two"))
		require.Equal(t, "true", w.Header().Get("Idempotent-Replayed"))
	})
	t.Run("nil compares nothing and leaves the body alone", func(t *testing.T) {
		p := &payments{}
		h := idempotency.New(idempotency.NewMemory(), idempotency.WithFingerprint(nil))(p)
		require.Equal(t, http.StatusCreated, send(h, request("k", "one")).Code)
		other := request("k", "two")
		other.Method, other.URL.Path = http.MethodPatch, "/other"
		other.Body = io.NopCloser(iotest.ErrReader(errors.New("the body was read")))
		require.Equal(t, "true", send(h, other).Header().Get("Idempotent-Replayed"))
	})
}

func TestBodyReachesHandlerWhole(t *testing.T) {
	const limit = 64
	readers := map[string]func(s string) io.Reader{
		"at once":            func(s string) io.Reader { return strings.NewReader(s) },
		"byte by byte":       func(s string) io.Reader { return iotest.OneByteReader(strings.NewReader(s)) },
		"EOF with the bytes": func(s string) io.Reader { return iotest.DataErrReader(strings.NewReader(s)) },
	}
	for name, reader := range readers {
		for _, n := range []int{0, 1, limit - 1, limit, limit + 1, 100 * limit} {
			for _, declared := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s/%d/declared=%t", name, n, declared), func(t *testing.T) {
					want := strings.Repeat("x", n)
					var closed atomic.Bool
					h := idempotency.New(idempotency.NewMemory(), idempotency.WithBufferLimit(limit))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						got, err := io.ReadAll(r.Body)
						require.NoError(t, err)
						require.Equal(t, want, string(got))
						require.NoError(t, r.Body.Close())
					}))
					r := request("k", "")
					r.Body = closer{reader(want), &closed}
					r.ContentLength = -1
					if declared {
						r.ContentLength = int64(n)
					}
					require.Equal(t, http.StatusOK, send(h, r).Code)
					require.True(t, closed.Load(), "Close reaches the body that came")
				})
			}
		}
	}
}

func TestClosedBodyIsNotRead(t *testing.T) {
	h := idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		require.NoError(t, r.Body.Close())
		read, err := io.ReadAll(r.Body)
		require.Empty(t, read)
		require.ErrorIs(t, err, http.ErrBodyReadAfterClose)
	}))
	server := httptest.NewServer(h)
	defer server.Close()
	r, err := http.NewRequest(http.MethodPost, server.URL, strings.NewReader("body"))
	require.NoError(t, err)
	r.Header.Set("Idempotency-Key", "k")
	resp, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode)
	resp.Body.Close()
}

// A handler that reads on after it has returned, as one inside
// http.TimeoutHandler may, neither takes half a body for a whole one nor sees the
// body of a later request.
func TestBodyIsNotReadAfterTheHandler(t *testing.T) {
	bodies := make(chan io.Reader, 1)
	h := idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		first := make([]byte, 1)
		_, err := io.ReadFull(r.Body, first)
		require.NoError(t, err)
		bodies <- r.Body
	}))
	for n := range 100 {
		send(h, request(fmt.Sprint(n), "body"))
		rest, err := io.ReadAll(<-bodies)
		require.Empty(t, rest)
		require.ErrorIs(t, err, http.ErrBodyReadAfterClose)
	}
}

// TestBodiesAreNotMixed is for the buffers that bodies share, one after another.
func TestBodiesAreNotMixed(t *testing.T) {
	echo := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.Copy(w, r.Body)
	})
	h := idempotency.New(idempotency.NewMemory())(echo)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for n := range 200 {
				key := fmt.Sprintf("%d-%d", g, n)
				body := `"` + strings.Repeat(key, 1+n) + `"`
				for range 2 {
					assert.Equal(t, body, send(h, request(key, body)).Body.String())
				}
			}
		})
	}
	wg.Wait()
}

// TestBodyIsClosedWhileItIsRead is for the race detector.
func TestBodyIsClosedWhileItIsRead(t *testing.T) {
	h := idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = io.ReadAll(iotest.OneByteReader(r.Body))
		}()
		require.NoError(t, r.Body.Close())
		<-done
	}))
	for n := range 100 {
		send(h, request(fmt.Sprint(n), "body"))
	}
}

func TestPatternIsToldOutside(t *testing.T) {
	mux := http.NewServeMux()
	mux.Handle("POST /payments", &payments{})
	es := &events{}
	h := idempotency.New(idempotency.NewMemory(), es.option())(mux)
	r := request("k", "b")
	send(h, r)
	require.Equal(t, "POST /payments", r.Pattern)
	e, _ := es.last(t)
	require.Equal(t, "POST /payments", e.Request.Pattern)
}

func TestDefaultBufferLimit(t *testing.T) {
	for size, status := range map[int]string{1 << 20: "true", 1<<20 + 1: ""} {
		h := idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, `"`+strings.Repeat("x", size-2)+`"`)
		}))
		send(h, request("k", "b"))
		require.Equal(t, status, send(h, request("k", "b")).Header().Get("Idempotent-Replayed"))
	}
}

type closer struct {
	io.Reader
	closed *atomic.Bool
}

func (c closer) Close() error { c.closed.Store(true); return nil }

func TestLongBodyFingerprint(t *testing.T) {
	const limit = 8
	chunked := func(r *http.Request) *http.Request { r.ContentLength = -1; return r }
	tests := map[string]struct {
		first, retry *http.Request
		same         bool
	}{
		"the same":                           {request("k", "12345678-rest"), request("k", "12345678-rest"), true},
		"another rest of the same length":    {request("k", "12345678-rest"), request("k", "12345678-REST"), true},
		"another length":                     {request("k", "12345678-rest"), request("k", "12345678-rests"), false},
		"other first bytes":                  {request("k", "12345678-rest"), request("k", "1234567x-rest"), false},
		"no declared length":                 {chunked(request("k", "12345678-rest")), chunked(request("k", "12345678-REST")), true},
		"a length declared once":             {request("k", "12345678-rest"), chunked(request("k", "12345678-rest")), false},
		"whole beside cut":                   {request("k", "12345678"), request("k", "123456789"), false},
		"whole beside cut, undeclared":       {request("k", "12345678"), chunked(request("k", "123456789")), false},
		"a length declared once, not cut":    {request("k", "12345678"), chunked(request("k", "12345678")), true},
		"a byte behind the limit, same size": {request("k", "123456789"), request("k", "12345678x"), true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			h := idempotency.New(idempotency.NewMemory(), idempotency.WithBufferLimit(limit))(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				io.WriteString(w, "{}")
			}))
			require.Equal(t, http.StatusOK, send(h, tt.first).Code)
			w := send(h, tt.retry)
			if tt.same {
				require.Equal(t, "true", w.Header().Get("Idempotent-Replayed"))
			} else {
				requireProblem(t, w, http.StatusUnprocessableEntity, "ErrKeyReused")
			}
		})
	}
}

// A fingerprint that appends to the body leaves what lies behind it alone.
func TestFingerprintThatAppends(t *testing.T) {
	h := idempotency.New(idempotency.NewMemory(), idempotency.WithBufferLimit(4), idempotency.WithFingerprint(func(_ *http.Request, body []byte) []byte {
		return append(body, "tenant"...)
	}))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		require.NoError(t, err)
		require.Equal(t, "0123456789", string(body))
	}))
	require.Equal(t, http.StatusOK, send(h, request("k", "0123456789")).Code)
}

// Stores hold fingerprints that other releases compare with.
func TestFingerprintIsStable(t *testing.T) {
	backend := &hooked{Backend: idempotency.NewMemory()}
	var got [32]byte
	backend.claim = func(ctx context.Context, key string, claim idempotency.Claim, lease time.Duration) (idempotency.Record, bool, error) {
		got = claim.Fingerprint
		return backend.Backend.Claim(ctx, key, claim, lease)
	}
	send(idempotency.New(backend)(&payments{}), request("k", "amount=100"))
	require.Equal(t, sha256.Sum256([]byte("\x04POST\x09/payments\x00\x0ccurrency=EUR\x00\x00amount=100")), got)
}

// A body that is cut at one limit is not another, which is whole at another limit.
func TestCutBodyIsNoWholeBody(t *testing.T) {
	backend := idempotency.NewMemory()
	empty := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "{}") })
	cut := request("k", "12345678-rest")
	whole := request("k", "12345678"+string(binary.BigEndian.AppendUint64(nil, uint64(cut.ContentLength))))
	require.Equal(t, http.StatusOK, send(idempotency.New(backend, idempotency.WithBufferLimit(8))(empty), cut).Code)
	requireProblem(t, send(idempotency.New(backend)(empty), whole), http.StatusUnprocessableEntity, "ErrKeyReused")
}

func TestBodyUnreadable(t *testing.T) {
	broken := errors.New("connection reset by peer")
	tests := map[string]struct {
		body   io.Reader
		status int
	}{
		"at its begin":        {iotest.ErrReader(broken), http.StatusBadRequest},
		"after some bytes":    {io.MultiReader(strings.NewReader("1234"), iotest.ErrReader(broken)), http.StatusBadRequest},
		"where the limit is":  {io.MultiReader(strings.NewReader("12345678"), iotest.ErrReader(broken)), http.StatusBadRequest},
		"larger than allowed": {http.MaxBytesReader(nil, io.NopCloser(strings.NewReader("1234567")), 6), http.StatusRequestEntityTooLarge},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p, es := &payments{}, &events{}
			backend := &hooked{Backend: idempotency.NewMemory()}
			backend.claim = func(context.Context, string, idempotency.Claim, time.Duration) (idempotency.Record, bool, error) {
				t.Error("the key was claimed")
				return idempotency.Record{}, false, nil
			}
			h := idempotency.New(backend, idempotency.WithBufferLimit(8), es.option())(p)
			r := request("k", "")
			r.Body = io.NopCloser(tt.body)
			w := send(h, r)
			require.NotContains(t, w.Body.String(), "reset by peer")
			requireProblem(t, w, tt.status, "ErrBodyUnreadable")
			require.Zero(t, p.runs.Load())
			e, _ := es.last(t)
			require.Equal(t, idempotency.Rejected, e.Outcome)
			require.Equal(t, tt.status, e.Status)
			require.ErrorIs(t, e.Err, idempotency.ErrBodyUnreadable)
		})
	}
}

func TestOneOfManyRuns(t *testing.T) {
	forEachBackend(t, func(t *testing.T, newBackend func(*testing.T) idempotency.Backend) {
		backend := newBackend(t)
		const clients, keys = 32, 8
		var runs [keys]atomic.Int32
		leave := make(chan struct{})
		newProcess := func() http.Handler {
			return idempotency.New(backend)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				key, _ := idempotency.KeyFromContext(r.Context())
				runs[key[0]-'0'].Add(1)
				<-leave
				w.Header().Set("Content-Type", "application/json")
				fmt.Fprintf(w, `{"key":%q}`, key)
			}))
		}
		processes := []http.Handler{newProcess(), newProcess()}
		var refused, all sync.WaitGroup
		refused.Add((clients - 1) * keys)
		for i := range clients * keys {
			all.Go(func() {
				key := fmt.Sprint(i % keys)
				w := send(processes[i%2], request(key, "b"))
				if w.Code == http.StatusOK {
					return
				}
				if w.Code == http.StatusConflict && w.Header().Get("Retry-After") == "1" {
					refused.Done()
					return
				}
				t.Errorf("answered %d %v", w.Code, w.Header())
			})
		}
		refused.Wait() // All but one of each key were refused while that one ran.
		close(leave)
		all.Wait()
		for key := range runs {
			require.EqualValues(t, 1, runs[key].Load())
			w := send(processes[0], request(fmt.Sprint(key), "b"))
			require.Equal(t, fmt.Sprintf(`{"key":"%d"}`, key), w.Body.String())
			require.Equal(t, "true", w.Header().Get("Idempotent-Replayed"))
		}
	})
}

func TestOutstanding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		es := &events{}
		h := idempotency.New(idempotency.NewMemory(), es.option())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Hour)
			(&payments{}).ServeHTTP(w, r)
		}))
		go send(h, request("k", "b"))
		synctest.Wait()
		for range 100 {
			time.Sleep(30 * time.Second)
			w := send(h, request("k", "b"))
			requireProblem(t, w, http.StatusConflict, "ErrOutstanding")
			require.Equal(t, "1", w.Header().Get("Retry-After"))
			e, _ := es.last(t)
			require.Equal(t, idempotency.Outstanding, e.Outcome)
			require.Zero(t, e.Duration, "refused at once")
		}
		time.Sleep(time.Hour)
		require.Equal(t, "true", send(h, request("k", "b")).Header().Get("Idempotent-Replayed"))
	})
}

func TestWait(t *testing.T) {
	slow := func(d time.Duration, store bool) (http.Handler, *payments) {
		p := &payments{}
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if p.runs.Load() == 0 {
				time.Sleep(d)
			}
			if !store && p.runs.Load() == 0 {
				idempotency.NoStore(r.Context())
			}
			p.ServeHTTP(w, r)
		}), p
	}
	tests := map[string]struct {
		takes, wait time.Duration
		store       bool
		want        string // the duplicate's answer
		after       time.Duration
	}{
		"replays what comes":                  {10 * time.Second, time.Minute, true, "replayed 1", 10 * time.Second},
		"runs if the first let go":            {10 * time.Second, time.Minute, false, "run 2", 10 * time.Second},
		"is refused when its time is over":    {2 * time.Minute, time.Minute, true, "409", time.Minute},
		"looks once more at the end":          {time.Minute - time.Millisecond, time.Minute, true, "replayed 1", time.Minute - time.Millisecond},
		"is refused at once without the wait": {time.Minute, 0, true, "409", 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				next, _ := slow(tt.takes, tt.store)
				h := idempotency.New(idempotency.NewMemory(), idempotency.WithWait(tt.wait))(next)
				go send(h, request("k", "b"))
				synctest.Wait()
				start := time.Now()
				w := send(h, request("k", "b"))
				waited := time.Since(start)
				switch {
				case w.Code == http.StatusConflict:
					requireProblem(t, w, http.StatusConflict, "ErrOutstanding")
					require.Equal(t, "409", tt.want)
				case w.Header().Get("Idempotent-Replayed") != "":
					require.Equal(t, tt.want, "replayed 1")
				default:
					require.Equal(t, tt.want, "run 2")
					require.Equal(t, `{"payment":2}`, w.Body.String())
				}
				require.GreaterOrEqual(t, waited, tt.after)
				require.LessOrEqual(t, waited, tt.after+300*time.Millisecond)
				time.Sleep(time.Hour)
			})
		})
	}

	t.Run("ends when the client leaves", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			next, p := slow(time.Minute, true)
			h := idempotency.New(idempotency.NewMemory(), idempotency.WithWait(time.Hour))(next)
			go send(h, request("k", "b"))
			synctest.Wait()
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			start := time.Now()
			requireProblem(t, send(h, request("k", "b").WithContext(ctx)), http.StatusConflict, "ErrOutstanding")
			require.Equal(t, 3*time.Second, time.Since(start))
			time.Sleep(time.Hour)
			require.EqualValues(t, 1, p.runs.Load())
		})
	})
	t.Run("another request does not wait", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			next, _ := slow(time.Minute, true)
			h := idempotency.New(idempotency.NewMemory(), idempotency.WithWait(time.Hour))(next)
			go send(h, request("k", "b"))
			synctest.Wait()
			start := time.Now()
			requireProblem(t, send(h, request("k", "other")), http.StatusUnprocessableEntity, "ErrKeyReused")
			require.Zero(t, time.Since(start))
			time.Sleep(time.Hour)
		})
	})
	t.Run("asks once for a key that is free", func(t *testing.T) {
		claims := 0
		memory := idempotency.NewMemory()
		backend := &hooked{Backend: memory, claim: func(ctx context.Context, key string, claim idempotency.Claim, lease time.Duration) (idempotency.Record, bool, error) {
			claims++
			return memory.Claim(ctx, key, claim, lease)
		}}
		h := idempotency.New(backend, idempotency.WithWait(time.Hour))(&payments{})
		send(h, request("k", "b"))
		send(h, request("k", "b"))
		send(h, request("k", "c"))
		require.Equal(t, 3, claims)
	})
	t.Run("a backend that fails meanwhile", func(t *testing.T) {
		for name, opts := range map[string][]idempotency.Option{"": nil, "without fingerprint": {idempotency.WithFingerprint(nil)}} {
			t.Run(name, func(t *testing.T) { waitWhileTheBackendFails(t, opts...) })
		}
	})
}

func waitWhileTheBackendFails(t *testing.T, opts ...idempotency.Option) {
	slowly := func(p *payments) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Minute)
			p.ServeHTTP(w, r)
		})
	}
	synctest.Test(t, func(t *testing.T) {
		memory, down := idempotency.NewMemory(), atomic.Bool{}
		backend := &hooked{Backend: memory, claim: func(ctx context.Context, key string, claim idempotency.Claim, lease time.Duration) (idempotency.Record, bool, error) {
			if down.Load() {
				return idempotency.Record{}, false, errDown
			}
			return memory.Claim(ctx, key, claim, lease)
		}}
		p := &payments{}
		h := idempotency.New(backend, append(opts, idempotency.WithWait(time.Hour), quiet)...)(slowly(p))
		go send(h, request("k", "b"))
		synctest.Wait()
		down.Store(true)
		start := time.Now()
		requireProblem(t, send(h, request("k", "b")), http.StatusServiceUnavailable, "ErrUnavailable")
		require.Less(t, time.Since(start), time.Second)
		time.Sleep(time.Hour)
		require.EqualValues(t, 1, p.runs.Load())
	})
}
