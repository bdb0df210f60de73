package idempotency_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

// shop is a handler that charges at a processor, and the recovery that asks it. The
// processor takes keys: what comes again under one is not charged again.
type shop struct {
	mu      sync.Mutex
	charges map[string]int

	runs, recoveries atomic.Int32
	before, after    func(w http.ResponseWriter, r *http.Request) // the handler's charge; nil is nothing
	recovers         http.HandlerFunc                             // nil asks the processor
}

// charge charges once for each key, and returns the number of the charge.
func (s *shop) charge(r *http.Request) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := idempotency.DeriveKey(r.Context(), "charge")
	if s.charges == nil {
		s.charges = make(map[string]int)
	}
	if s.charges[key] == 0 {
		s.charges[key] = len(s.charges) + 1
	}
	return s.charges[key]
}

// charged returns the charge that was made for a request, or 0.
func (s *shop) charged(r *http.Request) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.charges[idempotency.DeriveKey(r.Context(), "charge")]
}

func (s *shop) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.runs.Add(1)
	if s.before != nil {
		s.before(w, r)
	}
	charge := s.charge(r)
	if s.after != nil {
		s.after(w, r)
	}
	fmt.Fprintf(w, `{"charge":%d}`, charge)
}

func (s *shop) recovery(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.recoveries.Add(1)
		if s.recovers != nil {
			s.recovers(w, r)
			return
		}
		if charge := s.charged(r); charge > 0 {
			fmt.Fprintf(w, `{"charge":%d,"recovered":true}`, charge)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// open puts the middleware around the shop.
func (s *shop) open(backend idempotency.Backend, opts ...idempotency.Option) http.Handler {
	return idempotency.New(backend, append(opts, idempotency.WithRecovery(s.recovery), quiet)...)(s)
}

// interrupt leaves the key "k" interrupted by a run that has charged.
func (s *shop) interrupt(t *testing.T, backend idempotency.Backend) {
	t.Helper()
	s.after = func(http.ResponseWriter, *http.Request) { panic("died") }
	require.PanicsWithValue(t, "died", func() { send(s.open(backend), request("k", "b")) })
	s.after = nil
}

// sendAnd sends a request whose handler may panic.
func sendAnd(t *testing.T, panics any, h http.Handler, r *http.Request) (w *httptest.ResponseRecorder) {
	t.Helper()
	w = httptest.NewRecorder()
	if panics == nil {
		h.ServeHTTP(w, r)
	} else {
		require.PanicsWithValue(t, panics, func() { h.ServeHTTP(w, r) })
	}
	return w
}

const recoveredCharge = `{"charge":1,"recovered":true}`

// A run that ends without an answer is recovered by its retry, whose answer is replayed.
func TestRecovery(t *testing.T) {
	storeIf := idempotency.WithStoreIf(func(status int, _ http.Header) bool { return status != 500 })
	tests := map[string]struct {
		before, after func(http.ResponseWriter, *http.Request)
		panics        any
		outcome       idempotency.Outcome
		runs          int32 // in the end
		answer        string
	}{
		"panic before the charge": {before: script{panics("boom")}.ServeHTTP, panics: "boom", outcome: idempotency.Panicked, runs: 2, answer: `{"charge":1}`},
		"panic after the charge":  {after: script{panics("boom")}.ServeHTTP, panics: "boom", outcome: idempotency.Panicked, runs: 1, answer: recoveredCharge},
		"panic in the answer":     {after: script{says("{"), aborts}.ServeHTTP, panics: http.ErrAbortHandler, outcome: idempotency.Panicked, runs: 1, answer: recoveredCharge},
		"panic in a stream":       {after: script{says("<p>"), aborts}.ServeHTTP, panics: http.ErrAbortHandler, outcome: idempotency.Panicked, runs: 1, answer: recoveredCharge},
		"not JSON":                {after: script{says("<p>")}.ServeHTTP, outcome: idempotency.NotStored, runs: 1, answer: recoveredCharge},
		"broken JSON":             {after: script{asJSON, says("{")}.ServeHTTP, outcome: idempotency.NotStored, runs: 1, answer: recoveredCharge},
		"not by WithStoreIf":      {after: script{code(500)}.ServeHTTP, outcome: idempotency.NotStored, runs: 1, answer: recoveredCharge},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			forEachBackend(t, func(t *testing.T, newBackend func(*testing.T) idempotency.Backend) {
				backend, es, s := newBackend(t), &events{}, &shop{before: tt.before, after: tt.after}
				h := s.open(backend, storeIf, es.option())
				sendAnd(t, tt.panics, h, request("k", "b"))
				e, _ := es.last(t)
				require.Equal(t, tt.outcome, e.Outcome)
				require.False(t, e.Recovered)
				require.Equal(t, idempotency.StateInterrupted, lookup(t, backend.(idempotency.Inspector), "k").State)

				requireProblem(t, send(h, request("k", "other")), http.StatusUnprocessableEntity, "ErrKeyReused")
				e, _ = es.last(t)
				require.False(t, e.Recovered)
				require.Zero(t, s.recoveries.Load())

				s.before, s.after = nil, nil
				w := send(h, request("k", "b"))
				require.Equal(t, tt.answer, w.Body.String())
				require.Empty(t, w.Header().Get("Idempotent-Replayed"))
				e, _ = es.last(t)
				require.Equal(t, idempotency.Stored, e.Outcome)
				require.True(t, e.Recovered)

				requireReplayed(t, send(h, request("k", "b")), tt.answer)
				e, _ = es.last(t)
				require.Equal(t, idempotency.Replayed, e.Outcome)
				require.False(t, e.Recovered)
				require.Len(t, s.charges, 1)
				require.Equal(t, tt.runs, s.runs.Load())
				require.EqualValues(t, 1, s.recoveries.Load())
			})
		})
	}
}

// What was not interrupted is no matter for the recovery.
func TestRecoveryOfNothing(t *testing.T) {
	forEachBackend(t, func(t *testing.T, newBackend func(*testing.T) idempotency.Backend) {
		s := &shop{}
		h := s.open(newBackend(t))
		require.Equal(t, `{"charge":1}`, send(h, request("k", "b")).Body.String())
		requireReplayed(t, send(h, request("k", "b")), `{"charge":1}`)
		require.Zero(t, s.recoveries.Load())
	})
}

// A process that dies leaves its key interrupted one lease later; recoveries that die
// do so too. One that waits recovers then.
func TestRecoveryAfterACrash(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, newBackend func(*testing.T) idempotency.Backend) {
		backend, s, es := newBackend(t), &shop{}, &events{}
		opts := with(idempotency.WithLease(500*time.Millisecond), idempotency.WithWait(time.Minute))
		for n := range 3 {
			dead := newCounted(never)
			dead.claim, dead.renew = backend.Claim, backend.Renew
			crash(t, dead, s, append(opts, idempotency.WithRecovery(s.recovery))...)
			require.EqualValues(t, 1, s.runs.Load())
			require.EqualValues(t, n, s.recoveries.Load())
		}
		h := s.open(backend, append(opts, es.option())...)
		require.Equal(t, recoveredCharge, send(h, request("k", "b")).Body.String())
		e, _ := es.last(t)
		require.True(t, e.Recovered)
		requireReplayed(t, send(h, request("k", "b")), recoveredCharge)
		require.EqualValues(t, 1, s.runs.Load())
		require.EqualValues(t, 3, s.recoveries.Load())
	})
}

// A recovery that leaves no answer is recovered in turn, by the same request only.
func TestRecoveryIsRecovered(t *testing.T) {
	tests := map[string]struct {
		recovery script
		panics   any
		outcome  idempotency.Outcome
	}{
		"panic":                  {script{panics("boom")}, "boom", idempotency.Panicked},
		"not stored":             {script{says("<p>")}, nil, idempotency.NotStored},
		"NoStore":                {script{noStore, says("{}")}, nil, idempotency.NotStored},
		"NoStore, then a panic":  {script{noStore, panics("boom")}, "boom", idempotency.Panicked},
		"NoStore, then a stream": {script{noStore, says("<p>"), flush}, nil, idempotency.NotStored},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			forEachBackend(t, func(t *testing.T, newBackend func(*testing.T) idempotency.Backend) {
				backend, es, s := newBackend(t), &events{}, &shop{}
				s.interrupt(t, backend)
				h := s.open(backend, es.option())
				s.recovers = tt.recovery.ServeHTTP
				for n := range 3 {
					sendAnd(t, tt.panics, h, request("k", "b"))
					e, _ := es.last(t)
					require.Equal(t, tt.outcome, e.Outcome)
					require.True(t, e.Recovered)
					require.EqualValues(t, n+1, s.recoveries.Load())
					require.Equal(t, idempotency.StateInterrupted, lookup(t, backend.(idempotency.Inspector), "k").State)
					requireProblem(t, send(h, request("k", "other")), http.StatusUnprocessableEntity, "ErrKeyReused")
				}
				s.recovers = nil
				require.Equal(t, recoveredCharge, send(h, request("k", "b")).Body.String())
				requireReplayed(t, send(h, request("k", "b")), recoveredCharge)
				require.EqualValues(t, 1, s.runs.Load())
			})
		})
	}
}

// NoStore of a run that took nothing over frees the key, for another request too.
func TestRecoveryNoStoreFirst(t *testing.T) {
	for name, tt := range map[string]struct {
		before script
		panics any
	}{
		"an answer": {script{noStore}, nil},
		"a panic":   {script{noStore, panics("boom")}, "boom"},
	} {
		t.Run(name, func(t *testing.T) {
			forEachBackend(t, func(t *testing.T, newBackend func(*testing.T) idempotency.Backend) {
				backend, s := newBackend(t), &shop{before: tt.before.ServeHTTP}
				h := s.open(backend)
				sendAnd(t, tt.panics, h, request("k", "b"))
				require.Nil(t, lookup(t, backend.(idempotency.Inspector), "k"))
				s.before = nil
				require.Equal(t, `{"charge":1}`, send(h, request("k", "other")).Body.String())
				require.EqualValues(t, 2, s.runs.Load())
				require.Zero(t, s.recoveries.Load())
			})
		})
	}
}

// The recovery gets the request as the handler does, and so does the handler from it.
func TestRecoveryRequest(t *testing.T) {
	s, backend := &shop{}, idempotency.NewMemory()
	var derived []string
	s.before = func(_ http.ResponseWriter, r *http.Request) {
		key, ok := idempotency.KeyFromContext(r.Context())
		require.True(t, ok)
		require.Equal(t, "k", key)
		require.Equal(t, []string{"identity"}, r.Header["Accept-Encoding"])
		require.NoError(t, r.Context().Err())
		derived = append(derived, idempotency.DeriveKey(r.Context(), "charge"))
		if body, err := io.ReadAll(r.Body); len(derived) < 3 {
			require.NoError(t, err)
			require.Equal(t, "the body", string(body))
			panic("died")
		}
	}
	ctx, leave := context.WithCancel(t.Context())
	leave() // The client's leaving ends neither of them.
	h := idempotency.New(backend, quiet, idempotency.WithRecovery(func(next http.Handler) http.Handler {
		require.Same(t, s, next)
		return next
	}))(s)
	for range 2 {
		sendAnd(t, "died", h, request("k", "the body").WithContext(ctx))
	}
	require.Equal(t, http.StatusOK, send(h, request("k", "the body").WithContext(ctx)).Code)
	require.Equal(t, []string{derived[0], derived[0], derived[0]}, derived)
	require.EqualValues(t, 3, s.runs.Load())
}

// Of many retries at once, in two processes, one recovers. The others are refused
// A first owner that comes back late changes nothing, whether the recovery still runs or
// A claim that was answered late is sent again: what its reply says counts, because
// Of those that wait for a run that is interrupted one recovers, and the others get its
// What another mode has left interrupted is recovered, and what this one has left stays
// so for another until its trace ends.
func TestRecoveryAndOtherModes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dead, s := newCounted(never), &shop{}
		crash(t, dead, s, idempotency.WithAtMostOnce())
		time.Sleep(30 * time.Second)
		require.Equal(t, recoveredCharge, send(s.open(dead.Memory), request("k", "b")).Body.String())
	})
	for name, opts := range map[string][]idempotency.Option{"again": nil, "at most once": with(idempotency.WithAtMostOnce())} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				backend, s := idempotency.NewMemory(), &shop{}
				s.interrupt(t, backend)
				h := idempotency.New(backend, append(opts, quiet)...)(s)
				requireRefused(t, h, http.StatusConflict, "ErrInterrupted")
				time.Sleep(24 * time.Hour)
				require.Equal(t, http.StatusOK, send(h, request("k", "b")).Code)
			})
		})
	}
}

// With a Transactor, what the recovery writes commits with its answer or is undone.
func TestRecoveryInATransaction(t *testing.T) {
	l, a, es := newLedger(times(1, "complete", idempotency.ErrNotCommitted)), &attempt{answer: script{panics("boom")}}, &events{}
	h := idempotency.New(l, quiet, es.option(), idempotency.WithRecovery(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			write(r, "recovery")
			next.ServeHTTP(w, r)
		})
	}))(a)
	recovered := func(outcome idempotency.Outcome, recovered bool) {
		t.Helper()
		e, _ := es.last(t)
		require.Equal(t, outcome, e.Outcome)
		require.Equal(t, recovered, e.Recovered)
	}
	sendAnd(t, "boom", h, request("k", "b"))
	recovered(idempotency.Panicked, false)
	a.answer = answers(500, "application/json", "{}")
	require.Equal(t, 500, send(h, request("k", "b")).Code)
	recovered(idempotency.NotStored, true)
	a.answer = answers(201, "application/json", "{}")
	requireRefused(t, h, http.StatusServiceUnavailable, "ErrNotCommitted")
	recovered(idempotency.Failed, true)
	require.Empty(t, l.written)
	require.Equal(t, 201, send(h, request("k", "b")).Code)
	recovered(idempotency.Stored, true)
	require.Equal(t, []string{"recovery", "run 4"}, l.written)
	requireReplayed(t, send(h, request("k", "b")), "{}")
}

// The function of WithRecovery is called once for each handler, not for each request.
func TestRecoveryWrapsEachHandler(t *testing.T) {
	var wrapped []http.Handler
	withIdempotency := idempotency.New(idempotency.NewMemory(), quiet, idempotency.WithRecovery(func(next http.Handler) http.Handler {
		wrapped = append(wrapped, next)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "%d", len(wrapped)) })
	}))
	a, b := &payments{}, &shop{before: func(http.ResponseWriter, *http.Request) { panic("boom") }}
	ha, hb := withIdempotency(a), withIdempotency(b)
	send(ha, request("a", "b"))
	sendAnd(t, "boom", hb, request("k", "b"))
	require.Equal(t, "2", send(hb, request("k", "b")).Body.String())
	require.Equal(t, []http.Handler{a, b}, wrapped)
	t.Run("a nil handler", func(t *testing.T) {
		nothing := idempotency.New(idempotency.NewMemory(), idempotency.WithRecovery(func(http.Handler) http.Handler { return nil }))
		require.PanicsWithValue(t, "idempotency: WithRecovery: nil handler", func() { nothing(a) })
	})
}

// Of two instances in one chain the outer one recovers.
func TestRecoveryTwiceInOneChain(t *testing.T) {
	backend, outer, inner := idempotency.NewMemory(), &shop{}, &shop{}
	inner.after = func(http.ResponseWriter, *http.Request) { panic("died") }
	h := idempotency.New(backend, quiet, idempotency.WithRecovery(outer.recovery))(inner.open(backend))
	sendAnd(t, "died", h, request("k", "b"))
	inner.after = nil
	require.Equal(t, `{"charge":1}`, send(h, request("k", "b")).Body.String())
	require.EqualValues(t, 1, outer.recoveries.Load())
	require.Zero(t, inner.recoveries.Load())
	require.EqualValues(t, 2, inner.runs.Load(), "the outer one's recovery has called its next")
}
