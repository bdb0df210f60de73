package idempotencytest

import (
	"time"
)

// completeCases are about Complete, and about a claim that lost its key.
var completeCases = []testCase{
	{
		name: "complete-lost",
		clause: "Complete returns ErrClaimLost where another claim holds the key, outstanding, interrupted or with " +
			"its response, and changes nothing. Compare the token in the same atomic step as the write.",
		run: completeLost,
	},
	{
		name: "complete-nothing",
		clause: "Complete takes effect where the key holds nothing: never claimed, or lost by a store that was " +
			"restarted or evicted it. The handler has run, and its response must be kept.",
		run: completeNothing,
	},
	{
		name: "complete-interrupted",
		clause: "Complete takes effect on this very claim when it is interrupted, too: after its lease, or after a " +
			"Release with a trace. The response takes the place of the trace.",
		run: completeInterrupted,
	},
	{
		name: "complete-repeated",
		clause: "A Complete repeated with its token returns nil and changes nothing: the first response stays, and so " +
			"does its expiry, because the first response may have been replayed.",
		run: completeRepeated,
	},
	{
		name: "claim-lost",
		clause: "A claim whose lease is over has lost its key to the claim that came next: its Complete and its Renew " +
			"return ErrClaimLost, its Release returns nil, and none of them touches the holder's record.",
		run: claimLost,
	},
}

func completeLost(t *tester) {
	r, interrupted, response := t.newRequest(), t.newRequest(), newResponse("holder")
	t.claim(r, lease(long))
	t.losesComplete(r.rival())
	t.losesComplete(r.retry())
	t.holds(r.key, r.outstanding(nil), "After Complete by a claim that lost its key to an outstanding one")
	t.complete(r, response, long)
	t.losesComplete(r.rival())
	t.losesComplete(r.retry())
	t.holds(r.key, r.completed(response), "After Complete by a claim that lost its key to one that has its response")
	t.interrupt(interrupted, long, []byte("progress"))
	t.losesComplete(interrupted.rival())
	t.losesComplete(interrupted.retry())
	t.holds(interrupted.key, interrupted.interrupted([]byte("progress")), "After Complete by a claim that lost its key to an interrupted one")
}

func completeNothing(t *tester) {
	never, released, response := t.newRequest(), t.newRequest(), newResponse("kept")
	t.complete(never, response, long)
	t.holds(never.key, never.completed(response), "After Complete where the key held nothing")
	t.claim(released, lease(long))
	t.release(released, 0)
	t.complete(released, response, long)
	t.holds(released.key, released.completed(response), "After Complete of a claim that was released")
}

func completeInterrupted(t *tester) {
	over, released, ends, response := t.newRequest(), t.newRequest(), t.newRequest(), newResponse("kept")
	t.claim(over, traced(t.soon, long))
	t.awaitInterrupted(over, nil, "After a claim with a short lease and a long trace")
	t.complete(over, response, long)
	t.holds(over.key, over.completed(response), "After Complete of a claim whose lease was over, in its trace")
	t.interrupt(released, t.soon, []byte("progress"))
	t.complete(released, response, long)
	t.pass()
	t.holds(released.key, released.completed(response), "After Complete of a claim that was released with a short trace, which is over")
	t.interrupt(ends, long, nil)
	t.complete(ends, response, t.soon)
	t.awaitFree(ends, "After Release with a long trace, and Complete with a short expiry")
}

func completeRepeated(t *tester) {
	r, empty, first, second := t.newRequest(), t.newRequest(), newResponse("first"), newResponse("second")
	t.store(r, first, long)
	t.complete(r, second, long)
	t.holds(r.key, r.completed(first), "After two Completes with one token and different responses")
	t.store(empty, nil, long)
	t.complete(empty, second, long)
	t.holds(empty.key, empty.completed(nil), "After Complete with an empty response, and Complete with another")
	t.complete(r, second, t.soon)
	t.pass()
	t.holds(r.key, r.completed(first), "After Complete with a long expiry and, repeated, a short one that is over")
	t.endsSoon("After Complete with a short expiry and, repeated, a long one",
		func(r request, soon time.Duration) { t.store(r, first, soon) },
		func(r request) { _ = t.Complete(t.Context(), r.key, r.claim, first, long) })
}

func claimLost(t *tester) {
	lost, response := t.newRequest(), newResponse("holder")
	t.claim(lost, lease(t.soon))
	r := t.awaitFree(lost, "After a claim with a short lease that was neither renewed nor completed")
	t.loses(lost)
	t.holds(r.key, r.outstanding(nil), "After Complete, Renew and Release by the claim whose lease was over")
	t.complete(r, response, long)
	t.loses(lost)
	t.holds(r.key, r.completed(response), "After Complete by the claim that came next, and all verbs by the one before")
}
