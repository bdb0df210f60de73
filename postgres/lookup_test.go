package postgres_test

import (
	"context"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/postgres"
)

// To look up what became of a COMMIT takes no time from a claim: with
// WithAtMostOnce its trace is to last as long as a response would.
func TestLookUpKeepsTheTrace(t *testing.T) {
	for name, terms := range map[string]idempotency.Terms{"a day": atMostOnce, "for ever": {Lease: time.Hour, Trace: idempotency.Forever}} {
		t.Run(name, func(t *testing.T) {
			pool := newPool(t, inSchema(t, schemaName()))
			_, err := pool.Exec(t.Context(), `CREATE TABLE parts (id int PRIMARY KEY, whole int REFERENCES parts DEFERRABLE INITIALLY DEFERRED)`)
			require.NoError(t, err)
			b := postgres.NewTransactional(pool)
			require.NoError(t, b.Migrate(t.Context()))
			key, own := claim(t, b, terms)
			ctx := b.Begin(t.Context(), key, own, time.Hour)
			tx, err := postgres.Tx(ctx)
			require.NoError(t, err)
			_, err = tx.Exec(ctx, `INSERT INTO parts VALUES (1, 2)`) // COMMIT fails: there is no whole.
			require.NoError(t, err)
			require.ErrorIs(t, b.Complete(ctx, key, own, []byte("{}"), time.Hour), idempotency.ErrNotCommitted)
			state, left := stateOf(t, b, key)
			require.Equal(t, idempotency.StateOutstanding, state)
			require.Greater(t, left, 24*time.Hour)
		})
	}
}

// deaf is a connection that no longer hears once it is told so.
type deaf struct {
	net.Conn
	told *atomic.Bool
}

func (c deaf) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.told.Load() {
		return 0, io.ErrUnexpectedEOF
	}
	return n, err
}

// onCommit is called before each COMMIT, with its connection.
type onCommit func(*pgx.Conn)

func (f onCommit) TraceQueryStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if data.SQL == "commit" {
		f(conn)
	}
	return ctx
}

func (onCommit) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// A COMMIT that took effect is found by its record, however that came about.
func TestLookUpFindsTheCommit(t *testing.T) {
	whole := newPool(t)
	for name, test := range map[string]struct {
		expiry    time.Duration
		isolation string
	}{
		"kept":              {expiry: time.Hour},
		"expired meanwhile": {expiry: time.Microsecond},
		"serializable":      {expiry: time.Hour, isolation: "serializable"},
	} {
		t.Run(name, func(t *testing.T) {
			table := tableName(t, whole)
			require.NoError(t, postgres.New(whole, postgres.WithTable(table)).Migrate(t.Context()))
			var deafened atomic.Pointer[atomic.Bool] // for the connections that are made next
			deafened.Store(new(atomic.Bool))
			pool := newPool(t, func(c *pgxpool.Config) {
				c.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
					conn, err := new(net.Dialer).DialContext(ctx, network, addr)
					return deaf{conn, deafened.Load()}, err
				}
				c.ConnConfig.Tracer = onCommit(func(*pgx.Conn) { deafened.Swap(new(atomic.Bool)).Store(true) })
				if test.isolation != "" {
					c.ConnConfig.RuntimeParams["default_transaction_isolation"] = test.isolation
				}
			})
			b := postgres.NewTransactional(pool, postgres.WithTable(table))
			key, own := claim(t, b, hour)
			ctx := b.Begin(t.Context(), key, own, time.Hour)
			_, err := postgres.Tx(ctx)
			require.NoError(t, err)
			require.NoError(t, b.Complete(ctx, key, own, []byte("{}"), test.expiry))
		})
	}
}

// Where the look finds no record of the claim, nothing tells that it was committed.
func TestLookUpFindsNoRecord(t *testing.T) {
	admin := newPool(t)
	gone := make(chan error, 1)
	schema := schemaName()
	var c *claimed
	c = newClaimed(t, func(config *pgxpool.Config) {
		config.ConnConfig.Tracer = onCommit(func(conn *pgx.Conn) {
			if c == nil {
				return // The test has not begun.
			}
			go func() { // It waits until the transaction has ended, and the look waits for it.
				_, err := admin.Exec(context.Background(), "DELETE FROM "+schema+".idempotency_records")
				gone <- err
			}()
			require.Eventually(t, func() bool {
				var waits bool
				err := admin.QueryRow(context.Background(), `SELECT EXISTS (SELECT FROM pg_stat_activity
					WHERE wait_event_type = 'Lock' AND query = 'DELETE FROM `+schema+`.idempotency_records')`).Scan(&waits)
				return err == nil && waits
			}, time.Minute, time.Millisecond)
			_ = conn.PgConn().Conn().Close()
		})
	}, inSchema(t, schema))
	c.send("INSERT INTO writes VALUES (1)")
	require.ErrorIs(t, c.complete(), idempotency.ErrClaimLost)
	require.NoError(t, <-gone)
	var writes int
	require.NoError(t, c.pool.QueryRow(t.Context(), "SELECT count(*) FROM writes").Scan(&writes))
	require.Zero(t, writes)
}
