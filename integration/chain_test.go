package integration

import (
	"context"
	"net/http"
	"testing"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
)

// newChain is the README's chain: everything outside that belongs there.
func newChain(once layer, pay http.HandlerFunc) http.Handler {
	r := chi.NewRouter()
	r.Use(middleware.RequestID, middleware.Recoverer, middleware.Compress(5), authenticate)
	r.With(once).Post("/payments", pay)
	return r
}

type accountKey struct{}

// authenticate takes the credential for the account.
func authenticate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		account := r.Header.Get("Authorization")
		if account == "" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), accountKey{}, account)))
	})
}

func TestChain(t *testing.T) {
	o := newOrderTest(t, idempotency.WithScope(func(r *http.Request) string { return r.Context().Value(accountKey{}).(string) }))
	till := &paymentTill{}
	s := o.serve(newChain(o.once, till.ServeHTTP))
	for _, test := range []struct {
		account  string
		status   int
		body     string
		replayed bool
	}{
		{"alice", http.StatusCreated, `{"payment":1}`, false},
		{"alice", http.StatusCreated, `{"payment":1}`, true},
		{"bob", http.StatusCreated, `{"payment":2}`, false},
		{"", http.StatusUnauthorized, "", false},
	} {
		a := s.post("/payments", "k", "Authorization", test.account, "Accept-Encoding", "gzip")
		require.Equal(t, test.status, a.status)
		require.Equal(t, test.body, a.body)
		require.Equal(t, test.replayed, a.replayed)
		if test.body != "" {
			require.Equal(t, "gzip", a.header.Get("Content-Encoding"))
		}
	}
}
