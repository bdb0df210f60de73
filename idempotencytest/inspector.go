package idempotencytest

import (
	"sync/atomic"
	"time"

	"github.com/idempotency-go/idempotency"
)

// inspectorCases are for a backend that is an [idempotency.Inspector].
var inspectorCases = []testCase{
	{
		name: "lookup",
		clause: "Lookup returns the record that a key holds, whole: its claim, its state, its progress or its " +
			"response, and true.",
		run: lookup,
	},
	{
		name: "lookup-free",
		clause: "Lookup of a key that holds nothing, or a record whose time is over, returns false and no error: " +
			"absence is a result. It leaves nothing behind.",
		run: lookupFree,
	},
	{
		name: "lookup-left",
		clause: "Lookup tells how long it is until the record ends: what is left of lease and trace, of the trace, or " +
			"of the expiry, and Forever where it does not end.",
		run: lookupLeft,
	},
	{
		name:   "lookup-changes-nothing",
		clause: "Lookup changes nothing: neither the record nor how long it is kept.",
		run:    lookupChangesNothing,
	},
	{
		name: "forget",
		clause: "Forget deletes the record that was seen, whatever its state, also that of a claim that took over, " +
			"and returns true: the key is free at once.",
		run: forget,
	},
	{
		name: "forget-seen",
		clause: "Forget deletes only while the record has the token and the state that were seen: else it returns " +
			"false and no error, and changes nothing.",
		run: forgetSeen,
	},
	{
		name: "forget-atomic",
		clause: "Forget compares and deletes in one atomic step: of concurrent calls one returns true, and a response " +
			"that came in between stays.",
		run: forgetAtomic,
	},
}

// inspector returns the backend as an Inspector: itself, or what it wraps. It
// returns nil where there is none.
func inspector(backend idempotency.Backend) idempotency.Inspector {
	for backend != nil {
		if i, ok := backend.(idempotency.Inspector); ok {
			return i
		}
		wrapper, ok := backend.(interface{ Unwrap() idempotency.Backend })
		if !ok {
			return nil
		}
		backend = wrapper.Unwrap()
	}
	return nil
}

// lookup looks a key up that must hold a record.
func (t *tester) lookup(key idempotency.Key, want idempotency.Record, after string) (rec idempotency.Record, left time.Duration) {
	t.Helper()
	rec, left, ok, err := inspector(t.Backend).Lookup(t.Context(), key)
	if err != nil || !ok {
		t.broken("%s, Lookup returned %t and the error %v, want true and nil.", after, ok, err)
	}
	if d := diff(rec, want, true); d != "" {
		t.broken("%s, Lookup returned another record than the key should hold: %s", after, d)
	}
	return rec, left
}

// looksFree looks a key up that must hold nothing.
func (t *tester) looksFree(key idempotency.Key, after string) {
	t.Helper()
	rec, _, ok, err := inspector(t.Backend).Lookup(t.Context(), key)
	if err != nil || ok {
		t.broken("%s, Lookup returned %s, %t and the error %v, want false and nil.", after, describe(rec), ok, err)
	}
}

// forget calls Forget, which must return want.
func (t *tester) forget(key idempotency.Key, seen idempotency.Record, want bool, when string) {
	t.Helper()
	forgotten, err := inspector(t.Backend).Forget(t.Context(), key, seen)
	if err != nil || forgotten != want {
		t.broken("%s, Forget returned %t and the error %v, want %t and nil.", when, forgotten, err, want)
	}
}

func lookup(t *tester) {
	progress, response := []byte("\x00progress"), newResponse("kept")
	r, over, empty := t.newRequest(), t.newRequest(), t.newRequest()
	t.claim(r, traced(long, long))
	t.lookup(r.key, r.outstanding(nil), "After Claim")
	t.renew(r, lease(long), progress)
	t.lookup(r.key, r.outstanding(progress), "After Renew with progress")
	t.release(r, long)
	t.lookup(r.key, r.interrupted(progress), "After Release with a trace")
	next := r.retry()
	t.takeOver(next, takingOver(long, long), progress)
	t.lookup(next.key, next.outstanding(progress), "After a Claim that took over")
	t.complete(next, response, long)
	t.lookup(next.key, next.completed(response), "After Complete")
	t.claim(over, traced(t.soon, long))
	t.awaitInterrupted(over, nil, "After a claim with a short lease and a long trace")
	t.lookup(over.key, over.interrupted(nil), "After a claim with a short lease that is over, and a long trace")
	t.store(empty, nil, long)
	t.lookup(empty.key, empty.completed(nil), "After Complete with an empty response")
}

func lookupFree(t *tester) {
	r, over, released := t.newRequest(), t.newRequest(), t.newRequest()
	t.looksFree(r.key, "When the key had never been claimed")
	t.free(r.key, "After Lookup of a free key")
	t.claim(r, lease(long))
	t.release(r, 0)
	t.looksFree(r.key, "After Release")
	t.interrupt(released, t.soon, nil)
	t.store(over, newResponse("kept"), t.soon)
	for deadline := time.Now().Add(t.patience); ; time.Sleep(t.soon / 10) {
		late := time.Now().After(deadline) // A last try follows, however late it is.
		_, _, first, firstErr := inspector(t.Backend).Lookup(t.Context(), released.key)
		_, _, second, secondErr := inspector(t.Backend).Lookup(t.Context(), over.key)
		if late || !first && !second && firstErr == nil && secondErr == nil {
			break
		}
	}
	t.looksFree(released.key, "After a short trace that is over")
	t.looksFree(over.key, "After a short expiry that is over")
}

func lookupLeft(t *tester) {
	response := newResponse("kept")
	for _, c := range []struct {
		what string
		set  func(r request)
		want time.Duration
	}{
		{"a lease of an hour", func(r request) { t.claim(r, lease(long)) }, long},
		{"a lease and a trace of an hour each", func(r request) { t.claim(r, traced(long, long)) }, 2 * long},
		{"a lease of an hour, renewed with one of two and a trace", func(r request) {
			t.claim(r, lease(long))
			t.renew(r, traced(2*long, long), nil)
		}, 3 * long},
		{"a lease of an hour and a trace that does not end", func(r request) { t.claim(r, traced(long, idempotency.Forever)) }, idempotency.Forever},
		{"a trace of an hour after Release", func(r request) { t.interrupt(r, long, nil) }, long},
		{"a trace of an hour after a short lease", func(r request) {
			t.claim(r, traced(t.soon, long))
			t.awaitInterrupted(r, nil, "After a claim with a short lease and a long trace")
		}, long},
		{"a trace that does not end after Release", func(r request) { t.interrupt(r, idempotency.Forever, nil) }, idempotency.Forever},
		{"an expiry of an hour", func(r request) { t.store(r, response, long) }, long},
		{"an expiry of a day", func(r request) { t.store(r, response, 24*long) }, 24 * long},
		{"an expiry that does not end", func(r request) { t.store(r, response, idempotency.Forever) }, idempotency.Forever},
	} {
		r := t.newRequest()
		start := time.Now()
		c.set(r)
		rec, left, ok, err := inspector(t.Backend).Lookup(t.Context(), r.key)
		if err != nil || !ok {
			t.broken("Lookup of a key with %s returned %t and the error %v, want true and nil.", c.what, ok, err)
		}
		// The store may round, and its clock is another.
		least, most := c.want-time.Since(start)-t.patience, c.want
		if c.want != idempotency.Forever {
			most += t.patience
		} else {
			least = idempotency.Forever
		}
		if left < least || left > most {
			t.broken("Lookup of a key with %s returned %s, and that %v are left.", c.what, describe(rec), left)
		}
	}
}

func lookupChangesNothing(t *tester) {
	outstanding, interrupted, completed, response := t.newRequest(), t.newRequest(), t.newRequest(), newResponse("kept")
	t.claim(outstanding, lease(long))
	t.interrupt(interrupted, long, []byte("progress"))
	t.store(completed, response, long)
	for range 3 {
		t.lookup(outstanding.key, outstanding.outstanding(nil), "After Claim")
		t.lookup(interrupted.key, interrupted.interrupted([]byte("progress")), "After Release with a trace")
		t.lookup(completed.key, completed.completed(response), "After Complete")
	}
	t.pass()
	t.holds(outstanding.key, outstanding.outstanding(nil), "After Lookup")
	t.holds(interrupted.key, interrupted.interrupted([]byte("progress")), "After Lookup")
	t.holds(completed.key, completed.completed(response), "After Lookup")
	look := func(r request) { _, _, _, _ = inspector(t.Backend).Lookup(t.Context(), r.key) }
	t.endsSoon("After a claim with a short lease, and Lookup", func(r request, soon time.Duration) { t.claim(r, lease(soon)) }, look)
	t.endsSoon("After Release with a short trace, and Lookup", func(r request, soon time.Duration) { t.interrupt(r, soon, nil) }, look)
	t.endsSoon("After Complete with a short expiry, and Lookup", func(r request, soon time.Duration) { t.store(r, response, soon) }, look)
}

func forget(t *tester) {
	progress, response := []byte("progress"), newResponse("kept")
	outstanding, interrupted, over, completed := t.newRequest(), t.newRequest(), t.newRequest(), t.newRequest()
	t.claim(outstanding, traced(long, long))
	t.interrupt(interrupted, long, progress)
	t.claim(over, traced(t.soon, long))
	t.awaitInterrupted(over, nil, "After a claim with a short lease and a long trace")
	t.store(completed, response, long)
	_, recovering := t.takenOver(takingOver(long, long), progress)
	for _, c := range []struct {
		r    request
		want idempotency.Record
		when string
	}{
		{outstanding, outstanding.outstanding(nil), "When the key had an outstanding claim"},
		{interrupted, interrupted.interrupted(progress), "When the key had a claim that was released with a trace"},
		{over, over.interrupted(nil), "When the key had a claim whose lease was over"},
		{completed, completed.completed(response), "When the key had a response"},
		{recovering, recovering.outstanding(progress), "When the key had a claim that took over"},
	} {
		seen, _ := t.lookup(c.r.key, c.want, c.when)
		t.forget(c.r.key, seen, true, c.when)
		t.looksFree(c.r.key, "After Forget")
		t.free(c.r.key, "After Forget")
	}
	// The owner of a claim that was forgotten finds a key that holds nothing.
	t.complete(outstanding, response, long)
	t.holds(outstanding.key, outstanding.completed(response), "After Forget of an outstanding claim, and its Complete")
}

func forgetSeen(t *tester) {
	progress, response := []byte("progress"), newResponse("kept")
	r, other := t.newRequest(), newClaim()
	states := []idempotency.State{idempotency.StateOutstanding, idempotency.StateInterrupted, idempotency.StateCompleted}
	check := func(want idempotency.Record, when string) {
		t.Helper()
		for _, state := range states {
			if state != want.State {
				t.forget(r.key, idempotency.Record{Claim: want.Claim, State: state}, false, when+", and was seen as "+state.String())
			}
			t.forget(r.key, idempotency.Record{Claim: other, State: state}, false, when+", and another claim was seen")
			same := idempotency.Claim{Token: other.Token, Fingerprint: want.Claim.Fingerprint}
			t.forget(r.key, idempotency.Record{Claim: same, State: state}, false, when+", and another claim of the same request was seen")
		}
		t.holds(r.key, want, "After Forget of what was no longer so")
	}
	for _, state := range states {
		t.forget(r.key, idempotency.Record{Claim: r.claim, State: state}, false, "When the key was free")
	}
	t.free(r.key, "After Forget of a free key")
	t.claim(r, traced(long, long))
	t.renew(r, lease(long), progress)
	check(r.outstanding(progress), "When the key had an outstanding claim")
	t.release(r, long)
	check(r.interrupted(progress), "When the key had a claim that was released with a trace")
	t.renew(r, traced(t.soon, long), nil)
	t.awaitInterrupted(r, progress, "After Renew with a short lease and a long trace")
	check(r.interrupted(progress), "When the key had a claim whose lease was over")
	t.complete(r, response, long)
	check(r.completed(response), "When the key had a response")
}

func forgetAtomic(t *tester) {
	for range 20 {
		r, completed, response := t.newRequest(), t.newRequest(), newResponse("kept")
		t.store(r, response, long)
		t.claim(completed, lease(long))
		var forgotten atomic.Int32
		var failed atomic.Pointer[error]
		note := func(err error) {
			if err != nil {
				failed.Store(&err)
			}
		}
		atOnce(9, func(i int) {
			if i == 0 {
				note(t.Complete(t.Context(), completed.key, completed.claim, response, long))
				return
			}
			ok, err := inspector(t.Backend).Forget(t.Context(), r.key, r.completed(response))
			note(err)
			if ok {
				forgotten.Add(1)
			}
			_, err = inspector(t.Backend).Forget(t.Context(), completed.key, completed.outstanding(nil))
			note(err)
		})
		if err := failed.Load(); err != nil {
			t.broken("Forget or Complete, called at the same time, returned an error: %v", *err)
		}
		if n := forgotten.Load(); n != 1 {
			t.broken("Of 8 concurrent calls of Forget for one response, %d returned true.", n)
		}
		t.free(r.key, "After concurrent calls of Forget")
		t.holds(completed.key, completed.completed(response), "After Complete, with Forget of the outstanding claim under way")
	}
}
