package proof

import (
	"context"
	"encoding/json"
	"net/http"
	"testing"
	"time"
)

// TestOvertaken stops a process past its lease, and lets it go on when another
// request, with another body, has claimed its key and has not yet answered: it does
// not commit.
func TestOvertaken(t *testing.T) {
	t.Parallel()
	w := newWorld(t, requireServers(t), "")
	w.proveOvertaken()
	w.require()
}

func (w *world) proveOvertaken() {
	w.config.Lease = steadyLease
	const other = `{"amount":100,"currency":"EUR"}`
	for _, step := range []string{"written", "returned"} {
		late, heir := w.node(nil), w.node(nil)
		key := "overtaken-" + step
		answered, inherited := w.stopAt(late, step, key), make(chan answer)
		go func() {
			var a answer
			for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
				a = w.send(context.Background(), heir, key, headers{ofBody: other, headerGate: "1"})
				if a.status != http.StatusUnprocessableEntity { // The key is free.
					break
				}
			}
			inherited <- a
		}()
		w.until("the heir is at the gate", func() bool { return w.state(heir).Gated == 1 })
		w.resume(late)
		if first := <-answered; first.status == http.StatusCreated {
			w.verdict.violate("overtaken", "%s: the first owner has committed over its heir: %s", key, first.body)
		}
		w.checkNone(key, "the heir has not committed")
		w.tell(heir, "/open?gate=1")
		a := <-inherited
		var told receipt
		var id int64
		w.read(&id, `SELECT coalesce(min(id), 0) FROM payments WHERE key = $1`, key)
		if err := json.Unmarshal(a.body, &told); err != nil || a.status != http.StatusCreated || told.Payment != id {
			w.verdict.violate("overtaken", "%s: the heir answered with %d %s %v; the payment is %d", key, a.status, a.body, a.err, id)
		}
		w.checkRest(late, heir)
		w.verdict.count("claims overtaken", 1)
	}
}

// TestFoundNone cuts the connection before a COMMIT for longer than the lease. When the
// owner looks what became of it, the key is another's: nothing was committed.
func TestFoundNone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, requireServers(t), "")
	w.proveFoundNone()
	w.require()
}

func (w *world) proveFoundNone() {
	w.config.Lease = steadyLease
	l, heir := w.lane(), w.node(nil)
	l.proxy.arm(&cut{frontend: true, n: 1, label: "Q commit", how: cutLost, down: time.Hour})
	answered := make(chan answer)
	go func() { answered <- w.send(context.Background(), l.node, "key", nil) }()
	w.until("the connection is cut", func() bool { return l.proxy.hit() != "" })
	all := w.pursue(heir, "key", nil)
	l.proxy.heal()
	w.check(heir, "key", append(all, <-answered)...)
	w.checkRest(l.node, heir)
}
