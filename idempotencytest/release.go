package idempotencytest

import (
	"time"

	"github.com/idempotency-go/idempotency"
)

// releaseCases are about Release, without a trace and with one.
var releaseCases = []testCase{
	{
		name: "release-own",
		clause: "Release without a trace deletes this very claim, outstanding or interrupted: the key is free at " +
			"once.",
		run: releaseOwn,
	},
	{
		name: "release-lost",
		clause: "Release never touches another claim, nor another claim's response, with a trace or without; it " +
			"returns nil where there was nothing of its own. Compare the token in the same atomic step as the " +
			"deletion.",
		run: releaseLost,
	},
	{
		name:   "release-completed",
		clause: "Release never touches a response, not even its own claim's, with a trace or without; it returns nil.",
		run:    releaseCompleted,
	},
	{
		name: "release-nothing",
		clause: "Release without a trace returns nil where the key holds nothing: absence is a result, not an error. " +
			"It leaves nothing behind.",
		run: releaseNothing,
	},
	{
		name: "release-trace",
		clause: "Release with a trace makes this very claim interrupted, at once, and keeps its progress. It is not " +
			"deleted, and what was left of its lease does not count.",
		run: releaseTrace,
	},
	{
		name: "release-trace-time",
		clause: "Release with a trace keeps the interrupted record for that trace, counted from the call, whatever " +
			"trace and lease the claim had: not longer, and not shorter.",
		run: releaseTraceTime,
	},
	{
		name: "release-trace-interrupted",
		clause: "Release with a trace takes effect on this very claim when it is interrupted already: it stays " +
			"interrupted for the trace that is given now.",
		run: releaseTraceInterrupted,
	},
	{
		name: "release-trace-nothing",
		clause: "Release with a trace leaves an interrupted record where the key holds nothing, too: never claimed, " +
			"or lost by the store. A handler has run, and its retry must be told.",
		run: releaseTraceNothing,
	},
}

func releaseOwn(t *tester) {
	r, remembered, over, released := t.newRequest(), t.newRequest(), t.newRequest(), t.newRequest()
	t.claim(r, lease(long))
	t.release(r, 0)
	t.free(r.key, "After Release")
	next := r.rival()
	t.claim(next, lease(long))
	t.holds(next.key, next.outstanding(nil), "After Release, and Claim by the next request")
	t.claim(remembered, traced(long, long))
	t.renew(remembered, traced(long, long), []byte("progress"))
	t.release(remembered, 0)
	t.free(remembered.key, "After Release, without a trace, of a claim that was made with one")
	t.claim(over, traced(t.soon, long))
	t.awaitInterrupted(over, nil, "After a claim with a short lease and a long trace")
	t.release(over, 0)
	t.free(over.key, "After Release, without a trace, of a claim whose lease was over, in its trace")
	t.interrupt(released, long, nil)
	t.release(released, 0)
	t.free(released.key, "After Release with a trace, and Release without one")
}

func releaseLost(t *tester) {
	r, interrupted, response, progress := t.newRequest(), t.newRequest(), newResponse("holder"), []byte("progress")
	t.interrupt(interrupted, long, progress)
	for _, trace := range []time.Duration{0, long, t.soon} {
		t.release(interrupted.rival(), trace)
		t.release(interrupted.retry(), trace)
		t.holds(interrupted.key, interrupted.interrupted(progress), "After Release by a claim that lost its key to an interrupted one")
	}
	t.claim(r, lease(long))
	for _, trace := range []time.Duration{0, long, t.soon} {
		t.release(r.rival(), trace)
		t.release(r.retry(), trace)
		t.holds(r.key, r.outstanding(nil), "After Release by a claim that lost its key to an outstanding one")
	}
	t.complete(r, response, long)
	for _, trace := range []time.Duration{0, long, t.soon} {
		t.release(r.rival(), trace)
		t.release(r.retry(), trace)
		t.holds(r.key, r.completed(response), "After Release by a claim that lost its key to one that has its response")
	}
	t.pass()
	t.holds(interrupted.key, interrupted.interrupted(progress), "After the short trace of a Release by another claim was over")
	t.holds(r.key, r.completed(response), "After the short trace of a Release by another claim was over")
	t.endsSoon("After Release with a short trace, and a Release with a long one by another claim",
		func(r request, soon time.Duration) { t.interrupt(r, soon, nil) },
		func(r request) { _ = t.Release(t.Context(), r.key, newClaim(), long) })
}

func releaseCompleted(t *tester) {
	r, response := t.newRequest(), newResponse("kept")
	t.store(r, response, long)
	for _, trace := range []time.Duration{0, long, t.soon} {
		t.release(r, trace)
		t.holds(r.key, r.completed(response), "After Complete, and Release with the same token")
	}
	t.pass()
	t.holds(r.key, r.completed(response), "After Complete with a long expiry, and Release with a short trace that is over")
	t.endsSoon("After Complete with a short expiry, and Release with a long trace",
		func(r request, soon time.Duration) { t.store(r, response, soon) },
		func(r request) { _ = t.Release(t.Context(), r.key, r.claim, long) })
}

func releaseNothing(t *tester) {
	r := t.newRequest()
	t.release(r, 0)
	t.free(r.key, "After Release of a key that held nothing")
	t.claim(r, lease(long))
	t.release(r, 0)
	t.release(r, 0)
	t.free(r.key, "After Release of a claim that was released before")
}

func releaseTrace(t *tester) {
	for _, progress := range [][]byte{nil, []byte("progress")} {
		r, remembered := t.newRequest(), t.newRequest()
		t.interrupt(r, long, progress)
		t.holds(r.key, r.interrupted(progress), "After Release with a trace")
		t.refused(r.rival(), lease(long), r.interrupted(progress), "After Release with a trace")
		t.refused(r.rival(), traced(long, long), r.interrupted(progress), "After Release with a trace")
		t.claim(remembered, traced(long, long))
		if progress != nil {
			t.renew(remembered, traced(long, long), progress)
		}
		t.release(remembered, long)
		t.holds(remembered.key, remembered.interrupted(progress), "After Release, with a trace, of a claim that was made with one")
	}
}

func releaseTraceTime(t *tester) {
	longer, shorter, ends, forever := t.newRequest(), t.newRequest(), t.newRequest(), t.newRequest()
	t.claim(longer, traced(t.soon, t.soon))
	t.release(longer, long)
	t.claim(shorter, traced(long, long))
	t.release(shorter, t.soon)
	t.interrupt(ends, t.soon, nil)
	t.claim(forever, traced(long, idempotency.Forever))
	t.release(forever, t.soon)
	t.awaitFree(ends, "After Release with a short trace")
	t.awaitFree(shorter, "After a claim with a long lease and trace, and Release with a short trace")
	t.awaitFree(forever, "After a claim with a trace that does not end, and Release with a short trace")
	t.pass()
	t.holds(longer.key, longer.interrupted(nil), "After a claim with a short lease and trace, and Release with a long trace")
	t.notEarly("a trace", 1, idempotency.StateInterrupted, func(r request, soon time.Duration) { t.interrupt(r, soon, nil) })
}

func releaseTraceInterrupted(t *tester) {
	over, longer, shorter, progress := t.newRequest(), t.newRequest(), t.newRequest(), []byte("progress")
	t.claim(over, traced(t.soon, long))
	t.awaitInterrupted(over, nil, "After a claim with a short lease and a long trace")
	t.release(over, t.soon)
	t.awaitFree(over, "After Release, with a short trace, of a claim whose lease was over, in its long trace")
	t.interrupt(longer, long, progress)
	t.release(longer, long)
	t.holds(longer.key, longer.interrupted(progress), "After Release with a trace, repeated")
	t.interrupt(shorter, long, progress)
	t.release(shorter, t.soon)
	t.awaitFree(shorter, "After Release with a long trace, and again with a short one")
	prolonged := t.newRequest()
	t.interrupt(prolonged, t.soon, nil)
	t.release(prolonged, long)
	t.pass()
	t.holds(prolonged.key, prolonged.interrupted(nil), "After Release with a short trace, and again with a long one")
}

func releaseTraceNothing(t *tester) {
	never, released, ends := t.newRequest(), t.newRequest(), t.newRequest()
	t.release(never, long)
	t.holds(never.key, never.interrupted(nil), "After Release, with a trace, of a key that held nothing")
	t.claim(released, lease(long))
	t.renew(released, lease(long), []byte("progress"))
	t.release(released, 0)
	t.release(released, long)
	t.holds(released.key, released.interrupted(nil), "After Release without a trace, and Release with one")
	t.release(ends, t.soon)
	t.awaitFree(ends, "After Release, with a short trace, of a key that held nothing")
}
