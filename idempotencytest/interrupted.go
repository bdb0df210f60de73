package idempotencytest

import (
	"fmt"
	"time"

	"github.com/idempotency-go/idempotency"
)

// interruptedCases are about runs that ended without an answer.
var interruptedCases = []testCase{
	{
		name: "interrupted-after-lease",
		clause: "A claim with a trace that is neither renewed nor completed is interrupted when its lease is over, " +
			"not earlier and not later: others are shown its record with StateInterrupted, and do not claim the " +
			"key.",
		run: interruptedAfterLease,
	},
	{
		name: "interrupted-ends",
		clause: "An interrupted record is gone, and its key free, when the lease and then the trace are over, not " +
			"earlier and not later. Another request can then claim the key.",
		run: interruptedEnds,
	},
	{
		name: "interrupted-own-terms",
		clause: "A record is judged by the terms that it was made with, never by those of who asks: one that was made " +
			"with a trace is interrupted, not free, for a claim without, and one without is free after its lease " +
			"for a claim with.",
		run: interruptedOwnTerms,
	},
	{
		name: "interrupted-own-claim",
		clause: "A Claim that finds its own token interrupted has claimed: the record is outstanding again, its lease " +
			"begins anew, with the trace of its terms, and its progress stays.",
		run: interruptedOwnClaim,
	},
	{
		name: "interrupted-lost",
		clause: "An interrupted record is not another claim's to change: for one with another token Complete and " +
			"Renew return ErrClaimLost, Release nil, and neither the record nor its time changes.",
		run: interruptedLost,
	},
}

func interruptedAfterLease(t *tester) {
	r, kept := t.newRequest(), t.newRequest()
	t.claim(kept, traced(long, long))
	t.claim(r, traced(t.soon, long))
	after := fmt.Sprintf("After a claim with a lease of %v and a trace of %v that was neither renewed nor completed", t.soon, long)
	t.awaitInterrupted(r, nil, after)
	t.pass()
	for _, terms := range []idempotency.Terms{lease(long), traced(long, long)} {
		t.refused(r.rival(), terms, r.interrupted(nil), after)
		t.refused(r.retry(), terms, r.interrupted(nil), after)
	}
	t.holds(kept.key, kept.outstanding(nil), fmt.Sprintf("After %v, under a lease of %v", t.soon, long))
	t.notEarly("a lease", 1, idempotency.StateOutstanding, func(r request, soon time.Duration) { t.claim(r, traced(soon, long)) })
}

func interruptedEnds(t *tester) {
	claimed, renewed := t.newRequest(), t.newRequest()
	t.claim(claimed, traced(t.soon, t.soon))
	t.claim(renewed, traced(long, t.soon))
	t.renew(renewed, traced(t.soon, t.soon), []byte("progress"))
	next := t.awaitFree(claimed, fmt.Sprintf("After a claim with a lease and a trace of %v each", t.soon))
	t.holds(next.key, next.outstanding(nil), "After Claim of a key whose trace was over")
	next = t.awaitFree(renewed, fmt.Sprintf("After Renew with a lease and a trace of %v each", t.soon))
	t.holds(next.key, next.outstanding(nil), "After Claim of a key whose trace was over")
	t.notEarly("a lease and a trace", 2, idempotency.StateInterrupted, func(r request, soon time.Duration) { t.claim(r, traced(soon, soon)) })
}

func interruptedOwnTerms(t *tester) {
	r, without, ends := t.newRequest(), t.newRequest(), t.newRequest()
	t.claim(r, traced(t.soon, long))
	t.awaitInterrupted(r, nil, "After a claim with a short lease and a long trace")
	t.refused(r.retry(), lease(long), r.interrupted(nil), "When a claim without a trace met a record with one, whose lease was over")
	t.claim(without, lease(t.soon))
	t.await(without, traced(long, long), "After a claim with a short lease and no trace", "free", func(held idempotency.Record, claimed bool) bool {
		if held.State == idempotency.StateInterrupted {
			t.broken("A claim with a trace met a record without one, whose lease was over, and was shown it as interrupted.")
		}
		return claimed
	})
	t.claim(ends, traced(t.soon, t.soon))
	t.await(ends, traced(long, long), "After a claim with a short lease and trace", "free", isClaimed)
}

func interruptedOwnClaim(t *tester) {
	over, released, progress := t.newRequest(), t.newRequest(), []byte("progress")
	t.claim(over, traced(t.soon, long))
	t.awaitInterrupted(over, nil, "After a claim with a short lease and a long trace")
	t.claim(over, traced(long, long))
	t.holds(over.key, over.outstanding(nil), "After a Claim that found its own token interrupted, its lease being over")
	t.interrupt(released, long, progress)
	t.claim(released, lease(long))
	t.holds(released.key, released.outstanding(progress), "After a Claim that found its own token interrupted, having been released")
	t.claim(released, lease(t.soon))
	t.awaitFree(released, "After a Claim, with a short lease and no trace, that found its own token")
	again := t.newRequest()
	t.interrupt(again, long, progress)
	t.claim(again, traced(t.soon, long))
	t.awaitInterrupted(again, progress, "After a Claim, with a short lease and a long trace, that found its own token interrupted")
}

func interruptedLost(t *tester) {
	over, released, progress := t.newRequest(), t.newRequest(), []byte("progress")
	t.claim(over, traced(long, long))
	t.renew(over, traced(t.soon, long), progress)
	t.awaitInterrupted(over, progress, "After a claim with a short lease and a long trace")
	t.interrupt(released, long, progress)
	for _, r := range []request{over, released} {
		for _, other := range []request{r.rival(), r.retry()} {
			t.loses(other)
			t.release(other, t.soon)
			t.losesRenew(other, traced(t.soon, t.soon), nil)
		}
	}
	t.pass()
	t.pass()
	t.holds(over.key, over.interrupted(progress), "After Complete, Renew and Release by another claim, where the holder's lease was over")
	t.holds(released.key, released.interrupted(progress), "After Complete, Renew and Release by another claim, where the holder was released with a trace")
}
