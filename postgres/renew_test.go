package postgres_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/internal/batch"
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

// Under a strict isolation a batch of renewals may conflict with any claim. It is then
// repeated, whole, in a transaction that cannot conflict.
func TestRenewalsOutliveAConflict(t *testing.T) {
	for name, trigger := range map[string]string{
		"of the statement": "CREATE TRIGGER conflict BEFORE UPDATE ON %[1]s FOR EACH ROW EXECUTE FUNCTION %[2]s()",
		"of the COMMIT": "CREATE CONSTRAINT TRIGGER conflict AFTER UPDATE ON %[1]s DEFERRABLE INITIALLY DEFERRED " +
			"FOR EACH ROW EXECUTE FUNCTION %[2]s()",
	} {
		t.Run(name, func(t *testing.T) {
			const n, gone = 100, 7
			sent := new(tracer)
			pool := newPool(t, serializable, func(c *pgxpool.Config) { c.ConnConfig.Tracer = sent })
			table := tableName(t, pool)
			b, unseen := postgres.New(pool, postgres.WithTable(table)), postgres.New(newPool(t), postgres.WithTable(table))
			defer b.Close()
			require.NoError(t, b.Migrate(t.Context()))
			function := pgx.Identifier{"conflict_" + table}.Sanitize()
			_, err := pool.Exec(t.Context(), "CREATE FUNCTION "+function+`() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
				IF current_setting('transaction_isolation') = 'serializable' THEN
					RAISE EXCEPTION 'it always conflicts' USING ERRCODE = 'serialization_failure';
				END IF;
				RETURN NEW;
			END $$`)
			require.NoError(t, err)
			defer func() {
				_, err := pool.Exec(context.Background(), "DROP FUNCTION "+function+" CASCADE")
				require.NoError(t, err)
			}()
			_, err = pool.Exec(t.Context(), fmt.Sprintf(trigger, pgx.Identifier{table}.Sanitize(), function))
			require.NoError(t, err)
			keys, claims := make([]idempotency.Key, n), make([]idempotency.Claim, n)
			for i := range n {
				keys[i], claims[i] = claim(t, b, hour)
			}

			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			errs := make(chan error, n)
			asked, released := false, false
			var releaseErr error
			alone := make(map[string]bool)
			sent.each(func(data pgx.TraceQueryStartData) {
				switch {
				case strings.HasPrefix(data.SQL, "begin") && asked && !released:
					released = true // The first try has renewed it, and that is undone.
					releaseErr = unseen.Release(ctx, keys[gone], claims[gone], 0)
				case strings.Contains(data.SQL, "SKIP LOCKED"):
					asked = asked || slices.ContainsFunc(data.Args[0].([][]byte), func(key []byte) bool {
						return bytes.Equal(key, keys[gone][:])
					})
				case strings.Contains(data.SQL, "INSERT"):
					alone[string(data.Args[0].([]byte))] = true
				}
			})
			for i := range n {
				go func() { errs <- b.Renew(ctx, keys[i], claims[i], idempotency.Terms{Lease: 3 * time.Hour}, nil) }()
			}
			for range n {
				require.NoError(t, <-errs)
			}
			require.NoError(t, releaseErr)
			for i := range n {
				state, left := stateOf(t, b, keys[i])
				require.Equal(t, idempotency.StateOutstanding, state)
				require.Greater(t, left, 2*time.Hour)
			}
			require.Equal(t, map[string]bool{string(keys[gone][:]): true}, alone)
		})
	}
}

// tracer sees the statements that are sent.
type tracer struct {
	mu sync.Mutex
	do func(pgx.TraceQueryStartData)
}

// each calls do before each further statement.
func (s *tracer) each(do func(pgx.TraceQueryStartData)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.do = do
}

func (s *tracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.do != nil {
		s.do(data)
	}
	return ctx
}

func (*tracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// Renewals of claims that are locked, as in a database that is slow to commit, go together
// again: none waits by itself, with a connection of its own.
func TestRenewalsOfLockedClaims(t *testing.T) {
	const n = 60
	name := "renewals-" + rand.Text()
	pool := newPool(t, func(c *pgxpool.Config) { c.ConnConfig.RuntimeParams["application_name"] = name })
	table := tableName(t, pool)
	b := postgres.New(pool, postgres.WithTable(table))
	defer b.Close()
	require.NoError(t, b.Migrate(t.Context()))
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	defer tx.Rollback(context.Background())
	keys, claims := make([]idempotency.Key, n), make([]idempotency.Claim, n)
	for i := range n {
		keys[i], claims[i] = claim(t, b, hour)
	}
	_, err = tx.Exec(t.Context(), "SELECT FROM "+pgx.Identifier{table}.Sanitize()+" FOR UPDATE")
	require.NoError(t, err)
	renewed := make(chan error, n)
	for i := range n {
		go func() {
			renewed <- b.Renew(t.Context(), keys[i], claims[i], idempotency.Terms{Lease: 3 * time.Hour}, nil)
		}()
	}
	before := pool.Stat().TotalConns()
	for range 300 {
		var conns int32
		require.NoError(t, pool.QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1", name).Scan(&conns))
		require.Less(t, conns, before+10)
	}
	require.Empty(t, renewed)
	require.NoError(t, tx.Rollback(t.Context()))
	for range n {
		require.NoError(t, <-renewed)
	}
}

// A renewal outlives the time of a connection: the next may be made in time.
func TestRenewalOutlivesAConnection(t *testing.T) {
	var hangs atomic.Bool
	pool := newPool(t, func(c *pgxpool.Config) {
		dial := c.ConnConfig.DialFunc
		c.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if hangs.CompareAndSwap(true, false) {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return dial(ctx, network, addr)
		}
	})
	b := postgres.New(pool, postgres.WithTable(tableName(t, pool)))
	defer b.Close()
	require.NoError(t, b.Migrate(t.Context()))
	for _, progress := range [][]byte{nil, []byte("1")} {
		key, own := claim(t, b, hour)
		hangs.Store(true)
		short := idempotency.Terms{Lease: 100 * time.Millisecond, Trace: time.Hour}
		require.NoError(t, b.Renew(t.Context(), key, own, short, progress))
		require.False(t, hangs.Load())
		b.Close()
	}
}

// A connection that is slow to be made has more time than the renewal that it is made for: it
// is there for a later one.
func TestRenewalsOverASlowConnection(t *testing.T) {
	var renews atomic.Bool
	left := make(chan time.Duration, 1)
	pool := newPool(t, func(c *pgxpool.Config) {
		dial := c.ConnConfig.DialFunc
		c.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if renews.Load() {
				end, _ := ctx.Deadline()
				left <- time.Until(end)
			}
			return dial(ctx, network, addr)
		}
	})
	b := postgres.New(pool, postgres.WithTable(tableName(t, pool)))
	defer b.Close()
	require.NoError(t, b.Migrate(t.Context()))
	key, own := claim(t, b, hour)
	renews.Store(true)
	short := idempotency.Terms{Lease: 100 * time.Millisecond, Trace: time.Hour}
	ctx, end := context.WithTimeout(t.Context(), batch.Time(short.Lease))
	defer end()
	_ = b.Renew(ctx, key, own, short, nil) // It makes a connection, whether in time or not.
	require.Greater(t, <-left, 2*batch.Time(short.Lease))
}

// Claims are renewed over the pool's connections if no other can be had, such as one over
// the role's limit.
func TestRenewalsWithoutAConnection(t *testing.T) {
	for _, how := range []string{"refused", "silent"} {
		t.Run(how, func(t *testing.T) {
			var ends atomic.Bool
			pool := newPool(t, func(c *pgxpool.Config) {
				dial := c.ConnConfig.DialFunc
				c.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
					switch {
					case !ends.Load():
						return dial(ctx, network, addr)
					case how == "silent":
						<-ctx.Done()
					}
					return nil, errors.New("no connection to be had")
				}
			})
			b := postgres.New(pool, postgres.WithTable(tableName(t, pool)))
			defer b.Close()
			require.NoError(t, b.Migrate(t.Context()))
			short := idempotency.Terms{Lease: time.Second, Trace: time.Hour}
			key, own := claim(t, b, short)
			ends.Store(true)
			for _, progress := range [][]byte{nil, []byte("progress")} {
				require.NoError(t, b.Renew(t.Context(), key, own, short, progress))
			}
			rec, _, ok, err := b.Lookup(t.Context(), key)
			require.NoError(t, err)
			require.True(t, ok)
			require.Equal(t, idempotency.StateOutstanding, rec.State)
			require.Equal(t, []byte("progress"), rec.Progress)
		})
	}
}
