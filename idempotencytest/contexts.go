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
		clause: "A call with a context that has ended returns soon and without a panic. If it returns nil it has taken effect; if it returns an " +
			"error, the record is either what it was or what the call makes it, nothing in between, and later calls work.",
		run: contextEnded,
	},
	{
		name: "context-ends-later",
		clause: "A context is for its call only: what took effect stays when the context ends after the call returned, as a request's " +
			"context does. Do not tie a record, or an open transaction, to it.",
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

// settled checks what a key holds after a call with a context that has ended
// returned err: what it held before or, and only this if err is nil, what the
// call makes it hold. A nil record is a free key.
func (t *tester) settled(verb string, err error, key string, before, after *idempotency.Record) {
	t.Helper()
	held, ok := t.probe(key)
	is := func(want *idempotency.Record) bool {
		if want == nil {
			return !ok
		}
		return ok && diff(held, *want) == ""
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
	resp := newResponse("kept")

	r, outstanding := claimed, claimed.record(nil)
	err := t.ended("Claim", func(ctx context.Context) error {
		_, ok, err := t.Claim(ctx, r.key, r.claim, long)
		if err == nil && !ok {
			err = errNotClaimed
		}
		return err
	})
	if errors.Is(err, errNotClaimed) {
		t.broken("Claim of a free key with a context that has ended returned false and no error.")
	}
	t.settled("Claim", err, r.key, nil, &outstanding)
	t.claim(r, long)
	t.holds(r, nil, "After Claim with a context that has ended, and again with one that has not")

	r, outstanding = renewed, renewed.record(nil)
	t.claim(r, long)
	err = t.ended("Renew", func(ctx context.Context) error { return t.Renew(ctx, r.key, r.claim, t.soon) })
	if err == nil {
		t.awaitFree(r.key, "After Renew with a short lease and a context that has ended, which returned nil")
	} else {
		t.renew(r, long)
		t.holds(r, nil, "After Renew with a context that has ended, and again with one that has not")
	}

	r, outstanding = completed, completed.record(nil)
	stored := r.record(resp)
	t.claim(r, long)
	err = t.ended("Complete", func(ctx context.Context) error { return t.Complete(ctx, r.key, r.claim, resp, long) })
	t.settled("Complete", err, r.key, &outstanding, &stored)
	t.complete(r, resp, long)
	t.holds(r, resp, "After Complete with a context that has ended, and again with one that has not")

	r, outstanding = released, released.record(nil)
	t.claim(r, long)
	err = t.ended("Release", func(ctx context.Context) error { return t.Release(ctx, r.key, r.claim) })
	t.settled("Release", err, r.key, &outstanding, nil)
	t.release(r)
	t.free(r.key, "After Release with a context that has ended, and again with one that has not")
}

// errNotClaimed is a Claim of a free key that returned false and no error.
var errNotClaimed = errors.New("not claimed")

func contextEndsLater(t *tester) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	claimed, renewed, completed, released := t.newRequest(), t.newRequest(), t.newRequest(), t.newRequest()
	resp := newResponse("kept")
	t.claim(renewed, long)
	t.claim(completed, long)
	t.claim(released, long)
	_, ok, err := t.Claim(ctx, claimed.key, claimed.claim, long)
	if err != nil || !ok {
		t.broken("Claim of a free key returned %t and the error %v.", ok, err)
	}
	err = errors.Join(
		t.Renew(ctx, renewed.key, renewed.claim, long),
		t.Complete(ctx, completed.key, completed.claim, resp, long),
		t.Release(ctx, released.key, released.claim))
	if err != nil {
		t.broken("Renew, Complete or Release with a context that has not ended returned an error: %v", err)
	}
	cancel()
	t.pass() // What the end of the context sets off may take a moment.
	t.holds(claimed, nil, "After the context of a Claim ended")
	t.holds(renewed, nil, "After the context of a Renew ended")
	t.holds(completed, resp, "After the context of a Complete ended")
	t.free(released.key, "After the context of a Release ended")
}
