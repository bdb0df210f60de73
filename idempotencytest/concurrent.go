package idempotencytest

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/idempotency-go/idempotency"
)

// concurrentCases are about calls at the same time.
var concurrentCases = []testCase{
	{
		name: "claim-atomic",
		clause: "Claim is atomic: of any number of concurrent calls for one key, one gets it, and the others are shown its claim. " +
			"Use one atomic command (insert if absent), not a read and a write.",
		run: claimAtomic,
	},
	{
		name: "claim-atomic-over",
		clause: "Claim is atomic for a key whose record's time is over, too: of any number of concurrent calls, one takes the key over. " +
			"Do not delete and insert in two steps; write on condition that the record is still the one that was read.",
		run: claimAtomicOver,
	},
	{
		name: "complete-atomic",
		clause: "Complete compares and writes in one atomic step: of concurrent calls with different tokens for a key that holds nothing, " +
			"one takes effect, and the others return ErrClaimLost.",
		run: completeAtomic,
	},
	{
		name: "renew-atomic",
		clause: "Renew compares and writes in one atomic step: one that is under way while its request completes does not overwrite the response, " +
			"and of concurrent calls with different tokens for a key that holds nothing, one takes effect.",
		run: renewAtomic,
	},
	{
		name: "release-atomic",
		clause: "Release compares and deletes in one atomic step: one that is late, because it was sent twice, " +
			"does not delete the claim of the request that came next.",
		run: releaseAtomic,
	},
	{
		name: "hammer",
		clause: "A claim is exclusive: from Claim to the call of Complete or Release nobody else claims the key, " +
			"Renew and Complete of the holder succeed, and every record is whole, whatever others call meanwhile. " +
			"Calls do not fail for being concurrent: try again what a database aborted.",
		run: hammer,
	},
}

// atOnce runs f(0) to f(n-1) in goroutines that start together.
func atOnce(n int, f func(i int)) {
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			<-start
			f(i)
		})
	}
	close(start)
	wg.Wait()
}

func claimAtomic(t *tester) {
	const claims, rounds, keys = 64, 8, 8
	type answer struct {
		r       request
		held    idempotency.Record
		claimed bool
		err     error
	}
	// In the even rounds all claim one key, in the odd ones several.
	for round := range rounds {
		requests := []request{t.newRequest()}
		for round%2 == 1 && len(requests) < keys {
			requests = append(requests, t.newRequest())
		}
		var answers [claims]answer
		atOnce(claims, func(i int) {
			a := &answers[i]
			a.r = requests[i%len(requests)].rival()
			a.held, a.claimed, a.err = t.Claim(t.Context(), a.r.key, a.r.claim, long)
		})
		winners := make(map[string][]request)
		for _, a := range answers {
			if a.err != nil {
				t.broken("One of %d concurrent claims returned an error: %v", claims, a.err)
			}
			if a.claimed {
				winners[a.r.key] = append(winners[a.r.key], a.r)
			}
		}
		for _, r := range requests {
			if n := len(winners[r.key]); n != 1 {
				t.broken("Of %d concurrent claims of one key %d were told that they have it.", claims/len(requests), n)
			}
		}
		for _, a := range answers {
			winner := winners[a.r.key][0]
			if a.claimed {
				continue
			}
			if d := diff(a.held, winner.record(nil)); d != "" {
				t.broken("A claim that came second was shown another record than the first one's: %s", d)
			}
		}
	}
}

func claimAtomicOver(t *tester) {
	const claims, rounds = 16, 4
	for round := range rounds {
		old := t.newRequest()
		if round%2 == 0 {
			t.claim(old, t.soon)
		} else {
			t.store(old, newResponse("old"), t.soon)
		}
		var claimed atomic.Int32
		var failed atomic.Pointer[error]
		deadline := time.Now().Add(t.patience)
		atOnce(claims, func(int) {
			r := old.rival()
			for {
				late := time.Now().After(deadline)
				held, ok, err := t.Claim(t.Context(), r.key, r.claim, long)
				switch {
				case err != nil:
					failed.Store(&err)
					return
				case ok:
					claimed.Add(1)
					return
				case held.Claim.Token != old.claim.Token || late:
					return
				}
				time.Sleep(time.Millisecond)
			}
		})
		if err := failed.Load(); err != nil {
			t.broken("One of %d concurrent claims returned an error: %v", claims, *err)
		}
		if n := claimed.Load(); n != 1 {
			t.broken("Of %d requests that waited for a record's time to be over, %d were told that they have its key.", claims, n)
		}
	}
}

func completeAtomic(t *tester) {
	t.oneOf("Complete", func(r request) (*idempotency.Response, error) {
		resp := newResponse(r.claim.Token)
		return resp, t.Complete(t.Context(), r.key, r.claim, resp, long)
	})
}

func renewAtomic(t *tester) {
	t.oneOf("Renew", func(r request) (*idempotency.Response, error) {
		return nil, t.Renew(t.Context(), r.key, r.claim, long)
	})
	for range 20 {
		r, resp := t.newRequest(), newResponse("kept")
		t.claim(r, long)
		var errs [9]error
		atOnce(len(errs), func(i int) {
			if i == 0 {
				errs[i] = t.Complete(t.Context(), r.key, r.claim, resp, long)
			} else {
				errs[i] = t.Renew(t.Context(), r.key, r.claim, long)
			}
		})
		if err := errors.Join(errs[:]...); err != nil {
			t.broken("Complete, with renewals of the same claim under way, or one of these, returned an error: %v", err)
		}
		t.holds(r, resp, "After Complete with renewals of the same claim under way")
	}
}

// oneOf checks that of many calls at once for a key that holds nothing, each
// with a token of its own, one takes effect and the others lose.
func (t *tester) oneOf(verb string, call func(request) (*idempotency.Response, error)) {
	t.Helper()
	const calls, rounds = 16, 8
	for range rounds {
		r := t.newRequest()
		var requests [calls]request
		var responses [calls]*idempotency.Response
		var errs [calls]error
		atOnce(calls, func(i int) {
			requests[i] = r.rival()
			responses[i], errs[i] = call(requests[i])
		})
		winner, wins := 0, 0
		for i, err := range errs {
			if err == nil {
				winner = i
				wins++
			} else if !errors.Is(err, idempotency.ErrClaimLost) {
				t.broken("One of %d concurrent calls of %s returned an error that is not ErrClaimLost: %v", calls, verb, err)
			}
		}
		if wins != 1 {
			t.broken("Of %d concurrent calls of %s for one key that held nothing, each with a token of its own, %d returned nil.", calls, verb, wins)
		}
		t.holds(requests[winner], responses[winner], "After concurrent calls of "+verb)
	}
}

func releaseAtomic(t *tester) {
	for range 20 {
		r := t.newRequest()
		t.claim(r, long)
		next := r.rival()
		var errs [9]error
		var released atomic.Int32
		atOnce(len(errs), func(i int) {
			if i > 0 {
				errs[i] = t.Release(t.Context(), r.key, r.claim)
				released.Add(1)
				return
			}
			for {
				last := int(released.Load()) == len(errs)-1
				_, claimed, err := t.Claim(t.Context(), next.key, next.claim, long)
				if claimed || err != nil || last {
					errs[i] = err
					return
				}
			}
		})
		if err := errors.Join(errs[:]...); err != nil {
			t.broken("Release, sent several times at once, or the next request's Claim returned an error: %v", err)
		}
		t.holds(next, nil, "After a claim that was made while Release of the one before was sent several times")
	}
}
