package postgres_test

import (
	"context"
	"crypto/rand"
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

// A claim, a replay, a refusal, and to renew, complete or release are one round trip
// each.
func TestRoundTrips(t *testing.T) {
	var wire traffic
	pool := newPool(t, wire.counting)
	b := newBackend(t, pool)
	ctx := t.Context()
	recovery := idempotency.Terms{Lease: time.Hour, Trace: time.Hour, TakeOver: true}
	var key idempotency.Key
	var own, rival, other idempotency.Claim
	asClaim := func(claim idempotency.Claim, terms idempotency.Terms) func() error {
		return func() error { _, _, err := b.Claim(ctx, key, claim, terms); return err }
	}
	steps := []struct {
		name string
		run  func() error
	}{
		{"claim", func() error { return asClaim(own, atMostOnce)() }},
		{"refuse", func() error { return asClaim(rival, hour)() }},
		{"renew", func() error { return b.Renew(ctx, key, own, hour, nil) }},
		{"renew with progress", func() error { return b.Renew(ctx, key, own, hour, []byte("1")) }},
		{"release with a trace", func() error { return b.Release(ctx, key, own, time.Hour) }},
		{"take over", func() error { return asClaim(rival, recovery)() }},
		{"release", func() error { return b.Release(ctx, key, rival, 0) }},
		{"take over again", func() error { return asClaim(own, recovery)() }},
		{"complete", func() error { return b.Complete(ctx, key, own, []byte("{}"), time.Minute) }},
		{"replay", func() error { return asClaim(rival, hour)() }},
		{"reused", func() error { return asClaim(other, hour)() }},
		{"look up", func() error { _, _, _, err := b.Lookup(ctx, key); return err }},
		{"forget", func() error {
			_, err := b.Forget(ctx, key, idempotency.Record{Claim: own, State: idempotency.StateCompleted})
			return err
		}},
	}
	for round := range 2 { // pgx prepares each statement once for a connection.
		key, own = newClaim()
		_, rival = newClaim()
		_, other = newClaim()
		own.Fingerprint, rival.Fingerprint, other.Fingerprint = [32]byte{1}, [32]byte{1}, [32]byte{2}
		for _, step := range steps {
			before := wire.trips.Load()
			require.NoError(t, step.run(), step.name)
			if round > 0 {
				require.EqualValues(t, 1, wire.trips.Load()-before, step.name)
			}
		}
	}
}

// A refusal does not fetch what it does not show.
func TestRefusalIsSmall(t *testing.T) {
	var wire traffic
	b := newBackend(t, newPool(t, wire.counting))
	large := make([]byte, 1<<20)
	_, err := rand.Read(large)
	require.NoError(t, err)
	_, other := newClaim()
	other.Fingerprint[0] = 2
	for name, fill := range map[string]func(idempotency.Key, idempotency.Claim) error{
		"a response": func(key idempotency.Key, own idempotency.Claim) error {
			return b.Complete(t.Context(), key, own, large, time.Hour)
		},
		"a progress": func(key idempotency.Key, own idempotency.Claim) error {
			return b.Renew(t.Context(), key, own, hour, large)
		},
	} {
		t.Run(name, func(t *testing.T) {
			key, own := newClaim()
			own.Fingerprint[0] = 1
			require.NoError(t, fill(key, own))
			before := wire.read.Load()
			held, claimed, err := b.Claim(t.Context(), key, other, hour)
			require.NoError(t, err)
			require.False(t, claimed)
			require.Equal(t, own, held.Claim)
			require.Nil(t, held.Response)
			require.Nil(t, held.Progress)
			require.Less(t, wire.read.Load()-before, int64(5000))
			_, _, err = b.Claim(t.Context(), key, own, hour) // Its own progress is not asked for either.
			require.NoError(t, err)
		})
	}
}

// traffic is what goes over the connections of a pool.
type traffic struct{ trips, read atomic.Int64 }

// counting is for a pool of one connection, whose traffic is counted.
func (w *traffic) counting(c *pgxpool.Config) {
	c.MaxConns = 1
	dial := c.ConnConfig.DialFunc
	c.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		return &tripCounter{Conn: conn, traffic: w}, err
	}
}

// tripCounter counts how often a client turns from reading to writing.
type tripCounter struct {
	net.Conn
	traffic *traffic
	writing atomic.Bool
}

func (c *tripCounter) Write(p []byte) (int, error) {
	if !c.writing.Swap(true) {
		c.traffic.trips.Add(1)
	}
	return c.Conn.Write(p)
}

func (c *tripCounter) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.traffic.read.Add(int64(n))
	if n > 0 {
		c.writing.Store(false)
	}
	return n, err
}

// A renewal writes to no index: nearly all of them are heap-only updates, also of
// many claims that lie side by side.
func TestRenewalsAreHeapOnly(t *testing.T) {
	pool := newPool(t)
	name := tableName(t, pool)
	b := postgres.New(pool, postgres.WithTable(name))
	t.Cleanup(b.Close)
	require.NoError(t, b.Migrate(t.Context()))
	const claims, renewals = 200, 5
	keys, owners := make([]idempotency.Key, claims), make([]idempotency.Claim, claims)
	for i := range keys {
		keys[i], owners[i] = claim(t, b, atMostOnce)
	}
	for range renewals {
		for i := range keys {
			require.NoError(t, b.Renew(t.Context(), keys[i], owners[i], atMostOnce, nil))
		}
	}
	b.Close() // The server counts what a connection did at the latest when it ends.
	var updates, heapOnly int
	require.Eventually(t, func() bool {
		require.NoError(t, pool.QueryRow(t.Context(), "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = $1", name).Scan(&updates, &heapOnly))
		return updates == claims*renewals
	}, time.Minute, 10*time.Millisecond)
	t.Logf("%d of %d renewals were heap-only updates", heapOnly, updates)
	require.Greater(t, heapOnly, updates*8/10)
}

// Renewals do not wait for the other users of the pool.
func TestRenewalsHaveConnectionsOfTheirOwn(t *testing.T) {
	pool := newPool(t, func(c *pgxpool.Config) { c.MaxConns = 1 })
	b := newBackend(t, pool)
	key, own := claim(t, b, hour)
	conn, err := pool.Acquire(t.Context())
	require.NoError(t, err)
	defer conn.Release()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, b.Renew(ctx, key, own, hour, nil))
	b.Close()
	b.Close()
	require.NoError(t, b.Renew(ctx, key, own, hour, nil), "and makes new ones")
}

// A duplicate is refused at once, also while the response is about to be committed.
func TestDuplicateDoesNotWaitForTheCommit(t *testing.T) {
	pool := newPool(t)
	name := tableName(t, pool)
	b := postgres.New(pool, postgres.WithTable(name))
	require.NoError(t, b.Migrate(t.Context()))
	key, own := claim(t, b, hour)
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { require.NoError(t, tx.Rollback(context.Background())) }()
	_, err = tx.Exec(t.Context(), "SELECT FROM "+pgx.Identifier{name}.Sanitize()+" FOR UPDATE")
	require.NoError(t, err)
	_, rival := newClaim()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	held, claimed, err := b.Claim(ctx, key, rival, hour)
	require.NoError(t, err)
	require.False(t, claimed)
	require.Equal(t, own, held.Claim)
}
