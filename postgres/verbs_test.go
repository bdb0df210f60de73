package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/postgres"
)

// step calls one verb, and tells what it returned and what the key has afterwards.
type step struct {
	name string
	call func(b idempotency.Inspector) (any, error)
}

// anyStep returns a step. Leases are over at once or last for the whole test, and so
// do traces.
func anyStep(r *rand.Rand, key idempotency.Key, claims []idempotency.Claim) step {
	ctx := context.Background()
	claim := claims[r.IntN(len(claims))]
	trace := []time.Duration{0, 0, time.Hour, 3 * time.Hour, idempotency.Forever}[r.IntN(5)]
	lease := []time.Duration{1, 2 * time.Hour, 2 * time.Hour, idempotency.Forever}[r.IntN(4)]
	terms := idempotency.Terms{Lease: lease, Trace: trace, TakeOver: r.IntN(2) == 0}
	bytes := [][]byte{nil, {}, []byte("one"), []byte("three"), make([]byte, 5000)}[r.IntN(5)]
	switch n := r.IntN(12); {
	case n < 5:
		return step{fmt.Sprint("Claim ", claim, terms), func(b idempotency.Inspector) (any, error) {
			held, claimed, err := b.(idempotency.Backend).Claim(ctx, key, claim, terms)
			if held.Claim.Fingerprint != claim.Fingerprint && claim.Fingerprint[5] > 0 && held.Claim.Fingerprint[5] > 0 {
				held.Progress, held.Response = nil, nil
			}
			return fmt.Sprint(plain(held), claimed), err
		}}
	case n < 8:
		return step{fmt.Sprint("Renew ", claim, terms, len(bytes)), func(b idempotency.Inspector) (any, error) {
			return nil, b.(idempotency.Backend).Renew(ctx, key, claim, terms, bytes)
		}}
	case n < 9:
		expiry := max(lease, trace)
		return step{fmt.Sprint("Complete ", claim, expiry), func(b idempotency.Inspector) (any, error) {
			return nil, b.(idempotency.Backend).Complete(ctx, key, claim, bytes, expiry)
		}}
	case n < 11:
		return step{fmt.Sprint("Release ", claim, trace), func(b idempotency.Inspector) (any, error) {
			return nil, b.(idempotency.Backend).Release(ctx, key, claim, trace)
		}}
	}
	seen := idempotency.Record{Claim: claim, State: idempotency.State(1 + r.IntN(3))}
	return step{fmt.Sprint("Forget ", seen.Claim, seen.State), func(b idempotency.Inspector) (any, error) { return b.Forget(ctx, key, seen) }}
}

// plain returns a record as text. No progress and an empty one are alike.
func plain(rec idempotency.Record) string {
	return fmt.Sprintf("%v %v %q %q", rec.Claim, rec.State, rec.Progress, rec.Response)
}

// The verbs do what those of Memory do, in any order.
func TestVerbs(t *testing.T) {
	for name, configure := range map[string]func(*pgxpool.Config){
		"prepared": func(*pgxpool.Config) {}, "unprepared": unprepared, "simple": simple, "serializable": serializable,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBackend(t, newPool(t, configure))
			seed := rand.Uint64()
			r := rand.New(rand.NewPCG(seed, 0))
			for range 60 {
				memory := idempotency.NewMemory()
				key, _ := newClaim()
				claims := make([]idempotency.Claim, 3)
				for i := range claims {
					_, claims[i] = newClaim()
					claims[i].Fingerprint[5] = byte(r.IntN(3)) // The zero one matches any.
				}
				var done []string
				for range 20 {
					next := anyStep(r, key, claims)
					done = append(done, next.name)
					want, wantErr := next.call(memory)
					got, err := next.call(b)
					said := fmt.Sprintf("seed %d: %q", seed, done)
					require.Equal(t, errors.Is(wantErr, idempotency.ErrClaimLost), errors.Is(err, idempotency.ErrClaimLost), said)
					require.Equal(t, wantErr == nil, err == nil, "%v, %v: %s", wantErr, err, said)
					require.Equal(t, want, got, said)
					rec, left, ok, err := memory.Lookup(t.Context(), key)
					require.NoError(t, err)
					gotRec, gotLeft, gotOK, err := b.Lookup(t.Context(), key)
					require.NoError(t, err)
					require.Equal(t, ok, gotOK, said)
					require.Equal(t, plain(rec), plain(gotRec), said)
					require.InDelta(t, left.Minutes(), gotLeft.Minutes(), 1, said)
					require.Equal(t, left == idempotency.Forever, gotLeft == idempotency.Forever, said)
				}
			}
		})
	}
}

func TestBadTimes(t *testing.T) {
	b := newBackend(t, newPool(t))
	ctx := t.Context()
	key, c := newClaim()
	for _, terms := range []idempotency.Terms{{}, {Lease: -1}, {Lease: 1, Trace: -1}} {
		_, _, err := b.Claim(ctx, key, c, terms)
		require.ErrorContains(t, err, "must")
		require.ErrorContains(t, b.Renew(ctx, key, c, terms, nil), "must")
	}
	require.ErrorContains(t, b.Complete(ctx, key, c, nil, 0), "must be positive")
	require.ErrorContains(t, b.Release(ctx, key, c, -1), "must not be negative")
	_, _, ok, err := b.Lookup(ctx, key)
	require.NoError(t, err)
	require.False(t, ok)
}

// Nothing ends before its time.
func TestTimesAreRoundedUp(t *testing.T) {
	pool := newPool(t)
	b := newBackend(t, pool)
	for _, test := range []struct {
		trace time.Duration
		us    int64
	}{{0, 0}, {1, 1}, {time.Microsecond, 1}, {time.Microsecond + 1, 2}} {
		key, _ := claim(t, b, idempotency.Terms{Lease: time.Hour, Trace: test.trace})
		_, left := stateOf(t, b, key)
		require.LessOrEqual(t, left, time.Hour+time.Duration(test.us)*time.Microsecond)
		require.Equal(t, test.us, postgres.Microseconds(test.trace))
	}
}

// What somebody has spoiled in the table is an error, and is left as it is.
func TestUnreadableRecord(t *testing.T) {
	pool := newPool(t)
	b := postgres.New(pool, postgres.WithTable("unreadable"))
	t.Cleanup(b.Close)
	require.NoError(t, b.Migrate(t.Context()))
	t.Cleanup(func() { _, _ = pool.Exec(context.Background(), "DROP TABLE unreadable") })
	for name, spoil := range map[string]string{
		"the fingerprint": "UPDATE unreadable SET fingerprint = '' WHERE key = $1",
		"the state":       "UPDATE unreadable SET state = 7 WHERE key = $1",
		"the response":    "UPDATE unreadable SET response = NULL WHERE key = $1",
	} {
		t.Run(name, func(t *testing.T) {
			key, owner := newClaim()
			require.NoError(t, b.Complete(t.Context(), key, owner, []byte("{}"), idempotency.Forever))
			_, err := pool.Exec(t.Context(), spoil, key[:])
			require.NoError(t, err)
			for range 2 {
				_, other := newClaim()
				_, claimed, err := b.Claim(t.Context(), key, other, idempotency.Terms{Lease: time.Minute, TakeOver: true})
				require.ErrorIs(t, err, idempotency.ErrUnreadable)
				require.False(t, claimed)
				require.ErrorIs(t, b.Renew(t.Context(), key, other, hour, nil), idempotency.ErrClaimLost)
				require.ErrorIs(t, b.Complete(t.Context(), key, other, nil, time.Hour), idempotency.ErrClaimLost)
				_, _, _, err = b.Lookup(t.Context(), key)
				require.ErrorIs(t, err, idempotency.ErrUnreadable)
			}
			if name == "the state" {
				require.ErrorIs(t, b.Renew(t.Context(), key, owner, hour, nil), idempotency.ErrUnreadable)
			}
		})
	}
}
