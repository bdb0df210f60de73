package linear

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
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
	Lives                []time.Duration // the leases and expiries
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
				in, resp := w.call(random, fmt.Sprintf("%d.%d", id, n))
				in.key = idempotency.StorageKey(run, in.key)
				ctx, cancel := context.WithTimeout(ctx, w.Patience)
				if random.Float64() < w.Ended {
					cancel()
				}
				op := porcupine.Operation{ClientId: id, Call: order.Add(1)}
				in.from = time.Now().UnixNano()
				out := in.do(ctx, b, resp)
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

// call chooses a call. Its name tells its response from all others.
func (w Workload) call(random *rand.Rand, name string) (input, *idempotency.Response) {
	token := random.IntN(w.Tokens)
	in := input{
		key:   fmt.Sprint(random.IntN(w.Keys)),
		claim: idempotency.Claim{Token: string(rune('a' + token)), Fingerprint: [32]byte{byte(token)}},
		life:  int64(w.Lives[random.IntN(len(w.Lives))]),
	}
	switch n := random.IntN(10); {
	case n < 4:
		in.verb = verbClaim
	case n < 6:
		in.verb = verbRenew
	case n < 8:
		in.verb = verbRelease
	default:
		in.verb = verbComplete
		resp := &idempotency.Response{Status: 201, Body: []byte(name)}
		if random.IntN(4) == 0 {
			resp = &idempotency.Response{} // the mark of an answer that was not kept
		}
		in.response = text(resp)
		return in, resp
	}
	return in, nil
}

// do makes the call.
func (in input) do(ctx context.Context, b idempotency.Backend, resp *idempotency.Response) output {
	var out output
	var err error
	switch life := time.Duration(in.life); in.verb {
	case verbClaim:
		var held idempotency.Record
		held, out.claimed, err = b.Claim(ctx, in.key, in.claim, life)
		if out.held = held.Claim; held.Response != nil {
			out.response = text(held.Response)
		}
	case verbRenew:
		err = b.Renew(ctx, in.key, in.claim, life)
	case verbComplete:
		err = b.Complete(ctx, in.key, in.claim, resp, life)
	case verbRelease:
		err = b.Release(ctx, in.key, in.claim)
	}
	switch {
	case errors.Is(err, idempotency.ErrClaimLost):
		return output{lost: true}
	case err != nil:
		return output{unknown: true}
	}
	return out
}
