package idempotencytest

import (
	"bytes"
	"fmt"
	"time"

	"github.com/idempotency-go/idempotency"
)

// refused claims a key that holds the record of want, and checks that it is told so.
func (t *tester) refused(r request, terms idempotency.Terms, want idempotency.Record, when string) {
	t.Helper()
	held, claimed, err := t.Claim(t.Context(), r.key, r.claim, terms)
	if err != nil || claimed {
		t.broken("%s, Claim with %s returned %t and the error %v, want false and nil.", when, describeTerms(terms), claimed, err)
	}
	if d := diff(held, want, matches(r.claim, want.Claim)); d != "" {
		t.broken("%s, Claim with %s returned another record than the key should hold: %s", when, describeTerms(terms), d)
	}
}

// probe returns what a key holds, as another request with a fingerprint sees it,
// and whether it holds anything.
func (t *tester) probe(key idempotency.Key, fingerprint [32]byte) (idempotency.Record, bool) {
	t.Helper()
	r := request{key, idempotency.Claim{Token: newToken(), Fingerprint: fingerprint}}
	held, claimed, err := t.Claim(t.Context(), r.key, r.claim, lease(long))
	if err != nil {
		t.broken("Claim by another request returned an error: %v", err)
	}
	if claimed {
		t.release(r, 0)
	}
	return held, !claimed
}

// holds checks that a key holds a record. It returns the record as the backend
// gave it.
func (t *tester) holds(key idempotency.Key, want idempotency.Record, after string) idempotency.Record {
	t.Helper()
	held, ok := t.probe(key, want.Claim.Fingerprint)
	if !ok {
		t.broken("%s, another request could claim the key, which should hold %s.", after, describe(want))
	}
	if d := diff(held, want, true); d != "" {
		t.broken("%s, the key holds another record than it should: %s", after, d)
	}
	return held
}

// free checks that a key holds nothing.
func (t *tester) free(key idempotency.Key, after string) {
	t.Helper()
	if held, ok := t.probe(key, newFingerprint()); ok {
		t.broken("%s, the key should be free, and is held by %s.", after, describe(held))
	}
}

// await claims the key of a request, as a retry, until done returns true.
func (t *tester) await(r request, terms idempotency.Terms, after, what string, done func(held idempotency.Record, claimed bool) bool) request {
	t.Helper()
	retry := r.retry()
	for deadline := time.Now().Add(t.patience); ; time.Sleep(t.soon / 10) {
		late := time.Now().After(deadline) // A last try follows, however late it is.
		held, claimed, err := t.Claim(t.Context(), retry.key, retry.claim, terms)
		switch {
		case err != nil:
			t.broken("%s, Claim by another request returned an error: %v", after, err)
		case done(held, claimed):
			return retry
		case claimed:
			t.broken("%s, another request could claim the key, which should be %s.", after, what)
		case late:
			t.broken("%s, the key was not %s %v later: it is held by %s.", after, what, t.patience, describe(held))
		}
	}
}

// awaitFree waits until a key is free, and returns the request that then claimed it.
func (t *tester) awaitFree(r request, after string) request {
	t.Helper()
	return t.await(r, lease(long), after, "free", isClaimed)
}

func isClaimed(_ idempotency.Record, claimed bool) bool { return claimed }

// awaitInterrupted waits until the request that holds a key is interrupted.
func (t *tester) awaitInterrupted(r request, progress []byte, after string) {
	t.Helper()
	t.await(r, lease(long), after, "interrupted", func(held idempotency.Record, claimed bool) bool {
		return !claimed && held.State == idempotency.StateInterrupted
	})
	t.holds(r.key, r.interrupted(progress), after)
}

// pass lets time pass, by the backend's own clock, until every time of t.soon
// that began before is over.
func (t *tester) pass() {
	t.Helper()
	r := t.newRequest()
	t.claim(r, lease(t.soon))
	t.awaitFree(r, fmt.Sprintf("After a claim with a lease of %v that was neither renewed nor completed", t.soon))
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
			t.awaitFree(r, after)
			return
		}
	}
	t.Skip("idempotencytest: the backend is too slow to tell")
}

// notEarly checks that a key is in a state, or one before it (a store may round
// up), in the middle of the last of the times that set gave it, one after the
// other. Where a busy machine did not get to look before three quarters of that
// (the rest is for the rounding of a store) it is tried again with more time.
func (t *tester) notEarly(what string, times int, want idempotency.State, set func(r request, soon time.Duration)) {
	t.Helper()
	for soon := t.soon; soon < t.patience; soon *= 4 {
		r := t.newRequest()
		before := time.Duration(times-1) * soon
		start := time.Now()
		set(r, soon)
		time.Sleep(time.Until(start.Add(before + soon/2)))
		held, _ := t.probe(r.key, r.claim.Fingerprint)
		if held.State != 0 && held.State <= want {
			return
		}
		if took := time.Since(start); took < before+soon*3/4 {
			t.broken("A key with %s, each of %v, held %s after %v, want it %v.", what, soon, describe(held), took, want)
		}
	}
	t.Skip("idempotencytest: the backend is too slow to tell")
}

// matches reports whether two claims may be of the same request.
func matches(a, b idempotency.Claim) bool {
	return a.Fingerprint == b.Fingerprint || a.Fingerprint == [32]byte{} || b.Fingerprint == [32]byte{}
}

// diff says in what a record differs from the one that it should be. Nil and
// empty are equal. Progress and response may be missing where the record need not
// be whole, and the progress of a completed record does not count.
func diff(got, want idempotency.Record, whole bool) string {
	if got.Claim.Token != want.Claim.Token {
		return fmt.Sprintf("the claim's token is %v, want %v.", got.Claim.Token, want.Claim.Token)
	}
	if got.Claim.Fingerprint != want.Claim.Fingerprint {
		return fmt.Sprintf("the claim's fingerprint is %x, want %x.", got.Claim.Fingerprint, want.Claim.Fingerprint)
	}
	if got.State != want.State {
		return fmt.Sprintf("the state is %v, want %v.", got.State, want.State)
	}
	if want.State != idempotency.StateCompleted && (whole || len(got.Progress) > 0) {
		if d := diffBytes("progress", got.Progress, want.Progress); d != "" {
			return d
		}
	}
	if whole || len(got.Response) > 0 {
		return diffBytes("response", got.Response, want.Response)
	}
	return ""
}

func diffBytes(what string, got, want []byte) string {
	if bytes.Equal(got, want) {
		return ""
	}
	at := 0
	for at < len(got) && at < len(want) && got[at] == want[at] {
		at++
	}
	return fmt.Sprintf("the %s has %d bytes, want %d; from byte %d on it is %s, want %s.",
		what, len(got), len(want), at, beginning(got[at:]), beginning(want[at:]))
}

// beginning quotes the first of some bytes.
func beginning(b []byte) string { return fmt.Sprintf("%q", b[:min(len(b), 20)]) }

func describe(rec idempotency.Record) string {
	if rec.State == 0 {
		return "nothing"
	}
	return fmt.Sprintf("the %v claim with token %v", rec.State, rec.Claim.Token)
}

// clone returns a copy that shares nothing with a record.
func clone(rec idempotency.Record) idempotency.Record {
	rec.Progress, rec.Response = bytes.Clone(rec.Progress), bytes.Clone(rec.Response)
	return rec
}
