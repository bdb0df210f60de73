package postgres_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/postgres"
)

// inSchema is for a pool that sees one schema of its own, which it makes.
func inSchema(t *testing.T, name string) func(*pgxpool.Config) {
	admin := newPool(t)
	_, err := admin.Exec(t.Context(), "CREATE SCHEMA "+name)
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := admin.Exec(context.Background(), "DROP SCHEMA "+name+" CASCADE")
		require.NoError(t, err)
	})
	return func(c *pgxpool.Config) { c.ConnConfig.RuntimeParams["search_path"] = name }
}

func schemaName() string { return "s_" + strings.ToLower(rand.Text()) }

// The file is for migration tools, and Migrate does the same.
func TestSchemaFile(t *testing.T) {
	file, err := os.ReadFile("schema.sql")
	require.NoError(t, err)
	for name, migrate := range map[string]func(*pgxpool.Pool) error{
		"the file": func(pool *pgxpool.Pool) error { _, err := pool.Exec(t.Context(), string(file)); return err },
		"Migrate":  func(pool *pgxpool.Pool) error { return postgres.New(pool).Migrate(t.Context()) },
		"Schema": func(pool *pgxpool.Pool) error {
			_, err := pool.Exec(t.Context(), postgres.New(pool).Schema())
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			schema := schemaName()
			pool := newPool(t, inSchema(t, schema))
			for range 2 {
				require.NoError(t, migrate(pool))
			}
			claim(t, postgres.New(pool, postgres.WithTable(schema+".idempotency_records")), hour)
			rows, err := pool.Query(t.Context(), "SELECT indexname FROM pg_indexes WHERE schemaname = $1 ORDER BY 1", schema)
			require.NoError(t, err)
			names, err := pgx.CollectRows(rows, pgx.RowTo[string])
			require.NoError(t, err)
			require.Equal(t, []string{"idempotency_records_pkey", "idempotency_records_sweep_from"}, names)
		})
	}
}

// Every process may migrate when it starts.
func TestMigrateAtOnce(t *testing.T) {
	schema := schemaName()
	pool := newPool(t, inSchema(t, schema))
	b := postgres.New(pool, postgres.WithTable(schema+`.Odd "name"`))
	failed := make(chan error)
	for range 8 {
		go func() { failed <- b.Migrate(t.Context()) }()
	}
	for range 8 {
		require.NoError(t, <-failed)
	}
	claim(t, b, hour)
}

// A role that may use the table need not be one that may make it.
func TestMigrateWithoutTheRight(t *testing.T) {
	schema, role := schemaName(), "r_"+strings.ToLower(rand.Text())
	configure := inSchema(t, schema)
	owner := newPool(t, configure)
	require.NoError(t, postgres.New(owner).Migrate(t.Context()))
	_, err := owner.Exec(t.Context(), `CREATE ROLE `+role+`; GRANT USAGE ON SCHEMA `+schema+` TO `+role+`; GRANT ALL ON idempotency_records TO `+role)
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := owner.Exec(context.Background(), `DROP OWNED BY `+role+`; DROP ROLE `+role)
		require.NoError(t, err)
	})
	pool := newPool(t, configure, func(c *pgxpool.Config) { c.ConnConfig.RuntimeParams["role"] = role })
	require.NoError(t, postgres.New(pool).Migrate(t.Context()))
	claim(t, postgres.New(pool), hour)
}

func TestSweep(t *testing.T) {
	ctx := t.Context()
	schema := schemaName()
	pool := newPool(t, inSchema(t, schema))
	b := postgres.New(pool)
	require.NoError(t, b.Migrate(ctx))
	insert := func(ends string, trace time.Duration, n int) {
		_, err := pool.Exec(ctx, fmt.Sprintf(`INSERT INTO idempotency_records (key, token, state, trace, ends, sweep_from, fingerprint)
			SELECT uuid_send(gen_random_uuid()), gen_random_uuid(), 0, %d, %[2]s, %[2]s, '' FROM generate_series(1, %[3]d)`, trace.Microseconds(), ends, n))
		require.NoError(t, err)
	}
	count := func() (n int) {
		require.NoError(t, pool.QueryRow(ctx, "SELECT count(*) FROM idempotency_records").Scan(&n))
		return n
	}
	insert("now() - interval '1 second'", 0, 2500)
	insert("now() + interval '1 hour'", 0, 10)
	insert("now() - interval '1 second'", time.Hour, 10) // interrupted
	insert("'infinity'", 0, 3)

	// A record that somebody holds is left for the next sweep.
	tx, err := pool.Begin(ctx)
	require.NoError(t, err)
	_, err = tx.Exec(ctx, "SELECT FROM idempotency_records WHERE ends < now() AND trace = 0 LIMIT 1 FOR UPDATE")
	require.NoError(t, err)
	deleted, err := b.Sweep(ctx)
	require.NoError(t, err)
	require.EqualValues(t, 2499, deleted)
	require.NoError(t, tx.Rollback(ctx))
	require.Equal(t, 24, count())

	// SweepEvery sweeps at once, again at each interval, and ends with its context.
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b.SweepEvery(ctx, time.Millisecond, func(err error) { t.Error(err) })
	}()
	for _, more := range []int{0, 10} {
		insert("now() - interval '1 second'", 0, more)
		require.Eventually(t, func() bool { return count() == 23 }, time.Minute, time.Millisecond)
	}
	cancel()
	<-ended
}

// A sweep that fails is told of, and does not end the sweeping.
func TestSweepFails(t *testing.T) {
	pool := newPool(t)
	b := postgres.New(pool, postgres.WithTable("there_is_no_such_table"))
	ctx, cancel := context.WithCancel(t.Context())
	var errs []error
	b.SweepEvery(ctx, time.Millisecond, func(err error) {
		if errs = append(errs, err); len(errs) == 3 {
			cancel()
		}
	})
	require.Len(t, errs, 3)
	require.ErrorContains(t, errors.Join(errs...), "there_is_no_such_table")
}

// Many may sweep at once, beside requests that claim, take over and complete, and
// whatever the isolation.
func TestSweepBesideClaims(t *testing.T) {
	pool := newPool(t, serializable)
	b := postgres.New(pool, ownTable(t, pool))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	for range 3 {
		go func() {
			b.SweepEvery(ctx, time.Millisecond, func(err error) { t.Error(err) })
			ended <- struct{}{}
		}()
	}
	keys := make([]idempotency.Key, 10)
	for i := range keys {
		keys[i], _ = newClaim()
	}
	for range 300 {
		for _, key := range keys {
			_, claim := newClaim()
			_, _, err := b.Claim(t.Context(), key, claim, idempotency.Terms{Lease: 1})
			require.NoError(t, err)
		}
	}
	cancel()
	for range 3 {
		<-ended
	}
}
