package main

import (
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
)

// A sealed record is shown to who has its secret, and told to others in one line.
func TestShowSealed(t *testing.T) {
	s := miniredisStore(t, prefixFor())
	secret, other := []byte(strings.Repeat("s", 32)), []byte(strings.Repeat("o", 32))
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"payment":1}`))
	})
	scope := idempotency.WithScope(func(*http.Request) string { return "tenant-1" })
	for key, h := range map[string]http.Handler{
		"sealed": idempotency.New(s.backend, scope, idempotency.WithEncryption(secret))(handler),
		"plain":  idempotency.New(s.backend, scope)(handler),
	} {
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		r.Header.Set("Idempotency-Key", key)
		h.ServeHTTP(httptest.NewRecorder(), r)
	}
	show := func(key string, secrets ...[]byte) result {
		var texts []string
		for _, secret := range secrets {
			texts = append(texts, base64.StdEncoding.EncodeToString(secret))
		}
		args := append(append([]string{"show"}, s.flags...), "-body", "-scope", "tenant-1", key)
		return execute(t, "", []string{secretsVariable + "=" + strings.Join(texts, ",")}, args...)
	}
	for _, got := range []result{show("sealed", secret), show("sealed", other, secret), show("plain"), show("plain", other)} {
		require.Zero(t, got.status, got)
		require.Contains(t, got.stdout, "\n{\"payment\":1}\n")
	}
	for _, got := range []result{show("sealed"), show("sealed", other)} {
		got.requireFailed(t, 1, "it is sealed")
		require.Contains(t, got.stdout, "unreadable")
		require.NotContains(t, got.stdout, "payment")
	}
	storageKey := idempotency.NewKey("tenant-1", "sealed").String()
	args := append(append([]string{"show"}, s.flags...), "-storage-key", storageKey)
	execute(t, "", []string{secretsVariable + "=" + base64.StdEncoding.EncodeToString(secret)}, args...).requireFailed(t, 1, "give that and -scope")
	args = append(append([]string{"show"}, s.flags...), "sealed")
	execute(t, "", []string{secretsVariable + "=%hunter2"}, args...).requireFailed(t, 2, "is not base64")
}
