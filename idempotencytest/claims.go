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
			"the holder's token and fingerprint, not the caller's, and a nil Response.",
		run: claimHeld,
	},
	{
		name: "claim-own-token",
		clause: "A Claim that finds its own token outstanding has claimed, because a client library may send a command twice. " +
			"The claim stays what it was.",
		run: claimOwnToken,
	},
	{
		name: "claim-completed",
		clause: "Claim of a key that has a response returns false and the record with the response, whoever asks: " +
			"its own token is no exception. It never overwrites a response.",
		run: claimCompleted,
	},
	{
		name:   "claim-refused",
		clause: "A Claim that returns false has changed nothing: neither the record that holds the key nor how long it is kept.",
		run:    claimRefused,
	},
	{
		name: "identity-same-token",
		clause: "A claim's identity is its token alone: two claims with one token are the same for every verb, " +
			"whatever their fingerprints. Do not compare whole records.",
		run: identitySameToken,
	},
	{
		name: "identity-other-token",
		clause: "A claim's identity is its token alone: two claims with different tokens are different for every verb, even if their " +
			"fingerprints are equal. Tokens are compared byte for byte, upper and lower case apart (mind the collation of a column).",
		run: identityOtherToken,
	},
}

func claimHeld(t *tester) {
	r := t.newRequest()
	t.claim(r, long)
	t.refused(r.rival(), r.record(nil), "When another request had claimed the key")
	// The same request again, as a retry sends it.
	retry := request{r.key, idempotency.Claim{Token: newClaim().Token, Fingerprint: r.claim.Fingerprint}}
	t.refused(retry, r.record(nil), "When another request with the same fingerprint had claimed the key")
}

func claimOwnToken(t *tester) {
	r := t.newRequest()
	t.claim(r, long)
	t.claim(r, long)
	t.holds(r, nil, "After a Claim repeated with its token")
	t.claim(r, long)
}

func claimCompleted(t *tester) {
	r, resp := t.newRequest(), newResponse("first")
	t.store(r, resp, long)
	t.refused(r.rival(), r.record(resp), "When the key had another request's response")
	t.refused(r, r.record(resp), "When the key had the response of this very claim")
	t.refused(r.rival(), r.record(resp), "After Claims of a key that had a response")
}

func claimRefused(t *tester) {
	outstanding, completed, resp := t.newRequest(), t.newRequest(), newResponse("kept")
	t.claim(outstanding, long)
	t.store(completed, resp, long)
	for _, r := range []request{outstanding, completed} {
		_, _, _ = t.Claim(t.Context(), r.key, newClaim(), t.soon)
	}
	t.pass()
	t.holds(outstanding, nil, "After the short lease of a Claim that was refused was over")
	t.holds(completed, resp, "After the short lease of a Claim that was refused was over")
	t.endsSoon("After a response with a short expiry, and a Claim with a long lease that was refused",
		func(r request, soon time.Duration) { t.store(r, resp, soon) },
		func(r request) { _, _, _ = t.Claim(t.Context(), r.key, newClaim(), long) })
}

func identitySameToken(t *tester) {
	// same returns a request with the same token and another fingerprint.
	same := func(r request) request {
		return request{r.key, idempotency.Claim{Token: r.claim.Token, Fingerprint: newClaim().Fingerprint}}
	}
	claimed, renewed, completed, released := t.newRequest(), t.newRequest(), t.newRequest(), t.newRequest()
	t.claim(claimed, long)
	t.claim(same(claimed), long)

	t.claim(renewed, t.soon)
	t.renew(same(renewed), long)
	t.pass()
	if held, ok := t.probe(renewed.key); !ok || held.Claim.Token != renewed.claim.Token {
		t.broken("Renew with the claim's token and another fingerprint returned nil and did not extend the lease.")
	}

	t.claim(completed, long)
	t.complete(same(completed), newResponse("kept"), long)
	if held, ok := t.probe(completed.key); !ok || held.Response == nil {
		t.broken("Complete with the claim's token and another fingerprint returned nil and did not store the response.")
	}

	t.claim(released, long)
	t.release(same(released))
	t.free(released.key, "After Release with the claim's token and another fingerprint")
}

func identityOtherToken(t *tester) {
	// other returns a request with another token and the same fingerprint.
	for what, other := range map[string]func(token string) string{
		"another token":                       func(string) string { return newClaim().Token },
		"a token in another case":             func(token string) string { return "Ab" + token[2:] },
		"a token that is longer by a letter":  func(token string) string { return token + "A" },
		"a token that is shorter by a letter": func(token string) string { return token[:len(token)-1] },
	} {
		r := t.newRequest()
		r.claim.Token = "aB" + r.claim.Token[2:]
		rival := request{r.key, idempotency.Claim{Token: other(r.claim.Token), Fingerprint: r.claim.Fingerprint}}
		t.claim(r, long)
		t.refused(rival, r.record(nil), "With the holder's fingerprint and "+what)
		t.losesRenew(rival, long)
		t.losesComplete(rival)
		t.release(rival)
		t.holds(r, nil, "After Renew, Complete and Release with the holder's fingerprint and "+what)
	}
}
