package idempotencytest

import (
	"fmt"
	"time"

	"github.com/idempotency-go/idempotency"
)

// renewCases are about Renew.
var renewCases = []testCase{
	{
		name: "renew-lease",
		clause: "Renew begins the lease anew, counted from the call: a longer one extends it, a shorter one ends it " +
			"sooner, and the claim stays what it was.",
		run: renewLease,
	},
	{
		name: "renew-trace",
		clause: "Renew gives the claim the trace of its terms: from then on the key remembers an interrupted run for " +
			"that long after the lease. Only a claim that took over keeps a longer one.",
		run: renewTrace,
	},
	{
		name: "renew-interrupted",
		clause: "Renew takes effect on this very claim when it is interrupted, too: it is outstanding again, with its " +
			"progress, because its handler still runs.",
		run: renewInterrupted,
	},
	{
		name: "renew-lost",
		clause: "Renew returns ErrClaimLost where another claim holds the key, outstanding, interrupted or with its " +
			"response, and changes nothing, not even how long the record is kept. Compare the token in the same " +
			"atomic step as the write.",
		run: renewLost,
	},
	{
		name: "renew-nothing",
		clause: "Renew takes effect where the key holds nothing: never claimed, or lost by a store that was restarted " +
			"or evicted it. The handler still runs, and the key must be held for it, with the trace of its terms.",
		run: renewNothing,
	},
	{
		name: "renew-completed",
		clause: "Renew never alters a response, nor how long it is kept: where the key holds this claim's response it " +
			"does nothing and returns nil. A renewal may be under way while its request completes.",
		run: renewCompleted,
	},
}

func renewLease(t *tester) {
	r, interrupted := t.newRequest(), t.newRequest()
	t.claim(r, lease(t.soon))
	t.renew(r, lease(long), nil)
	t.claim(interrupted, traced(t.soon, long))
	t.renew(interrupted, traced(long, long), nil)
	t.pass()
	t.holds(r.key, r.outstanding(nil), "After Renew with a long lease, the first and short lease being over")
	t.holds(interrupted.key, interrupted.outstanding(nil), "After Renew with a long lease and a trace, the first and short lease being over")
	t.renew(r, lease(t.soon), nil)
	t.awaitFree(r, fmt.Sprintf("After Renew with a lease of %v, shorter than what was left", t.soon))
	t.renew(interrupted, traced(t.soon, long), nil)
	t.awaitInterrupted(interrupted, nil, fmt.Sprintf("After Renew with a lease of %v, shorter than what was left, and a trace", t.soon))
}

func renewTrace(t *tester) {
	given, longer, shorter := t.newRequest(), t.newRequest(), t.newRequest()
	t.claim(given, lease(long))
	t.renew(given, traced(t.soon, long), nil)
	t.claim(longer, traced(long, t.soon))
	t.renew(longer, traced(t.soon, long), nil)
	t.claim(shorter, traced(long, long))
	t.renew(shorter, traced(t.soon, t.soon), nil)
	t.awaitFree(shorter, "After a claim with a long trace, and Renew with a short lease and a short trace")
	t.pass()
	t.pass()
	t.holds(given.key, given.interrupted(nil), "After a claim without a trace, and Renew with a short lease and a long trace")
	t.holds(longer.key, longer.interrupted(nil), "After a claim with a short trace, and Renew with a short lease and a long trace")
}

func renewInterrupted(t *tester) {
	over, released, progress := t.newRequest(), t.newRequest(), []byte("progress")
	t.claim(over, traced(t.soon, long))
	t.renew(over, traced(t.soon, long), progress)
	t.awaitInterrupted(over, progress, "After a claim with a short lease and a long trace")
	t.renew(over, traced(long, long), nil)
	t.holds(over.key, over.outstanding(progress), "After Renew of a claim whose lease was over, in its trace")
	t.interrupt(released, t.soon, progress)
	t.renew(released, lease(long), progress) // The short trace may be over on a slow machine.
	t.pass()
	t.holds(released.key, released.outstanding(progress), "After Renew of a claim that was released with a short trace, which is over")
	t.renew(released, lease(t.soon), nil)
	t.awaitFree(released, "After Renew, with a short lease and no trace, of a claim that was interrupted before")
}

func renewLost(t *tester) {
	outstanding, interrupted, completed, response := t.newRequest(), t.newRequest(), t.newRequest(), newResponse("holder")
	t.claim(outstanding, lease(long))
	t.interrupt(interrupted, long, nil)
	t.store(completed, response, long)
	check := func(after string) {
		t.Helper()
		t.holds(outstanding.key, outstanding.outstanding(nil), after)
		t.holds(interrupted.key, interrupted.interrupted(nil), after)
		t.holds(completed.key, completed.completed(response), after)
	}
	for _, terms := range []idempotency.Terms{lease(long), traced(long, long), takingOver(long, long), lease(t.soon), traced(t.soon, t.soon)} {
		for _, r := range []request{outstanding, interrupted, completed} {
			t.losesRenew(r.rival(), terms, nil)
			t.losesRenew(r.retry(), terms, []byte("lost"))
		}
	}
	check("After Renew by a claim that lost its key")
	t.pass()
	t.pass()
	check("After the short lease and trace of a Renew by a claim that had lost its key were over")
	renew := func(r request) { _ = t.Renew(t.Context(), r.key, newClaim(), traced(long, long), nil) }
	t.endsSoon("After a claim with a short lease and a Renew, with a long one, by another claim",
		func(r request, soon time.Duration) { t.claim(r, lease(soon)) }, renew)
	t.endsSoon("After Release with a short trace and a Renew, with a long lease, by another claim",
		func(r request, soon time.Duration) { t.interrupt(r, soon, nil) }, renew)
	t.endsSoon("After a response with a short expiry and a Renew, with a long lease, by another claim",
		func(r request, soon time.Duration) { t.store(r, response, soon) }, renew)
}

func renewNothing(t *tester) {
	never, released, remembered, response := t.newRequest(), t.newRequest(), t.newRequest(), newResponse("kept")
	t.renew(never, lease(long), nil)
	t.holds(never.key, never.outstanding(nil), "After Renew where the key held nothing")
	t.complete(never, response, long)
	t.holds(never.key, never.completed(response), "After Renew where the key held nothing, and Complete")
	t.claim(released, lease(long))
	t.release(released, 0)
	t.renew(released, lease(long), nil)
	t.holds(released.key, released.outstanding(nil), "After Renew of a claim that was released")
	t.renew(remembered, traced(t.soon, long), nil)
	t.awaitInterrupted(remembered, nil, "After Renew, with a short lease and a long trace, where the key held nothing")
}

func renewCompleted(t *tester) {
	r, response := t.newRequest(), newResponse("kept")
	t.store(r, response, long)
	t.renew(r, lease(long), nil)
	t.holds(r.key, r.completed(response), "After Renew of a claim that has its response")
	t.renew(r, traced(long, long), []byte("progress that is longer than the response is, by far and away"))
	t.holds(r.key, r.completed(response), "After Renew, with progress, of a claim that has its response")
	t.renew(r, lease(t.soon), nil)
	t.pass()
	t.holds(r.key, r.completed(response), "After Complete with a long expiry, and Renew with a short lease that is over")
	t.endsSoon("After Complete with a short expiry, and Renew with a long lease",
		func(r request, soon time.Duration) { t.store(r, response, soon) },
		func(r request) { _ = t.Renew(t.Context(), r.key, r.claim, traced(long, long), nil) })
}
