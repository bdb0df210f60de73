package proof

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/postgres"
)

// modes are the modes of the middleware.
var modes = []string{modeAgain, modeAtMostOnce, modeTakeOver}

// nameOf returns a mode as the name of a test.
func nameOf(mode string) string {
	if mode == modeAgain {
		return "again"
	}
	return mode
}

// TestKillInterrupted kills servers at every step of a request, in the modes in
// which that leaves the key interrupted.
func TestKillInterrupted(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{modeAtMostOnce, modeTakeOver} {
		t.Run(nameOf(mode), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, requireServers(t), "")
			w.config.Mode = mode
			w.proveKills(steps, (*rounds+1)/2)
			w.require()
			if mode == modeAtMostOnce && w.verdict.counted("interrupted") == 0 {
				t.Error("no key was interrupted")
			}
		})
	}
}

// TestCutInterrupted cuts the connection to PostgreSQL at every message, with at
// most once.
func TestCutInterrupted(t *testing.T) {
	t.Parallel()
	w := newWorld(t, requireServers(t), "")
	w.config.Mode = modeAtMostOnce
	w.proveCuts([]cutPass{
		{frontend: true, how: cutLost}, {frontend: true, how: cutDelivered}, {frontend: true, how: cutKept},
		{how: cutLost},
	})
	w.require()
}

// TestLateComplete stops a process for longer than its lease, with at most once.
// Retries are told that its run was interrupted. When it goes on, nobody has claimed
// its key: it commits, and a retry gets its answer.
func TestLateComplete(t *testing.T) {
	t.Parallel()
	w := newWorld(t, requireServers(t), "")
	w.config.Mode = modeAtMostOnce
	w.proveLate([]string{"claim-end", "claimed", "begun", "read", "written", "returned", "put-start", "put-end", "commit-start"})
	w.require()
}

func (w *world) proveLate(steps []string) {
	w.config.Lease = steadyLease
	for _, step := range steps {
		late, heir := w.node(nil), w.node(nil)
		key := "late-" + step
		answered := w.stopAt(late, step, key)
		all := w.pursue(heir, key, nil)
		if !all[len(all)-1].interrupted {
			w.verdict.violate("status", "%s: a retry was not told that the run was interrupted", key)
		}
		w.checkNone(key, "the process is stopped")
		w.resume(late)
		first := <-answered
		// A renewal that takes long makes a late claim a failed one, of which no run comes.
		failed := step == "claim-end" && first.status == http.StatusServiceUnavailable
		if !failed && (first.status != http.StatusCreated || first.replayed) {
			w.verdict.violate("status", "%s: the late process answered with %d %s %v", key, first.status, first.body, first.err)
		}
		w.check(heir, key, append(all, first)...)
		w.checkRest(late, heir)
		w.verdict.count("late responses", 1)
	}
}

// TestRepeatedClaim sends every claim twice, as a client library may.
func TestRepeatedClaim(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		t.Run(nameOf(mode), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, requireServers(t), "")
			w.config.Mode, w.config.Repeat = mode, true
			w.proveKills([]string{"claim-end", "repeated", "written", "commit-end"}, 2)
			w.proveRepeatedLate()
			w.require()
		})
	}
}

// proveRepeatedLate stops a process between a claim and its repetition, for longer
// than its lease. The repetition finds what became of the key meanwhile.
func (w *world) proveRepeatedLate() {
	w.config.Lease = steadyLease
	late, heir := w.node(nil), w.node(nil)
	answered := w.stopAt(late, "repeated", "repeated")
	all := w.pursue(heir, "repeated", nil)
	w.resume(late)
	first := <-answered
	// With at most once it claims again; else it is answered as any retry.
	atMostOnce := w.config.Mode == modeAtMostOnce
	if last := all[len(all)-1]; last.interrupted != atMostOnce || last.replayed {
		w.verdict.violate("status", "the retry: %d %s %v", last.status, last.body, last.err)
	}
	failed := atMostOnce && first.status == http.StatusServiceUnavailable // Its renewal took long.
	if !failed && (first.status != http.StatusCreated || first.replayed == atMostOnce) {
		w.verdict.violate("status", "the late process: %d, replayed: %t, %s %v", first.status, first.replayed, first.body, first.err)
	}
	w.check(heir, "repeated", append(all, first)...)
	w.checkRest(late, heir)
}

// TestTakenOver has a handler panic, the one that takes over call NoStore, and the
// next one answer: only NoStore in a run that has taken nothing over frees the key.
func TestTakenOver(t *testing.T) {
	t.Parallel()
	w := newWorld(t, requireServers(t), "")
	w.config.Mode, w.config.Lease = modeTakeOver, 5*time.Minute
	n := w.node(nil)
	w.send(t.Context(), n, "key", headers{headerDo: doPanic})
	w.checkNone("key", "the handler has panicked")
	w.until("the key is interrupted", func() bool { return w.stateOf("key") == idempotency.StateInterrupted })
	second := w.send(t.Context(), n, "key", headers{headerDo: doNoStore})
	require.Equal(t, http.StatusCreated, second.status)
	w.checkNone("key", "the one that took over has called NoStore")
	require.Equal(t, idempotency.StateInterrupted, w.stateOf("key"))
	w.check(n, "key", w.pursue(n, "key", nil)...)

	w.send(t.Context(), n, "other", headers{headerDo: doNoStore})
	require.Zero(t, w.stateOf("other"))
	w.checkRest(n)
	w.require()
}

// stateOf returns the state of a key's record.
func (w *world) stateOf(key string) idempotency.State {
	records := postgres.New(w.pool, postgres.WithTable(w.config.Schema+".records"))
	rec, _, _, err := records.Lookup(context.Background(), idempotency.NewKey("", key))
	if err != nil {
		w.verdict.violate("harness", "lookup of %s: %v", key, err)
	}
	return rec.State
}
