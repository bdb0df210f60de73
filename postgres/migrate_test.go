package postgres_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency/postgres"
)

// Migrate is called at every start: where the table is there, it waits for no
// transaction that has written to it, behind which all claims would wait.
func TestMigrateWaitsForNoTransaction(t *testing.T) {
	pool := newPool(t)
	table := tableName(t, pool)
	b := postgres.New(pool, postgres.WithTable(table))
	require.NoError(t, b.Migrate(t.Context()))
	claim(t, b, hour)
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { require.NoError(t, tx.Rollback(context.Background())) }()
	_, err = tx.Exec(t.Context(), `UPDATE "`+table+`" SET state = 2`)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	require.NoError(t, b.Migrate(ctx))
}
