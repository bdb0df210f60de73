package idempotencytest

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/idempotency-go/idempotency"
)

// transactorCases are for a backend that is an [idempotency.Transactor].
var transactorCases = []testCase{
	{
		name: "begin",
		clause: "Begin returns the context that it was given with something added: its values are there, and it ends when that one does and not before. " +
			"It leaves the record alone, and does not wait.",
		run: begin,
	},
	{
		name: "begin-complete",
		clause: "Complete with a context of Begin's stores the response like any other Complete, the mark of Status 0 as well, " +
			"and repeated with its token it returns nil and changes nothing.",
		run: beginComplete,
	},
	{
		name:   "begin-release",
		clause: "Release with a context of Begin's frees the key at once, like any other Release, and returns nil where it was free already.",
		run:    beginRelease,
	},
	{
		name: "begin-lost",
		clause: "Complete with a context of Begin's returns ErrClaimLost where another claim holds the key, and changes nothing; Release then returns nil. " +
			"Compare the token in the transaction that is to commit.",
		run: beginLost,
	},
	{
		name: "begin-outstanding",
		clause: "Between Begin and Complete the key is held by the claim as without a transaction: Renew works with a context of Begin's, and " +
			"Claim by another is refused at once. Take the claim outside of the transaction.",
		run: beginOutstanding,
	},
	{
		name: "begin-nested",
		clause: "A claim is settled with the transaction that was begun for it, also where the context of its Begin came from the Begin of another claim: " +
			"the middleware may stand twice in a chain.",
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
	t.claim(r, long)
	return begun{r, t.Backend.(idempotency.Transactor).Begin(ctx, r.key, r.claim)}
}

// commit completes a claim whose key holds it, or its response.
func (t *tester) commit(b begun, resp *idempotency.Response) {
	t.Helper()
	if err := t.Complete(b.ctx, b.key, b.claim, resp, long); err != nil {
		t.broken("Complete with the context of the claim's Begin returned an error: %v", err)
	}
}

// undo releases a claim, whatever its key holds.
func (t *tester) undo(b begun) {
	t.Helper()
	if err := t.Release(b.ctx, b.key, b.claim); err != nil {
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
	t.holds(b.request, nil, "After Begin")
	cancel()
	select {
	case <-b.ctx.Done():
	case <-time.After(t.prompt):
		t.broken("The context that Begin returned did not end with the one that it was given.")
	}
	t.holds(b.request, nil, "After the end of Begin's context")
}

func beginComplete(t *tester) {
	for _, resp := range []*idempotency.Response{newResponse("first"), {Status: 0}, {Status: http.StatusNoContent}} {
		b := t.begin(t.Context(), t.newRequest())
		t.commit(b, resp)
		t.holds(b.request, resp, "After Complete with the context of Begin")
		t.commit(b, newResponse("second"))
		t.holds(b.request, resp, "After a second Complete with the context of Begin")
	}
}

func beginRelease(t *tester) {
	b := t.begin(t.Context(), t.newRequest())
	t.undo(b)
	t.free(b.key, "After Release with the context of Begin")
	t.undo(b)
	next, resp := t.begin(t.Context(), b.rival()), newResponse("next")
	t.commit(next, resp)
	t.holds(next.request, resp, "After Release with the context of Begin, and Complete by the next request")
}

func beginLost(t *tester) {
	for _, held := range []*idempotency.Response{nil, newResponse("holder")} {
		lost := t.begin(t.Context(), t.newRequest())
		t.release(lost.request) // As when its lease is over.
		holder := t.begin(t.Context(), lost.rival())
		if held != nil {
			t.commit(holder, held)
		}
		if err := t.Complete(lost.ctx, lost.key, lost.claim, newResponse("lost"), long); !errors.Is(err, idempotency.ErrClaimLost) {
			t.broken("Complete with the context of Begin, of a key that another claim holds, returned the error %v, want idempotency.ErrClaimLost.", err)
		}
		t.undo(lost)
		t.holds(holder.request, held, "After Complete and Release, with the context of its Begin, by a claim that lost its key")
	}
}

func beginOutstanding(t *tester) {
	b := t.begin(t.Context(), t.newRequest())
	t.refused(b.rival(), b.record(nil), "After Begin")
	if err := t.Renew(b.ctx, b.key, b.claim, t.soon); err != nil {
		t.broken("Renew with the context of the claim's Begin returned an error: %v", err)
	}
	t.awaitFree(b.key, "After Renew with a short lease and the context of Begin")
}

func beginNested(t *tester) {
	outer := t.begin(t.Context(), t.newRequest())
	inner, other := t.begin(outer.ctx, t.newRequest()), t.begin(outer.ctx, t.newRequest())
	resp := newResponse("inner")
	t.commit(inner, resp)
	t.undo(other)
	t.holds(outer.request, nil, "After Complete and Release of the claims within")
	t.holds(inner.request, resp, "After Complete, and Release of another claim within the same")
	t.free(other.key, "After Release, and Complete of another claim within the same")
	t.commit(outer, resp)
	t.holds(outer.request, resp, "After Complete of the claims within, and of the one around them")
}
