package idempotencytest

import (
	"bytes"
	"crypto/rand"
	"math"
)

// recordCases are about what a record looks like when it comes back.
var recordCases = []testCase{
	{
		name: "fingerprint",
		clause: "A record keeps its claim's fingerprint byte for byte, outstanding, interrupted or with a response, " +
			"after Renew as well. Every byte may have every value, and all of them may be zero.",
		run: fingerprints,
	},
	{
		name: "response-bytes",
		clause: "A response is bytes, kept one for one: NUL, CR LF, spaces at its ends, and what is not valid UTF-8. " +
			"A form or column that holds text only alters them.",
		run: responseBytes,
	},
	{
		name: "response-empty",
		clause: "A response may be nil or empty. It is a response all the same, and either may come back as the " +
			"other.",
		run: responseEmpty,
	},
	{
		name: "response-large",
		clause: "A response of 1 MiB and more, the middleware's default limit and a header, is kept whole. Mind the " +
			"size that a column or an item may have; what has no room at all is an error, never a response cut " +
			"short.",
		run: responseLarge,
	},
	{
		name: "given",
		clause: "A backend may keep the response and the progress that it was given, and does not alter them: not " +
			"their bytes, nor those that lie behind them in their array. Others may read them at the same time.",
		run: given,
	},
	{
		name: "records-stay",
		clause: "A Record that Claim returned does not change any more, whatever later calls and time do to its key: " +
			"its caller may be sending it. Replace what you keep, do not write into it.",
		run: recordsStay,
	},
}

// keeps checks that a response comes back as it was stored.
func (t *tester) keeps(what string, response []byte) {
	t.Helper()
	r := t.newRequest()
	t.store(r, response, long)
	t.holds(r.key, r.completed(response), "After Complete with "+what)
}

func fingerprints(t *tester) {
	all := [][32]byte{{}, {31: 1}, {0: 1}}
	for b := range 256 {
		if b%32 == 0 {
			all = append(all, [32]byte{})
		}
		all[len(all)-1][b%32] = byte(b)
	}
	for _, fingerprint := range all {
		r := t.newRequest()
		r.claim.Fingerprint = fingerprint
		t.claim(r, traced(long, long))
		t.holds(r.key, r.outstanding(nil), "After Claim")
		t.renew(r, traced(long, long), nil)
		t.renew(r, traced(long, long), []byte("progress"))
		t.holds(r.key, r.outstanding([]byte("progress")), "After Renew")
		t.release(r, long)
		t.holds(r.key, r.interrupted([]byte("progress")), "After Release with a trace")
		t.complete(r, newResponse("kept"), long)
		t.holds(r.key, r.completed(newResponse("kept")), "After Complete")
		released := t.newRequest()
		released.claim.Fingerprint = fingerprint
		t.release(released, long)
		t.holds(released.key, released.interrupted(nil), "After Release, with a trace, where the key held nothing")
	}
}

// manyBytes returns bytes of many kinds.
func manyBytes() [][]byte {
	var every []byte
	for b := range 256 {
		every = append(every, byte(b))
	}
	all := [][]byte{every}
	for _, text := range []string{
		"\x00", "\x01", "a\x00b\x00", "\r\n\r\n", "\n", " {} \n", "\xff", "\xff\xfe", "\xc3", "null", `"\u00e9"`, "'; --", `\x41`, "\x1f\x8b\x08\x00", "0",
	} {
		all = append(all, []byte(text))
	}
	return all
}

func responseBytes(t *tester) {
	for _, response := range manyBytes() {
		t.keeps("a response of many kinds of bytes", response)
	}
}

func responseEmpty(t *tester) {
	for _, response := range [][]byte{nil, {}} {
		t.keeps("an empty response", response)
		r, ending := t.newRequest(), t.newRequest()
		t.store(r, response, long)
		t.release(r, 0)
		t.losesComplete(r.rival())
		t.losesRenew(r.retry(), lease(long), nil)
		t.refused(r, lease(long), r.completed(response), "When the key had the empty response of this very claim")
		t.refused(r.retry(), takingOver(long, long), r.completed(response), "When the key had an empty response")
		t.store(ending, response, t.soon)
		t.awaitFree(ending, "After Complete with an empty response and a short expiry")
	}
}

func responseLarge(t *tester) {
	for _, size := range []int{math.MaxUint16 + 1, 1 << 20, 1<<20 + 1<<16} {
		response := make([]byte, size) // Random, so that no part of it is like another.
		rand.Read(response)
		t.keeps("a large response", response)
	}
}

func given(t *tester) {
	room := []byte("response, and what lies behind it")
	was := bytes.Clone(room)
	response, progress := room[:8], room[:8]
	r, interrupted := t.newRequest(), t.newRequest()
	t.interrupt(interrupted, long, progress)
	t.renew(interrupted, lease(long), bytes.Clone(room))
	t.store(r, response, long)
	t.complete(r, newResponse("second"), long)
	t.holds(r.key, r.completed(was[:8]), "After Complete")
	t.release(interrupted, 0)
	if !bytes.Equal(room, was) {
		t.broken("The response or the progress that a backend was given, or what lies behind it, became %q, and was %q.", room, was)
	}
}

func recordsStay(t *tester) {
	// What the holder does after another was shown its record.
	r := t.newRequest()
	t.claim(r, traced(long, long))
	t.renew(r, traced(long, long), []byte("1"))
	held := t.holds(r.key, r.outstanding([]byte("1")), "After Renew with progress")
	was := clone(held)
	t.renew(r, traced(long, long), []byte("22"))
	t.release(r, long)
	t.takeOver(r.retry(), takingOver(long, long), []byte("22"))
	if d := diff(held, was, true); d != "" {
		t.broken("The record that Claim returned changed when its claim was renewed, released and taken over: %s", d)
	}
	// Another response follows once the first is expired. On a busy machine it
	// may be expired before it was seen: then it is tried again with more time.
	for soon := t.soon; soon < t.patience; soon *= 4 {
		r := t.newRequest()
		t.store(r, newResponse("1"), soon)
		held, ok := t.probe(r.key, r.claim.Fingerprint)
		if !ok {
			continue
		}
		was := clone(held)
		next := t.awaitFree(r, "After Complete with a short expiry")
		t.complete(next, newResponse("2"), long)
		if d := diff(held, was, true); d != "" {
			t.broken("The record that Claim returned changed when its key was claimed and completed again: %s", d)
		}
		return
	}
	t.Skip("idempotencytest: the backend is too slow to tell")
}
