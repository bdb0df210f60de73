package idempotencytest

import (
	"fmt"

	"github.com/idempotency-go/idempotency"
)

// keyCases are about keys being apart.
var keyCases = []testCase{
	{
		name: "keys-independent",
		clause: "Each key has a record of its own: no call for one key alters the record of another, or frees or " +
			"claims its key.",
		run: keysIndependent,
	},
	{
		name: "keys-alike",
		clause: "A key is 32 bytes, all of which count, and each may have every value. Its String is 43 letters, " +
			"upper and lower case apart. Mind a column's length and collation, and _ and - in patterns and paths.",
		run: keysAlike,
	},
}

func keysIndependent(t *tester) {
	var requests [100]request
	for i := range requests {
		requests[i] = t.newRequest()
		t.claim(requests[i], lease(long))
	}
	response := func(i int) []byte { return newResponse(fmt.Sprint(i)) }
	progress := func(i int) []byte { return fmt.Append(nil, "progress ", i) }
	for i, r := range requests {
		switch i % 5 {
		case 0:
			t.complete(r, response(i), long)
		case 1:
			t.renew(r, lease(t.soon), progress(i)) // Whether its lease ends is not the question here.
		case 2:
			t.release(r, 0)
		case 3:
			t.renew(r, lease(long), progress(i))
			t.release(r, long)
		}
	}
	t.pass()
	for i, r := range requests {
		switch i % 5 {
		case 0:
			t.holds(r.key, r.completed(response(i)), "After Complete, and calls for other keys")
		case 2:
			t.free(r.key, "After Release, and calls for other keys")
		case 3:
			t.holds(r.key, r.interrupted(progress(i)), "After Release with a trace, and calls for other keys")
		case 4:
			t.holds(r.key, r.outstanding(nil), "After Claim with a long lease, and calls for other keys")
		}
	}
}

func keysAlike(t *tester) {
	base := t.newRequest().key
	base[0], base[31] = 0x69, ' ' // Its String begins with an a, and ends with an A or the like.
	keys := []idempotency.Key{base}
	for i := range base {
		for _, bit := range []byte{0x01, 0x80} {
			key := base
			key[i] ^= bit
			keys = append(keys, key)
		}
	}
	// Texts that a store might cut, trim or fold: NUL at either end, a letter in
	// both cases, aA.. and Aa.. as String, and _ and -.
	for _, c := range []struct{ first, last byte }{
		{0x69, 0}, {0, ' '}, {0, 0}, {0x69, '\t'}, {0x01, ' '}, {'a', ' '}, {'A', ' '}, {0x01, 'a'}, {0x01, 'A'}, {0xfb, ' '}, {0xff, ' '}, {0xff, 0xff},
	} {
		key := base
		key[0], key[31] = c.first, c.last
		keys = append(keys, key)
	}
	seen := make(map[idempotency.Key]bool)
	var requests []request
	for _, key := range keys {
		if seen[key] {
			continue
		}
		seen[key] = true
		r := request{key, newClaim()}
		t.claim(r, lease(long))
		requests = append(requests, r)
	}
	for _, r := range requests {
		t.complete(r, newResponse(r.key.String()), long)
	}
	for _, r := range requests {
		t.holds(r.key, r.completed(newResponse(r.key.String())), "After Complete of keys that differ in a few bits")
	}
}
