package idempotency_test

import (
	"net/http"
	"testing"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

// An operator reads what a client got, from every backend.
func TestOpen(t *testing.T) {
	forEachBackend(t, func(t *testing.T, newBackend func(t *testing.T) idempotency.Backend) {
		backend := newBackend(t)
		h := idempotency.New(backend)(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Add("Link", "</a>")
			w.Header().Add("Link", "</b>")
			w.WriteHeader(http.StatusCreated)
			w.Write([]byte(`{"payment":1}`))
		}))
		send(h, request("k", "b"))
		rec, _, ok, err := backend.(idempotency.Inspector).Lookup(t.Context(), keyOf("k"))
		require.NoError(t, err)
		require.True(t, ok)
		response, err := rec.Open("", "k")
		require.NoError(t, err)
		require.Equal(t, &idempotency.Response{
			Status: http.StatusCreated,
			Header: http.Header{"Content-Type": {"application/json"}, "Link": {"</a>", "</b>"}},
			Body:   []byte(`{"payment":1}`),
		}, response)
		response.Body[0] = '[' // It is the caller's own.
		again, err := rec.Open("", "k", []byte("a secret that is of no use here"))
		require.NoError(t, err)
		require.Equal(t, `{"payment":1}`, string(again.Body))
	})
}

func TestOpenUnreadable(t *testing.T) {
	whole, err := idempotency.Response{Status: http.StatusOK, Body: []byte("{}")}.MarshalBinary()
	require.NoError(t, err)
	otherVersion := append([]byte{0xFF}, whole[1:]...)
	for name, rec := range map[string]idempotency.Record{
		"none":               {},
		"outstanding":        {State: idempotency.StateOutstanding},
		"interrupted":        {State: idempotency.StateInterrupted, Progress: []byte("p")},
		"without a response": {State: idempotency.StateCompleted},
		"cut":                {State: idempotency.StateCompleted, Response: whole[:len(whole)-1]},
		"lengthened":         {State: idempotency.StateCompleted, Response: append(whole[:len(whole):len(whole)], 0)},
		"of another version": {State: idempotency.StateCompleted, Response: otherVersion},
		// No backend makes it, and it tells of no response.
		"outstanding with a response": {State: idempotency.StateOutstanding, Response: whole},
	} {
		t.Run(name, func(t *testing.T) {
			response, err := rec.Open("", "k")
			require.ErrorIs(t, err, idempotency.ErrUnreadable)
			require.Nil(t, response)
		})
	}
}
