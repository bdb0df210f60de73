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

// TestWrapped checks that a wrapper is found to be an Inspector: a backend that
// cannot forget is found out in TestFaults.
func TestWrapped(t *testing.T) {
	idempotencytest.RunFast(t, func(*testing.T) idempotency.Backend { return wrapper{idempotency.NewMemory()} })
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

// TestTakesEffectAndFails checks that the suite passes a backend whose calls
// take effect although their context has ended, and return an error.
func TestTakesEffectAndFails(t *testing.T) {
	idempotencytest.RunFast(t, func(*testing.T) idempotency.Backend { return late{newModel(ignoresContexts)} })
}

// late is a backend that learns that a context has ended after the call.
type late struct{ idempotency.Backend }

func (b late) Claim(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
	held, claimed, err := b.Backend.Claim(ctx, key, claim, terms)
	if ctx.Err() != nil {
		return idempotency.Record{}, false, ctx.Err()
	}
	return held, claimed, err
}

func (b late) Renew(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms, progress []byte) error {
	return cmp.Or(b.Backend.Renew(ctx, key, claim, terms, progress), ctx.Err())
}

func (b late) Complete(ctx context.Context, key idempotency.Key, claim idempotency.Claim, response []byte, expiry time.Duration) error {
	return cmp.Or(b.Backend.Complete(ctx, key, claim, response, expiry), ctx.Err())
}

func (b late) Release(ctx context.Context, key idempotency.Key, claim idempotency.Claim, trace time.Duration) error {
	return cmp.Or(b.Backend.Release(ctx, key, claim, trace), ctx.Err())
}
