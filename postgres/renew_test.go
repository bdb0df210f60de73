package postgres_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/postgres"
)

// Renewals that are due together are sent together, and each gets its own answer: also one
// whose claim is lost, or gone, and one that another transaction has locked, for which no
// other waits.
func TestRenewalsTogether(t *testing.T) {
	const n, lost, gone, took, locked = 100, 3, 4, 5, 6
	for name, configure := range map[string]func(*pgxpool.Config){
		"prepared": func(*pgxpool.Config) {}, "unprepared": unprepared, "simple": simple, "serializable": serializable,
	} {
		t.Run(name, func(t *testing.T) {
			pool := newPool(t, configure)
			table := tableName(t, pool)
			b := postgres.New(pool, postgres.WithTable(table))
			defer b.Close()
			require.NoError(t, b.Migrate(t.Context()))
			keys, claims := make([]idempotency.Key, n), make([]idempotency.Claim, n)
			for i := range n {
				keys[i], claims[i] = claim(t, b, hour)
			}
			_, claims[lost] = newClaim()
			require.NoError(t, b.Release(t.Context(), keys[gone], claims[gone], 0))
			require.NoError(t, b.Release(t.Context(), keys[took], claims[took], 48*time.Hour))
			_, claims[took] = newClaim()
			_, claimed, err := b.Claim(t.Context(), keys[took], claims[took], idempotency.Terms{Lease: time.Hour, Trace: time.Hour, TakeOver: true})
			require.NoError(t, err)
			require.True(t, claimed)
			tx, err := pool.Begin(t.Context())
			require.NoError(t, err)
			defer tx.Rollback(context.Background())
			_, err = tx.Exec(t.Context(), "SELECT FROM "+pgx.Identifier{table}.Sanitize()+" WHERE key = $1 FOR UPDATE", keys[locked][:])
			require.NoError(t, err)

			done := make(chan int, n)
			errs := make([]error, n)
			for i := range n {
				go func() {
					errs[i] = b.Renew(t.Context(), keys[i], claims[i], idempotency.Terms{Lease: 3 * time.Hour}, nil)
					done <- i
				}()
			}
			for range n - 1 {
				require.NotEqual(t, locked, <-done)
			}
			require.NoError(t, tx.Rollback(t.Context()))
			require.Equal(t, locked, <-done)
			for i := range n {
				state, left := stateOf(t, b, keys[i])
				require.Equal(t, idempotency.StateOutstanding, state)
				switch i {
				case lost:
					require.ErrorIs(t, errs[i], idempotency.ErrClaimLost)
					require.Less(t, left, 2*time.Hour)
				case took:
					require.NoError(t, errs[i])
					require.Greater(t, left, 50*time.Hour, "it keeps the longer trace")
				default:
					require.NoError(t, errs[i])
					require.Greater(t, left, 2*time.Hour)
				}
			}
		})
	}
}
