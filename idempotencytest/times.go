package idempotencytest

import (
	"fmt"
	"time"

	"github.com/idempotency-go/idempotency"
)

// timeCases are about how long a record is kept.
var timeCases = []testCase{
	{
		name: "lease-ends",
		clause: "A claim without a trace that is neither renewed nor completed frees its key when the lease is over, " +
			"not earlier and not later, so that a process that died does not hold a key for ever.",
		run: leaseEnds,
	},
	{
		name:   "expiry-ends",
		clause: "A response is gone, and its key free, when its expiry is over, not earlier and not later.",
		run:    expiryEnds,
	},
	{
		name: "expiry-replaces-lease",
		clause: "Complete keeps the response for its expiry, counted from the call. What was left of the lease and " +
			"the trace neither ends the response nor prolongs it.",
		run: expiryReplacesLease,
	},
	{
		name: "forever",
		clause: "A trace or an expiry of Forever does not end, and sums saturate at it: it is neither over at once " +
			"nor a default. Mind the sum of now, a lease and the trace.",
		run: forever,
	},
	{
		name: "times-refused",
		clause: "A lease or an expiry of 0 or less, and a negative trace, is an error, for every verb and whatever " +
			"the key holds, and changes nothing. It is neither for ever nor over at once.",
		run: timesRefused,
	},
	{
		name: "time-over",
		clause: "A record whose time is over is nothing, for every verb: Complete and Renew take effect, whoever held " +
			"the key, even if the store has not yet deleted the record. Compare its time in the same condition as " +
			"its token.",
		run: timeOver,
	},
	{
		name: "time-fractions",
		clause: "A lease, a trace or an expiry may be any positive time: below a millisecond, or no whole number of " +
			"milliseconds or seconds. It is neither an error nor 0. Round up.",
		run: timeFractions,
	},
	{
		name: "time-long",
		clause: "A lease, a trace or an expiry may be any positive time: a hundred years do not overflow. Mind the " +
			"width of a column and the sum of now and the time.",
		run: timeLong,
	},
}

const century = 100 * 365 * 24 * time.Hour

func leaseEnds(t *tester) {
	kept, r := t.newRequest(), t.newRequest()
	t.claim(kept, lease(long))
	t.claim(r, lease(t.soon))
	next := t.awaitFree(r, fmt.Sprintf("After a claim with a lease of %v that was neither renewed nor completed", t.soon))
	t.holds(next.key, next.outstanding(nil), "After Claim of a key whose lease was over")
	t.holds(kept.key, kept.outstanding(nil), fmt.Sprintf("After %v, under a lease of %v", t.soon, long))
	t.notEarly("a lease", 1, idempotency.StateOutstanding, func(r request, soon time.Duration) { t.claim(r, lease(soon)) })
}

func expiryEnds(t *tester) {
	kept, r, response := t.newRequest(), t.newRequest(), newResponse("kept")
	t.store(kept, response, long)
	t.store(r, response, t.soon)
	next := t.awaitFree(r, fmt.Sprintf("After Complete with an expiry of %v", t.soon))
	t.holds(next.key, next.outstanding(nil), "After Claim of a key whose response was expired")
	t.holds(kept.key, kept.completed(response), fmt.Sprintf("After %v, with an expiry of %v", t.soon, long))
	t.notEarly("an expiry", 1, idempotency.StateCompleted, func(r request, soon time.Duration) { t.store(r, response, soon) })
}

func expiryReplacesLease(t *tester) {
	survives, survivesTrace, ends, endsTrace := t.newRequest(), t.newRequest(), t.newRequest(), t.newRequest()
	response := newResponse("kept")
	t.claim(survives, lease(t.soon))
	t.complete(survives, response, long)
	t.claim(survivesTrace, traced(t.soon, t.soon))
	t.complete(survivesTrace, response, long)
	t.claim(ends, lease(long))
	t.complete(ends, response, t.soon)
	t.claim(endsTrace, traced(long, idempotency.Forever))
	t.complete(endsTrace, response, t.soon)
	t.pass()
	t.pass()
	t.holds(survives.key, survives.completed(response), "After Complete with a long expiry, the short lease before it being over")
	t.holds(survivesTrace.key, survivesTrace.completed(response), "After Complete with a long expiry, the short lease and trace before it being over")
	t.awaitFree(ends, "After a long lease, and Complete with a short expiry")
	t.awaitFree(endsTrace, "After a long lease with a trace that does not end, and Complete with a short expiry")
}

func forever(t *tester) {
	claimed, renewed, released, centuries := t.newRequest(), t.newRequest(), t.newRequest(), t.newRequest()
	absent, completed, response := t.newRequest(), t.newRequest(), newResponse("kept")
	t.claim(claimed, traced(t.soon, idempotency.Forever))
	t.claim(renewed, lease(long))
	t.renew(renewed, traced(t.soon, idempotency.Forever), nil)
	t.claim(released, lease(long))
	t.release(released, idempotency.Forever)
	t.holds(released.key, released.interrupted(nil), "After Release with a trace of Forever")
	t.release(absent, idempotency.Forever)
	t.claim(centuries, traced(century, idempotency.Forever))
	t.holds(centuries.key, centuries.outstanding(nil), "After Claim with a lease of a hundred years and a trace of Forever")
	t.claim(completed, lease(t.soon))
	t.complete(completed, response, idempotency.Forever)
	t.holds(completed.key, completed.completed(response), "After Complete with an expiry of Forever")
	t.pass()
	t.awaitInterrupted(claimed, nil, "After Claim with a short lease and a trace of Forever")
	t.awaitInterrupted(renewed, nil, "After Renew with a short lease and a trace of Forever")
	t.pass()
	t.holds(claimed.key, claimed.interrupted(nil), "Some time after Claim with a short lease and a trace of Forever")
	t.holds(renewed.key, renewed.interrupted(nil), "Some time after Renew with a short lease and a trace of Forever")
	t.holds(released.key, released.interrupted(nil), "Some time after Release with a trace of Forever")
	t.holds(absent.key, absent.interrupted(nil), "Some time after Release, with a trace of Forever, where the key held nothing")
	t.holds(centuries.key, centuries.outstanding(nil), "Some time after Claim with a lease of a hundred years and a trace of Forever")
	t.holds(completed.key, completed.completed(response), "Some time after Complete with an expiry of Forever")
}

func timesRefused(t *tester) {
	free, outstanding, interrupted, completed := t.newRequest(), t.newRequest(), t.newRequest(), t.newRequest()
	progress, response := []byte("progress"), newResponse("kept")
	t.claim(outstanding, traced(long, long))
	t.renew(outstanding, traced(long, long), progress)
	t.interrupt(interrupted, long, progress)
	t.store(completed, response, long)
	fails := func(what string, err error) {
		t.Helper()
		if err == nil {
			t.broken("%s returned no error.", what)
		}
	}
	for _, r := range []request{free, outstanding, interrupted, completed, outstanding.retry(), interrupted.retry(), completed.retry()} {
		for _, terms := range []idempotency.Terms{lease(0), lease(-1), traced(0, long), traced(-long, long), traced(long, -1), takingOver(0, long), takingOver(long, -long)} {
			_, claimed, err := t.Claim(t.Context(), r.key, r.claim, terms)
			if claimed {
				t.broken("Claim with %s returned true.", describeTerms(terms))
			}
			fails("Claim with "+describeTerms(terms), err)
			fails("Renew with "+describeTerms(terms), t.Renew(t.Context(), r.key, r.claim, terms, []byte("progress and more")))
		}
		for _, expiry := range []time.Duration{0, -1, -long} {
			fails(fmt.Sprintf("Complete with an expiry of %v", expiry), t.Complete(t.Context(), r.key, r.claim, newResponse("refused"), expiry))
		}
		for _, trace := range []time.Duration{-1, -long} {
			fails(fmt.Sprintf("Release with a trace of %v", trace), t.Release(t.Context(), r.key, r.claim, trace))
		}
	}
	t.pass()
	after := "After calls with a lease or an expiry that was not positive, or a negative trace"
	t.free(free.key, after)
	t.holds(outstanding.key, outstanding.outstanding(progress), after)
	t.holds(interrupted.key, interrupted.interrupted(progress), after)
	t.holds(completed.key, completed.completed(response), after)
}

func timeOver(t *tester) {
	// Every key holds a record whose time is over. But for the last, none is
	// claimed in between: Claim might clear it away.
	claimed, renewed, ownClaimed, ownRenewed := t.newRequest(), t.newRequest(), t.newRequest(), t.newRequest()
	completed, completedThenRenewed, ownCompleted := t.newRequest(), t.newRequest(), t.newRequest()
	traces, ownTrace, released, last := t.newRequest(), t.newRequest(), t.newRequest(), t.newRequest()
	response := newResponse("new")
	for _, r := range []request{claimed, renewed, ownClaimed, ownRenewed} {
		t.claim(r, lease(t.soon))
	}
	for _, r := range []request{traces, ownTrace, released, last} {
		t.claim(r, traced(t.soon, t.soon))
	}
	for _, r := range []request{completed, completedThenRenewed, ownCompleted} {
		t.store(r, newResponse("old"), t.soon)
	}
	t.pass()
	t.awaitFree(last, "After a claim with a short lease and a short trace")

	next := claimed.rival()
	t.complete(next, response, long)
	t.holds(next.key, next.completed(response), "After Complete where another claim's lease was over")
	next = renewed.rival()
	t.renew(next, lease(long), nil)
	t.holds(next.key, next.outstanding(nil), "After Renew where another claim's lease was over")
	next = completed.rival()
	t.complete(next, response, long)
	t.holds(next.key, next.completed(response), "After Complete where another response was expired")
	next = completedThenRenewed.rival()
	t.renew(next, lease(long), nil)
	t.holds(next.key, next.outstanding(nil), "After Renew where another response was expired")
	next = traces.rival()
	t.complete(next, response, long)
	t.holds(next.key, next.completed(response), "After Complete where another claim's lease and trace were over")
	next = released.rival()
	t.release(next, long)
	t.holds(next.key, next.interrupted(nil), "After Release, with a trace, where another claim's lease and trace were over")
	t.complete(ownClaimed, response, long)
	t.holds(ownClaimed.key, ownClaimed.completed(response), "After Complete where the claim's own lease was over")
	t.renew(ownRenewed, lease(long), nil)
	t.holds(ownRenewed.key, ownRenewed.outstanding(nil), "After Renew where the claim's own lease was over")
	t.renew(ownTrace, traced(long, long), nil)
	t.holds(ownTrace.key, ownTrace.outstanding(nil), "After Renew where the claim's own lease and trace were over")
	t.complete(ownCompleted, response, long)
	t.holds(ownCompleted.key, ownCompleted.completed(response), "After Complete where the claim's own response was expired")
}

func timeFractions(t *tester) {
	for _, d := range []time.Duration{1, time.Microsecond, 999_999, 1_500_000, 2_000_001} {
		claimed, renewed, remembered, released, completed := t.newRequest(), t.newRequest(), t.newRequest(), t.newRequest(), t.newRequest()
		t.claim(claimed, lease(d))
		t.awaitFree(claimed, fmt.Sprintf("After Claim with a lease of %v", d))
		t.claim(renewed, lease(long))
		t.renew(renewed, lease(d), nil)
		t.awaitFree(renewed, fmt.Sprintf("After Renew with a lease of %v", d))
		t.claim(remembered, traced(d, long))
		t.awaitInterrupted(remembered, nil, fmt.Sprintf("After Claim with a lease of %v and a long trace", d))
		t.renew(remembered, traced(d, d), nil)
		t.awaitFree(remembered, fmt.Sprintf("After Renew with a lease and a trace of %v each", d))
		t.interrupt(released, d, nil)
		t.awaitFree(released, fmt.Sprintf("After Release with a trace of %v", d))
		t.store(completed, newResponse("short"), d)
		t.awaitFree(completed, fmt.Sprintf("After Complete with an expiry of %v", d))
	}
}

func timeLong(t *tester) {
	claimed, renewed, remembered, released, completed := t.newRequest(), t.newRequest(), t.newRequest(), t.newRequest(), t.newRequest()
	response := newResponse("kept")
	t.claim(claimed, traced(century, century))
	t.claim(renewed, lease(long))
	t.renew(renewed, traced(century, century), nil)
	t.claim(remembered, traced(t.soon, century))
	t.interrupt(released, century, nil)
	t.store(completed, response, century)
	t.pass()
	t.holds(claimed.key, claimed.outstanding(nil), "Some time after Claim with a lease and a trace of a hundred years")
	t.holds(renewed.key, renewed.outstanding(nil), "Some time after Renew with a lease and a trace of a hundred years")
	t.awaitInterrupted(remembered, nil, "After Claim with a short lease and a trace of a hundred years")
	t.holds(released.key, released.interrupted(nil), "Some time after Release with a trace of a hundred years")
	t.holds(completed.key, completed.completed(response), "Some time after Complete with an expiry of a hundred years")
}
