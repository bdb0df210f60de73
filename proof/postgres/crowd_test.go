package proof

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestCrowd sends the requests of 200 clients, on 20 keys, to 3 processes.
func TestCrowd(t *testing.T) {
	t.Parallel()
	for name, settings := range isolations {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, requireServers(t), "")
			w.config.Settings = settings
			w.config.Lease = 5 * time.Second // Nobody dies, so that no key waits for this.
			w.proveCrowd(20, 200)
			w.require()
			require.Equal(t, 20, w.verdict.counted("payments"))
		})
	}
}

// proveCrowd sends the requests of many clients at once, on few keys.
func (w *world) proveCrowd(keys, clients int) {
	nodes := []*node{w.node(nil), w.node(nil), w.node(nil)}
	answers := make([][]answer, clients)
	begin := make(chan struct{})
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			<-begin
			answers[i] = w.pursue(nodes[i%len(nodes)], fmt.Sprint("crowd-", i%keys), nil)
		})
	}
	close(begin)
	wg.Wait()
	for key := range keys {
		var all []answer
		for i := key; i < clients; i += keys {
			all = append(all, answers[i]...)
		}
		w.check(nodes[key%len(nodes)], fmt.Sprint("crowd-", key), all...)
	}
	w.checkRest(nodes...)
}

// TestDuplicates sends many more duplicates of a request that runs than there
// are connections.
func TestDuplicates(t *testing.T) {
	t.Parallel()
	for name, wait := range map[string]time.Duration{"refused": 0, "waiting": patience} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, requireServers(t), "")
			w.config.Wait = wait
			w.proveDuplicates()
			w.require()
		})
	}
}

// longHeld is how long a statement of a duplicate does not take.
const longHeld = time.Second

// proveDuplicates lets a request wait in its handler while duplicates come, and
// demands that they get their answer, or that they wait, without connections.
func (w *world) proveDuplicates() {
	const conns, duplicates = 3, 60
	w.config.Conns, w.config.Lease = conns, 20*time.Second
	n := w.node(nil)
	var wg sync.WaitGroup
	answers := make([]answer, 1+duplicates)
	wg.Go(func() { answers[0] = w.send(context.Background(), n, "slow", headers{headerGate: "1"}) })
	w.until("the handler is at the gate", func() bool { return w.state(n).Gated == 1 })
	for i := range duplicates {
		wg.Go(func() { answers[1+i] = w.send(context.Background(), n, "slow", nil) })
	}
	w.until("the duplicates are there", func() bool { return w.state(n).Came == 1+duplicates })
	over, end := context.WithCancel(context.Background())
	wg.Go(func() {
		defer end()
		least := int32(conns)
		// Duplicates look at a record now and then, and all at once on a slow machine.
		// A claim that holds a connection is given up after 5 s.
		for began := time.Now(); time.Since(began) < 2*longHeld || least > 1 && time.Since(began) < 4*longHeld; {
			w.countHeld()
			least = min(least, w.state(n).Acquired)
		}
		if least > 1 {
			w.verdict.violate("connections", "at every look at least %d connections were in use", least)
		}
	})
	// Others are not kept from the two connections that are left.
	for i := 0; over.Err() == nil; i++ {
		key := fmt.Sprint("other-", i)
		start := time.Now()
		a := w.send(context.Background(), n, key, nil)
		if took := time.Since(start); took > 3*time.Second {
			w.verdict.violate("starved", "%s took %v while duplicates were waiting", key, took)
		}
		w.check(n, key, a)
	}
	w.tell(n, "/open?gate=1")
	wg.Wait()
	for i, a := range answers {
		want := http.StatusCreated
		if i > 0 && n.Config.Wait == 0 {
			want = http.StatusConflict
		}
		if a.status != want {
			w.verdict.violate("status", "request %d: %d %s %v", i, a.status, a.body, a.err)
		}
	}
	w.check(n, "slow", answers...)
	w.checkRest(n)
}

// countHeld demands that no connection is in use for long but the handler's.
func (w *world) countHeld() {
	var inTransaction, long int
	err := w.pool.QueryRow(context.Background(), `
		SELECT count(*) FILTER (WHERE now() - xact_start > $2), count(*) FILTER (WHERE now() - state_change > $2)
		FROM pg_stat_activity WHERE application_name = $1 AND state <> 'idle'`, w.config.Schema, longHeld).Scan(&inTransaction, &long)
	if err != nil || inTransaction > 1 || long > 1 {
		w.verdict.violate("connections", "%d transactions and %d statements last longer than %v: %v", inTransaction, long, longHeld, err)
	}
}
