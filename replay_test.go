package idempotency_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

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

// TestReplayIsItsOwn shows that what outside does to a replay stays there.
func TestReplayIsItsOwn(t *testing.T) {
	h := idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Link"] = []string{"a", "b"}
		w.Header()["X-Empty"] = []string{}
		w.Header()["X-Last"] = []string{"z"}
		io.WriteString(w, "{}")
	}))
	for range 3 {
		header := send(h, request("k", "b")).Header()
		require.Equal(t, []string{"a", "b"}, header["Link"])
		before := header.Clone()
		header["Link"][0] = "changed outside"
		for name := range header {
			header[name] = append(header[name], "added outside")
		}
		for name, values := range header {
			require.Equal(t, append(before[name], "added outside")[1:], values[1:], "what was added to one is in another")
			if name != "Link" {
				require.Equal(t, append(before[name], "added outside")[0], values[0], "what was added to one is in another")
			}
		}
	}
}

func TestExpiry(t *testing.T) {
	tests := map[string]struct {
		opts     []idempotency.Option
		replayed time.Duration // still
		over     time.Duration // 0 is never
	}{
		"default":  {nil, 24*time.Hour - 1, 24 * time.Hour},
		"a minute": {[]idempotency.Option{idempotency.WithExpiry(time.Minute)}, time.Minute - 1, time.Minute},
		"for ever": {[]idempotency.Option{idempotency.WithExpiry(0)}, 100 * 365 * 24 * time.Hour, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &payments{}
				h := idempotency.New(idempotency.NewMemory(), tt.opts...)(p)
				send(h, request("k", "b"))
				time.Sleep(tt.replayed)
				require.Equal(t, "true", send(h, request("k", "b")).Header().Get("Idempotent-Replayed"))
				if tt.over > 0 {
					time.Sleep(tt.over - tt.replayed)
					require.Equal(t, `{"payment":2}`, send(h, request("k", "b")).Body.String())
				}
			})
		})
	}
}

// forged is a response that no handler of the middleware's can have stored.
func forged(t *testing.T, backend idempotency.Backend, opts ...idempotency.Option) {
	t.Helper()
	claim := claimSent(request("k", "b"), opts...)
	header := http.Header{
		"Content-Type": {"application/json"}, "Set-Cookie": {"session=another's"}, "set-cookie": {"c=3"}, "Trailer": {"X-Sum"}, "connection": {"close"},
		"Idempotent-Replayed": {"false", "no"}, "X-Kept": {"1"},
	}
	for name := range hopByHop {
		header[name] = []string{"forged"}
	}
	response := responseBytes(t, idempotency.Response{Status: 200, Header: header, Body: []byte("{}")})
	mustClaim(t, backend, keyOf("k"), claim, lease(time.Hour))
	require.NoError(t, backend.Complete(t.Context(), keyOf("k"), claim, response, time.Hour))
}

// A replay sends nothing of what is never stored, whatever the store holds.
func TestReplayOfAForgedRecord(t *testing.T) {
	cookies := idempotency.WithHeaderFilter(func(name string) bool { return name != "X-Kept" })
	forEachBackend(t, func(t *testing.T, newBackend func(*testing.T) idempotency.Backend) {
		for name, tt := range map[string]struct {
			opts []idempotency.Option
			want http.Header
		}{
			"default":         {nil, http.Header{"X-Kept": {"1"}}},
			"with the filter": {with(cookies), http.Header{"Set-Cookie": {"session=another's"}, "set-cookie": {"c=3"}}},
		} {
			t.Run(name, func(t *testing.T) {
				backend := newBackend(t)
				forged(t, backend, tt.opts...)
				w := send(idempotency.New(backend, tt.opts...)(&payments{}), request("k", "b"))
				requireReplayed(t, w, "{}")
				tt.want["Content-Type"], tt.want["Content-Length"] = []string{"application/json"}, []string{"2"}
				tt.want["Idempotent-Replayed"] = []string{"true"}
				require.Equal(t, tt.want, w.Header())
			})
		}
	})
}

// A record is replayed whose status has no body, with or without one in the store.
func TestReplayWithoutBody(t *testing.T) {
	for _, status := range []int{http.StatusNoContent, http.StatusNotModified} {
		h := idempotency.New(idempotency.NewMemory(), every)(script{set("X-A", "1"), code(status)})
		for _, replayed := range []string{"", "true"} {
			w := send(h, request("k", "b"))
			require.Equal(t, status, w.Code)
			require.Empty(t, w.Body.String())
			require.NotContains(t, w.Header(), "Content-Length")
			require.Equal(t, replayed, w.Header().Get("Idempotent-Replayed"))
		}
	}
}

// A backend's slices are read-only: a replay leaves them as they are.
func TestReplayLeavesTheRecordAlone(t *testing.T) {
	backend := newHooked()
	h := idempotency.New(backend)(&payments{})
	send(h, request("k", "b"))
	before := slices.Clone(lookup(t, backend, "k").Response)
	for range 2 {
		w := httptest.NewRecorder()
		h.ServeHTTP(appender{w}, request("k", "b"))
		requireReplayed(t, w, `{"payment":1}`)
	}
	require.Equal(t, before, lookup(t, backend, "k").Response)
}

// appender appends to what is written to it, as some middleware outside does.
type appender struct{ *httptest.ResponseRecorder }

func (a appender) Write(p []byte) (int, error) {
	n, err := a.ResponseRecorder.Write(p)
	appendTo(p)
	return n, err
}

func appendTo(p []byte) { _ = append(p, "outside"...) }

// With "*" a response is stored as the handler has encoded it, and both answers are
// the same bytes of the same length. No type is made up for bytes that are encoded.
func TestEncodedResponse(t *testing.T) {
	const encoded = "\x1f\x8b not really gzip"
	p := &payments{}
	h := idempotency.New(idempotency.NewMemory(), idempotency.WithContentTypes("*"), quiet)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.runs.Add(1)
		w.Header().Set("Content-Encoding", "gzip")
		io.WriteString(w, encoded)
	}))
	for _, replayed := range []string{"", "true"} {
		w := send(h, request("k", "b"))
		require.Equal(t, encoded, w.Body.String())
		require.Equal(t, "gzip", w.Header().Get("Content-Encoding"))
		require.Equal(t, strconv.Itoa(len(encoded)), w.Header().Get("Content-Length"))
		require.Equal(t, replayed, w.Header().Get("Idempotent-Replayed"))
	}
	require.EqualValues(t, 1, p.runs.Load())
}
