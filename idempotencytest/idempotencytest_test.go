package idempotencytest_test

import (
	"cmp"
	"context"
	"testing"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/idempotencytest"
)

func ExampleRun() {
	var t *testing.T // The argument of the test function.

	idempotencytest.Run(t, func(t *testing.T) idempotency.Backend {
		return idempotency.NewMemory()
	})
}

func TestMemory(t *testing.T) {
	idempotencytest.Run(t, func(*testing.T) idempotency.Backend { return idempotency.NewMemory() })
}

// TestShared checks that the cases do not disturb each other in one store.
func TestShared(t *testing.T) {
	backend := idempotency.NewMemory()
	for _, round := range []string{"first", "second"} {
		t.Run(round, func(t *testing.T) {
			idempotencytest.RunFast(t, func(*testing.T) idempotency.Backend { return backend })
		})
	}
}

// TestFreedoms checks that the suite passes what the contract leaves free.
func TestFreedoms(t *testing.T) {
	for _, freedom := range []string{
		"", // None is taken.
		wrapsErrors, roundsUp, isSlow, ignoresContexts, extendsOwnClaim, swapsNilAndEmpty, isTransactor,
	} {
		t.Run(freedom, func(t *testing.T) {
			t.Parallel()
			idempotencytest.RunFast(t, func(*testing.T) idempotency.Backend { return newFaulty(freedom) })
		})
	}
}

// TestTakesEffectAndFails checks that the suite passes a backend whose calls
// take effect although their context has ended, and return an error.
func TestTakesEffectAndFails(t *testing.T) {
	idempotencytest.RunFast(t, func(*testing.T) idempotency.Backend { return late{newModel(ignoresContexts)} })
}

// late is a backend that learns that a context has ended after the call.
type late struct{ idempotency.Backend }

func (b late) Claim(ctx context.Context, key string, claim idempotency.Claim, lease time.Duration) (idempotency.Record, bool, error) {
	held, claimed, err := b.Backend.Claim(ctx, key, claim, lease)
	if ctx.Err() != nil {
		return idempotency.Record{}, false, ctx.Err()
	}
	return held, claimed, err
}

func (b late) Renew(ctx context.Context, key string, claim idempotency.Claim, lease time.Duration) error {
	return cmp.Or(b.Backend.Renew(ctx, key, claim, lease), ctx.Err())
}

func (b late) Complete(ctx context.Context, key string, claim idempotency.Claim, resp *idempotency.Response, expiry time.Duration) error {
	return cmp.Or(b.Backend.Complete(ctx, key, claim, resp, expiry), ctx.Err())
}

func (b late) Release(ctx context.Context, key string, claim idempotency.Claim) error {
	return cmp.Or(b.Backend.Release(ctx, key, claim), ctx.Err())
}
