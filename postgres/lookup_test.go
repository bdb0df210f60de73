package postgres_test

import (
	"bytes"
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
// WithAtMostOnce it is to last as long as a response would.
func TestLookUpKeepsTheLease(t *testing.T) {
	pool := newPool(t)
	for name, lease := range map[string]time.Duration{"a day": 24 * time.Hour, "for ever": 0} {
		t.Run(name, func(t *testing.T) {
			table, parts := tableName(t, pool), tableName(t, pool)
			_, err := pool.Exec(t.Context(), `CREATE TABLE "`+parts+`" (id int PRIMARY KEY, whole int REFERENCES "`+parts+`" DEFERRABLE INITIALLY DEFERRED)`)
			require.NoError(t, err)
			b := postgres.NewTransactional(pool, postgres.WithTable(table))
			require.NoError(t, b.Migrate(t.Context()))
			key, claim := newClaim()
			_, claimed, err := b.Claim(t.Context(), key, claim, lease)
			require.NoError(t, err)
			require.True(t, claimed)
			ctx := b.Begin(t.Context(), key, claim)
			tx, err := postgres.Tx(ctx)
			require.NoError(t, err)
			_, err = tx.Exec(ctx, `INSERT INTO "`+parts+`" VALUES (1, 2)`) // COMMIT fails: there is no whole.
			require.NoError(t, err)
			require.ErrorIs(t, b.Complete(ctx, key, claim, &idempotency.Response{Status: 201}, time.Hour), idempotency.ErrNotCommitted)
			var kept bool
			require.NoError(t, pool.QueryRow(t.Context(), `SELECT coalesce(expires > now() + interval '23 hours', true)
				FROM "`+table+`" WHERE token = $1 AND status IS NULL`, claim.Token).Scan(&kept))
			require.True(t, kept)
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
			key, claim := newClaim()
			_, claimed, err := b.Claim(t.Context(), key, claim, time.Minute)
			require.NoError(t, err)
			require.True(t, claimed)
			ctx := b.Begin(t.Context(), key, claim)
			_, err = postgres.Tx(ctx)
			require.NoError(t, err)
			require.NoError(t, b.Complete(ctx, key, claim, &idempotency.Response{Status: 201}, test.expiry))
		})
	}
}

// hangsUp is a connection that ends once it has sent something, when it is told
// so, and the request to cancel a statement that pgx then makes is lost as well.
type hangsUp struct {
	net.Conn
	told *atomic.Bool
}

// cancelRequest begins such a request.
var cancelRequest = []byte{0, 0, 0, 16, 0x04, 0xd2, 0x16, 0x2e}

func (c hangsUp) Write(b []byte) (int, error) {
	if bytes.HasPrefix(b, cancelRequest) {
		return 0, net.ErrClosed
	}
	n, err := c.Conn.Write(b)
	if c.told.Load() {
		_ = c.Close()
	}
	return n, err
}

// A COMMIT that is still under way is waited for.
func TestLookUpWaitsForTheCommit(t *testing.T) {
	armed, told := new(atomic.Bool), new(atomic.Bool)
	s := newService(t, func(c *pgxpool.Config) {
		c.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, addr)
			if told.Load() {
				return hangsUp{conn, new(atomic.Bool)}, err // The look goes over this one.
			}
			return hangsUp{conn, told}, err
		}
		c.ConnConfig.Tracer = onCommit(func(*pgx.Conn) { told.Store(armed.Load()) })
		c.MaxConns = 1
	})
	// COMMIT waits for a lock that the test holds.
	holder := newPool(t)
	tx, err := holder.Begin(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { _ = tx.Rollback(context.Background()) }) // It is over already where the test has passed.
	_, err = tx.Exec(t.Context(), "SELECT pg_advisory_xact_lock(2026)")
	require.NoError(t, err)
	_, err = s.pool.Exec(t.Context(), `
		CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock(2026); RETURN NULL; END $$;
		CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON payments DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait()`)
	require.NoError(t, err)
	armed.Store(true)
	status := make(chan int, 1)
	go func() { status <- send(s.handle(t, created), "k").Code }()
	require.Eventually(t, func() bool {
		var looks int
		require.NoError(t, holder.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity
			WHERE wait_event_type = 'Lock' AND query LIKE '%FOR UPDATE'`).Scan(&looks))
		return looks == 1
	}, 4*time.Second, 10*time.Millisecond)
	require.NoError(t, tx.Commit(t.Context()))
	require.Equal(t, 201, <-status)
	require.Equal(t, 1, s.payments(t))
}
