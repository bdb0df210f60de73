package scale

import (
	"context"
	"fmt"
	"runtime"
	"slices"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/benchmarks/internal/report"
	"github.com/idempotency-go/idempotency/benchmarks/internal/work"
)

// Sets of keys, see [work.Key]. Those of goroutines are counted from freshKeys,
// those of parts of the load on Redis from loadKeys.
const (
	heldKeys  = 0
	freshKeys = 1
	loadKeys  = 1 << 16
)

// unbounded is more bytes than a memory backend is ever filled with.
const unbounded = 1 << 40

// holding is a memory backend that holds many responses.
type holding struct {
	records int
	// What each record takes beyond its body, in bytes: its objects, and the
	// heap's spans that they lie in.
	objects, spans float64
	loads          []load // of one goroutine, and of as many as run at once
}

// hold fills a memory backend with n responses and measures what they take.
func (r *results) hold(ctx context.Context, n int) (holding, error) {
	h := holding{records: n}
	before := heap()
	backend := idempotency.NewMemory(idempotency.WithMaxBytes(unbounded))
	if err := r.fill(ctx, backend, n); err != nil {
		return holding{}, err
	}
	after := heap()
	payload := float64(n) * work.AnswerSize
	h.objects = (float64(after.HeapAlloc) - float64(before.HeapAlloc) - payload) / float64(n)
	h.spans = (float64(after.HeapInuse) - float64(before.HeapInuse) - payload) / float64(n)
	for _, goroutines := range slices.Compact([]int{1, runtime.GOMAXPROCS(0)}) {
		h.loads = append(h.loads, newLoad(backend, n, goroutines))
	}
	return h, nil
}

// fill stores n responses through the middleware.
func (r *results) fill(ctx context.Context, backend idempotency.Backend, n int) error {
	service := newService(work.AnswerSize)
	client := work.NewDirect(idempotency.New(backend)(service))
	for i := range n {
		if err := post(client, work.Key(heldKeys, uint64(i))); err != nil {
			return err
		}
		if err := r.sayFilled(ctx, i+1, n); err != nil {
			return err
		}
	}
	if runs := service.Runs(); runs != int64(n) {
		return fmt.Errorf("%d requests ran the handler %d times", n, runs)
	}
	return nil
}

// sayFilled tells, now and then, how far the filling is, and ends it with ctx.
func (r *results) sayFilled(ctx context.Context, done, n int) error {
	if done%100_000 == 0 || done == n {
		r.say("memory: %s of %s responses stored", report.Count(float64(done)), report.Count(float64(n)))
	}
	return ctx.Err()
}

// heap returns what the heap holds once all that can be freed is freed.
func heap() runtime.MemStats {
	var stats runtime.MemStats
	runtime.GC()
	runtime.GC() // What the first has only moved out of a sync.Pool.
	runtime.ReadMemStats(&stats)
	return stats
}
