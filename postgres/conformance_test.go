package postgres_test

import (
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/idempotencytest"
	"github.com/idempotency-go/idempotency/postgres"
)

func TestConformance(t *testing.T) {
	// The database's default isolation is the user's; a pooler may take no prepared statements.
	for name, test := range map[string]struct {
		transactional bool
		configure     []func(*pgxpool.Config)
	}{
		"plain":         {false, nil},
		"transactional": {true, nil},
		"serializable":  {true, []func(*pgxpool.Config){serializable}},
		"unprepared":    {true, []func(*pgxpool.Config){unprepared}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := newPool(t, test.configure...)
			table := ownTable(t, pool)
			idempotencytest.Run(t, func(t *testing.T) idempotency.Backend {
				b := postgres.NewTransactional(pool, table)
				t.Cleanup(b.Close)
				if test.transactional {
					return b
				}
				return b.Backend
			})
		})
	}
}
