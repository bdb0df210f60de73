package idempotencytest

import (
	"time"

	"github.com/idempotency-go/idempotency"
)

// settleCases are about Complete, Renew and Release: what they do for the
// holder of the key, and that they do nothing for anyone else.
var settleCases = []testCase{
	{
		name: "complete-lost",
		clause: "Complete returns ErrClaimLost where another claim holds the key, outstanding or with its response, and changes nothing. " +
			"Compare the token in the same atomic step as the write.",
		run: completeLost,
	},
	{
		name: "renew-lost",
		clause: "Renew returns ErrClaimLost where another claim holds the key, outstanding or with its response, and changes nothing, " +
			"not even how long the record is kept. Compare the token in the same atomic step as the write.",
		run: renewLost,
	},
	{
		name: "release-lost",
		clause: "Release never deletes another claim, nor another claim's response; it returns nil where there was nothing of its own to delete. " +
			"Compare the token in the same atomic step as the deletion.",
		run: releaseLost,
	},
	{
		name: "takeover",
		clause: "A claim whose lease is over has lost its key to the claim that came next: its Complete and its Renew return ErrClaimLost, " +
			"its Release returns nil, and none of them touches the holder's record.",
		run: takeover,
	},
	{
		name:   "release-own",
		clause: "Release deletes this very claim while it is outstanding: the key is free at once.",
		run:    releaseOwn,
	},
	{
		name:   "release-completed",
		clause: "Release never deletes a response, not even that of its own claim; it returns nil.",
		run:    releaseCompleted,
	},
	{
		name:   "release-nothing",
		clause: "Release returns nil where the key holds nothing: absence is a result, not an error. It leaves nothing behind.",
		run:    releaseNothing,
	},
	{
		name: "complete-nothing",
		clause: "Complete takes effect where the key holds nothing: never claimed, or lost by a store that was restarted or evicted it. " +
			"The handler has run, and its response must be kept.",
		run: completeNothing,
	},
	{
		name: "renew-nothing",
		clause: "Renew takes effect where the key holds nothing: never claimed, or lost by a store that was restarted or evicted it. " +
			"The handler still runs, and the key must be held for it.",
		run: renewNothing,
	},
	{
		name: "complete-repeated",
		clause: "A Complete repeated with its token returns nil and changes nothing: the first response stays, and so does its expiry, " +
			"because the first response may have been replayed.",
		run: completeRepeated,
	},
	{
		name: "renew-completed",
		clause: "Renew never alters a response, nor how long it is kept: where the key holds this claim's response it does nothing and returns nil. " +
			"A renewal may be under way while its request completes.",
		run: renewCompleted,
	},
}

func completeLost(t *tester) {
	r, resp := t.newRequest(), newResponse("holder")
	t.claim(r, long)
	t.losesComplete(r.rival())
	t.holds(r, nil, "After Complete by a claim that lost its key to an outstanding one")
	t.complete(r, resp, long)
	t.losesComplete(r.rival())
	t.holds(r, resp, "After Complete by a claim that lost its key to one that has its response")
}

func renewLost(t *tester) {
	outstanding, completed, resp := t.newRequest(), t.newRequest(), newResponse("holder")
	t.claim(outstanding, long)
	t.store(completed, resp, long)
	for _, lease := range []time.Duration{long, t.soon} {
		t.losesRenew(outstanding.rival(), lease)
		t.losesRenew(completed.rival(), lease)
	}
	t.holds(outstanding, nil, "After Renew by a claim that lost its key to an outstanding one")
	t.holds(completed, resp, "After Renew by a claim that lost its key to one that has its response")
	t.pass()
	t.holds(outstanding, nil, "After the short lease of a Renew by a claim that had lost its key was over")
	t.holds(completed, resp, "After the short lease of a Renew by a claim that had lost its key was over")
	renew := func(r request) { _ = t.Renew(t.Context(), r.key, newClaim(), long) }
	t.endsSoon("After a claim with a short lease and a Renew, with a long one, by another claim", t.claim, renew)
	t.endsSoon("After a response with a short expiry and a Renew, with a long lease, by another claim",
		func(r request, soon time.Duration) { t.store(r, resp, soon) }, renew)
}

func releaseLost(t *tester) {
	r, resp := t.newRequest(), newResponse("holder")
	t.claim(r, long)
	t.release(r.rival())
	t.holds(r, nil, "After Release by a claim that lost its key to an outstanding one")
	t.complete(r, resp, long)
	t.release(r.rival())
	t.holds(r, resp, "After Release by a claim that lost its key to one that has its response")
}

func takeover(t *tester) {
	lost, resp := t.newRequest(), newResponse("holder")
	t.claim(lost, t.soon)
	r := t.awaitFree(lost.key, "After a claim with a short lease that was neither renewed nor completed")
	t.losesComplete(lost)
	t.losesRenew(lost, long)
	t.release(lost)
	t.holds(r, nil, "After Complete, Renew and Release by the claim whose lease was over")
	t.complete(r, resp, long)
	t.holds(r, resp, "After Complete by the claim that took the key over")
}

func releaseOwn(t *tester) {
	r := t.newRequest()
	t.claim(r, long)
	t.release(r)
	t.free(r.key, "After Release")
	next := r.rival()
	t.claim(next, long)
	t.holds(next, nil, "After Release, and Claim by the next request")
}

func releaseCompleted(t *tester) {
	r, resp := t.newRequest(), newResponse("kept")
	t.store(r, resp, long)
	t.release(r)
	t.holds(r, resp, "After Complete, and Release with the same token")
}

func releaseNothing(t *tester) {
	r := t.newRequest()
	t.release(r)
	t.free(r.key, "After Release of a key that held nothing")
	t.claim(r, long)
	t.release(r)
	t.release(r)
	t.free(r.key, "After Release of a claim that was released before")
}

func completeNothing(t *tester) {
	never, released, resp := t.newRequest(), t.newRequest(), newResponse("kept")
	t.complete(never, resp, long)
	t.holds(never, resp, "After Complete where the key held nothing")
	t.claim(released, long)
	t.release(released)
	t.complete(released, resp, long)
	t.holds(released, resp, "After Complete of a claim that was released")
}

func renewNothing(t *tester) {
	never, released, resp := t.newRequest(), t.newRequest(), newResponse("kept")
	t.renew(never, long)
	t.holds(never, nil, "After Renew where the key held nothing")
	t.complete(never, resp, long)
	t.holds(never, resp, "After Renew where the key held nothing, and Complete")
	t.claim(released, long)
	t.release(released)
	t.renew(released, long)
	t.holds(released, nil, "After Renew of a claim that was released")
}

func completeRepeated(t *tester) {
	r, mark, first, second := t.newRequest(), t.newRequest(), newResponse("first"), newResponse("second")
	second.Status = 500
	t.store(r, first, long)
	t.complete(r, second, long)
	t.holds(r, first, "After two Completes with one token and different responses")
	t.store(mark, &idempotency.Response{}, long)
	t.complete(mark, second, long)
	t.holds(mark, &idempotency.Response{}, "After Complete with the mark Status 0, and Complete with a response")
	t.complete(r, second, t.soon)
	t.pass()
	t.holds(r, first, "After Complete with a long expiry and, repeated, a short one that is over")
	t.endsSoon("After Complete with a short expiry and, repeated, a long one",
		func(r request, soon time.Duration) { t.store(r, first, soon) },
		func(r request) { _ = t.Complete(t.Context(), r.key, r.claim, first, long) })
}

func renewCompleted(t *tester) {
	r, resp := t.newRequest(), newResponse("kept")
	t.store(r, resp, long)
	t.renew(r, long)
	t.holds(r, resp, "After Renew of a claim that has its response")
	t.renew(r, t.soon)
	t.pass()
	t.holds(r, resp, "After Complete with a long expiry, and Renew with a short lease that is over")
	t.endsSoon("After Complete with a short expiry, and Renew with a long lease",
		func(r request, soon time.Duration) { t.store(r, resp, soon) },
		func(r request) { _ = t.Renew(t.Context(), r.key, r.claim, long) })
}
