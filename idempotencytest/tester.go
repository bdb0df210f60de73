package idempotencytest

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/idempotency-go/idempotency"
)

// long is a lease or expiry that does not end during a test.
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
	key   string
	claim idempotency.Claim
}

// newRequest returns a request for a key that holds nothing.
func (t *tester) newRequest() request {
	key := idempotency.StorageKey(t.scope, strconv.FormatInt(t.keys.Add(1), 10))
	return request{key, newClaim()}
}

// rival returns another request for the same key.
func (r request) rival() request {
	return request{r.key, newClaim()}
}

// record returns the record that the request should find.
func (r request) record(resp *idempotency.Response) idempotency.Record {
	return idempotency.Record{Claim: r.claim, Response: resp}
}

// newClaim returns a claim of its own, in the form that the middleware gives it.
func newClaim() idempotency.Claim {
	var token [16]byte
	var c idempotency.Claim
	rand.Read(token[:])
	rand.Read(c.Fingerprint[:])
	c.Token = base64.RawURLEncoding.EncodeToString(token[:])
	return c
}

// newResponse returns a response that names what it was made for.
func newResponse(text string) *idempotency.Response {
	return &idempotency.Response{
		Status: http.StatusCreated,
		Header: http.Header{"Content-Type": {"application/json"}, "X-Response": {text}},
		Body:   []byte(`{"response":"` + text + `"}`),
	}
}

// The methods that follow call the backend where there is but one right answer.

// claim claims a key that must be free, or the request's own.
func (t *tester) claim(r request, lease time.Duration) {
	t.Helper()
	held, claimed, err := t.Claim(t.Context(), r.key, r.claim, lease)
	if err != nil {
		t.broken("Claim of a key that was free, or the claim's own, with a lease of %v returned an error: %v", lease, err)
	}
	if !claimed {
		t.broken("Claim of a key that was free, or the claim's own, returned false, held by %s.", describe(held))
	}
}

// complete completes a claim whose key holds it, its response, or nothing.
func (t *tester) complete(r request, resp *idempotency.Response, expiry time.Duration) {
	t.Helper()
	if err := t.Complete(t.Context(), r.key, r.claim, resp, expiry); err != nil {
		t.broken("Complete with an expiry of %v, where the key held this very claim, its response or nothing, returned an error: %v", expiry, err)
	}
}

// store claims a free key and completes the claim.
func (t *tester) store(r request, resp *idempotency.Response, expiry time.Duration) {
	t.Helper()
	t.claim(r, long)
	t.complete(r, resp, expiry)
}

// renew renews a claim whose key holds it, its response, or nothing.
func (t *tester) renew(r request, lease time.Duration) {
	t.Helper()
	if err := t.Renew(t.Context(), r.key, r.claim, lease); err != nil {
		t.broken("Renew with a lease of %v, where the key held this very claim, its response or nothing, returned an error: %v", lease, err)
	}
}

// release releases a claim, whatever its key holds.
func (t *tester) release(r request) {
	t.Helper()
	if err := t.Release(t.Context(), r.key, r.claim); err != nil {
		t.broken("Release returned an error: %v", err)
	}
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
func (t *tester) losesRenew(r request, lease time.Duration) {
	t.Helper()
	err := t.Renew(t.Context(), r.key, r.claim, lease)
	if !errors.Is(err, idempotency.ErrClaimLost) {
		t.broken("Renew of a key that another claim holds returned the error %v, want idempotency.ErrClaimLost.", err)
	}
}

// refused claims a key that holds the record of want, and checks that it is told so.
func (t *tester) refused(r request, want idempotency.Record, when string) {
	t.Helper()
	held, claimed, err := t.Claim(t.Context(), r.key, r.claim, long)
	if err != nil || claimed {
		t.broken("%s, Claim returned %t and the error %v, want false and nil.", when, claimed, err)
	}
	if d := diff(held, want); d != "" {
		t.broken("%s, Claim returned another record than the key should hold: %s", when, d)
	}
}

// probe returns what a key holds, as another request sees it, and whether it
// holds anything.
func (t *tester) probe(key string) (idempotency.Record, bool) {
	t.Helper()
	r := request{key, newClaim()}
	held, claimed, err := t.Claim(t.Context(), r.key, r.claim, long)
	if err != nil {
		t.broken("Claim by another request returned an error: %v", err)
	}
	if claimed {
		t.release(r)
	}
	return held, !claimed
}

// holds checks that the key of a request holds its claim with a response, or
// outstanding where the response is nil. It returns the record as the backend
// gave it.
func (t *tester) holds(r request, resp *idempotency.Response, after string) idempotency.Record {
	t.Helper()
	held, ok := t.probe(r.key)
	want := r.record(resp)
	if !ok {
		t.broken("%s, another request could claim the key, which should hold %s.", after, describe(want))
	}
	if d := diff(held, want); d != "" {
		t.broken("%s, the key holds another record than it should: %s", after, d)
	}
	return held
}

// free checks that a key holds nothing.
func (t *tester) free(key, after string) {
	t.Helper()
	if held, ok := t.probe(key); ok {
		t.broken("%s, the key should be free, and is held by %s.", after, describe(held))
	}
}

// awaitFree waits until a key is free, and returns the request that then took it.
func (t *tester) awaitFree(key, after string) request {
	t.Helper()
	r := request{key, newClaim()}
	for deadline := time.Now().Add(t.patience); ; time.Sleep(t.soon / 10) {
		late := time.Now().After(deadline) // A last try follows, however late it is.
		held, claimed, err := t.Claim(t.Context(), r.key, r.claim, long)
		switch {
		case err != nil:
			t.broken("%s, Claim by another request returned an error: %v", after, err)
		case claimed:
			return r
		case late:
			t.broken("%s, the key was not free %v later: it is held by %s.", after, t.patience, describe(held))
		}
	}
}

// pass lets time pass, by the backend's own clock, until every lease of t.soon
// that began before is over.
func (t *tester) pass() {
	t.Helper()
	r := t.newRequest()
	t.claim(r, t.soon)
	t.awaitFree(r.key, fmt.Sprintf("After a claim with a lease of %v that was neither renewed nor completed", t.soon))
}

// endsSoon checks that a key becomes free although meddle tries to prolong the
// time that set gave it. Where a busy machine did not get to meddle before that
// time was over, nothing was shown, and it is tried again with more time.
func (t *tester) endsSoon(after string, set func(r request, soon time.Duration), meddle func(r request)) {
	t.Helper()
	for soon := t.soon; soon < t.patience; soon *= 4 {
		r := t.newRequest()
		start := time.Now()
		set(r, soon)
		meddle(r)
		if time.Since(start) < soon {
			t.awaitFree(r.key, after)
			return
		}
	}
	t.Skip("idempotencytest: the backend is too slow to tell")
}

// diff says in what a record differs from the one that it should be. Nil and
// empty headers are equal, and so are bodies.
func diff(got, want idempotency.Record) string {
	if got.Claim.Token != want.Claim.Token {
		return fmt.Sprintf("the claim's token is %q, want %q.", got.Claim.Token, want.Claim.Token)
	}
	if got.Claim.Fingerprint != want.Claim.Fingerprint {
		return fmt.Sprintf("the claim's fingerprint is %x, want %x.", got.Claim.Fingerprint, want.Claim.Fingerprint)
	}
	g, w := got.Response, want.Response
	switch {
	case g == nil && w == nil:
		return ""
	case g == nil:
		return fmt.Sprintf("it is outstanding, want the response with status %d.", w.Status)
	case w == nil:
		return fmt.Sprintf("it has a response with status %d, want none: the request is outstanding.", g.Status)
	case g.Status != w.Status:
		return fmt.Sprintf("the response's status is %d, want %d.", g.Status, w.Status)
	case !maps.EqualFunc(g.Header, w.Header, slices.Equal[[]string]):
		return fmt.Sprintf("the response's header is %s, want %s.", describeHeader(g.Header), describeHeader(w.Header))
	case !bytes.Equal(g.Body, w.Body):
		at := 0
		for at < len(g.Body) && at < len(w.Body) && g.Body[at] == w.Body[at] {
			at++
		}
		return fmt.Sprintf("the response's body has %d bytes, want %d; from byte %d on it is %.20q, want %.20q.",
			len(g.Body), len(w.Body), at, g.Body[at:], w.Body[at:])
	}
	return ""
}

func describe(r idempotency.Record) string {
	if r.Response == nil {
		return fmt.Sprintf("the outstanding claim with token %q", r.Claim.Token)
	}
	return fmt.Sprintf("the response with status %d of the claim with token %q", r.Response.Status, r.Claim.Token)
}

func describeHeader(h http.Header) string {
	var b strings.Builder
	for i, name := range slices.Sorted(maps.Keys(h)) {
		if i > 0 {
			b.WriteString(" ")
		}
		fmt.Fprintf(&b, "%s:%.40q", name, h[name])
	}
	return "{" + b.String() + "}"
}

// clone returns a copy that shares nothing with a record.
func clone(r idempotency.Record) idempotency.Record {
	if r.Response != nil {
		resp := *r.Response
		resp.Header, resp.Body = resp.Header.Clone(), bytes.Clone(resp.Body)
		r.Response = &resp
	}
	return r
}
