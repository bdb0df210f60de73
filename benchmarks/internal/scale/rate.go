package scale

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/benchmarks/internal/report"
	"github.com/idempotency-go/idempotency/benchmarks/internal/work"
)

const (
	lease = time.Hour // longer than anything here takes

	// keysEach is how many keys each goroutine takes in turn.
	keysEach = 1 << 14
	// rounds is how many rounds the rates are measured in: short ones, so that
	// other work on the machine comes over all stores alike.
	rounds = 15
)

var errOtherwise = errors.New("a claim did not find what it should have")

// load is what so many goroutines do with a memory backend, one after the other.
type load struct {
	goroutines int
	replays    *task // through the middleware
	found      *task // claims of keys that have a response
	fresh      *task // claims of new keys, each released again
}

// task is what goroutines do again and again, each with keys of its own.
type task struct {
	keys  [][]string
	do    func(worker int, key string) error
	rates []float64 // per second, of each round
}

func newTask(workers int, key func(worker, i int) string, do func(worker int, key string) error) *task {
	t := &task{keys: make([][]string, workers), do: do}
	for w := range workers {
		for i := range keysEach {
			t.keys[w] = append(t.keys[w], key(w, i))
		}
	}
	return t
}

// newLoad returns the tasks for a backend that holds so many responses, with
// keys from all over it.
func newLoad(backend idempotency.Backend, held, goroutines int) load {
	handler := idempotency.New(backend)(newService(work.AnswerSize))
	clients := make([]work.Client, goroutines)
	for i := range clients {
		clients[i] = work.NewDirect(handler)
	}
	ctx := context.Background() // Each request has one of its own, which nothing ends.
	claim := idempotency.Claim{Token: storageKey(freshKeys, 0)}
	return load{
		goroutines: goroutines,
		replays: newTask(goroutines,
			func(int, int) string { return work.Key(heldKeys, uint64(rand.IntN(held))) },
			func(worker int, key string) error { return post(clients[worker], key) }),
		found: newTask(goroutines,
			func(int, int) string { return storageKey(heldKeys, rand.IntN(held)) },
			func(_ int, name string) error {
				record, claimed, err := backend.Claim(ctx, name, claim, lease)
				if err == nil && (claimed || record.Response == nil) {
					err = errOtherwise
				}
				return err
			}),
		fresh: newTask(goroutines,
			func(worker, i int) string { return storageKey(uint32(freshKeys+worker), i) },
			func(_ int, name string) error {
				if err := claimNew(ctx, backend, name, claim); err != nil {
					return err
				}
				return backend.Release(ctx, name, claim)
			}),
	}
}

// measureRates measures all backends in turn, round by round, so that what slows
// the machine down for a while slows all of them.
func (r *results) measureRates(ctx context.Context) error {
	for round := range rounds {
		for _, h := range r.holdings {
			for _, l := range h.loads {
				for _, t := range []*task{l.replays, l.found, l.fresh} {
					n, elapsed, err := work.Together(ctx, r.Time/rounds, l.goroutines, func(worker int, n int64) error {
						return t.do(worker, t.keys[worker][n%keysEach])
					})
					if err = errors.Join(err, ctx.Err()); err != nil {
						return err
					}
					t.rates = append(t.rates, float64(n)/elapsed.Seconds())
				}
			}
		}
		r.say("memory: claims per second: round %d of %d", round+1, rounds)
	}
	return nil
}

// perSecond renders the rate of a task, which is the middle one of the rounds.
func (t *task) perSecond() string { return report.Count(report.Median(t.rates)) }

// claimNew claims a key that nothing holds.
func claimNew(ctx context.Context, backend idempotency.Backend, name string, claim idempotency.Claim) error {
	_, claimed, err := backend.Claim(ctx, name, claim, lease)
	if err == nil && !claimed {
		err = errOtherwise
	}
	return err
}

// storageKey returns the name under which a backend sees the nth key of a set.
func storageKey(set uint32, n int) string {
	return idempotency.StorageKey("", work.Key(set, uint64(n)))
}
