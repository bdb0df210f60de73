package linear_test

import (
	"context"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/internal/redistest"
	"github.com/idempotency-go/idempotency/proof/verify/linear"
)

// redisLate bounds how late Redis ends a life: it counts whole milliseconds of
// the clock, and a key is there until the one after its last.
const redisLate = 2 * time.Millisecond

// timed is the workload of a backend whose calls take real time.
func timed(seed uint64) linear.Workload {
	return linear.Workload{
		Seed: seed, Clients: 6, Keys: 3, Calls: 20, Tokens: 5,
		Lives: []time.Duration{2 * time.Millisecond, 5 * time.Millisecond, 20 * time.Millisecond},
		Pause: 6 * time.Millisecond, Patience: time.Second,
	}
}

// newClient returns a client that sends each command once, through the dialer if
// there is one, and gives it up with its context.
func newClient(t *testing.T, cut *linear.Cut) *redis.Client {
	t.Helper()
	opts := *redistest.Client(t).Options()
	opts.MaxRetries = -1
	opts.ContextTimeoutEnabled = true
	opts.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	if cut != nil {
		opts.Dialer = cut.Dial
	}
	client := redis.NewClient(&opts)
	t.Cleanup(func() { client.Close() })
	return client
}

func TestRedis(t *testing.T) {
	t.Run("at once", func(t *testing.T) {
		b := idempotency.NewRedis(newClient(t, nil))
		requireLinear(t, 80, redisLate, func(seed uint64) []porcupine.Operation { return timed(seed).Run(t.Context(), b) })
	})
	t.Run("contexts that have ended", func(t *testing.T) {
		b := idempotency.NewRedis(newClient(t, nil))
		requireLinear(t, 20, redisLate, func(seed uint64) []porcupine.Operation {
			w := timed(seed)
			w.Ended = 0.1
			return w.Run(t.Context(), b)
		})
	})
	t.Run("connections cut", func(t *testing.T) {
		requireLinear(t, 60, redisLate, func(seed uint64) []porcupine.Operation {
			cut := linear.NewCut(seed, 0.1, 60*time.Millisecond)
			defer cut.Wait()
			w := timed(seed)
			w.Patience = 30 * time.Millisecond
			return w.Run(t.Context(), idempotency.NewRedis(newClient(t, cut)))
		})
	})
}

// brokenRedis is the backend in Redis with one fault.
type brokenRedis struct {
	*idempotency.Redis
	client *redis.Client
	fault  string
}

var redisFaults = []string{
	"Claim looks first and claims later",
	"Claim takes over without a fence",
	"Claim that took over forgets it",
	"Renew keeps no progress",
	"Release deletes what there is",
	"Release ignores its trace",
	"leases end late",
	"leases end at half",
	"traces are ignored",
}

func (b *brokenRedis) Claim(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
	name := "idempotency:" + key.String()
	if b.fault == "Claim looks first and claims later" {
		if n, err := b.client.Exists(ctx, name).Result(); err != nil || n == 0 {
			time.Sleep(time.Millisecond)
			b.client.Del(ctx, name)
		}
	}
	held, claimed, err := b.Redis.Claim(ctx, key, claim, b.terms(terms))
	took := claimed && held.State == idempotency.StateInterrupted
	switch {
	case took && b.fault == "Claim that took over forgets it":
		b.client.SetRange(ctx, name, 1, "\x00") // its kind
	case err == nil && !claimed && held.State == idempotency.StateInterrupted && terms.TakeOver && b.fault == "Claim takes over without a fence":
		b.client.Del(ctx, name)
		return b.Redis.Claim(ctx, key, claim, terms)
	}
	return held, claimed, err
}

func (b *brokenRedis) Renew(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms, progress []byte) error {
	if b.fault == "Renew keeps no progress" {
		progress = nil
	}
	return b.Redis.Renew(ctx, key, claim, b.terms(terms), progress)
}

func (b *brokenRedis) terms(t idempotency.Terms) idempotency.Terms {
	switch b.fault {
	case "leases end late":
		t.Lease = time.Second // All that the tests leave behind is soon over.
	case "leases end at half":
		t.Lease /= 2
	case "traces are ignored":
		t.Trace = 0
	case "Claim takes over without a fence":
		t.TakeOver = false
	}
	return t
}

func (b *brokenRedis) Release(ctx context.Context, key idempotency.Key, claim idempotency.Claim, trace time.Duration) error {
	switch b.fault {
	case "Release deletes what there is":
		return b.client.Del(ctx, "idempotency:"+key.String()).Err()
	case "Release ignores its trace":
		trace = 0
	}
	return b.Redis.Release(ctx, key, claim, trace)
}

// TestNoFaultRedis shows that it is its faults that a broken backend is caught by.
func TestNoFaultRedis(t *testing.T) {
	requireLinear(t, 20, redisLate, func(seed uint64) []porcupine.Operation {
		client := newClient(t, nil)
		return timed(seed).Run(t.Context(), &brokenRedis{idempotency.NewRedis(client), client, ""})
	})
}

func TestBrokenRedis(t *testing.T) {
	for _, fault := range redisFaults {
		t.Run(fault, func(t *testing.T) {
			requireCaught(t, redisLate, func(seed uint64) []porcupine.Operation {
				client := newClient(t, nil)
				return timed(seed).Run(t.Context(), &brokenRedis{idempotency.NewRedis(client), client, fault})
			})
		})
	}
}
