package idempotencytest

import (
	"time"

	"github.com/idempotency-go/idempotency"
)

// claimCases are about Claim, and about what makes a claim the same.
var claimCases = []testCase{
	{
		name: "claim-held",
		clause: "Claim of a key that another request has outstanding returns false and the record that holds the key: " +
			"the holder's token and fingerprint, not the caller's, and StateOutstanding.",
		run: claimHeld,
	},
	{
		name:   "claim-result",
		clause: "A Claim that returns true and took nothing over returns the zero Record, at first and repeated.",
		run:    claimResult,
	},
	{
		name: "claim-own-token",
		clause: "A Claim that finds its own token outstanding has claimed, because a client library may send a " +
			"command twice. The claim stays what it was.",
		run: claimOwnToken,
	},
	{
		name: "claim-own-lease",
		clause: "A Claim repeated with its token begins the lease anew, counted from the call: a longer one extends " +
			"it, a shorter one ends it sooner. The handler runs from then on.",
		run: claimOwnLease,
	},
	{
		name: "claim-completed",
		clause: "Claim of a key that has a response returns false and the record with the response, whoever asks: its " +
			"own token is no exception, nor is TakeOver. It never overwrites a response.",
		run: claimCompleted,
	},
	{
		name: "claim-refused",
		clause: "A Claim that returns false has changed nothing: neither the record that holds the key nor how long " +
			"it is kept.",
		run: claimRefused,
	},
	{
		name: "claim-other-fingerprint",
		clause: "Claim of a key that another request holds returns that one's claim and state, whatever the " +
			"fingerprints are. Progress and response may be left out where they do not match. They are the " +
			"record's own where they are there.",
		run: claimOtherFingerprint,
	},
	{
		name: "identity-same-token",
		clause: "A claim's identity is its token alone: two claims with one token are the same for every verb, " +
			"whatever their fingerprints. Do not compare whole claims.",
		run: identitySameToken,
	},
	{
		name: "identity-other-token",
		clause: "A claim's identity is its token alone: two claims with different tokens are different for every " +
			"verb, even if their fingerprints are equal. Tokens are compared byte for byte (mind the collation of " +
			"a column).",
		run: identityOtherToken,
	},
}

func claimHeld(t *tester) {
	r := t.newRequest()
	t.claim(r, lease(long))
	t.refused(r.rival(), lease(long), r.outstanding(nil), "When another request had claimed the key")
	t.refused(r.retry(), lease(long), r.outstanding(nil), "When another request with the same fingerprint had claimed the key")
	t.refused(r.rival(), traced(long, long), r.outstanding(nil), "When another request had claimed the key")
}

func claimResult(t *tester) {
	for _, terms := range []idempotency.Terms{lease(long), traced(long, long), takingOver(long, 0), takingOver(long, long)} {
		r := t.newRequest()
		for _, which := range []string{"Claim of a free key", "A Claim repeated with its token"} {
			if held := t.claim(r, terms); diff(held, idempotency.Record{}, true) != "" {
				t.broken("%s with %s returned true and %s, want the zero Record.", which, describeTerms(terms), describe(held))
			}
		}
	}
	r := t.newRequest()
	t.interrupt(r, long, []byte("progress"))
	if held := t.claim(r, takingOver(long, long)); diff(held, idempotency.Record{}, true) != "" {
		t.broken("A Claim that found its own token interrupted returned true and %s, want the zero Record: it took nothing over.", describe(held))
	}
}

func claimOwnToken(t *tester) {
	for _, terms := range []idempotency.Terms{lease(long), traced(long, long)} {
		r := t.newRequest()
		t.claim(r, terms)
		t.claim(r, terms)
		t.holds(r.key, r.outstanding(nil), "After a Claim repeated with its token")
		t.claim(r, terms)
		t.complete(r, newResponse("kept"), long)
		t.holds(r.key, r.completed(newResponse("kept")), "After a Claim repeated with its token, and Complete")
	}
}

func claimOwnLease(t *tester) {
	for _, terms := range []func(time.Duration) idempotency.Terms{lease, func(d time.Duration) idempotency.Terms { return traced(d, t.soon) }} {
		r := t.newRequest()
		t.claim(r, terms(t.soon))
		t.claim(r, terms(long))
		t.pass()
		t.pass()
		t.holds(r.key, r.outstanding(nil), "After a Claim repeated with a longer lease, the first lease being over")
		t.claim(r, terms(t.soon))
		t.awaitFree(r, "After a Claim repeated with a short lease")
	}
}

func claimCompleted(t *tester) {
	r, response := t.newRequest(), newResponse("first")
	t.store(r, response, long)
	for _, terms := range []idempotency.Terms{lease(long), traced(long, long), takingOver(long, long)} {
		t.refused(r.rival(), terms, r.completed(response), "When the key had another request's response")
		t.refused(r.retry(), terms, r.completed(response), "When the key had the same request's response")
		t.refused(r, terms, r.completed(response), "When the key had the response of this very claim")
	}
	t.holds(r.key, r.completed(response), "After Claims of a key that had a response")
}

func claimRefused(t *tester) {
	outstanding, interrupted, completed, response := t.newRequest(), t.newRequest(), t.newRequest(), newResponse("kept")
	t.claim(outstanding, lease(long))
	t.interrupt(interrupted, long, nil)
	t.store(completed, response, long)
	for _, r := range []request{outstanding, interrupted, completed} {
		for _, terms := range []idempotency.Terms{lease(t.soon), traced(t.soon, t.soon), takingOver(t.soon, t.soon)} {
			rival := r.rival()
			_, _, _ = t.Claim(t.Context(), rival.key, rival.claim, terms)
		}
	}
	t.pass()
	t.pass()
	after := "After the short lease and trace of a Claim that was refused were over"
	t.holds(outstanding.key, outstanding.outstanding(nil), after)
	t.holds(interrupted.key, interrupted.interrupted(nil), after)
	t.holds(completed.key, completed.completed(response), after)
	refused := func(r request) {
		_, _, _ = t.Claim(t.Context(), r.key, newClaim(), lease(long))
		_, _, _ = t.Claim(t.Context(), r.key, newClaim(), traced(long, long))
	}
	t.endsSoon("After a claim with a short lease, and Claims with a long lease and trace that were refused",
		func(r request, soon time.Duration) { t.claim(r, lease(soon)) }, refused)
	t.endsSoon("After Release with a short trace, and Claims with a long lease and trace that were refused",
		func(r request, soon time.Duration) { t.interrupt(r, soon, nil) }, refused)
	t.endsSoon("After a response with a short expiry, and Claims with a long lease and trace that were refused",
		func(r request, soon time.Duration) { t.store(r, response, soon) }, refused)
}

func claimOtherFingerprint(t *tester) {
	outstanding, interrupted, completed := t.newRequest(), t.newRequest(), t.newRequest()
	progress, response := []byte("progress"), newResponse("kept")
	t.claim(outstanding, lease(long))
	t.renew(outstanding, lease(long), progress)
	t.interrupt(interrupted, long, progress)
	t.store(completed, response, long)
	for _, terms := range []idempotency.Terms{lease(long), traced(long, long), takingOver(long, long)} {
		t.refused(outstanding.rival(), terms, outstanding.outstanding(progress), "When a request with another fingerprint was outstanding")
		t.refused(interrupted.rival(), terms, interrupted.interrupted(progress), "When a request with another fingerprint was interrupted")
		t.refused(completed.rival(), terms, completed.completed(response), "When a request with another fingerprint was completed")
	}
}

func identitySameToken(t *tester) {
	// same returns a request with the same token and another fingerprint.
	same := func(r request) request {
		return request{r.key, idempotency.Claim{Token: r.claim.Token, Fingerprint: newFingerprint()}}
	}
	claimed, renewed, completed, released := t.newRequest(), t.newRequest(), t.newRequest(), t.newRequest()
	t.claim(claimed, lease(long))
	t.claim(same(claimed), lease(long))

	t.claim(renewed, lease(t.soon))
	t.renew(same(renewed), lease(long), nil)
	t.pass()
	if held, _ := t.probe(renewed.key, newFingerprint()); held.State != idempotency.StateOutstanding || held.Claim.Token != renewed.claim.Token {
		t.broken("Renew with the claim's token and another fingerprint returned nil and did not extend the lease.")
	}

	t.claim(completed, lease(long))
	t.complete(same(completed), newResponse("kept"), long)
	if held, _ := t.probe(completed.key, newFingerprint()); held.State != idempotency.StateCompleted {
		t.broken("Complete with the claim's token and another fingerprint returned nil and did not store the response.")
	}

	t.claim(released, lease(long))
	t.release(same(released), 0)
	t.free(released.key, "After Release with the claim's token and another fingerprint")
}

func identityOtherToken(t *tester) {
	base := t.newRequest().claim.Token
	// Bytes that look alike to a store of texts: a letter in both cases, a space, NUL.
	base[0], base[5], base[7], base[15] = 'a', 'a', 0, ' '
	for _, c := range []struct {
		at    int
		other byte
	}{{0, 'A'}, {0, 'b'}, {5, 'A'}, {5, 0xE1}, {7, ' '}, {7, 1}, {15, 0}, {15, '\t'}, {15, 0xA0}} {
		r, token := t.newRequest(), base
		r.claim.Token = base
		token[c.at] = c.other
		rival := request{r.key, idempotency.Claim{Token: token, Fingerprint: r.claim.Fingerprint}}
		t.claim(r, lease(long))
		t.refused(rival, lease(long), r.outstanding(nil), "With the holder's fingerprint and another token")
		t.loses(rival)
		t.holds(r.key, r.outstanding(nil), "After Renew, Complete and Release with the holder's fingerprint and another token")
		t.release(r, long)
		t.refused(rival, lease(long), r.interrupted(nil), "With the fingerprint of the interrupted request and another token")
	}
}
