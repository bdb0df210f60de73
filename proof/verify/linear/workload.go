package linear

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/idempotency-go/idempotency"
)

// A Workload is clients that call a backend at the same time. They share a few
// keys, and for each key a few tokens, so that they meet at every record. What
// is called is repeated by the seed; how the calls meet is not.
type Workload struct {
	Seed                 uint64
	Clients, Keys, Calls int             // Calls is for each client.
	Tokens               int             // for each key
	Lives                []time.Duration // the leases, traces and expiries
	Pause                time.Duration   // the longest between two calls of a client
	Patience             time.Duration   // how long a call may take
	Ended                float64         // the share of calls whose context has ended before
}

// Run runs the workload and returns its history. It returns once every client
// has; calls that it gave up may still be on their way.
func (w Workload) Run(ctx context.Context, b idempotency.Backend) []porcupine.Operation {
	run := fmt.Sprintf("%016x", rand.Uint64()) // Another run finds none of these records.
	var order atomic.Int64
	histories := make([][]porcupine.Operation, w.Clients)
	var clients sync.WaitGroup
	for id := range w.Clients {
		clients.Go(func() {
			random := rand.New(rand.NewPCG(w.Seed, uint64(id)))
			for n := range w.Calls {
				time.Sleep(time.Duration(random.Int64N(int64(w.Pause)+1)) / tick * tick)
				in := w.call(random, fmt.Sprintf("%d.%d", id, n))
				in.key = idempotency.NewKey(run, fmt.Sprint(random.IntN(w.Keys)))
				ctx, cancel := context.WithTimeout(ctx, w.Patience)
				if random.Float64() < w.Ended {
					cancel()
				}
				op := porcupine.Operation{ClientId: id, Call: order.Add(1)}
				in.from = time.Now().UnixNano()
				out := in.do(ctx, b)
				in.until = time.Now().UnixNano()
				op.Return = order.Add(1)
				cancel()
				if out.unknown {
					in.until, op.Return = never, never
				}
				op.Input, op.Output = in, out
				histories[id] = append(histories[id], op)
			}
		})
	}
	clients.Wait()
	return slices.Concat(histories...)
}

// tick is what pauses are a multiple of: where time is a bubble's, calls then
// meet, and meet the end of a lease, at the same instant.
const tick = 500 * time.Microsecond

// fingerprints are those of the tokens in turn: three of one request, one of another,
// and one that matches any.
var fingerprints = [...]byte{1, 1, 1, 2, 0}

// call chooses a call. Its name tells its response and its progress from all others.
func (w Workload) call(random *rand.Rand, name string) input {
	token := random.IntN(w.Tokens)
	life := func() int64 { return int64(w.Lives[random.IntN(len(w.Lives))]) }
	in := input{
		claim: idempotency.Claim{
			Token:       idempotency.Token{'a' + byte(token)},
			Fingerprint: [32]byte{fingerprints[token%len(fingerprints)]},
		},
		life: life(),
	}
	if random.IntN(3) > 0 {
		in.trace = life()
	}
	switch n := random.IntN(10); {
	case n < 5:
		in.verb = verbClaim
		in.takeOver = random.IntN(2) == 0
	case n < 7:
		in.verb = verbRenew
		if random.IntN(3) > 0 {
			in.progress = name + strings.Repeat("+", random.IntN(6))
		}
	case n < 9:
		in.verb = verbRelease
	default:
		in.verb = verbComplete
		in.trace = 0
		in.response = name
	}
	return in
}

// do makes the call.
func (in input) do(ctx context.Context, b idempotency.Backend) output {
	var out output
	var err error
	life, trace := time.Duration(in.life), time.Duration(in.trace)
	terms := idempotency.Terms{Lease: life, Trace: trace, TakeOver: in.takeOver}
	switch in.verb {
	case verbClaim:
		var held idempotency.Record
		held, out.claimed, err = b.Claim(ctx, in.key, in.claim, terms)
		out.held, out.state = held.Claim, held.State
		if match(held.Claim, in.claim) {
			out.response = string(held.Response)
			if held.State != idempotency.StateCompleted { // Nobody asks for it then.
				out.progress = string(held.Progress)
			}
		}
	case verbRenew:
		var progress []byte
		if in.progress != "" {
			progress = []byte(in.progress)
		}
		err = b.Renew(ctx, in.key, in.claim, terms, progress)
	case verbComplete:
		err = b.Complete(ctx, in.key, in.claim, []byte(in.response), life)
	case verbRelease:
		err = b.Release(ctx, in.key, in.claim, trace)
	}
	switch {
	case errors.Is(err, idempotency.ErrClaimLost):
		return output{lost: true}
	case err != nil:
		return output{unknown: true}
	}
	return out
}
