package idempotencytest

import (
	"context"
	"errors"
	"time"

	"github.com/idempotency-go/idempotency"
)

// transactorCases are for a backend that is an [idempotency.Transactor].
var transactorCases = []testCase{
	{
		name: "begin",
		clause: "Begin returns the context that it was given with something added: its values are there, and it ends " +
			"when that one does and not before. It leaves the record alone, and does not wait.",
		run: begin,
	},
	{
		name: "begin-complete",
		clause: "Complete with a context of Begin's stores the response like any other Complete, of an interrupted " +
			"claim as well, and repeated with its token it returns nil and changes nothing.",
		run: beginComplete,
	},
	{
		name: "begin-release",
		clause: "Release with a context of Begin's frees the key at once, like any other Release, and returns nil " +
			"where it was free already.",
		run: beginRelease,
	},
	{
		name: "begin-release-trace",
		clause: "Release with a context of Begin's and a trace makes the claim interrupted for that long, like any " +
			"other Release, and that of a claim that took over never deletes.",
		run: beginReleaseTrace,
	},
	{
		name: "begin-nothing",
		clause: "Complete with a context of Begin's, where the key holds nothing, either returns ErrClaimLost and " +
			"leaves it free (it must, where the transaction has written), or it returns nil and stores the " +
			"response.",
		run: beginNothing,
	},
	{
		name: "begin-lost",
		clause: "Complete with a context of Begin's returns ErrClaimLost where another claim holds the key, and " +
			"changes nothing; Release then returns nil. Compare the token in the transaction that is to commit.",
		run: beginLost,
	},
	{
		name: "begin-outstanding",
		clause: "Between Begin and Complete the key is held by the claim as without a transaction: Renew works with a " +
			"context of Begin's, and Claim by another is refused at once. Take the claim outside of the " +
			"transaction.",
		run: beginOutstanding,
	},
	{
		name: "begin-nested",
		clause: "A claim is completed or released with the transaction that was begun for it, also where the context " +
			"of its Begin came from the Begin of another claim: the middleware may stand twice in a chain.",
		run: beginNested,
	},
}

// begun is a claim with the context of its transaction.
type begun struct {
	request
	ctx context.Context
}

// begin claims a free key and begins its transaction, within ctx.
func (t *tester) begin(ctx context.Context, r request) begun {
	t.Helper()
	t.claim(r, traced(long, long))
	return t.beginClaimed(ctx, r)
}

// beginClaimed begins the transaction of a claim that was claimed, within ctx.
func (t *tester) beginClaimed(ctx context.Context, r request) begun {
	t.Helper()
	return begun{r, t.Backend.(idempotency.Transactor).Begin(ctx, r.key, r.claim, long)}
}

// commit completes a claim whose key holds it, or its response.
func (t *tester) commit(b begun, response []byte) {
	t.Helper()
	if err := t.Complete(b.ctx, b.key, b.claim, response, long); err != nil {
		t.broken("Complete with the context of the claim's Begin returned an error: %v", err)
	}
}

// undo releases a claim, whatever its key holds.
func (t *tester) undo(b begun, trace time.Duration) {
	t.Helper()
	if err := t.Release(b.ctx, b.key, b.claim, trace); err != nil {
		t.broken("Release with the context of the claim's Begin returned an error: %v", err)
	}
}

type valueKey struct{}

func begin(t *tester) {
	parent, cancel := context.WithCancel(context.WithValue(t.Context(), valueKey{}, "kept"))
	defer cancel()
	b := t.begin(parent, t.newRequest())
	if b.ctx.Value(valueKey{}) != "kept" {
		t.broken("The context that Begin returned has not the values of the one that it was given.")
	}
	if err := b.ctx.Err(); err != nil {
		t.broken("The context that Begin returned has ended: %v", err)
	}
	t.holds(b.key, b.outstanding(nil), "After Begin")
	cancel()
	select {
	case <-b.ctx.Done():
	case <-time.After(t.prompt):
		t.broken("The context that Begin returned did not end with the one that it was given.")
	}
	t.holds(b.key, b.outstanding(nil), "After the end of Begin's context")
}

func beginComplete(t *tester) {
	for _, response := range [][]byte{newResponse("first"), {}} {
		b := t.begin(t.Context(), t.newRequest())
		t.commit(b, response)
		t.holds(b.key, b.completed(response), "After Complete with the context of Begin")
		t.commit(b, newResponse("second"))
		t.holds(b.key, b.completed(response), "After a second Complete with the context of Begin")
	}
	interrupted := t.begin(t.Context(), t.newRequest())
	t.renew(interrupted.request, traced(t.soon, long), []byte("progress"))
	t.awaitInterrupted(interrupted.request, []byte("progress"), "After Begin, and Renew with a short lease and a long trace")
	t.commit(interrupted, newResponse("kept"))
	t.holds(interrupted.key, interrupted.completed(newResponse("kept")), "After Complete, with the context of Begin, of a claim whose lease was over")
	former := t.newRequest()
	t.interrupt(former, long, []byte("progress"))
	r := former.retry()
	t.takeOver(r, takingOver(long, long), []byte("progress"))
	recovering := t.beginClaimed(t.Context(), r)
	t.commit(recovering, newResponse("recovered"))
	t.holds(r.key, r.completed(newResponse("recovered")), "After Complete, with the context of Begin, of a claim that took over")
}

func beginRelease(t *tester) {
	b := t.begin(t.Context(), t.newRequest())
	t.undo(b, 0)
	t.free(b.key, "After Release with the context of Begin")
	t.undo(b, 0)
	t.free(b.key, "After Release with the context of Begin, repeated")
	next, response := t.begin(t.Context(), b.rival()), newResponse("next")
	t.commit(next, response)
	t.holds(next.key, next.completed(response), "After Release with the context of Begin, and Complete by the next request")
}

func beginReleaseTrace(t *tester) {
	b, ends := t.begin(t.Context(), t.newRequest()), t.begin(t.Context(), t.newRequest())
	t.undo(b, long)
	t.undo(ends, t.soon)
	t.holds(b.key, b.interrupted(nil), "After Release with a trace and the context of Begin")
	r := b.retry()
	t.takeOver(r, takingOver(long, long), nil)
	recovering := t.beginClaimed(t.Context(), r)
	t.undo(recovering, 0)
	t.holds(r.key, r.interrupted(nil), "After Release, without a trace and with the context of Begin, of a claim that took over")
	t.awaitFree(ends.request, "After Release with a short trace and the context of Begin")
}

func beginNothing(t *tester) {
	b, response := t.begin(t.Context(), t.newRequest()), newResponse("kept")
	t.release(b.request, 0)
	err := t.Complete(b.ctx, b.key, b.claim, response, long)
	switch {
	case err == nil:
		t.holds(b.key, b.completed(response), "After Complete with the context of Begin, where the key held nothing, which returned nil")
	case errors.Is(err, idempotency.ErrClaimLost):
		t.free(b.key, "After Complete with the context of Begin, where the key held nothing, which returned ErrClaimLost")
	default:
		t.broken("Complete with the context of Begin, where the key held nothing, returned the error %v, want nil or idempotency.ErrClaimLost.", err)
	}
}

func beginLost(t *tester) {
	for _, held := range []idempotency.State{idempotency.StateOutstanding, idempotency.StateInterrupted, idempotency.StateCompleted} {
		lost, response := t.begin(t.Context(), t.newRequest()), newResponse("holder")
		t.release(lost.request, 0) // As when its lease is over.
		holder := t.begin(t.Context(), lost.rival())
		want := holder.outstanding(nil)
		switch held {
		case idempotency.StateInterrupted:
			t.undo(holder, long)
			want = holder.interrupted(nil)
		case idempotency.StateCompleted:
			t.commit(holder, response)
			want = holder.completed(response)
		}
		if err := t.Complete(lost.ctx, lost.key, lost.claim, newResponse("lost"), long); !errors.Is(err, idempotency.ErrClaimLost) {
			t.broken("Complete with the context of Begin, of a key that another claim holds, returned the error %v, want idempotency.ErrClaimLost.", err)
		}
		t.undo(lost, 0)
		t.undo(lost, long)
		t.holds(holder.key, want, "After Complete and Release, with the context of its Begin, by a claim that lost its key")
	}
}

func beginOutstanding(t *tester) {
	b := t.begin(t.Context(), t.newRequest())
	t.refused(b.rival(), lease(long), b.outstanding(nil), "After Begin")
	t.refused(b.retry(), takingOver(long, long), b.outstanding(nil), "After Begin")
	if err := t.Renew(b.ctx, b.key, b.claim, lease(long), []byte("progress")); err != nil {
		t.broken("Renew with progress and the context of the claim's Begin returned an error: %v", err)
	}
	t.holds(b.key, b.outstanding([]byte("progress")), "After Renew with progress and the context of Begin")
	if err := t.Renew(b.ctx, b.key, b.claim, lease(t.soon), nil); err != nil {
		t.broken("Renew with the context of the claim's Begin returned an error: %v", err)
	}
	t.awaitFree(b.request, "After Renew with a short lease and the context of Begin")
}

func beginNested(t *tester) {
	outer := t.begin(t.Context(), t.newRequest())
	inner, other := t.begin(outer.ctx, t.newRequest()), t.begin(outer.ctx, t.newRequest())
	response := newResponse("inner")
	t.commit(inner, response)
	t.undo(other, 0)
	t.holds(outer.key, outer.outstanding(nil), "After Complete and Release of the claims within")
	t.holds(inner.key, inner.completed(response), "After Complete, and Release of another claim within the same")
	t.free(other.key, "After Release, and Complete of another claim within the same")
	t.commit(outer, response)
	t.holds(outer.key, outer.completed(response), "After Complete of the claims within, and of the one around them")
}
