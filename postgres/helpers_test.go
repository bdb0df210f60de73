package postgres_test

import (
	"context"
	"crypto/rand"
	"os"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/internal/pgtest"
	"github.com/idempotency-go/idempotency/postgres"
)

func TestMain(m *testing.M) {
	status := m.Run()
	pgtest.Stop()
	os.Exit(status)
}

// newPool returns a pool on a real PostgreSQL.
func newPool(t testing.TB, configure ...func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(pgtest.URL(t))
	require.NoError(t, err)
	for _, f := range configure {
		f(config)
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

// serializable is for a pool with the strictest isolation as its default.
func serializable(c *pgxpool.Config) {
	c.ConnConfig.RuntimeParams["default_transaction_isolation"] = "serializable"
}

// unprepared is for a pool without prepared statements, which a pooler may refuse.
func unprepared(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec }

// simple is for a pool that sends each statement as one text.
func simple(c *pgxpool.Config) {
	c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
}

// tableName returns the name of a table that is dropped after the test.
func tableName(t *testing.T, pool *pgxpool.Pool) string {
	t.Helper()
	name := "test_" + rand.Text()
	t.Cleanup(func() {
		_, err := pool.Exec(context.Background(), "DROP TABLE IF EXISTS "+pgx.Identifier{name}.Sanitize())
		require.NoError(t, err)
	})
	return name
}

// ownTable returns an option for a table that this test alone uses.
func ownTable(t *testing.T, pool *pgxpool.Pool) postgres.Option {
	t.Helper()
	table := postgres.WithTable(tableName(t, pool))
	require.NoError(t, postgres.New(pool, table).Migrate(t.Context()))
	return table
}

// newBackend returns a Backend with a table of its own.
func newBackend(t *testing.T, pool *pgxpool.Pool) *postgres.Backend {
	b := postgres.New(pool, ownTable(t, pool))
	t.Cleanup(b.Close)
	return b
}

// newClaim returns a key and a claim for it.
func newClaim() (idempotency.Key, idempotency.Claim) {
	return idempotency.NewKey("", rand.Text()), idempotency.Claim{Token: idempotency.Token(uuid.Must(uuid.NewV7()))}
}

// hour are the terms of a claim that lasts for the whole test.
var hour = idempotency.Terms{Lease: time.Hour}

// atMostOnce are those of one that is remembered.
var atMostOnce = idempotency.Terms{Lease: time.Hour, Trace: 24 * time.Hour}

// claim claims a free key.
func claim(t *testing.T, b idempotency.Backend, terms idempotency.Terms) (idempotency.Key, idempotency.Claim) {
	t.Helper()
	key, claim := newClaim()
	held, claimed, err := b.Claim(t.Context(), key, claim, terms)
	require.NoError(t, err)
	require.True(t, claimed)
	require.Zero(t, held)
	return key, claim
}

// stateOf returns the state of a key, and what is left of it.
func stateOf(t *testing.T, b idempotency.Inspector, key idempotency.Key) (idempotency.State, time.Duration) {
	t.Helper()
	rec, left, _, err := b.Lookup(t.Context(), key)
	require.NoError(t, err)
	return rec.State, left
}

// requireIdle waits until every connection is back in the pool, or gone: the pool
// closes a broken one in a goroutine of its own.
func requireIdle(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	require.Eventually(t, func() bool { return pool.Stat().AcquiredConns() == 0 }, 30*time.Second, time.Millisecond)
}
