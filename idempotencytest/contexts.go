package idempotencytest

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/idempotency-go/idempotency"
)

// contextCases are about contexts that end.
var contextCases = []testCase{
	{
		name: "context-ended",
		clause: "A call with a context that has ended returns soon and without a panic. If it returns nil it has " +
			"taken effect; if it returns an error, the record is either what it was or what the call makes it, " +
			"nothing in between, and later calls work.",
		run: contextEnded,
	},
	{
		name: "context-ends-later",
		clause: "A context is for its call only: what took effect stays when the context ends after the call " +
			"returned, as a request's context does. Do not tie a record, or an open transaction, to it.",
		run: contextEndsLater,
	},
}

// ended calls a verb with a context that has ended, and returns its error.
func (t *tester) ended(verb string, f func(ctx context.Context) error) error {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	type outcome struct {
		err      error
		panicked string
	}
	done := make(chan outcome, 1)
	go func() {
		var o outcome
		defer func() {
			if v := recover(); v != nil {
				o.panicked = fmt.Sprintf("%v\n%s", v, debug.Stack())
			}
			done <- o
		}()
		o.err = f(ctx)
	}()
	timer := time.NewTimer(t.prompt)
	defer timer.Stop()
	select {
	case o := <-done:
		if o.panicked != "" {
			t.broken("%s with a context that has ended panicked: %s", verb, o.panicked)
		}
		return o.err
	case <-timer.C:
		t.broken("%s with a context that has ended did not return within %v.", verb, t.prompt)
		return nil
	}
}

// outcome checks what a key holds after a call with a context that has ended
// returned err: what it held before or, and only this if err is nil, what the
// call makes it hold. A nil record is a free key.
func (t *tester) outcome(verb string, err error, key idempotency.Key, fingerprint [32]byte, before, after *idempotency.Record) {
	t.Helper()
	held, ok := t.probe(key, fingerprint)
	is := func(want *idempotency.Record) bool {
		if want == nil {
			return !ok
		}
		return ok && diff(held, *want, true) == ""
	}
	switch {
	case is(after):
	case err == nil:
		t.broken("%s with a context that has ended returned nil and did not take effect.", verb)
	case !is(before):
		t.broken("%s with a context that has ended returned an error (%v) and left the key with %s, "+
			"which is neither what it held before nor what it should hold now.", verb, err, describe(held))
	}
}

func contextEnded(t *tester) {
	claimed, renewed, completed, released := t.newRequest(), t.newRequest(), t.newRequest(), t.newRequest()
	progress, response := []byte("progress"), newResponse("kept")

	r, outstanding := claimed, claimed.outstanding(nil)
	err := t.ended("Claim", func(ctx context.Context) error {
		_, ok, err := t.Claim(ctx, r.key, r.claim, traced(long, long))
		if err == nil && !ok {
			err = errNotClaimed
		}
		return err
	})
	if errors.Is(err, errNotClaimed) {
		t.broken("Claim of a free key with a context that has ended returned false and no error.")
	}
	t.outcome("Claim", err, r.key, r.claim.Fingerprint, nil, &outstanding)
	t.claim(r, lease(long))
	t.holds(r.key, r.outstanding(nil), "After Claim with a context that has ended, and again with one that has not")

	r, outstanding = renewed, renewed.outstanding(nil)
	more := r.outstanding(progress)
	t.claim(r, lease(long))
	err = t.ended("Renew", func(ctx context.Context) error { return t.Renew(ctx, r.key, r.claim, lease(long), progress) })
	t.outcome("Renew", err, r.key, r.claim.Fingerprint, &outstanding, &more)
	t.renew(r, lease(long), progress)
	t.holds(r.key, more, "After Renew with a context that has ended, and again with one that has not")
	err = t.ended("Renew", func(ctx context.Context) error { return t.Renew(ctx, r.key, r.claim, lease(t.soon), nil) })
	if err == nil {
		t.awaitFree(r, "After Renew with a short lease and a context that has ended, which returned nil")
	} else {
		t.renew(r, lease(long), progress)
		t.holds(r.key, more, "After Renew with a context that has ended, and again with one that has not")
	}

	r, outstanding = completed, completed.outstanding(nil)
	stored := r.completed(response)
	t.claim(r, lease(long))
	err = t.ended("Complete", func(ctx context.Context) error { return t.Complete(ctx, r.key, r.claim, response, long) })
	t.outcome("Complete", err, r.key, r.claim.Fingerprint, &outstanding, &stored)
	t.complete(r, response, long)
	t.holds(r.key, stored, "After Complete with a context that has ended, and again with one that has not")

	r, outstanding = released, released.outstanding(nil)
	interrupted := r.interrupted(nil)
	t.claim(r, lease(long))
	err = t.ended("Release", func(ctx context.Context) error { return t.Release(ctx, r.key, r.claim, long) })
	t.outcome("Release with a trace", err, r.key, r.claim.Fingerprint, &outstanding, &interrupted)
	t.renew(r, lease(long), nil)
	err = t.ended("Release", func(ctx context.Context) error { return t.Release(ctx, r.key, r.claim, 0) })
	t.outcome("Release", err, r.key, r.claim.Fingerprint, &outstanding, nil)
	t.release(r, 0)
	t.free(r.key, "After Release with a context that has ended, and again with one that has not")
}

// errNotClaimed is a Claim of a free key that returned false and no error.
var errNotClaimed = errors.New("not claimed")

func contextEndsLater(t *tester) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	claimed, renewed, completed, released, interrupted := t.newRequest(), t.newRequest(), t.newRequest(), t.newRequest(), t.newRequest()
	former := t.newRequest()
	progress, response := []byte("progress"), newResponse("kept")
	for _, r := range []request{renewed, completed, released, interrupted} {
		t.claim(r, lease(long))
	}
	t.interrupt(former, long, progress)
	_, ok, err := t.Claim(ctx, claimed.key, claimed.claim, lease(long))
	if err != nil || !ok {
		t.broken("Claim of a free key returned %t and the error %v.", ok, err)
	}
	recovering := former.retry()
	_, ok, err = t.Claim(ctx, recovering.key, recovering.claim, takingOver(long, long))
	if err != nil || !ok {
		t.broken("Claim of an interrupted request's key with TakeOver returned %t and the error %v.", ok, err)
	}
	err = errors.Join(
		t.Renew(ctx, renewed.key, renewed.claim, lease(long), progress),
		t.Complete(ctx, completed.key, completed.claim, response, long),
		t.Release(ctx, released.key, released.claim, 0),
		t.Release(ctx, interrupted.key, interrupted.claim, long))
	if err != nil {
		t.broken("Renew, Complete or Release with a context that has not ended returned an error: %v", err)
	}
	cancel()
	t.pass() // What the end of the context sets off may take a moment.
	t.holds(claimed.key, claimed.outstanding(nil), "After the context of a Claim ended")
	t.holds(recovering.key, recovering.outstanding(progress), "After the context of a Claim that took over ended")
	t.holds(renewed.key, renewed.outstanding(progress), "After the context of a Renew ended")
	t.holds(completed.key, completed.completed(response), "After the context of a Complete ended")
	t.free(released.key, "After the context of a Release ended")
	t.holds(interrupted.key, interrupted.interrupted(nil), "After the context of a Release with a trace ended")
}
