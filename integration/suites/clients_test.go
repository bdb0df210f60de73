package suites

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
)

// fault is what goes wrong with a payment: a column of the table in docs/CLIENTS.md.
type fault struct {
	name    string
	timeout time.Duration // of the client
	serve   func(t *testing.T, p *till, opts []idempotency.Option) serveTry
}

// serveTry serves try n of a client, from 1.
type serveTry func(n int, w http.ResponseWriter, r *http.Request)

var faults = []fault{
	{"cut", patience, func(_ *testing.T, p *till, opts []idempotency.Option) serveTry {
		return firstAnswer(p, opts, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	}},
	{"late", 3 * time.Second, func(_ *testing.T, p *till, opts []idempotency.Option) serveTry {
		return firstAnswer(p, opts, func(_ http.ResponseWriter, r *http.Request) {
			<-r.Context().Done() // The client has given up.
			panic(http.ErrAbortHandler)
		})
	}},
	{"slow", patience, slow},
	{"502", patience, func(_ *testing.T, p *till, opts []idempotency.Option) serveTry {
		return firstAnswer(p, opts, func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "Bad Gateway", http.StatusBadGateway)
		})
	}},
	{"500", patience, func(_ *testing.T, p *till, opts []idempotency.Option) serveTry {
		p.status = http.StatusInternalServerError
		h := protected(p, opts)
		return func(_ int, w http.ResponseWriter, r *http.Request) { h.ServeHTTP(w, r) }
	}},
	{"429", patience, limited},
	{"503", patience, notStored},
	{"interrupted", patience, interrupted},
}

func protected(h http.Handler, opts []idempotency.Option) http.Handler {
	return idempotency.New(idempotency.NewMemory(), append(opts, quiet)...)(h)
}

// firstAnswer lets the payment run, and does something else in place of the first answer.
func firstAnswer(p *till, opts []idempotency.Option, instead http.HandlerFunc) serveTry {
	h := protected(p, opts)
	return func(n int, w http.ResponseWriter, r *http.Request) {
		if n > 1 {
			h.ServeHTTP(w, r)
			return
		}
		h.ServeHTTP(httptest.NewRecorder(), r)
		instead(w, r)
	}
}

// slow cuts the first try's connection while the payment runs, and lets that go on once the
// second try has its answer.
func slow(t *testing.T, p *till, opts []idempotency.Option) serveTry {
	var runs atomic.Int32
	running, finish, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	end := sync.OnceFunc(func() { close(finish) })
	t.Cleanup(end)
	h := protected(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if runs.Add(1) == 1 {
			close(running)
			<-finish
		}
		p.ServeHTTP(w, r)
	}), opts)
	return func(n int, w http.ResponseWriter, r *http.Request) {
		switch n {
		case 1:
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			r = r.WithContext(context.WithoutCancel(r.Context()))
			r.Body = io.NopCloser(bytes.NewReader(body))
			go func() {
				defer close(done)
				h.ServeHTTP(httptest.NewRecorder(), r)
			}()
			<-running
			panic(http.ErrAbortHandler)
		case 2:
			h.ServeHTTP(w, r)
			end()
			<-done
		default:
			h.ServeHTTP(w, r)
		}
	}
}

// limited refuses the first try by a rate limit outside of the middleware.
func limited(_ *testing.T, p *till, opts []idempotency.Option) serveTry {
	h := protected(p, opts)
	return func(n int, w http.ResponseWriter, r *http.Request) {
		if n == 1 {
			refuseForNow(w, http.StatusTooManyRequests)
			return
		}
		h.ServeHTTP(w, r)
	}
}

// notStored has a handler that cannot pay at first, and says so.
func notStored(_ *testing.T, p *till, opts []idempotency.Option) serveTry {
	var runs atomic.Int32
	h := protected(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if runs.Add(1) > 1 {
			p.ServeHTTP(w, r)
			return
		}
		idempotency.NoStore(r.Context())
		refuseForNow(w, http.StatusServiceUnavailable)
	}), opts)
	return func(_ int, w http.ResponseWriter, r *http.Request) { h.ServeHTTP(w, r) }
}

// interrupted has a handler that pays and then breaks down, and runs at most once.
func interrupted(_ *testing.T, p *till, opts []idempotency.Option) serveTry {
	h := protected(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		p.ServeHTTP(httptest.NewRecorder(), r)
		panic(http.ErrAbortHandler)
	}), append(opts, idempotency.WithAtMostOnce()))
	return func(_ int, w http.ResponseWriter, r *http.Request) { h.ServeHTTP(w, r) }
}

func refuseForNow(w http.ResponseWriter, status int) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Retry-After", "1")
	w.WriteHeader(status)
	fmt.Fprint(w, `{"error":{"message":"try again"}}`)
}

// client pays by one library.
type client struct {
	name   string
	way    string               // asItComes, or withLines
	server []idempotency.Option // what its server needs
	// pay sends one payment to a URL, waits for each answer no longer than a time, and
	// tells whether it was answered that it has paid.
	pay func(t *testing.T, url string, timeout time.Duration) (paid bool)
}

const (
	asItComes = "as it comes"
	withLines = "with the lines"
)

// visit is what became of one client that met one fault.
type visit struct {
	keys     []string // of the tries
	statuses []int    // of their answers; 0 is none
	runs     int      // of the payment
	paid     bool     // as the client was told
}

// verdict returns the cell of the table: what the client was told last, and after how many
// tries.
func (v visit) verdict() string {
	last := "none"
	if status := v.statuses[len(v.statuses)-1]; status != 0 {
		last = fmt.Sprint(status)
	}
	switch {
	case v.runs > 1:
		last = "**twice**"
	case v.paid && last != "201":
		last = "**" + last + " taken for 201**"
	}
	return fmt.Sprintf("%s (%d)", last, len(v.statuses))
}

// key returns whose key the tries had.
func (v visit) key(t *testing.T, way string) string {
	t.Helper()
	if v.keys[0] == "" {
		return "none"
	}
	require.Len(t, slices.Compact(slices.Clone(v.keys)), 1, "each try is to have the same key")
	if v.keys[0] == ownKey {
		require.Equal(t, withLines, way)
		return "yours"
	}
	return "its own"
}

// ownKey is the key that the lines give.
const ownKey = "order-8e03978e"

// meet lets a client meet a fault.
func meet(t *testing.T, c client, f fault) (v visit) {
	p := new(till)
	serve := f.serve(t, p, slices.Clone(c.server))
	var mu sync.Mutex
	s := newClientServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		v.keys = append(v.keys, r.Header.Get("Idempotency-Key"))
		v.statuses = append(v.statuses, 0)
		n := len(v.keys)
		mu.Unlock()
		serve(n, &statusWriter{w, func(status int) {
			mu.Lock()
			defer mu.Unlock()
			v.statuses[n-1] = status
		}}, r)
	}))
	paid := c.pay(t, s.URL, f.timeout)
	mu.Lock()
	defer mu.Unlock()
	v.runs, v.paid = int(p.runs.Load()), paid
	return v
}

// statusWriter tells of the status that is written.
type statusWriter struct {
	http.ResponseWriter
	tell func(status int)
}

func (w *statusWriter) WriteHeader(status int) {
	w.tell(status)
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// TestClients lets each client meet each fault, as it comes and with the lines that
// docs/CLIENTS.md gives. The document's table is what became of them.
func TestClients(t *testing.T) {
	page, err := os.ReadFile("../../docs/CLIENTS.md")
	require.NoError(t, err)
	t.Run("Go", func(t *testing.T) { requireRows(t, string(page), goClients) })
	t.Run("npm", func(t *testing.T) { requireRows(t, string(page), npmClients(t)) })
}

func requireRows(t *testing.T, page string, clients []client) {
	t.Helper()
	visits := make([][]visit, len(clients))
	var all sync.WaitGroup
	for i, c := range clients {
		visits[i] = make([]visit, len(faults))
		for j, f := range faults {
			all.Go(func() { visits[i][j] = meet(t, c, f) })
		}
	}
	all.Wait()
	for i, c := range clients {
		cells := []string{c.name, c.way, ""}
		for j, v := range visits[i] {
			where := fmt.Sprintf("%s, %s, %s: %+v", c.name, c.way, faults[j].name, v)
			require.NotEmpty(t, v.keys, where)
			if v.statuses[len(v.statuses)-1] == http.StatusCreated {
				require.True(t, v.paid, where)
			}
			cells[2] = v.key(t, c.way)
			cells = append(cells, v.verdict())
			if cells[2] != "none" {
				require.LessOrEqual(t, v.runs, 1, where)
			}
		}
		row := "| " + strings.Join(cells, " | ") + " |\n"
		t.Log(strings.TrimSpace(row))
		if !strings.Contains(page, row) {
			t.Errorf("docs/CLIENTS.md has no such row:\n%s", row)
		}
	}
}
