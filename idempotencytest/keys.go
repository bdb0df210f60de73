package idempotencytest

import (
	"github.com/idempotency-go/idempotency"
)

// keyCases are about keys being apart.
var keyCases = []testCase{
	{
		name:   "keys-independent",
		clause: "Each key has a record of its own: no call for one key alters the record of another, or frees or takes its key.",
		run:    keysIndependent,
	},
	{
		name: "keys-alike",
		clause: "A key is 43 bytes of URL-safe base64, all of which count, upper and lower case apart. Mind a column's length and collation, " +
			"and _ and - in patterns and paths.",
		run: keysAlike,
	},
}

func keysIndependent(t *tester) {
	var requests [100]request
	var responses [len(requests)]*idempotency.Response
	for i := range requests {
		requests[i] = t.newRequest()
		t.claim(requests[i], long)
	}
	for i, r := range requests {
		switch i % 4 {
		case 0:
			responses[i] = newResponse(r.key)
			t.complete(r, responses[i], long)
		case 1:
			t.renew(r, t.soon) // Whether its lease ends is not the question here.
		case 2:
			t.release(r)
		}
	}
	t.pass()
	for i, r := range requests {
		switch i % 4 {
		case 0:
			t.holds(r, responses[i], "After Complete, and calls for other keys")
		case 2:
			t.free(r.key, "After Release, and calls for other keys")
		case 3:
			t.holds(r, nil, "After Claim with a long lease, and calls for other keys")
		}
	}
}

func keysAlike(t *tester) {
	// The last letter of 32 bytes in base64 has two bits that are always zero:
	// A, E and g are such letters.
	base := "aZ_-" + t.newRequest().key[4:42] + "A"
	var requests []request
	for _, key := range []string{
		base,
		"AZ" + base[2:],
		"az" + base[2:],
		"bZ" + base[2:],
		"aZ--" + base[4:],
		"aZ__" + base[4:],
		"aZxy" + base[4:],
		base[:42] + "E",
		base[:42] + "g",
	} {
		r := request{key, newClaim()}
		t.claim(r, long)
		requests = append(requests, r)
	}
	for _, r := range requests {
		t.complete(r, newResponse(r.key), long)
	}
	for _, r := range requests {
		t.holds(r, newResponse(r.key), "After Complete of keys that differ in a few letters")
	}
}
