package idempotency_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

func TestErrorHandler(t *testing.T) {
	es := &events{}
	var got []error
	h := idempotency.New(idempotency.NewMemory(), es.option(), idempotency.WithErrorHandler(func(w http.ResponseWriter, r *http.Request, err error) {
		got = append(got, err)
		if errors.Is(err, idempotency.ErrKeyReused) {
			w.WriteHeader(http.StatusTeapot)
			return
		}
		idempotency.WriteError(w, r, err)
	}))(&payments{})
	send(h, request("k", "b"))
	require.Equal(t, http.StatusTeapot, send(h, request("k", "c")).Code)
	e, _ := es.last(t)
	require.Equal(t, http.StatusTeapot, e.Status)
	requireProblem(t, send(h, request(`"`, "c")), http.StatusUnprocessableEntity, "ErrKeyInvalid")
	require.Len(t, got, 2)
	require.ErrorIs(t, got[0], idempotency.ErrKeyReused)
	require.ErrorIs(t, got[1], idempotency.ErrKeyInvalid)
}

// Nothing written would be a 200.
func TestErrorHandlerThatWritesNothing(t *testing.T) {
	es := &events{}
	h := idempotency.New(idempotency.NewMemory(), idempotency.WithRequired(), es.option(),
		idempotency.WithErrorHandler(func(http.ResponseWriter, *http.Request, error) {}))(&payments{})
	requireProblem(t, send(h, request("", "b")), http.StatusBadRequest, "ErrKeyMissing")
	event, _ := es.last(t)
	require.Equal(t, http.StatusBadRequest, event.Status)
}

// What was added to one header of a refusal is not in another.
func TestRefusalIsItsOwn(t *testing.T) {
	h := idempotency.New(idempotency.NewMemory(), idempotency.WithErrorHandler(func(w http.ResponseWriter, r *http.Request, err error) {
		idempotency.WriteError(w, r, fmt.Errorf("again: %w", idempotency.ErrOutstanding))
	}))(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	for range 2 {
		w := send(h, request("\x00", ""))
		require.Equal(t, []string{"1"}, w.Header()["Retry-After"])
		require.Equal(t, []string{"application/problem+json"}, w.Header()["Content-Type"])
		require.Len(t, w.Header()["Content-Length"], 1)
		for _, name := range []string{"Retry-After", "Content-Type", "Content-Length"} {
			w.Header().Add(name, "added outside")
			w.Header()[name][0] += "changed outside"
		}
		for _, name := range []string{"Retry-After", "Content-Type", "Content-Length"} {
			require.Equal(t, "added outside", w.Header()[name][1])
			require.Len(t, w.Header()[name], 2)
			require.NotContains(t, w.Header()[name][0], "added")
		}
	}
}

func TestWriteError(t *testing.T) {
	tooLarge := &http.MaxBytesError{Limit: 3}
	tests := []struct {
		err    error
		name   string
		status int
		retry  string
		advice string
	}{
		{idempotency.ErrKeyMissing, "ErrKeyMissing", 400, "", "Send the request with a key"},
		{idempotency.ErrKeyInvalid, "ErrKeyInvalid", 422, "", "Send one that is"},
		{idempotency.ErrKeyReused, "ErrKeyReused", 422, "", "use a new key"},
		{idempotency.ErrOutstanding, "ErrOutstanding", 409, "1", "Wait, then send the same request"},
		{idempotency.ErrInterrupted, "ErrInterrupted", 409, "", "Look up its outcome"},
		{idempotency.ErrBodyUnreadable, "ErrBodyUnreadable", 400, "", "Send the request again"},
		{fmt.Errorf("%w: %w", idempotency.ErrBodyUnreadable, tooLarge), "ErrBodyUnreadable", 413, "", "Send a smaller one"},
		{idempotency.ErrUnavailable, "ErrUnavailable", 503, "1", "Send the same request"},
		{fmt.Errorf("%w: %w", idempotency.ErrUnavailable, errDown), "ErrUnavailable", 503, "1", "Send the same request"},
		{fmt.Errorf("%w: %w", idempotency.ErrUnavailable, idempotency.ErrFull), "ErrUnavailable", 503, "1", "Send the same request"},
		{idempotency.ErrUnreadable, "ErrUnreadable", 503, "", "Contact the service"},
		{idempotency.ErrNotCommitted, "ErrNotCommitted", 503, "1", "Send the same request"},
		{idempotency.ErrClaimLost, "ErrClaimLost", 409, "1", "Send the same request"},
		{idempotency.ErrFull, "ErrFull", 503, "1", "Send the same request"},
	}
	for _, tt := range tests {
		t.Run(tt.err.Error(), func(t *testing.T) {
			w := httptest.NewRecorder()
			w.Header().Set("X-Request-Id", "1")
			idempotency.WriteError(w, request("the-secret-key", "the-secret-body"), fmt.Errorf("wrapped in a text with a secret: %w", tt.err))
			detail := requireProblem(t, w, tt.status, tt.name)
			require.Contains(t, detail, tt.advice)
			require.Equal(t, tt.retry, w.Header().Get("Retry-After"))
			require.Equal(t, fmt.Sprint(tt.retry != "" || tt.status == 400 && tt.name == "ErrBodyUnreadable"), w.Header().Get("X-Should-Retry"))
			require.Equal(t, fmt.Sprint(w.Body.Len()), w.Header().Get("Content-Length"))
			require.Equal(t, "1", w.Header().Get("X-Request-Id"))
			require.NotContains(t, w.Body.String(), "secret")
			require.NotContains(t, w.Body.String(), "10.0.0.7")
			require.True(t, strings.HasPrefix(tt.err.Error(), "idempotency: "))
		})
	}
	for _, err := range []error{errDown, context.Canceled, nil} {
		t.Run(fmt.Sprintf("unknown: %v", err), func(t *testing.T) {
			w := httptest.NewRecorder()
			idempotency.WriteError(w, request("k", "b"), err)
			require.Equal(t, http.StatusInternalServerError, w.Code)
			require.NotContains(t, w.Body.String(), "10.0.0.7")
			var p map[string]any
			require.NoError(t, json.Unmarshal(w.Body.Bytes(), &p))
			require.Equal(t, "about:blank", p["type"])
			require.Equal(t, false, p["retryable"])
			require.Equal(t, "false", w.Header().Get("X-Should-Retry"))
		})
	}
	t.Run("a validator's error that wraps another", func(t *testing.T) {
		for _, err := range []error{idempotency.ErrKeyMissing, tooLarge} {
			h := idempotency.New(idempotency.NewMemory(), idempotency.WithKeyValidator(func(string) error { return err }))(&payments{})
			requireProblem(t, send(h, request("k", "b")), http.StatusUnprocessableEntity, "ErrKeyInvalid")
		}
	})
	t.Run("a validator's text", func(t *testing.T) {
		h := idempotency.New(idempotency.NewMemory(), idempotency.WithKeyValidator(func(string) error { return errors.New(`say "please" <b>`) }))(&payments{})
		detail := requireProblem(t, send(h, request("k", "b")), http.StatusUnprocessableEntity, "ErrKeyInvalid")
		require.Equal(t, `The idempotency key is not valid: say "please" <b>`, detail)
	})
}

// An error handler that took the connection has answered.
func TestErrorHandlerThatHijacks(t *testing.T) {
	var complaints bytes.Buffer
	es := &events{}
	h := idempotency.New(idempotency.NewMemory(), idempotency.WithRequired(), es.option(),
		idempotency.WithErrorHandler(func(w http.ResponseWriter, _ *http.Request, _ error) {
			conn, rw, err := http.NewResponseController(w).Hijack()
			require.NoError(t, err)
			defer conn.Close()
			rw.WriteString("HTTP/1.1 418 I'm a teapot\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
			rw.Flush()
		}))(&payments{})
	server := httptest.NewUnstartedServer(h)
	server.Config.ErrorLog = log.New(&complaints, "", 0)
	server.Start()
	resp, err := http.Post(server.URL, "", nil)
	require.NoError(t, err)
	resp.Body.Close()
	require.Equal(t, http.StatusTeapot, resp.StatusCode)
	require.Eventually(t, func() bool { return len(es.seen()) == 1 }, 10*time.Second, time.Millisecond)
	server.Close()
	e, _ := es.last(t)
	require.Zero(t, e.Status)
	require.Empty(t, complaints.String(), "nothing was written to what was hijacked")
}
