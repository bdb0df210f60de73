package idempotencytest

import (
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/idempotency-go/idempotency"
)

// long is a lease, a trace or an expiry that does not end during a test.
const long = time.Hour

// tester is one case at work on its own backend. Its methods that can fail the
// test end it, and are for the goroutine of the test only.
type tester struct {
	*testing.T
	timing
	idempotency.Backend
	clause string
	scope  string // random, so that no two tests share a key
	keys   atomic.Int64
}

// broken fails the test with what was seen and the clause that it breaks.
func (t *tester) broken(format string, args ...any) {
	t.Helper()
	t.Fatalf("\n%s\nThe contract: %s", fmt.Sprintf(format, args...), t.clause)
}

// request is a key and the claim with which a request asks for it.
type request struct {
	key   idempotency.Key
	claim idempotency.Claim
}

// newRequest returns a request for a key that holds nothing.
func (t *tester) newRequest() request {
	return request{idempotency.NewKey(t.scope, strconv.FormatInt(t.keys.Add(1), 10)), newClaim()}
}

// rival returns another request for the same key.
func (r request) rival() request {
	return request{r.key, newClaim()}
}

// retry returns the same request sent again: its token is another, its
// fingerprint the same.
func (r request) retry() request {
	return request{r.key, idempotency.Claim{Token: newToken(), Fingerprint: r.claim.Fingerprint}}
}

// newClaim returns a claim of its own, in the form that the middleware gives it.
func newClaim() idempotency.Claim {
	return idempotency.Claim{Token: newToken(), Fingerprint: newFingerprint()}
}

func newToken() idempotency.Token { return idempotency.Token(uuid.Must(uuid.NewV7())) }

// newFingerprint returns 32 random bytes.
func newFingerprint() [32]byte { return idempotency.NewKey("", uuid.NewString()) }

// outstanding returns the record of the request's claim in its lease.
func (r request) outstanding(progress []byte) idempotency.Record {
	return idempotency.Record{Claim: r.claim, State: idempotency.StateOutstanding, Progress: progress}
}

// interrupted returns the record of the request's claim without an answer.
func (r request) interrupted(progress []byte) idempotency.Record {
	return idempotency.Record{Claim: r.claim, State: idempotency.StateInterrupted, Progress: progress}
}

// completed returns the record of the request with its response.
func (r request) completed(response []byte) idempotency.Record {
	return idempotency.Record{Claim: r.claim, State: idempotency.StateCompleted, Response: response}
}

// newResponse returns a response that names what it was made for.
func newResponse(text string) []byte {
	return []byte("\x01\x00response " + text)
}

// lease returns terms without a trace.
func lease(d time.Duration) idempotency.Terms { return idempotency.Terms{Lease: d} }

// traced returns terms with a trace.
func traced(lease, trace time.Duration) idempotency.Terms {
	return idempotency.Terms{Lease: lease, Trace: trace}
}

// takingOver returns terms that take over.
func takingOver(lease, trace time.Duration) idempotency.Terms {
	return idempotency.Terms{Lease: lease, Trace: trace, TakeOver: true}
}

func describeTerms(terms idempotency.Terms) string {
	text := fmt.Sprintf("a lease of %v", terms.Lease)
	if terms.Trace != 0 {
		text += fmt.Sprintf(", a trace of %v", terms.Trace)
	}
	if terms.TakeOver {
		text += ", TakeOver"
	}
	return text
}

// The methods that follow call the backend where there is but one right answer.

// claim claims a key that must be free, or the request's own.
func (t *tester) claim(r request, terms idempotency.Terms) idempotency.Record {
	t.Helper()
	held, claimed, err := t.Claim(t.Context(), r.key, r.claim, terms)
	if err != nil {
		t.broken("Claim of a key that was free, or the claim's own, with %s returned an error: %v", describeTerms(terms), err)
	}
	if !claimed {
		t.broken("Claim of a key that was free, or the claim's own, with %s returned false, held by %s.", describeTerms(terms), describe(held))
	}
	return held
}

// takeOver claims the key of an interrupted request, or one that it has taken
// over already, and checks that it is told of the progress.
func (t *tester) takeOver(r request, terms idempotency.Terms, progress []byte) {
	t.Helper()
	held, claimed, err := t.Claim(t.Context(), r.key, r.claim, terms)
	if err != nil || !claimed {
		t.broken("Claim of an interrupted request's key with %s returned %t, held by %s, and the error %v, want true and nil.",
			describeTerms(terms), claimed, describe(held), err)
	}
	if d := diff(held, r.interrupted(progress), true); d != "" {
		t.broken("Claim took an interrupted request's key over with %s, and returned another record than its own claim, interrupted, "+
			"with the progress of the run before: %s", describeTerms(terms), d)
	}
}

// complete completes a claim whose key holds it, its response, or nothing.
func (t *tester) complete(r request, response []byte, expiry time.Duration) {
	t.Helper()
	if err := t.Complete(t.Context(), r.key, r.claim, response, expiry); err != nil {
		t.broken("Complete with an expiry of %v, where the key held this very claim, its response or nothing, returned an error: %v", expiry, err)
	}
}

// store claims a free key and completes the claim.
func (t *tester) store(r request, response []byte, expiry time.Duration) {
	t.Helper()
	t.claim(r, lease(long))
	t.complete(r, response, expiry)
}

// renew renews a claim whose key holds it, its response, or nothing.
func (t *tester) renew(r request, terms idempotency.Terms, progress []byte) {
	t.Helper()
	if err := t.Renew(t.Context(), r.key, r.claim, terms, progress); err != nil {
		t.broken("Renew with %s, where the key held this very claim, its response or nothing, returned an error: %v", describeTerms(terms), err)
	}
}

// release releases a claim, whatever its key holds.
func (t *tester) release(r request, trace time.Duration) {
	t.Helper()
	if err := t.Release(t.Context(), r.key, r.claim, trace); err != nil {
		t.broken("Release with a trace of %v returned an error: %v", trace, err)
	}
}

// interrupt claims a free key, leaves the progress, and releases the claim with a trace.
func (t *tester) interrupt(r request, trace time.Duration, progress []byte) {
	t.Helper()
	t.claim(r, lease(long))
	if progress != nil {
		t.renew(r, lease(long), progress)
	}
	t.release(r, trace)
}

// losesComplete completes a claim whose key another claim holds.
func (t *tester) losesComplete(r request) {
	t.Helper()
	err := t.Complete(t.Context(), r.key, r.claim, newResponse("lost"), long)
	if !errors.Is(err, idempotency.ErrClaimLost) {
		t.broken("Complete of a key that another claim holds returned the error %v, want idempotency.ErrClaimLost.", err)
	}
}

// losesRenew renews a claim whose key another claim holds.
func (t *tester) losesRenew(r request, terms idempotency.Terms, progress []byte) {
	t.Helper()
	err := t.Renew(t.Context(), r.key, r.claim, terms, progress)
	if !errors.Is(err, idempotency.ErrClaimLost) {
		t.broken("Renew of a key that another claim holds returned the error %v, want idempotency.ErrClaimLost.", err)
	}
}

// loses calls every verb but Claim for a claim whose key another claim holds.
func (t *tester) loses(r request) {
	t.Helper()
	t.losesComplete(r)
	t.losesRenew(r, lease(long), nil)
	t.losesRenew(r, traced(long, long), []byte("lost progress, longer than any that was kept"))
	t.release(r, 0)
	t.release(r, long)
}
