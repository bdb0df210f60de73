package postgres_test

import (
	"bytes"
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
)

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
