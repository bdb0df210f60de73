package idempotencytest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/idempotency-go/idempotency"
)

func hammer(t *tester) {
	const workers, turns, keys = 16, 40, 4
	h := &hammering{tester: t, ctx: t.Context()}
	var requests [keys]request
	var owners [keys]atomic.Int32
	for i := range requests {
		requests[i] = t.newRequest()
	}
	atOnce(workers, func(int) {
		for range turns {
			i := rand.IntN(keys)
			h.turn(hammerRequest(requests[i].key), &owners[i])
		}
	})
	if len(h.seen) > 0 {
		t.broken("%s", strings.Join(h.seen, "\n"))
	}
}

// hammering is a hammer at work, in many goroutines.
type hammering struct {
	*tester
	ctx  context.Context
	mu   sync.Mutex
	seen []string // what was broken
}

func (h *hammering) report(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.seen) < 3 {
		h.seen = append(h.seen, fmt.Sprintf(format, args...))
	}
}

// hammerRequest returns a request for a key. What belongs together in a record can
// be told from its token and its key.
func hammerRequest(key idempotency.Key) request {
	return hammerRecord(key, newToken())
}

func hammerRecord(key idempotency.Key, token idempotency.Token) request {
	r := request{key, idempotency.Claim{Token: token}}
	if token[15]%2 == 0 { // The others have the zero Fingerprint, and take over from any.
		r.claim.Fingerprint = sha256.Sum256(token[:])
	}
	return r
}

// hammerProgress returns n bytes of progress, or all that there are of a key. They
// begin alike for one key.
func hammerProgress(key idempotency.Key, n int) []byte { return bytes.Clone(key[:min(n, len(key))]) }

func (r request) hammerResponse() []byte {
	return newResponse(r.key.String() + r.claim.Token.String())
}

// whole says what of a record was not put there by one request.
func (h *hammering) whole(asking request, held idempotency.Record) string {
	owner := hammerRecord(asking.key, held.Claim.Token)
	want := idempotency.Record{Claim: owner.claim, State: held.State}
	if held.State == idempotency.StateCompleted {
		want.Response = owner.hammerResponse()
	} else {
		want.Progress = hammerProgress(asking.key, len(held.Progress))
	}
	return diff(held, want, matches(asking.claim, owner.claim))
}

// turn makes one call for a key, and uses its claim if it was claimed.
func (h *hammering) turn(r request, owners *atomic.Int32) {
	var err error
	switch rand.IntN(10) {
	case 0: // These have lost their claim, or never made it.
		err = h.Renew(h.ctx, r.key, r.claim, lease(time.Millisecond), hammerProgress(r.key, rand.IntN(4)))
	case 1:
		err = h.Complete(h.ctx, r.key, r.claim, r.hammerResponse(), time.Millisecond)
	case 2:
		err = h.Release(h.ctx, r.key, r.claim, rand.N(2*time.Millisecond))
	default:
		terms := idempotency.Terms{Lease: long, Trace: rand.N(2 * time.Millisecond), TakeOver: rand.IntN(2) == 0}
		held, claimed, claimErr := h.Claim(h.ctx, r.key, r.claim, terms)
		if err = claimErr; err != nil {
			break
		}
		if claimed {
			h.use(r, held, terms, owners)
		} else if d := h.whole(r, held); d != "" {
			h.report("A record was not what one request had put there: %s", d)
		}
	}
	if err != nil && !errors.Is(err, idempotency.ErrClaimLost) {
		h.report("A call returned an error: %v", err)
	}
}

// use uses a claim like a request does: its lease does not end in a test, so that
// what befalls it was done by others.
func (h *hammering) use(r request, told idempotency.Record, terms idempotency.Terms, owners *atomic.Int32) {
	if n := owners.Add(1); n != 1 {
		h.report("%d requests had claimed one key at the same time.", n)
	}
	tookOver, progress := told.State == idempotency.StateInterrupted, len(told.Progress)
	want := idempotency.Record{}
	if tookOver {
		want = r.interrupted(hammerProgress(r.key, progress))
	}
	if d := diff(told, want, true); d != "" || tookOver && !terms.TakeOver {
		h.report("Claim with %s returned true and %s. %s", describeTerms(terms), describe(told), d)
	}
	for range rand.IntN(3) {
		more := rand.IntN(len(r.key))
		if err := h.Renew(h.ctx, r.key, r.claim, terms, hammerProgress(r.key, more)); err != nil {
			h.report("Renew by the owner of the claim returned an error: %v", err)
		}
		progress = max(progress, more)
	}
	time.Sleep(rand.N(time.Millisecond))
	retry := r.retry()
	held, claimed, err := h.Claim(h.ctx, r.key, retry.claim, takingOver(long, long))
	if d := diff(held, r.outstanding(hammerProgress(r.key, progress)), true); err != nil || claimed || d != "" {
		h.report("Claim of a key that another request had claimed returned %s, %t and the error %v. %s", describe(held), claimed, err, d)
	}
	owners.Add(-1) // The calls below free the key before they return.
	switch rand.IntN(3) {
	case 0:
		err = h.Complete(h.ctx, r.key, r.claim, r.hammerResponse(), time.Millisecond)
	case 1:
		err = h.Release(h.ctx, r.key, r.claim, 0)
	case 2:
		err = h.Release(h.ctx, r.key, r.claim, time.Millisecond+rand.N(2*time.Millisecond))
	}
	if err != nil {
		h.report("Complete or Release by the owner of the claim returned an error: %v", err)
	}
}
