package suites

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
)

// patience is how long a test waits for what must come.
const patience = 30 * time.Second

// quiet logs nothing.
var quiet = idempotency.WithLogger(slog.New(slog.DiscardHandler))

// await waits for a value.
func await[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		require.FailNow(t, "no "+what)
		panic("unreachable")
	}
}

// patientContext returns a context for a request: a test that waits for its answer in
// vain is to fail, and to say where.
func patientContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// till is a handler that counts its runs and answers each with its number.
type till struct {
	status int // of its answers, which are errors; 0 is 201
	runs   atomic.Int32
	// Where the handler is held half-way:
	running chan struct{}   // told that it runs
	finish  chan struct{}   // waited for
	over    context.Context // ends with the test, whose server waits for its handlers
}

// newHeldTill returns a handler that is held half-way until its finish is closed.
func newHeldTill(t *testing.T) *till {
	return &till{running: make(chan struct{}, 100), finish: make(chan struct{}), over: t.Context()}
}

func (p *till) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body) // The server notices that a client leaves once it has read the body.
	n := p.runs.Add(1)
	if p.running != nil {
		p.running <- struct{}{}
		select {
		case <-p.finish:
		case <-p.over.Done():
		}
	}
	w.Header().Set("Content-Type", "application/json")
	if p.status != 0 {
		w.WriteHeader(p.status)
		fmt.Fprint(w, `{"error":{"type":"api_error","message":"no payment"}}`)
		return
	}
	w.WriteHeader(http.StatusCreated)
	fmt.Fprintf(w, `{"payment":%d}`, n)
}
