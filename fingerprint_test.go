package idempotency_test

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

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
	own := idempotency.WithFingerprint(func(_ *http.Request, body []byte) []byte { return append([]byte("own "), body...) })
	const parts = "\x01k\x04POST\x09/payments\x00\x0ccurrency=EUR\x00"
	for name, tt := range map[string]struct {
		opts   []idempotency.Option
		hashed string
	}{
		"default":              {nil, parts + "\x00amount=100"},
		"cut":                  {with(limit(6)), parts + "\x01amount\x00\x00\x00\x00\x00\x00\x00\x0a"},
		"WithFingerprint":      {with(own), "\x01k\x00own amount=100"},
		"WithFingerprint, cut": {with(own, limit(6)), "\x01k\x01own amount"},
		"WithFingerprint, all": {with(own, limit(0)), "\x01k\x01own "},
	} {
		t.Run(name, func(t *testing.T) {
			sent := claimSent(request("k", "amount=100"), tt.opts...)
			require.Equal(t, sha256.Sum256([]byte(tt.hashed)), sent.Fingerprint)
			require.NotEqual(t, sent.Fingerprint, claimSent(request("another", "amount=100"), tt.opts...).Fingerprint,
				"what lies in a store tells nothing to one who does not know the key")
			require.Equal(t, sent.Fingerprint, claimSent(request(`"k"`, "amount=100"), tt.opts...).Fingerprint, "the other spelling")
		})
	}
	require.Zero(t, claimSent(request("k", "b"), idempotency.WithFingerprint(nil)).Fingerprint)
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
