package postgres_test

import (
	"context"
	"crypto/rand"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/idempotencytest"
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

func TestConformance(t *testing.T) {
	plain := func(pool *pgxpool.Pool, table postgres.Option) idempotency.Backend { return postgres.New(pool, table) }
	transactional := func(pool *pgxpool.Pool, table postgres.Option) idempotency.Backend {
		return postgres.NewTransactional(pool, table)
	}
	// The database's default isolation is the user's; a pooler may take no prepared statements.
	unprepared := func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec }
	for name, test := range map[string]struct {
		newBackend func(*pgxpool.Pool, postgres.Option) idempotency.Backend
		configure  []func(*pgxpool.Config)
	}{
		"plain":         {newBackend: plain},
		"transactional": {newBackend: transactional},
		"serializable":  {transactional, []func(*pgxpool.Config){serializable}},
		"unprepared":    {transactional, []func(*pgxpool.Config){unprepared}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := newPool(t, test.configure...)
			table := ownTable(t, pool)
			idempotencytest.Run(t, func(*testing.T) idempotency.Backend { return test.newBackend(pool, table) })
		})
	}
}

// newClaim returns a key and a claim for it.
func newClaim() (string, idempotency.Claim) {
	return idempotency.StorageKey("", rand.Text()), idempotency.Claim{Token: rand.Text()}
}

// A claim, a replay, a refusal, and to settle, are one round trip each.
func TestRoundTrips(t *testing.T) {
	var trips atomic.Int64
	pool := newPool(t, counting(&trips))
	b := postgres.New(pool, ownTable(t, pool))
	ctx := t.Context()
	key, claim := newClaim()
	_, rival := newClaim()
	resp := &idempotency.Response{Status: 200, Body: []byte("{}")}
	steps := []struct {
		name string
		run  func() error
	}{
		{"claim", func() error { _, _, err := b.Claim(ctx, key, claim, time.Minute); return err }},
		{"refuse", func() error { _, _, err := b.Claim(ctx, key, rival, time.Minute); return err }},
		{"renew", func() error { return b.Renew(ctx, key, claim, time.Minute) }},
		{"complete", func() error { return b.Complete(ctx, key, claim, resp, time.Minute) }},
		{"replay", func() error { _, _, err := b.Claim(ctx, key, rival, time.Minute); return err }},
		{"release", func() error { return b.Release(ctx, key, claim) }},
	}
	for _, step := range steps { // pgx prepares each statement once for a connection.
		require.NoError(t, step.run(), step.name)
	}
	key, claim = newClaim()
	for _, step := range steps {
		before := trips.Load()
		require.NoError(t, step.run(), step.name)
		require.EqualValues(t, 1, trips.Load()-before, step.name)
	}
}

// So are BEGIN, the record and COMMIT, beside what the handler sends itself.
func TestRoundTripsOfATransaction(t *testing.T) {
	var trips atomic.Int64
	s := newService(t, counting(&trips))
	h := s.handle(t, created)
	for _, key := range []string{"warm", "k"} {
		before := trips.Load()
		require.Equal(t, 201, send(h, key).Code)
		if key != "warm" {
			require.EqualValues(t, 5, trips.Load()-before)
		}
	}
}

// counting is for a pool of one connection, whose round trips are counted.
func counting(trips *atomic.Int64) func(*pgxpool.Config) {
	return func(c *pgxpool.Config) {
		c.MaxConns = 1
		dial := c.ConnConfig.DialFunc
		c.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dial(ctx, network, addr)
			return &tripCounter{Conn: conn, trips: trips}, err
		}
	}
}

// tripCounter counts how often a client turns from reading to writing.
type tripCounter struct {
	net.Conn
	trips   *atomic.Int64
	writing atomic.Bool
}

func (c *tripCounter) Write(p []byte) (int, error) {
	if !c.writing.Swap(true) {
		c.trips.Add(1)
	}
	return c.Conn.Write(p)
}

func (c *tripCounter) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.writing.Store(false)
	}
	return n, err
}

// What somebody has spoiled in the table is an error, and is left as it is.
func TestUnreadableRecord(t *testing.T) {
	pool := newPool(t)
	b := postgres.New(pool, postgres.WithTable("unreadable"))
	require.NoError(t, b.Migrate(t.Context()))
	t.Cleanup(func() { _, _ = pool.Exec(context.Background(), "DROP TABLE unreadable") })
	for name, spoil := range map[string]string{
		"the header":      "UPDATE unreadable SET header = '{' WHERE key = $1",
		"the fingerprint": "UPDATE unreadable SET fingerprint = '' WHERE key = $1",
	} {
		t.Run(name, func(t *testing.T) {
			key, claim := newClaim()
			require.NoError(t, b.Complete(t.Context(), key, claim, &idempotency.Response{Status: 200}, 0))
			_, err := pool.Exec(t.Context(), spoil, key)
			require.NoError(t, err)
			for range 2 {
				_, other := newClaim()
				_, claimed, err := b.Claim(t.Context(), key, other, time.Minute)
				require.ErrorContains(t, err, "unreadable record")
				require.False(t, claimed)
			}
		})
	}
}

func TestBadOptions(t *testing.T) {
	pool := newPool(t)
	for text, f := range map[string]func(){
		"nil pool":    func() { postgres.New(nil) },
		"nil option":  func() { postgres.NewTransactional(pool, nil) },
		"WithTable":   func() { postgres.New(pool, postgres.WithTable("")) },
		"schema.name": func() { postgres.New(pool, postgres.WithTable("a.b.c")) },
		"at most 55":  func() { postgres.New(pool, postgres.WithTable("billing."+rand.Text()+rand.Text()+"1234")) },
		"read only":   func() { postgres.WithTxOptions(pgx.TxOptions{AccessMode: pgx.ReadOnly}) },
		"interval":    func() { postgres.New(pool).SweepEvery(t.Context(), 0, nil) },
	} {
		t.Run(text, func(t *testing.T) {
			defer func() { require.Contains(t, recover(), text) }()
			f()
		})
	}
}
