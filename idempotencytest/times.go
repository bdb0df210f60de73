package idempotencytest

import (
	"fmt"
	"time"
)

// timeCases are about how long a record is kept.
var timeCases = []testCase{
	{
		name: "lease-ends",
		clause: "A claim that is neither renewed nor completed frees its key when the lease is over, not earlier and not later, " +
			"so that a process that died does not hold a key for ever.",
		run: leaseEnds,
	},
	{
		name:   "lease-zero",
		clause: "A lease of 0 means for ever, for Claim and for Renew: it is neither over at once nor a default.",
		run:    leaseZero,
	},
	{
		name: "renew-lease",
		clause: "Renew makes the lease run for the given time from now: a longer one extends it, a shorter one ends it sooner, " +
			"and the claim stays what it was.",
		run: renewLease,
	},
	{
		name:   "expiry-ends",
		clause: "A response is gone, and its key free, when its expiry is over, not earlier and not later.",
		run:    expiryEnds,
	},
	{
		name:   "expiry-zero",
		clause: "An expiry of 0 means for ever: it is neither over at once nor a default.",
		run:    expiryZero,
	},
	{
		name: "expiry-replaces-lease",
		clause: "Complete keeps the response for its expiry, counted from the call. What was left of the lease " +
			"neither ends the response nor prolongs it.",
		run: expiryReplacesLease,
	},
	{
		name: "time-over",
		clause: "A record whose time is over is nothing, for every verb: Complete and Renew take effect, whoever held the key, even if " +
			"the store has not yet deleted the record. Compare its time in the same condition as its token.",
		run: timeOver,
	},
	{
		name: "time-fractions",
		clause: "A lease or expiry may be any time: below a millisecond, or no whole number of milliseconds or seconds. It is neither an error " +
			"nor 0, which would mean for ever. Round up.",
		run: timeFractions,
	},
	{
		name:   "time-long",
		clause: "A lease or expiry may be any time: a hundred years do not overflow. Mind the width of a column and the sum of now and the time.",
		run:    timeLong,
	},
}

func leaseEnds(t *tester) {
	kept, r := t.newRequest(), t.newRequest()
	t.claim(kept, long)
	t.claim(r, t.soon)
	t.awaitFree(r.key, fmt.Sprintf("After a claim with a lease of %v that was neither renewed nor completed", t.soon))
	t.holds(kept, nil, fmt.Sprintf("After %v, under a lease of %v", t.soon, long))
	t.notEarly("lease", t.claim)
}

func leaseZero(t *tester) {
	claimed, renewed := t.newRequest(), t.newRequest()
	t.claim(claimed, 0)
	t.holds(claimed, nil, "After Claim with a lease of 0")
	t.claim(renewed, t.soon)
	t.renew(renewed, 0)
	t.pass()
	t.holds(claimed, nil, "Some time after Claim with a lease of 0")
	t.holds(renewed, nil, "Some time after Renew with a lease of 0")
}

func renewLease(t *tester) {
	r := t.newRequest()
	t.claim(r, t.soon)
	t.renew(r, long)
	t.pass()
	t.holds(r, nil, "After Renew with a long lease, the first and short lease being over")
	t.renew(r, t.soon)
	t.awaitFree(r.key, fmt.Sprintf("After Renew with a lease of %v, shorter than what was left", t.soon))
}

func expiryEnds(t *tester) {
	kept, r, resp := t.newRequest(), t.newRequest(), newResponse("kept")
	t.store(kept, resp, long)
	t.store(r, resp, t.soon)
	next := t.awaitFree(r.key, fmt.Sprintf("After Complete with an expiry of %v", t.soon))
	t.holds(next, nil, "After Claim of a key whose response was expired")
	t.holds(kept, resp, fmt.Sprintf("After %v, with an expiry of %v", t.soon, long))
	t.notEarly("expiry", func(r request, soon time.Duration) { t.store(r, resp, soon) })
}

// notEarly checks that a key is held in the middle of the time that set gave it.
// Where a busy machine did not get to look before three quarters of that time
// (the rest is for the rounding of a store) it is tried again with more time.
func (t *tester) notEarly(what string, set func(r request, soon time.Duration)) {
	t.Helper()
	for soon := t.soon; soon < t.patience; soon *= 4 {
		r := t.newRequest()
		start := time.Now()
		set(r, soon)
		time.Sleep(time.Until(start.Add(soon / 2)))
		if _, ok := t.probe(r.key); ok {
			return
		}
		if took := time.Since(start); took < soon*3/4 {
			t.broken("A key with a %s of %v was free after %v.", what, soon, took)
		}
	}
	t.Skip("idempotencytest: the backend is too slow to tell")
}

func expiryZero(t *tester) {
	r, resp := t.newRequest(), newResponse("kept")
	t.claim(r, t.soon)
	t.complete(r, resp, 0)
	t.holds(r, resp, "After Complete with an expiry of 0")
	t.pass()
	t.holds(r, resp, "Some time after Complete with an expiry of 0")
}

func expiryReplacesLease(t *tester) {
	survives, ends, endsAfterZero, resp := t.newRequest(), t.newRequest(), t.newRequest(), newResponse("kept")
	t.claim(survives, t.soon)
	t.complete(survives, resp, long)
	t.claim(ends, long)
	t.complete(ends, resp, t.soon)
	t.claim(endsAfterZero, 0)
	t.complete(endsAfterZero, resp, t.soon)
	t.pass()
	t.holds(survives, resp, "After Complete with a long expiry, the short lease before it being over")
	t.awaitFree(ends.key, "After a long lease, and Complete with a short expiry")
	t.awaitFree(endsAfterZero.key, "After a lease of 0, and Complete with a short expiry")
}

func timeOver(t *tester) {
	// Every key holds a record whose time is over. But for the last, none is
	// claimed in between: Claim might clear it away.
	claimed, renewed, ownClaimed, ownRenewed := t.newRequest(), t.newRequest(), t.newRequest(), t.newRequest()
	completed, completedThenRenewed, ownCompleted, last := t.newRequest(), t.newRequest(), t.newRequest(), t.newRequest()
	resp := newResponse("new")
	t.claim(claimed, t.soon)
	t.claim(renewed, t.soon)
	t.claim(ownClaimed, t.soon)
	t.claim(ownRenewed, t.soon)
	t.store(completed, newResponse("old"), t.soon)
	t.store(completedThenRenewed, newResponse("old"), t.soon)
	t.store(ownCompleted, newResponse("old"), t.soon)
	t.store(last, newResponse("old"), t.soon)
	t.pass()
	t.awaitFree(last.key, "After Complete with a short expiry")

	next := claimed.rival()
	t.complete(next, resp, long)
	t.holds(next, resp, "After Complete where another claim's lease was over")
	next = renewed.rival()
	t.renew(next, long)
	t.holds(next, nil, "After Renew where another claim's lease was over")
	next = completed.rival()
	t.complete(next, resp, long)
	t.holds(next, resp, "After Complete where another response was expired")
	next = completedThenRenewed.rival()
	t.renew(next, long)
	t.holds(next, nil, "After Renew where another response was expired")
	t.complete(ownClaimed, resp, long)
	t.holds(ownClaimed, resp, "After Complete where the claim's own lease was over")
	t.renew(ownRenewed, long)
	t.holds(ownRenewed, nil, "After Renew where the claim's own lease was over")
	t.complete(ownCompleted, resp, long)
	t.holds(ownCompleted, resp, "After Complete where the claim's own response was expired")
}

func timeFractions(t *tester) {
	for _, d := range []time.Duration{1, time.Microsecond, 999_999, 1_500_000, 2_000_001} {
		claimed, renewed, completed := t.newRequest(), t.newRequest(), t.newRequest()
		t.claim(claimed, d)
		t.awaitFree(claimed.key, fmt.Sprintf("After Claim with a lease of %v", d))
		t.claim(renewed, long)
		t.renew(renewed, d)
		t.awaitFree(renewed.key, fmt.Sprintf("After Renew with a lease of %v", d))
		t.store(completed, newResponse("short"), d)
		t.awaitFree(completed.key, fmt.Sprintf("After Complete with an expiry of %v", d))
	}
}

func timeLong(t *tester) {
	const century = 100 * 365 * 24 * time.Hour
	claimed, renewed, completed, resp := t.newRequest(), t.newRequest(), t.newRequest(), newResponse("kept")
	t.claim(claimed, century)
	t.claim(renewed, long)
	t.renew(renewed, century)
	t.store(completed, resp, century)
	t.pass()
	t.holds(claimed, nil, "Some time after Claim with a lease of a hundred years")
	t.holds(renewed, nil, "Some time after Renew with a lease of a hundred years")
	t.holds(completed, resp, "Some time after Complete with an expiry of a hundred years")
}
