package proof

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"
)

// leavings are the steps at which clients leave: before and during their claim, and
// while their handler runs and its writes are committed.
var leavings = []string{"claim-start", "claim-sent", "claim-end", "claimed", "written", "returned", "put-start", "commit-start", "completed"}

// TestLeft has clients leave. Their keys are not left claimed without a run.
func TestLeft(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{modeAgain, modeAtMostOnce} {
		t.Run(nameOf(mode), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, requireServers(t), "")
			w.config.Mode = mode
			w.proveLeft(leavings, *rounds)
			w.require()
			if n := w.verdict.counted("interrupted"); n > 0 {
				t.Errorf("%d keys were interrupted", n)
			}
		})
	}
}

// leftTime is how long the key of a client that has left may stay outstanding.
const leftTime = 10 * time.Second

// proveLeft has a client leave at each of the steps, n times. The lease is longer than
// anybody waits.
func (w *world) proveLeft(steps []string, n int) {
	w.config.Lease = 10 * time.Minute
	work := make(chan string)
	var wg sync.WaitGroup
	for lane := range 4 {
		node := w.node(nil)
		wg.Go(func() {
			round := 0
			for step := range work {
				round++
				w.leaveAt(node, step, fmt.Sprintf("left-%d.%d", lane, round), int64(round))
			}
			w.checkRest(node)
		})
	}
	for range n {
		for _, step := range steps {
			work <- step
		}
	}
	close(work)
	wg.Wait()
}

func (w *world) leaveAt(n *node, step, key string, round int64) {
	w.send(context.Background(), n, key+" before", nil) // So that statements are prepared.
	ctx, leave := context.WithCancel(context.Background())
	defer leave()
	first := make(chan answer)
	go func() { first <- w.send(ctx, n, key, headers{headerLeave: step}) }()
	w.until("a request is at "+step, func() bool { return w.state(n).Left == round })
	leave()
	all := []answer{<-first}
	for end := time.Now().Add(leftTime); ; time.Sleep(5 * time.Millisecond) {
		a := w.send(context.Background(), n, key, nil)
		all = append(all, a)
		if a.status == http.StatusCreated || a.interrupted {
			break
		}
		if time.Now().After(end) {
			w.verdict.violate("stuck", "%s: its client left at %s, and a retry gets %d %s %v", key, step, a.status, a.body, a.err)
			return
		}
	}
	w.check(n, key, all...)
	w.verdict.count("clients that left", 1)
}
