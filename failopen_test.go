package idempotency_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"testing"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

func TestFailOpen(t *testing.T) {
	t.Run("runs the handler unprotected", func(t *testing.T) {
		backend := newCounted(always("claim"))
		es, runs := &events{}, 0
		leave := func() {}
		h := idempotency.New(backend, idempotency.WithFailOpen(), es.option(), quiet)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			runs++
			key, ok := idempotency.KeyFromContext(r.Context())
			require.True(t, ok)
			require.Equal(t, "k", key)
			require.NotEmpty(t, idempotency.DeriveKey(r.Context(), "charge"), "a call downstream still has its key")
			idempotency.NoStore(r.Context())
			body, err := io.ReadAll(r.Body)
			require.NoError(t, err)
			require.Equal(t, "b", string(body))
			w.WriteHeader(http.StatusAccepted)
			require.NoError(t, http.NewResponseController(w).Flush())
			leave()
			require.Error(t, r.Context().Err(), "its context is the client's, as without the middleware")
		}))
		for n := 1; n <= 2; n++ {
			ctx, cancel := context.WithCancel(t.Context())
			leave = cancel
			w := send(h, request("k", "b").WithContext(ctx))
			require.Equal(t, http.StatusAccepted, w.Code)
			require.True(t, w.Flushed)
			require.Equal(t, n, runs)
			require.EqualValues(t, n, backend.releases.Load())
			e, _ := es.last(t)
			require.Equal(t, idempotency.Unprotected, e.Outcome)
			require.Equal(t, http.StatusAccepted, e.Status)
			require.ErrorIs(t, e.Err, errDown)
		}
	})
	t.Run("a client that left is no fault of the backend", func(t *testing.T) {
		es, p := &events{}, &payments{}
		ctx, leave := context.WithCancel(t.Context())
		leave()
		var log bytes.Buffer
		h := idempotency.New(newCounted(never), idempotency.WithFailOpen(), es.option(), logInto(&log))(p)
		send(h, request("k", "b").WithContext(ctx))
		require.Empty(t, log.String())
		e, _ := es.last(t)
		require.Equal(t, idempotency.Stored, e.Outcome)
		require.NoError(t, e.Err)
		requireReplayed(t, send(h, request("k", "b")), `{"payment":1}`)
	})
	t.Run("a handler that writes nothing", func(t *testing.T) {
		es := &events{}
		h := idempotency.New(newCounted(always("claim")), idempotency.WithFailOpen(), es.option(), quiet)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		send(h, request("k", "b"))
		e, _ := es.last(t)
		require.Equal(t, http.StatusOK, e.Status)
	})
}
