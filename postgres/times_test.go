package postgres_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/postgres"
)

// A time begins when its statement has its row, and not when it was sent. Statements that
// waited get the row in any order: an older one would set back the end that a newer one set.
func TestTimesBeginAfterTheWait(t *testing.T) {
	type held struct {
		ctx context.Context
		b   *postgres.Backend
		key idempotency.Key
		own idempotency.Claim
	}
	const theRow, theTable = "SELECT FROM %s FOR UPDATE", "LOCK TABLE %s IN EXCLUSIVE MODE"
	for _, test := range []struct {
		name string
		lock string
		time time.Duration
		call func(h held) error
	}{
		{"renew with progress", theRow, time.Hour, func(h held) error { return h.b.Renew(h.ctx, h.key, h.own, hour, []byte("1")) }},
		{"renew with others", theTable, time.Hour, func(h held) error { return h.b.Renew(h.ctx, h.key, h.own, hour, nil) }},
		{"claim again", theRow, time.Hour, func(h held) error { _, _, err := h.b.Claim(h.ctx, h.key, h.own, hour); return err }},
		{"complete", theRow, time.Hour, func(h held) error { return h.b.Complete(h.ctx, h.key, h.own, nil, time.Hour) }},
		{"release with a trace", theRow, 0, func(h held) error { return h.b.Release(h.ctx, h.key, h.own, time.Hour) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			// A statement that is not simple takes its time only when it has locked its table.
			pool := newPool(t, simple)
			name := tableName(t, pool)
			b := postgres.New(pool, postgres.WithTable(name))
			t.Cleanup(b.Close)
			require.NoError(t, b.Migrate(t.Context()))
			key, own := claim(t, b, hour)
			tx, err := pool.Begin(t.Context())
			require.NoError(t, err)
			defer tx.Rollback(context.Background())
			table := pgx.Identifier{name}.Sanitize()
			_, err = tx.Exec(t.Context(), fmt.Sprintf(test.lock, table))
			require.NoError(t, err)

			done := make(chan error, 1)
			go func() { done <- test.call(held{t.Context(), b, key, own}) }()
			requireWait(t, pool, tx)
			var unlocked time.Time
			require.NoError(t, tx.QueryRow(t.Context(), "SELECT clock_timestamp()").Scan(&unlocked))
			require.NoError(t, tx.Rollback(t.Context()))
			require.NoError(t, <-done)
			var ends time.Time
			require.NoError(t, pool.QueryRow(t.Context(), "SELECT ends FROM "+table+" WHERE key = $1", key[:]).Scan(&ends))
			require.False(t, ends.Before(unlocked.Add(test.time)), "it ends %v too early", unlocked.Add(test.time).Sub(ends))
		})
	}
}

// requireWait waits until a statement waits for what tx has locked.
func requireWait(t *testing.T, pool *pgxpool.Pool, tx pgx.Tx) {
	t.Helper()
	pid := int32(tx.Conn().PgConn().PID())
	require.Eventually(t, func() bool {
		var waits bool
		require.NoError(t, pool.QueryRow(t.Context(),
			"SELECT EXISTS (SELECT FROM pg_stat_activity WHERE $1::integer = ANY (pg_blocking_pids(pid)))", pid).Scan(&waits))
		return waits
	}, time.Minute, 5*time.Millisecond)
}
