package idempotency_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"
	"weak"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

// weakly knows what was written first, and does not keep it.
type weakly struct {
	http.ResponseWriter
	first weak.Pointer[byte]
}

func (w *weakly) Write(p []byte) (int, error) {
	if w.first == (weak.Pointer[byte]{}) {
		w.first = weak.Make(&p[0])
	}
	return w.ResponseWriter.Write(p)
}

// alive reports whether what was written first is still in memory.
func (w *weakly) alive() bool {
	runtime.GC()
	return w.first.Value() != nil
}

// The bytes of an answer are held until they are sent, and no longer: neither while
// a handler streams on, nor by a context that outlives its handler.
func TestAnswerIsNotHeldOnceSent(t *testing.T) {
	long := `"` + strings.Repeat("x", 100_000)
	for name, tt := range map[string]struct {
		handler script
		err     error // of Complete
	}{
		"stored":           {script{asJSON, says(long + `"`)}, nil},
		"store failed":     {script{asJSON, says(long + `"`)}, idempotency.ErrFull},
		"broken":           {script{asJSON, says(long)}, nil},
		"NoStore":          {script{asJSON, says(long + `"`), noStore}, nil},
		"NoStore, flushed": {script{asJSON, says(long), noStore, flush, says(`"`)}, nil},
		"over the limit":   {script{asJSON, says(long), says(strings.Repeat("x", 1<<20))}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			backend := newHooked()
			backend.complete = func(context.Context, idempotency.Key, idempotency.Claim, []byte, time.Duration) error { return tt.err }
			w := &weakly{ResponseWriter: httptest.NewRecorder()}
			var kept context.Context
			h := idempotency.New(backend, quiet)(http.HandlerFunc(func(rec http.ResponseWriter, r *http.Request) {
				kept = context.WithoutCancel(r.Context())
				tt.handler.ServeHTTP(rec, r)
				if w.first != (weak.Pointer[byte]{}) {
					require.False(t, w.alive(), "while the handler runs")
				}
			}))
			h.ServeHTTP(w, request("k", "b"))
			require.NotZero(t, w.first)
			require.False(t, w.alive())
			runtime.KeepAlive(kept)
		})
	}
}
