package scale

import (
	"context"
	"encoding/binary"
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

// terms are those of each claim.
var terms = idempotency.Terms{Lease: lease}

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
	do    func(worker, i int) error // with the ith key of a goroutine
	rates []float64                 // per second, of each round
}

func newTask[K any](workers int, key func(worker, i int) K, do func(worker int, key K) error) *task {
	keys := make([][]K, workers)
	for w := range workers {
		for i := range keysEach {
			keys[w] = append(keys[w], key(w, i))
		}
	}
	return &task{do: func(worker, i int) error { return do(worker, keys[worker][i]) }}
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
	claim := newClaim(freshKeys)
	return load{
		goroutines: goroutines,
		replays: newTask(goroutines,
			func(int, int) string { return work.Key(heldKeys, uint64(rand.IntN(held))) },
			func(worker int, key string) error { return post(clients[worker], key) }),
		found: newTask(goroutines,
			func(int, int) idempotency.Key { return storageKey(heldKeys, rand.IntN(held)) },
			func(_ int, key idempotency.Key) error {
				record, claimed, err := backend.Claim(ctx, key, claim, terms)
				if err == nil && (claimed || record.State != idempotency.StateCompleted) {
					err = errOtherwise
				}
				return err
			}),
		fresh: newTask(goroutines,
			func(worker, i int) idempotency.Key { return storageKey(uint32(freshKeys+worker), i) },
			func(_ int, key idempotency.Key) error {
				if err := claimNew(ctx, backend, key, claim); err != nil {
					return err
				}
				return backend.Release(ctx, key, claim, 0)
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
						return t.do(worker, int(n%keysEach))
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
func claimNew(ctx context.Context, backend idempotency.Backend, key idempotency.Key, claim idempotency.Claim) error {
	_, claimed, err := backend.Claim(ctx, key, claim, terms)
	if err == nil && !claimed {
		err = errOtherwise
	}
	return err
}

// storageKey returns the name under which a backend sees the nth key of a set.
func storageKey(set uint32, n int) idempotency.Key {
	return idempotency.NewKey("", work.Key(set, uint64(n)))
}

// newClaim returns the nth claim.
func newClaim(n uint64) (claim idempotency.Claim) {
	binary.BigEndian.PutUint64(claim.Token[8:], n)
	return claim
}
