package compare

import (
	"bytes"
	"net/http"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/idempotency-go/idempotency/benchmarks/internal/work"
)

// byHandExpiry is how long a key is kept, claimed or answered.
const byHandExpiry = 24 * time.Hour

// byHand is what most services write by hand: SETNX before the handler, GET
// where the key is taken, SET after it. It keeps the body; the status and the
// headers of a replay are written out here, as a service does that knows its one
// endpoint.
func byHand(next http.Handler, client *redis.Client) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key := r.Header.Get(work.KeyHeader)
		if key == "" {
			next.ServeHTTP(w, r)
			return
		}
		name := "by-hand:" + key
		first, err := client.SetNX(r.Context(), name, "", byHandExpiry).Result()
		if err != nil {
			http.Error(w, "no store", http.StatusServiceUnavailable)
			return
		}
		if first {
			kept := &tee{ResponseWriter: w}
			next.ServeHTTP(kept, r)
			client.Set(r.Context(), name, kept.body.Bytes(), byHandExpiry)
			return
		}
		stored, err := client.Get(r.Context(), name).Bytes()
		switch {
		case err != nil:
			http.Error(w, "no store", http.StatusServiceUnavailable)
		case len(stored) == 0:
			http.Error(w, "in progress", http.StatusConflict)
		default:
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(work.Status)
			_, _ = w.Write(stored)
		}
	})
}

// tee keeps a copy of the body that is written through it.
type tee struct {
	http.ResponseWriter
	body bytes.Buffer
}

func (t *tee) Write(p []byte) (int, error) {
	t.body.Write(p)
	return t.ResponseWriter.Write(p)
}
