package proof

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"
)

// TestUndone makes handlers fail in every way after their write: nothing of it
// is left, and a retry is processed at once, afresh. With at most once it is told
// at once that the run was interrupted.
func TestUndone(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		t.Run(nameOf(mode), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, requireServers(t), "")
			w.config.Mode = mode
			w.proveUndone(undoings)
			w.require()
		})
	}
}

// undoing is a way in which a handler fails, and what its client gets.
type undoing struct {
	do     string
	status int // 0 is no answer
}

var undoings = []undoing{
	{doPanic, 0},
	{doAbort, 0},
	{doGoexit, 0},
	{doFail, http.StatusInternalServerError},
	{doNoStore, http.StatusCreated}, // The handler has said itself that it is not to be kept.
	{doStatement, http.StatusServiceUnavailable},
	{doDeferred, http.StatusServiceUnavailable},
	{doCancelled, http.StatusServiceUnavailable},
	{doTooLarge, http.StatusInternalServerError},
	{doRollback, http.StatusConflict}, // What it wrote may be there: the key is interrupted, in every mode.
}

func (w *world) proveUndone(undoings []undoing) {
	// A lease of the default length: a retry that is answered has not waited for it.
	w.config.Lease = 5 * time.Minute
	n := w.node(nil)
	for i, u := range undoings {
		key := fmt.Sprint("undone-", i)
		first := w.send(context.Background(), n, key, headers{headerDo: u.do})
		if first.status != u.status {
			w.verdict.violate("status", "%s: %d %s %v", u.do, first.status, first.body, first.err)
		}
		w.checkNone(key, u.do)
		w.checkRetry(n, key, u.do)
	}
	// The session ends while the handler has its transaction, as by
	// idle_in_transaction_session_timeout, and the handler does not notice.
	answered := make(chan answer)
	go func() { answered <- w.send(context.Background(), n, "ended", headers{headerGate: "1"}) }()
	w.until("the handler is at the gate", func() bool { return w.state(n).Gated == 1 })
	if _, err := w.pool.Exec(context.Background(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE application_name = $1 AND state = 'idle in transaction'`, w.config.Schema); err != nil {
		w.verdict.violate("harness", "%v", err)
	}
	w.tell(n, "/open?gate=1")
	if first := <-answered; first.status != http.StatusServiceUnavailable {
		w.verdict.violate("status", "ended session: %d %s %v", first.status, first.body, first.err)
	}
	w.checkNone("ended", "ended session")
	w.checkRetry(n, "ended", "ended session")
	w.checkRest(n)
}

// checkRetry demands that the retry of a handler that ended in some way is
// processed, or told that the run was interrupted.
func (w *world) checkRetry(n *node, key, do string) {
	want := do == doRollback && w.config.Mode != modeTakeOver || w.config.Mode == modeAtMostOnce && do != doNoStore
	if do == doNoStore {
		if _, err := w.pool.Exec(context.Background(), `DELETE FROM runs WHERE key = $1`, key); err != nil {
			w.verdict.violate("harness", "%v", err)
		}
	}
	// The connection that breaks with a panic is seen before the key is released.
	all := w.pursue(n, key, nil)
	if last := all[len(all)-1]; last.interrupted != want {
		w.verdict.violate("status", "%s: the retry was told interrupted: %t; %d %s", do, last.interrupted, last.status, last.body)
	}
	if want {
		w.checkNone(key, do)
	}
	if !want || w.config.Mode == modeAtMostOnce {
		w.check(n, key, all...)
	}
}

// checkNone demands that a key has no payment.
func (w *world) checkNone(key, why string) {
	var n int
	w.read(&n, `SELECT count(*) FROM payments WHERE key = $1`, key)
	if n > 0 {
		w.verdict.violate("trace", "%s: %d payments are left", why, n)
	}
}

// TestLost stops a process for longer than its lease, and lets it go on when
// another has claimed its key, free or interrupted: its transaction does not
// commit.
func TestLost(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{modeAgain, modeTakeOver} {
		t.Run(nameOf(mode), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, requireServers(t), "")
			w.config.Mode = mode
			w.proveLost([]string{"claim-end", "claimed", "begun", "read", "written", "returned", "put-start"})
			w.require()
		})
	}
}

func (w *world) proveLost(steps []string) {
	w.config.Lease = steadyLease
	for _, step := range steps {
		late, heir := w.node(nil), w.node(nil)
		key := "lost-" + step
		answered := w.stopAt(late, step, key)
		all := w.pursue(heir, key, nil)
		if all[len(all)-1].replayed {
			w.verdict.violate("harness", "%s: the process that was stopped was not", key)
		}
		w.resume(late)
		first := <-answered
		switch {
		case first.status == http.StatusConflict && !first.interrupted:
		case step == "claim-end" && first.status == http.StatusServiceUnavailable:
			// The renewal of the late claim has failed.
		case step != "claim-end" && first.status == http.StatusInternalServerError:
			// The renewal has ended the handler's context first.
		default:
			w.verdict.violate("status", "%s: the late process answered with %d %s %v", key, first.status, first.body, first.err)
		}
		w.check(heir, key, append(all, first)...)
		w.checkRest(late, heir)
		w.verdict.count("claims lost", 1)
	}
}

// TestStoppedInCommit stops a process past its lease when its record has its
// response and COMMIT is not sent: nobody can take over, and it commits.
func TestStoppedInCommit(t *testing.T) {
	t.Parallel()
	w := newWorld(t, requireServers(t), "")
	w.config.Lease = steadyLease
	for _, step := range []string{"put-end", "commit-start"} {
		late, heir := w.node(nil), w.node(nil)
		key := "stopped-" + step
		answered := w.stopAt(late, step, key)
		retried := make(chan []answer)
		go func() { retried <- w.pursue(heir, key, nil) }()
		w.until("the other one waits for the record", func() bool { return w.waiting() > 0 })
		w.resume(late)
		w.check(heir, key, append(<-retried, <-answered)...)
		w.checkRest(late, heir)
	}
	w.require()
}

// waiting returns how many statements wait for a lock.
func (w *world) waiting() (n int) {
	w.read(&n, `SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND wait_event_type = 'Lock'`, w.config.Schema)
	return n
}

// TestPoolOfOne has a pool of one connection, which the handler holds for longer
// than its lease: its claim is renewed all the same.
func TestPoolOfOne(t *testing.T) {
	t.Parallel()
	w := newWorld(t, requireServers(t), "")
	w.config.Lease = steadyLease
	one, other := w.node(func(c *serverConfig) { c.Conns = 1 }), w.node(nil)
	answered := make(chan answer)
	go func() { answered <- w.send(context.Background(), one, "key", headers{headerGate: "1"}) }()
	w.until("the handler is at the gate", func() bool { return w.state(one).Gated == 1 })
	var claimed time.Time
	w.read(&claimed, `SELECT ends FROM records`)
	w.until("the claim has outlasted three leases", func() bool {
		var ends time.Time
		w.read(&ends, `SELECT ends FROM records`)
		a := w.send(context.Background(), other, "key", nil)
		if a.status != http.StatusConflict || a.interrupted {
			w.verdict.violate("status", "the other process answered with %d %s %v", a.status, a.body, a.err)
		}
		return ends.Sub(claimed) > 3*w.config.Lease
	})
	w.tell(one, "/open?gate=1")
	first := <-answered
	if first.status != http.StatusCreated {
		w.verdict.violate("status", "%d %s %v", first.status, first.body, first.err)
	}
	w.check(other, "key", first)
	w.checkRest(one, other)
	w.require()
}

func (w *world) resume(n *node) {
	if err := resume(n.Process()); err != nil {
		w.verdict.violate("harness", "%v", err)
	}
}
