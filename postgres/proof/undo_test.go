package proof

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"
)

// TestUndone makes handlers fail in every way after their write: nothing of it
// is left, and a retry is processed at once, afresh.
func TestUndone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, requireServers(t), "")
	w.proveUndone(undoings)
	w.require()
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
	{doRollback, http.StatusServiceUnavailable},
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
		// The connection that breaks with a panic is seen before the key is free.
		w.check(n, key, w.pursue(n, key, nil)...)
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
	w.tell(n, "/open")
	if first := <-answered; first.status != http.StatusServiceUnavailable {
		w.verdict.violate("status", "ended session: %d %s %v", first.status, first.body, first.err)
	}
	w.checkNone("ended", "ended session")
	w.check(n, "ended", w.pursue(n, "ended", nil)...)
	w.checkRest(n)
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
// another has taken over: its transaction does not commit.
func TestLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t, requireServers(t), "")
	w.proveLost([]string{"claimed", "begun", "read", "written", "returned", "put-start"})
	w.require()
}

func (w *world) proveLost(steps []string) {
	for _, step := range steps {
		late, heir := w.node(nil), w.node(nil)
		key := "lost-" + step
		answered := make(chan answer)
		go func() { answered <- w.send(context.Background(), late, key, headers{headerPause: step}) }()
		w.until("the process stops", func() bool { return late.stopped() })
		all := w.pursue(heir, key, nil)
		if all[len(all)-1].replayed {
			w.verdict.violate("harness", "%s: the process that was stopped was not", key)
		}
		w.resume(late)
		first := <-answered
		// The handler fails if the renewal ends its context first.
		if first.status != http.StatusConflict && first.status != http.StatusInternalServerError {
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
	for _, step := range []string{"put-end", "commit-start"} {
		late, heir := w.node(nil), w.node(nil)
		key := "stopped-" + step
		answered := make(chan answer)
		go func() { answered <- w.send(context.Background(), late, key, headers{headerPause: step}) }()
		w.until("the process stops", func() bool { return late.stopped() })
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

// TestNoConnectionToRenew has a pool of one connection, which the handler holds:
// its claim cannot be renewed, another process takes over, and it cannot commit.
func TestNoConnectionToRenew(t *testing.T) {
	t.Parallel()
	w := newWorld(t, requireServers(t), "")
	late, heir := w.node(func(c *serverConfig) { c.Conns = 1 }), w.node(nil)
	answered := make(chan answer)
	go func() { answered <- w.send(context.Background(), late, "key", headers{headerGate: "1"}) }()
	w.until("the handler is at the gate", func() bool { return w.state(late).Gated == 1 })
	all := w.pursue(heir, "key", nil)
	w.tell(late, "/open")
	first := <-answered
	if first.status != http.StatusConflict {
		w.verdict.violate("status", "the late process answered with %d %s %v", first.status, first.body, first.err)
	}
	w.check(heir, "key", append(all, first)...)
	w.checkRest(late, heir)
	w.require()
}

func (w *world) resume(n *node) {
	if err := resume(n.process.Process); err != nil {
		w.verdict.violate("harness", "%v", err)
	}
}
