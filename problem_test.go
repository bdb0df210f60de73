package idempotency_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

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
		{idempotency.ErrNotReplayable, "ErrNotReplayable", 409, "", "Look up its outcome"},
		{idempotency.ErrBodyUnreadable, "ErrBodyUnreadable", 400, "", "Send the request again"},
		{fmt.Errorf("%w: %w", idempotency.ErrBodyUnreadable, tooLarge), "ErrBodyUnreadable", 413, "", "Send a smaller one"},
		{idempotency.ErrUnavailable, "ErrUnavailable", 503, "1", "Send the same request"},
		{fmt.Errorf("%w: %w", idempotency.ErrUnavailable, errDown), "ErrUnavailable", 503, "1", "Send the same request"},
		{fmt.Errorf("%w: %w", idempotency.ErrUnavailable, idempotency.ErrFull), "ErrUnavailable", 503, "1", "Send the same request"},
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
