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
		clause: "Claim is atomic: of any number of concurrent calls for one key, one gets it, and the others are " +
			"shown its claim. Use one atomic command (insert if absent), not a read and a write.",
		run: claimAtomic,
	},
	{
		name: "claim-atomic-over",
		clause: "Claim is atomic for a key whose record's time is over, too: of any number of concurrent calls, one " +
			"claims it. Do not delete and insert in two steps; write on condition that the record is still the " +
			"one that was read.",
		run: claimAtomicOver,
	},
	{
		name: "complete-atomic",
		clause: "Complete compares and writes in one atomic step: of concurrent calls with different tokens for a key " +
			"that holds nothing, one takes effect, and the others return ErrClaimLost.",
		run: completeAtomic,
	},
	{
		name: "renew-atomic",
		clause: "Renew compares and writes in one atomic step: one that is under way while its request completes does " +
			"not overwrite the response, and of concurrent calls with different tokens for a key that holds " +
			"nothing, one takes effect.",
		run: renewAtomic,
	},
	{
		name: "release-atomic",
		clause: "Release compares and deletes in one atomic step: one that is late, because it was sent twice, does " +
			"not delete the claim of the request that came next.",
		run: releaseAtomic,
	},
	{
		name: "take-over-atomic",
		clause: "Claim takes over in one atomic step: of any number of concurrent calls for one interrupted request, " +
			"in its trace or about to be, one gets the key, and the others are shown its claim. Write on " +
			"condition that the record is still the one that was read.",
		run: takeOverAtomic,
	},
	{
		name: "progress-atomic",
		clause: "Renew compares the progress and writes it in one atomic step: of concurrent calls by one claim the " +
			"longest progress stays.",
		run: progressAtomic,
	},
	{
		name: "hammer",
		clause: "A claim is exclusive: from Claim to the call of Complete or Release no other claims the key, with " +
			"TakeOver or without, Renew and Complete of its owner succeed, and every record is whole, whatever " +
			"others call meanwhile. Calls do not fail for being concurrent: try again what a database aborted.",
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
			a.held, a.claimed, a.err = t.Claim(t.Context(), a.r.key, a.r.claim, traced(long, long))
		})
		winners := make(map[idempotency.Key][]request)
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
			if d := diff(a.held, winner.outstanding(nil), false); d != "" {
				t.broken("A claim that came second was shown another record than the first one's: %s", d)
			}
		}
	}
}

func claimAtomicOver(t *tester) {
	const claims, rounds = 16, 3
	for round := range rounds {
		old := t.newRequest()
		switch round {
		case 0:
			t.claim(old, lease(t.soon))
		case 1:
			t.store(old, newResponse("old"), t.soon)
		case 2:
			t.claim(old, traced(t.soon, t.soon))
		}
		var claimed atomic.Int32
		var failed atomic.Pointer[error]
		deadline := time.Now().Add(t.patience)
		atOnce(claims, func(int) {
			r := old.rival()
			for {
				late := time.Now().After(deadline)
				held, ok, err := t.Claim(t.Context(), r.key, r.claim, lease(long))
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
	t.oneOf("Complete", func(r request) (idempotency.Record, error) {
		response := newResponse(r.claim.Token.String())
		return r.completed(response), t.Complete(t.Context(), r.key, r.claim, response, long)
	})
}

func renewAtomic(t *tester) {
	t.oneOf("Renew", func(r request) (idempotency.Record, error) {
		progress := []byte(r.claim.Token.String())
		return r.outstanding(progress), t.Renew(t.Context(), r.key, r.claim, traced(long, long), progress)
	})
	for round := range 20 {
		r, response := t.newRequest(), newResponse("kept")
		t.claim(r, lease(long))
		var progress []byte
		if round%2 == 1 {
			progress = []byte("progress")
		}
		var errs [9]error
		atOnce(len(errs), func(i int) {
			if i == 0 {
				errs[i] = t.Complete(t.Context(), r.key, r.claim, response, long)
			} else {
				errs[i] = t.Renew(t.Context(), r.key, r.claim, lease(long), progress)
			}
		})
		if err := errors.Join(errs[:]...); err != nil {
			t.broken("Complete, with renewals of the same claim under way, or one of these, returned an error: %v", err)
		}
		t.holds(r.key, r.completed(response), "After Complete with renewals of the same claim under way")
	}
}

// oneOf checks that of many calls at once for a key that holds nothing, each
// with a token of its own, one takes effect and the others lose. call returns the
// record that it should leave.
func (t *tester) oneOf(verb string, call func(request) (idempotency.Record, error)) {
	t.Helper()
	const calls, rounds = 16, 8
	for range rounds {
		r := t.newRequest()
		var records [calls]idempotency.Record
		var errs [calls]error
		atOnce(calls, func(i int) { records[i], errs[i] = call(r.rival()) })
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
		t.holds(r.key, records[winner], "After concurrent calls of "+verb)
	}
}

func takeOverAtomic(t *tester) {
	const claims, rounds = 32, 8
	type answer struct {
		r       request
		held    idempotency.Record
		claimed bool
		err     error
	}
	progress := []byte("progress")
	for round := range rounds {
		former := t.newRequest()
		t.claim(former, traced(long, long))
		t.renew(former, traced(long, long), progress)
		if round%2 == 0 {
			t.release(former, long)
		} else {
			t.renew(former, traced(t.soon/4, long), nil) // It is interrupted while they ask.
		}
		var answers [claims]answer
		deadline := time.Now().Add(t.patience)
		atOnce(claims, func(i int) {
			a := &answers[i]
			a.r = former.retry()
			for {
				late := time.Now().After(deadline)
				a.held, a.claimed, a.err = t.Claim(t.Context(), a.r.key, a.r.claim, takingOver(long, long))
				if a.claimed || a.err != nil || a.held.Claim.Token != former.claim.Token || late {
					return
				}
				time.Sleep(time.Millisecond)
			}
		})
		var winners []request
		for _, a := range answers {
			if a.err != nil {
				t.broken("One of %d concurrent claims with TakeOver returned an error: %v", claims, a.err)
			}
			if a.claimed {
				winners = append(winners, a.r)
				if d := diff(a.held, a.r.interrupted(progress), true); d != "" {
					t.broken("The claim that took over was told of another record than its own, interrupted, with the progress: %s", d)
				}
			}
		}
		if len(winners) != 1 {
			t.broken("Of %d concurrent claims of an interrupted request's key, %d were told that they took it over.", claims, len(winners))
		}
		for _, a := range answers {
			if a.claimed {
				continue
			}
			if d := diff(a.held, winners[0].outstanding(progress), true); d != "" {
				t.broken("A claim that came second was shown another record than the one's that took over: %s", d)
			}
		}
		t.holds(former.key, winners[0].outstanding(progress), "After concurrent claims with TakeOver")
	}
}

func progressAtomic(t *tester) {
	whole := []byte("each is longer than the one before")
	for range 20 {
		r := t.newRequest()
		t.claim(r, traced(long, long))
		errs := make([]error, len(whole))
		atOnce(len(whole), func(i int) {
			errs[i] = t.Renew(t.Context(), r.key, r.claim, traced(long, long), whole[:i+1])
		})
		if err := errors.Join(errs...); err != nil {
			t.broken("Renew with progress, by one claim at the same time, returned an error: %v", err)
		}
		t.holds(r.key, r.outstanding(whole), "After concurrent calls of Renew, by one claim and with more progress each")
	}
}

func releaseAtomic(t *tester) {
	for range 20 {
		r := t.newRequest()
		t.claim(r, lease(long))
		next := r.rival()
		var errs [9]error
		var released atomic.Int32
		atOnce(len(errs), func(i int) {
			if i > 0 {
				errs[i] = t.Release(t.Context(), r.key, r.claim, 0)
				released.Add(1)
				return
			}
			for {
				last := int(released.Load()) == len(errs)-1
				_, claimed, err := t.Claim(t.Context(), next.key, next.claim, lease(long))
				if claimed || err != nil || last {
					errs[i] = err
					return
				}
			}
		})
		if err := errors.Join(errs[:]...); err != nil {
			t.broken("Release, sent several times at once, or the next request's Claim returned an error: %v", err)
		}
		t.holds(next.key, next.outstanding(nil), "After a claim that was made while Release of the one before was sent several times")
	}
}
