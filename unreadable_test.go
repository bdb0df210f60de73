package idempotency_test

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// everyMode has the modes and settings in which a record may be met.
var everyMode = map[string][]idempotency.Option{
	"again":               nil,
	"at most once":        with(idempotency.WithAtMostOnce()),
	"fail open":           with(idempotency.WithFailOpen()),
	"wait":                with(idempotency.WithWait(time.Hour)),
	"without fingerprint": with(idempotency.WithFingerprint(nil)),
	"every type":          with(idempotency.WithContentTypes("*")),
}

// requireUnreadableRecord sends a request for a key whose record cannot be read.
func requireUnreadableRecord(t *testing.T, backend idempotency.Backend, opts ...idempotency.Option) {
	t.Helper()
	var log bytes.Buffer
	es, p := &events{}, &payments{}
	outside := httptest.NewRecorder()
	outside.Header().Set("X-Request-Id", "1")
	h := idempotency.New(backend, append(opts, es.option(), logInto(&log))...)(p)
	h.ServeHTTP(outside, request("k", "b"))
	requireProblem(t, outside, http.StatusServiceUnavailable, "ErrUnreadable")
	require.NotContains(t, outside.Header(), "Retry-After", "a retry does not help")
	delete(outside.Header(), "Content-Length")
	require.Equal(t, http.Header{"X-Request-Id": {"1"}, "Content-Type": {"application/problem+json"}, "X-Should-Retry": {"false"}}, outside.Header(), "nothing of the record is shown")
	require.Zero(t, p.runs.Load())
	require.Contains(t, log.String(), "record not readable")
	require.Contains(t, log.String(), idempotency.NewKey("", "k").String())
	e, n := es.last(t)
	require.Equal(t, 1, n)
	require.Equal(t, idempotency.Failed, e.Outcome)
	require.Equal(t, http.StatusServiceUnavailable, e.Status)
	require.ErrorIs(t, e.Err, idempotency.ErrUnreadable)
	require.NotErrorIs(t, e.Err, idempotency.ErrUnavailable)
}

// TestUnreadableResponse has a completed record whose response is damaged.
func TestUnreadableResponse(t *testing.T) {
	whole := responseBytes(t, idempotency.Response{Status: 201, Header: http.Header{"Location": {"/payments/1"}}, Body: []byte(`{"payment":1}`)})
	version := slices.Clone(whole)
	version[0]++
	low := responseBytes(t, idempotency.Response{Status: 200})
	for i := range low {
		if i > 4 && low[i] == 0xc8 { // 200 is 0xc8 0x01 in a uvarint.
			low[i], low[i+1] = 0xc7, 0x01
			break
		}
	}
	damaged := map[string][]byte{
		"empty": {}, "nil": nil, "garbage": []byte("an answer that somebody else stored"), "of another version": version,
		"cut": whole[:len(whole)-1], "cut in its head": whole[:8], "lengthened": append(slices.Clone(whole), '}'), "with status 199": low,
	}
	for mode, opts := range everyMode {
		for name, response := range damaged {
			t.Run(mode+", "+name, func(t *testing.T) {
				backend := newCounted(never)
				claim := claimSent(request("k", "b"), opts...)
				require.NoError(t, backend.Memory.Complete(t.Context(), keyOf("k"), claim, response, time.Hour))
				before := lookup(t, backend, "k")
				releases := backend.releases.Load()
				requireUnreadableRecord(t, backend, opts...)
				require.Equal(t, before, lookup(t, backend, "k"))
				require.Equal(t, releases, backend.releases.Load(), "nothing is released")
			})
		}
	}
}

// TestUnreadableRecord has a record in Redis that the backend itself cannot read.
func TestUnreadableRecord(t *testing.T) {
	forEachRedis(t, func(t *testing.T, newClient func(t *testing.T) *redis.Client) {
		for mode, opts := range everyMode {
			for _, value := range []string{"", "garbage", "\xff\x00\x01"} {
				t.Run(mode+", "+value, func(t *testing.T) {
					client := newClient(t)
					prefix := freshPrefix(t, client)
					name := prefix + keyOf("k").String()
					require.NoError(t, client.Set(t.Context(), name, value, time.Hour).Err())
					requireUnreadableRecord(t, idempotency.NewRedis(client, idempotency.WithPrefix(prefix)), opts...)
					got, err := client.Get(t.Context(), name).Result()
					require.NoError(t, err)
					require.Equal(t, value, got)
				})
			}
		}
	})
}

// A backend that cannot read a record says so in its own words.
func TestUnreadableInTheBackend(t *testing.T) {
	for mode, opts := range everyMode {
		t.Run(mode, func(t *testing.T) {
			backend := newCounted(never)
			backend.claim = func(context.Context, idempotency.Key, idempotency.Claim, idempotency.Terms) (idempotency.Record, bool, error) {
				return idempotency.Record{}, false, unreadableError{}
			}
			requireUnreadableRecord(t, backend, opts...)
			require.Zero(t, backend.releases.Load())
		})
	}
}

type unreadableError struct{}

func (unreadableError) Error() string { return "a third version" }
func (unreadableError) Unwrap() error { return idempotency.ErrUnreadable }
