package postgres_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency/postgres"
)

// A statement that met another request's is repeated after a pause, which grows and is random.
func TestAgainPauses(t *testing.T) {
	for name, met := range map[string]error{
		"raced":                 postgres.ErrRaced,
		"serialization failure": &pgconn.PgError{Code: "40001"},
		"deadlock":              &pgconn.PgError{Code: "40P01"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const tries = 40
				pauses := make(map[time.Duration]bool)
				last, n := time.Now(), 0
				require.NoError(t, postgres.Again(t.Context(), func() error {
					pause := time.Since(last)
					last = time.Now()
					if n++; n > 1 {
						longest := min(time.Millisecond<<(n-2), 50*time.Millisecond)
						require.Less(t, pause, longest)
						require.GreaterOrEqual(t, pause, longest/2)
						pauses[pause] = true
					}
					if n == tries {
						return nil
					}
					return met
				}))
				require.Equal(t, tries, n)
				require.Greater(t, len(pauses), tries/2)
			})
		})
	}
}

func TestAgainEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 70*time.Millisecond)
		defer cancel()
		start := time.Now()
		err := postgres.Again(ctx, func() error { return postgres.ErrRaced })
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorIs(t, err, postgres.ErrRaced)
		require.Equal(t, 70*time.Millisecond, time.Since(start))

		failed, calls := errors.New("failed"), 0
		require.Equal(t, failed, postgres.Again(t.Context(), func() error { calls++; return failed }))
		require.Equal(t, 1, calls, "any other error is not repeated")
	})
}
