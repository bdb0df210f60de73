package postgres_test

import (
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/postgres"
)

// A database without room is told from one that is out of reach. What is stored is
// replayed.
func TestFull(t *testing.T) {
	pool := newPool(t)
	name := tableName(t, pool)
	b := postgres.New(pool, postgres.WithTable(name))
	t.Cleanup(b.Close)
	require.NoError(t, b.Migrate(t.Context()))
	stored, first := newClaim()
	require.NoError(t, b.Complete(t.Context(), stored, first, []byte("{}"), time.Hour))
	_, err := pool.Exec(t.Context(), `
		CREATE OR REPLACE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS
			$$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$;
		CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON `+pgx.Identifier{name}.Sanitize()+` FOR EACH ROW EXECUTE FUNCTION full_disk()`)
	require.NoError(t, err)
	key, own := newClaim()
	_, _, err = b.Claim(t.Context(), key, own, hour)
	require.ErrorIs(t, err, idempotency.ErrFull)
	require.ErrorIs(t, b.Renew(t.Context(), key, own, hour, nil), idempotency.ErrFull)
	require.ErrorIs(t, b.Release(t.Context(), key, own, time.Hour), idempotency.ErrFull)
	err = b.Complete(t.Context(), key, own, []byte("{}"), time.Hour)
	require.ErrorIs(t, err, idempotency.ErrFull)
	var pg *pgconn.PgError
	require.True(t, errors.As(err, &pg))
	held, claimed, err := b.Claim(t.Context(), stored, own, hour)
	require.NoError(t, err)
	require.False(t, claimed)
	require.Equal(t, []byte("{}"), held.Response)
}

// A database that takes no writes, such as a standby, still replays what is stored,
// and nothing else.
func TestReadOnly(t *testing.T) {
	pool := newPool(t)
	table := ownTable(t, pool)
	b := postgres.New(pool, table)
	t.Cleanup(b.Close)
	standby := postgres.New(newPool(t, func(c *pgxpool.Config) {
		c.ConnConfig.RuntimeParams["default_transaction_read_only"] = "on"
	}), table)
	stored, first := newClaim()
	first.Fingerprint[0] = 1
	require.NoError(t, b.Complete(t.Context(), stored, first, []byte("{}"), time.Hour))
	outstanding, _ := claim(t, b, hour)
	_, retry := newClaim()
	retry.Fingerprint[0] = 1
	held, claimed, err := standby.Claim(t.Context(), stored, retry, hour)
	require.NoError(t, err)
	require.False(t, claimed)
	require.Equal(t, idempotency.Record{Claim: first, State: idempotency.StateCompleted, Response: []byte("{}")}, held)

	free, _ := newClaim()
	for _, key := range []idempotency.Key{outstanding, free} {
		_, claimed, err = standby.Claim(t.Context(), key, retry, hour)
		require.ErrorContains(t, err, "read-only")
		require.False(t, claimed)
	}
	retry.Fingerprint[0] = 2
	_, _, err = standby.Claim(t.Context(), stored, retry, hour)
	require.ErrorContains(t, err, "read-only")
}

// A database that is read-only still tells that another request has the key.
func TestReadOnlyTellsOfAnotherRequest(t *testing.T) {
	pool := newPool(t)
	table := ownTable(t, pool)
	writes := postgres.New(pool, table)
	require.NoError(t, writes.Migrate(t.Context()))
	t.Cleanup(writes.Close)
	readOnly := postgres.New(newPool(t, func(c *pgxpool.Config) { c.ConnConfig.RuntimeParams["default_transaction_read_only"] = "on" }), table)
	t.Cleanup(readOnly.Close)
	key := idempotency.NewKey("", "k")
	terms := idempotency.Terms{Lease: time.Hour}
	_, claimed, err := writes.Claim(t.Context(), key, idempotency.Claim{Token: idempotency.Token{1}}, terms)
	require.NoError(t, err)
	require.True(t, claimed)
	_, _, err = readOnly.Claim(t.Context(), key, idempotency.Claim{Token: idempotency.Token{2}}, terms)
	require.ErrorIs(t, err, idempotency.ErrOutstanding)
}
