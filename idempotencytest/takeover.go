package idempotencytest

import (
	"time"

	"github.com/idempotency-go/idempotency"
)

// takeOverCases are about Claim with TakeOver, and about claims that took over.
var takeOverCases = []testCase{
	{
		name: "take-over",
		clause: "Claim with TakeOver claims the key of an interrupted request. It returns true and a Record with the " +
			"caller's own claim, StateInterrupted and the progress, which stays with the key.",
		run: takeOver,
	},
	{
		name: "take-over-asked",
		clause: "Claim without TakeOver never claims the key of an interrupted request, not even of the same: it is " +
			"shown the record, which it does not change.",
		run: takeOverAsked,
	},
	{
		name: "take-over-interrupted",
		clause: "Claim with TakeOver takes over what is interrupted, and nothing else: an outstanding claim and a " +
			"response are shown to it. A free key it claims like any other Claim.",
		run: takeOverInterrupted,
	},
	{
		name: "take-over-fingerprint",
		clause: "Claim with TakeOver takes over where the fingerprints match, and only there: where they are equal, " +
			"and where one of them is zero, the record's or the claim's. Another request's key is shown, whatever " +
			"its state.",
		run: takeOverFingerprint,
	},
	{
		name: "take-over-repeated",
		clause: "A Claim that took over and is repeated with its token returns what it returned at first, with " +
			"TakeOver or without: true and the Record with its claim, StateInterrupted and the progress as it is " +
			"now. Its lease begins anew.",
		run: takeOverRepeated,
	},
	{
		name: "take-over-renewed",
		clause: "That a claim took over stays with its record through Renew, and when its own lease is over, until it " +
			"is completed: Claim repeated tells so, and Release does not delete.",
		run: takeOverRenewed,
	},
	{
		name: "take-over-released",
		clause: "Release of a claim that took over never deletes, whatever its trace: the record is interrupted again " +
			"at once, with the claim that took over and its progress.",
		run: takeOverReleased,
	},
	{
		name: "take-over-trace",
		clause: "A claim that took over keeps the longest trace of all: the interrupted record's, its own terms', and " +
			"the one that Release is given.",
		run: takeOverTrace,
	},
	{
		name: "take-over-ends",
		clause: "The record of a claim that took over ends like any other: when its lease and its trace are over, or " +
			"the trace after its Release, the key is free.",
		run: takeOverEnds,
	},
	{
		name: "take-over-completed",
		clause: "Complete of a claim that took over stores its response like any other, outstanding or interrupted " +
			"again. From then on Release and Renew leave it alone.",
		run: takeOverCompleted,
	},
	{
		name: "take-over-lost",
		clause: "The claim whose key was taken over has lost it: its Renew and its Complete return ErrClaimLost, its " +
			"Release returns nil, its Claim is shown the record, and none of them changes that.",
		run: takeOverLost,
	},
	{
		name: "take-over-again",
		clause: "A claim that took over and was interrupted in turn is taken over like any other, with the progress " +
			"of all runs before. A recovery that dies is recovered.",
		run: takeOverAgain,
	},
}

// takenOver interrupts a request and returns another that took its key over.
func (t *tester) takenOver(terms idempotency.Terms, progress []byte) (former, r request) {
	t.Helper()
	former = t.newRequest()
	t.interrupt(former, long, progress)
	r = former.retry()
	t.takeOver(r, terms, progress)
	return former, r
}

func takeOver(t *tester) {
	for _, progress := range [][]byte{nil, []byte("progress")} {
		_, r := t.takenOver(takingOver(long, long), progress)
		t.holds(r.key, r.outstanding(progress), "After a Claim that took over a request that was released with a trace")
		t.refused(r.retry(), takingOver(long, long), r.outstanding(progress), "After a Claim that took over")
	}
	former := t.newRequest()
	t.claim(former, traced(t.soon, long))
	t.awaitInterrupted(former, nil, "After a claim with a short lease and a long trace")
	r := former.retry()
	t.takeOver(r, takingOver(long, 0), nil)
	t.holds(r.key, r.outstanding(nil), "After a Claim that took over a request whose lease was over")
}

func takeOverAsked(t *tester) {
	r, progress := t.newRequest(), []byte("progress")
	t.interrupt(r, long, progress)
	for _, terms := range []idempotency.Terms{lease(long), traced(long, long), lease(t.soon)} {
		t.refused(r.retry(), terms, r.interrupted(progress), "When the same request was interrupted, and without TakeOver")
	}
	t.pass()
	t.holds(r.key, r.interrupted(progress), "After Claims without TakeOver")
	next := r.retry()
	t.takeOver(next, takingOver(long, long), progress)
}

func takeOverInterrupted(t *tester) {
	outstanding, completed, free, response := t.newRequest(), t.newRequest(), t.newRequest(), newResponse("kept")
	t.claim(outstanding, traced(long, long))
	t.store(completed, response, long)
	for range 2 {
		t.refused(outstanding.retry(), takingOver(long, long), outstanding.outstanding(nil), "When the same request was outstanding")
		t.refused(completed.retry(), takingOver(long, long), completed.completed(response), "When the same request was completed")
	}
	t.holds(outstanding.key, outstanding.outstanding(nil), "After Claims with TakeOver")
	t.claim(free, takingOver(long, long))
	t.holds(free.key, free.outstanding(nil), "After Claim of a free key with TakeOver")
	t.release(free, 0)
	t.free(free.key, "After Claim of a free key with TakeOver, and Release without a trace")
}

func takeOverFingerprint(t *tester) {
	zero, same, progress := [32]byte{}, newFingerprint(), []byte("progress")
	for _, c := range []struct {
		what         string
		held, asking [32]byte
		matches      bool
	}{
		{"equal fingerprints", same, same, true},
		{"a zero fingerprint of the claim", newFingerprint(), zero, true},
		{"a zero fingerprint of the record", zero, newFingerprint(), true},
		{"two zero fingerprints", zero, zero, true},
		{"different fingerprints", newFingerprint(), newFingerprint(), false},
		{"fingerprints that differ in the last byte", [32]byte{31: 1}, [32]byte{31: 2}, false},
	} {
		r := t.newRequest()
		r.claim.Fingerprint = c.held
		t.interrupt(r, long, progress)
		next := request{r.key, idempotency.Claim{Token: newToken(), Fingerprint: c.asking}}
		if !c.matches {
			t.refused(next, takingOver(long, long), r.interrupted(progress), "With TakeOver and "+c.what)
			t.holds(r.key, r.interrupted(progress), "After a Claim with TakeOver and "+c.what)
			continue
		}
		t.takeOver(next, takingOver(long, long), progress)
		t.holds(next.key, next.outstanding(progress), "After a Claim that took over, with "+c.what)
	}
}

func takeOverRepeated(t *tester) {
	first, more := []byte("first"), []byte("first, second")
	_, r := t.takenOver(takingOver(long, long), first)
	t.takeOver(r, takingOver(long, long), first)
	t.takeOver(r, lease(long), first)
	t.renew(r, takingOver(long, long), more)
	t.takeOver(r, takingOver(long, long), more)
	t.takeOver(r, traced(t.soon, long), more)
	t.awaitInterrupted(r, more, "After a Claim that took over and was repeated with a short lease")
	t.takeOver(r, takingOver(long, long), more)
	t.holds(r.key, r.outstanding(more), "After a Claim that took over and was repeated when its lease was over")
}

func takeOverRenewed(t *tester) {
	first, more := []byte("first"), []byte("first, second")
	_, r := t.takenOver(takingOver(long, long), first)
	t.renew(r, traced(long, long), nil)
	t.renew(r, lease(long), nil)
	t.takeOver(r, lease(long), first)
	t.renew(r, lease(long), more)
	t.takeOver(r, lease(long), more)
	t.renew(r, lease(t.soon), nil)
	t.awaitInterrupted(r, more, "After a Claim that took over from a request with a long trace, and Renew with a short lease")
	t.renew(r, lease(long), nil)
	t.takeOver(r, lease(long), more)
	t.release(r, 0)
	t.holds(r.key, r.interrupted(more), "After a Claim that took over, Renew, and Release without a trace")
}

func takeOverReleased(t *tester) {
	progress := []byte("progress")
	for _, trace := range []time.Duration{0, long} {
		_, r := t.takenOver(takingOver(long, long), progress)
		t.release(r, trace)
		t.holds(r.key, r.interrupted(progress), "After Release of a claim that took over")
		t.release(r, trace)
		t.holds(r.key, r.interrupted(progress), "After Release, repeated, of a claim that took over")
	}
	_, r := t.takenOver(takingOver(long, long), nil)
	t.release(r, 0)
	t.refused(r.retry(), traced(long, long), r.interrupted(nil), "After Release of a claim that took over and has no progress")
}

func takeOverTrace(t *tester) {
	// Each claim took over, and has had one long trace.
	_, recorded := t.takenOver(takingOver(long, 0), nil)
	t.release(recorded, t.soon)

	_, own := t.takenOver(takingOver(long, t.soon), nil)
	t.release(own, 0)

	_, left := t.takenOver(takingOver(t.soon, t.soon), nil)

	_, renewed := t.takenOver(takingOver(long, 0), nil)
	t.renew(renewed, traced(t.soon, t.soon), nil)

	_, repeated := t.takenOver(takingOver(long, long), nil)
	t.takeOver(repeated, traced(t.soon, 0), nil)

	_, again := t.takenOver(takingOver(long, 0), nil)
	t.release(again, 0)
	last := again.retry()
	t.takeOver(last, takingOver(t.soon, 0), nil)

	_, forever := t.takenOver(takingOver(long, idempotency.Forever), nil)
	t.renew(forever, traced(century, long), nil)
	t.release(forever, t.soon)

	// The record's trace is short here, and the claim's or its Release's long.
	ownTerms := t.takenOverShort(takingOver(long, long))
	t.release(ownTerms, 0)
	given := t.takenOverShort(takingOver(long, 0))
	t.release(given, long)
	byRenew := t.takenOverShort(takingOver(long, 0))
	t.renew(byRenew, traced(long, long), nil)
	t.release(byRenew, 0)

	t.pass()
	t.pass()
	for _, c := range []struct {
		r     request
		after string
	}{
		{recorded, "After a Claim that took over from a record with a long trace, and Release with a short one"},
		{own, "After a Claim that took over, with a short trace, from a record with a long one, and Release without one"},
		{left, "After a Claim that took over, with a short lease and trace, from a record with a long trace"},
		{renewed, "After a Claim that took over from a record with a long trace, and Renew with a short lease and trace"},
		{repeated, "After a Claim that took over and was repeated with a short lease and no trace"},
		{last, "After two Claims that took over, the last with a short lease and no trace, from a record with a long one"},
		{forever, "After a Claim that took over with a trace that does not end, and Release with a short one"},
		{ownTerms, "After a Claim that took over, with a long trace, from a record with a short one, and Release without one"},
		{given, "After a Claim that took over from a record with a short trace, and Release with a long one"},
		{byRenew, "After a Claim that took over from a record with a short trace, Renew with a long one, and Release without one"},
	} {
		t.awaitInterrupted(c.r, nil, c.after)
	}
}

// takenOverShort returns a request that took over a record with a short trace.
// Where a busy machine did not get to take it over before the trace was over, it
// is tried again with more time.
func (t *tester) takenOverShort(terms idempotency.Terms) request {
	t.Helper()
	for soon := t.soon; soon < t.patience; soon *= 4 {
		former := t.newRequest()
		start := time.Now()
		t.interrupt(former, soon, nil)
		r := former.retry()
		held, claimed, err := t.Claim(t.Context(), r.key, r.claim, terms)
		switch {
		case claimed && err == nil && held.State == idempotency.StateInterrupted:
			return r
		case time.Since(start) < soon:
			t.broken("Claim of an interrupted request's key with %s returned %t, %s, and the error %v, want true and its own claim, interrupted.",
				describeTerms(terms), claimed, describe(held), err)
		}
	}
	t.Skip("idempotencytest: the backend is too slow to tell")
	return request{}
}

func takeOverEnds(t *tester) {
	released := t.takenOverShort(takingOver(long, 0))
	t.release(released, 0)
	left := t.takenOverShort(takingOver(t.soon, t.soon))
	t.awaitFree(released, "After a Claim that took over from a record with a short trace, and Release without one")
	t.awaitFree(left, "After a Claim that took over, with a short lease and trace, from a record with a short trace")
}

func takeOverCompleted(t *tester) {
	response, progress := newResponse("recovered"), []byte("progress")
	_, r := t.takenOver(takingOver(long, long), progress)
	_, interrupted := t.takenOver(takingOver(long, long), progress)
	_, ends := t.takenOver(takingOver(long, long), progress)
	t.complete(r, response, long)
	t.release(interrupted, 0)
	t.complete(interrupted, response, long)
	for _, r := range []request{r, interrupted} {
		t.holds(r.key, r.completed(response), "After Complete of a claim that took over")
		t.refused(r, takingOver(long, long), r.completed(response), "After Complete of a claim that took over")
		t.complete(r, newResponse("second"), long)
		t.renew(r, traced(t.soon, t.soon), []byte("progress and more"))
		t.release(r, 0)
		t.release(r, t.soon)
		t.holds(r.key, r.completed(response), "After Complete of a claim that took over, and all verbs again")
	}
	t.complete(ends, response, t.soon)
	next := t.awaitFree(ends, "After Complete, with a short expiry, of a claim that took over")
	t.release(next, 0)
	t.free(next.key, "After Release of the first claim after a response that was expired")
}

func takeOverLost(t *tester) {
	response, progress := newResponse("recovered"), []byte("progress")
	former, r := t.takenOver(takingOver(long, long), progress)
	check := func(want idempotency.Record, when string) {
		t.Helper()
		t.loses(former)
		t.release(former, t.soon)
		t.refused(former, lease(t.soon), want, when)
		t.holds(r.key, want, "After all verbs by the claim whose key was taken over")
	}
	check(r.outstanding(progress), "When the key had been taken over")
	t.renew(r, traced(long, long), nil)
	check(r.outstanding(progress), "When the key had been taken over")
	t.release(r, 0)
	check(r.interrupted(progress), "When the key had been taken over, and that claim was interrupted")
	t.takeOver(r, takingOver(long, long), progress)
	t.complete(r, response, long)
	check(r.completed(response), "When the key had been taken over, and that claim was completed")
}

func takeOverAgain(t *tester) {
	first, more, most := []byte("first"), []byte("first, second"), []byte("first, second, third")
	_, second := t.takenOver(takingOver(long, 0), first)
	t.renew(second, takingOver(long, 0), more)
	t.release(second, 0)
	third := second.retry()
	t.takeOver(third, takingOver(t.soon, 0), more)
	t.awaitInterrupted(third, more, "After two Claims that took over, the last with a short lease and no trace")
	fourth := third.retry()
	t.takeOver(fourth, takingOver(long, 0), more)
	t.renew(fourth, takingOver(long, 0), most)
	t.loses(second)
	t.loses(third)
	t.holds(fourth.key, fourth.outstanding(most), "After three Claims that took over, each from the one before")
	t.complete(fourth, newResponse("recovered"), long)
	t.holds(fourth.key, fourth.completed(newResponse("recovered")), "After three Claims that took over, and Complete")
}
