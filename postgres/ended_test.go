package postgres_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/postgres"
)

// claimed is a claim whose transaction has begun, in a schema with a table of writes.
type claimed struct {
	pool    *pgxpool.Pool
	backend *postgres.Transactional
	key     idempotency.Key
	claim   idempotency.Claim
	ctx     context.Context
	tx      pgx.Tx
}

func newClaimed(t *testing.T, configure ...func(*pgxpool.Config)) *claimed {
	t.Helper()
	c := &claimed{pool: newPool(t, append([]func(*pgxpool.Config){inSchema(t, schemaName())}, configure...)...)}
	_, err := c.pool.Exec(t.Context(), "CREATE TABLE writes (n integer CHECK (n > 0))")
	require.NoError(t, err)
	c.backend = postgres.NewTransactional(c.pool)
	t.Cleanup(c.backend.Close)
	require.NoError(t, c.backend.Migrate(t.Context()))
	c.key, c.claim = claim(t, c.backend, hour)
	c.ctx = c.backend.Begin(t.Context(), c.key, c.claim, 24*time.Hour)
	c.tx, err = postgres.Tx(c.ctx)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.backend.Release(context.WithoutCancel(c.ctx), c.key, c.claim, 0) }) // A test that failed has not.
	return c
}

// send sends statements one by one, in the transaction.
func (c *claimed) send(statements ...string) {
	for _, sql := range statements {
		_, _ = c.tx.Exec(c.ctx, sql) // Some are to fail.
	}
}

func (c *claimed) complete() error {
	return c.backend.Complete(c.ctx, c.key, c.claim, []byte("{}"), time.Hour)
}

// How a handler may end the transaction itself.
var endings = map[string][]string{
	"commit":                       {"INSERT INTO writes VALUES (1)", "COMMIT"},
	"rollback":                     {"ROLLBACK"},
	"rollback and begin":           {"ROLLBACK; BEGIN", "INSERT INTO writes VALUES (1)"},
	"commit and begin":             {"INSERT INTO writes VALUES (1)", "COMMIT", "BEGIN"},
	"commit and chain":             {"INSERT INTO writes VALUES (1)", "COMMIT AND CHAIN"},
	"rollback and chain":           {"ROLLBACK AND CHAIN", "INSERT INTO writes VALUES (1)"},
	"in one text":                  {"INSERT INTO writes VALUES (1); /* now */ end; BEGIN; INSERT INTO writes VALUES (2)"},
	"a savepoint's name is reused": {"COMMIT; BEGIN; SAVEPOINT a", "ROLLBACK TO a"},
	"then a statement fails":       {"INSERT INTO writes VALUES (1); COMMIT; BEGIN", "INSERT INTO writes VALUES (-1)"},
	"a failure in one text":        {"INSERT INTO writes VALUES (1); COMMIT; BEGIN; INSERT INTO writes VALUES (-1)"},
	"chained, and a failure":       {"INSERT INTO writes VALUES (1)", "-- now\ncommit and chain", "INSERT INTO writes VALUES (-1)"},
	"then the connection is lost":  {"COMMIT AND CHAIN", "SELECT pg_terminate_backend(pg_backend_pid())"},
}

// A handler that ended the transaction itself is found out: what it wrote may be
// there, and so the key is interrupted until a response would have expired, whatever
// the trace that Release is given.
func TestHandlerEndsTheTransaction(t *testing.T) {
	for name, statements := range endings {
		for how, complete := range map[string]bool{"completed": true, "released": false} {
			t.Run(name+", "+how, func(t *testing.T) {
				t.Parallel()
				c := newClaimed(t)
				c.send(statements...)
				if complete {
					for range 2 {
						err := c.complete()
						require.ErrorIs(t, err, idempotency.ErrInterrupted)
						require.ErrorIs(t, err, postgres.ErrEnded)
						require.NotErrorIs(t, err, idempotency.ErrNotCommitted)
					}
				}
				for range 2 {
					require.NoError(t, c.backend.Release(c.ctx, c.key, c.claim, 0))
					state, left := stateOf(t, c.backend, c.key)
					require.Equal(t, idempotency.StateInterrupted, state)
					require.InDelta(t, 24, left.Hours(), 0.1)
				}
				requireIdle(t, c.pool)
			})
		}
	}
}

// What does not end the transaction is not taken for an end.
func TestHandlerDoesNotEndTheTransaction(t *testing.T) {
	for name, statements := range map[string][]string{
		"a savepoint":            {"SAVEPOINT a", "INSERT INTO writes VALUES (-1)", "ROLLBACK TO SAVEPOINT a"},
		"a savepoint in one":     {"SAVEPOINT a; INSERT INTO writes VALUES (1); ROLLBACK WORK TO a"},
		"a setting":              {"SET LOCAL lock_timeout = 1000", "INSERT INTO writes SELECT CASE WHEN true THEN 1 END"},
		"a stricter isolation":   {"SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", "INSERT INTO writes VALUES (1)"},
		"a commit in a function": {"DO $$ BEGIN COMMIT; EXCEPTION WHEN OTHERS THEN NULL; END $$"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newClaimed(t)
			c.send(statements...)
			require.NoError(t, c.complete())
			state, _ := stateOf(t, c.backend, c.key)
			require.Equal(t, idempotency.StateCompleted, state)
		})
	}
	for name, statements := range map[string][]string{
		"nothing":             nil,
		"a failed statement":  {"INSERT INTO writes VALUES (-1)"},
		"a failed savepoint":  {"SAVEPOINT a", "INSERT INTO writes VALUES (-1)", "ROLLBACK TO a", "INSERT INTO writes SELECT CASE WHEN true THEN -1 END"},
		"the connection lost": {"SELECT pg_terminate_backend(pg_backend_pid())"},
	} {
		t.Run(name+" before Release", func(t *testing.T) {
			t.Parallel()
			c := newClaimed(t)
			c.send(statements...)
			if len(statements) > 0 {
				err := c.complete()
				require.ErrorIs(t, err, idempotency.ErrNotCommitted)
				require.NotErrorIs(t, err, idempotency.ErrInterrupted)
			}
			require.NoError(t, c.backend.Release(c.ctx, c.key, c.claim, 0))
			state, _ := stateOf(t, c.backend, c.key)
			require.Zero(t, state)
			requireIdle(t, c.pool)
		})
	}
}

func TestMayEnd(t *testing.T) {
	for sql, want := range map[string]bool{
		"commit":                               true,
		" ;\nCommit and chain":                 true,
		"END":                                  true,
		"abort work":                           true,
		"PREPARE TRANSACTION 'a'":              true,
		"/* a */ -- b\n ROLLBACK":              true,
		"SELECT 1;rollback":                    true,
		"rollback to a; rollback":              true,
		"":                                     false,
		"rollback to savepoint a":              false,
		"ROLLBACK TRANSACTION TO a":            false,
		"PREPARE a AS SELECT 1":                false,
		"SELECT CASE WHEN a THEN b END FROM c": false,
		"COMMENT ON TABLE a IS 'commit'":       false,
		"INSERT INTO a VALUES ('x; y')":        false,
		"SELECT 1; SELECT 2;":                  false,
	} {
		require.Equal(t, want, postgres.MayEnd(sql), sql)
	}
	long := strings.Repeat(";", 1<<20)
	require.True(t, postgres.MayEnd(long+"commit"))
}

// The record is the pool's own to write, whatever the handler has become.
func TestRoleIsSetBack(t *testing.T) {
	for name, become := range map[string]string{"no role": "", "SET LOCAL": "SET LOCAL ROLE ", "set_config": "SELECT set_config('role', $1, true)", "a batch": "batch"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newClaimed(t)
			tenant := "r_" + schemaName()
			_, err := c.pool.Exec(t.Context(), "CREATE ROLE "+tenant)
			require.NoError(t, err)
			t.Cleanup(func() {
				_, err := c.pool.Exec(context.Background(), "DROP ROLE "+tenant)
				require.NoError(t, err)
			})
			switch name {
			case "SET LOCAL":
				_, err = c.tx.Exec(c.ctx, become+tenant)
			case "set_config":
				_, err = c.tx.Exec(c.ctx, become, tenant)
			case "a batch":
				batch := new(pgx.Batch)
				batch.Queue("SELECT 1")
				batch.Queue("set local role " + tenant)
				err = c.tx.SendBatch(c.ctx, batch).Close()
			}
			require.NoError(t, err)
			var role string
			require.NoError(t, c.tx.QueryRow(c.ctx, "SELECT current_user").Scan(&role))
			require.Equal(t, become != "", role == tenant)
			require.NoError(t, c.complete())
		})
	}
}

// It does not commit into the claim of an heir, not even into one that is still
// outstanding.
func TestHeirKeepsTheKey(t *testing.T) {
	c := newClaimed(t)
	c.send("INSERT INTO writes VALUES (1)")
	_, err := c.pool.Exec(t.Context(), "UPDATE idempotency_records SET ends = now()") // As after a pause.
	require.NoError(t, err)
	_, heir := newClaim()
	heir.Fingerprint[0] = 2
	_, won, err := c.backend.Claim(t.Context(), c.key, heir, atMostOnce)
	require.NoError(t, err)
	require.True(t, won)
	require.ErrorIs(t, c.complete(), idempotency.ErrClaimLost)
	require.NoError(t, c.backend.Release(c.ctx, c.key, c.claim, time.Hour))
	rec, _, _, err := c.backend.Lookup(t.Context(), c.key)
	require.NoError(t, err)
	require.Equal(t, idempotency.Record{Claim: heir, State: idempotency.StateOutstanding}, rec)
	var writes int
	require.NoError(t, c.pool.QueryRow(t.Context(), "SELECT count(*) FROM writes").Scan(&writes))
	require.Zero(t, writes)
}

// A handler that asked for no transaction completes its own claim and nothing else.
func TestCompleteWithoutATransaction(t *testing.T) {
	c := newClaimed(t)
	key, own := claim(t, c.backend, atMostOnce)
	ctx := c.backend.Begin(t.Context(), key, own, time.Hour)
	for range 2 {
		require.NoError(t, c.backend.Complete(ctx, key, own, []byte("{}"), time.Hour))
	}
	state, _ := stateOf(t, c.backend, key)
	require.Equal(t, idempotency.StateCompleted, state)
	free, own := newClaim()
	ctx = c.backend.Begin(t.Context(), free, own, time.Hour)
	require.ErrorIs(t, c.backend.Complete(ctx, free, own, []byte("{}"), time.Hour), idempotency.ErrClaimLost)
	require.NoError(t, c.backend.Release(c.ctx, c.key, c.claim, 0))
}

// Nothing that a handler gets leads to the connection, which is another request's
// afterwards.
func TestConnectionIsNotShown(t *testing.T) {
	c := newClaimed(t)
	savepoint, err := c.tx.Begin(c.ctx)
	require.NoError(t, err)
	for _, tx := range []pgx.Tx{c.tx, savepoint} {
		require.Panics(t, func() { tx.Conn() })
		require.Panics(t, func() { tx.LargeObjects() })
		rows, err := tx.Query(c.ctx, "SELECT 1")
		require.NoError(t, err)
		require.Nil(t, rows.Conn())
		n, err := pgx.CollectOneRow(rows, pgx.RowTo[int])
		require.NoError(t, err)
		require.Equal(t, 1, n)
	}
	batch := new(pgx.Batch)
	batch.Queue("SELECT 1")
	results := c.tx.SendBatch(c.ctx, batch)
	rows, err := results.Query()
	require.NoError(t, err)
	require.Nil(t, rows.Conn())
	require.NoError(t, results.Close())
	require.NoError(t, c.complete())
	_, err = savepoint.Exec(c.ctx, "SELECT 1")
	require.ErrorIs(t, err, pgx.ErrTxClosed)
}

// A statement that ends the transaction is found also if it is sent by a name.
func TestPreparedEnd(t *testing.T) {
	c := newClaimed(t)
	c.send("INSERT INTO writes VALUES (1)")
	_, err := c.tx.Prepare(c.ctx, "x", "COMMIT AND CHAIN")
	require.NoError(t, err)
	_, err = c.tx.Exec(c.ctx, "x")
	require.NoError(t, err)
	c.send("INSERT INTO writes VALUES (-1)") // It fails: the database cannot be asked any more.
	require.ErrorIs(t, c.complete(), idempotency.ErrInterrupted)
	require.NoError(t, c.backend.Release(c.ctx, c.key, c.claim, 0))
	rec, _, ok, err := c.backend.Lookup(t.Context(), c.key)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, idempotency.StateInterrupted, rec.State)
}
