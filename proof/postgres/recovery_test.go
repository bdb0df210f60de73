package proof

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency/internal/recoverytest"
	"github.com/idempotency-go/idempotency/postgres"
)

// recoveryTarget leads the servers of a proof of recovery to their records.
type recoveryTarget struct {
	URL, Schema   string
	Transactional bool
}

// openRecoveryStore opens the records of a target. In a transaction a server writes that
// it has served a key.
func openRecoveryStore(text string) (recoverytest.Store, error) {
	var target recoveryTarget
	if err := json.Unmarshal([]byte(text), &target); err != nil {
		return recoverytest.Store{}, err
	}
	settings, err := pgxpool.ParseConfig(target.URL)
	if err != nil {
		return recoverytest.Store{}, err
	}
	settings.MaxConns = 4
	settings.ConnConfig.RuntimeParams["search_path"] = target.Schema
	pool, err := pgxpool.NewWithConfig(context.Background(), settings)
	if err != nil {
		return recoverytest.Store{}, err
	}
	records := postgres.WithTable(target.Schema + ".records")
	if !target.Transactional {
		return recoverytest.Store{Backend: postgres.New(pool, records)}, nil
	}
	return recoverytest.Store{Backend: postgres.NewTransactional(pool, records), Write: func(ctx context.Context, key string) error {
		tx, err := postgres.Tx(ctx)
		if err == nil {
			_, err = tx.Exec(ctx, `INSERT INTO runs (key) VALUES ($1)`, key)
		}
		return err
	}}, nil
}

// recoveryLease is longer than a server on a busy machine stands still, or makes a connection.
const recoveryLease = 3 * time.Second

// recoveryProofs are the parts of the proof of recovery, of n kills in all.
var recoveryProofs = []struct {
	name   string
	repeat bool
	prove  func(p *recoverytest.Proof, n int)
}{
	{"payments", false, func(p *recoverytest.Proof, n int) { p.Payments(n * 2 / 5) }},
	{"payments, each claim sent twice", true, func(p *recoverytest.Proof, n int) { p.Payments(n / 5) }},
	{"trips", false, func(p *recoverytest.Proof, n int) { p.Trips(n * 2 / 5) }},
	{"late owners, and crowds", false, func(p *recoverytest.Proof, n int) {
		p.LateOwners(1 + n/100)
		p.Crowds(2 + n/10)
	}},
}

// TestRecovery kills servers at every point of runs and recoveries, and of three steps:
// with -rounds 130 more than 500 times.
func TestRecovery(t *testing.T) {
	t.Parallel()
	for _, part := range recoveryProofs {
		for name, transactional := range map[string]bool{"plain": false, "in a transaction": true} {
			t.Run(part.name+", "+name, func(t *testing.T) {
				t.Parallel()
				proveRecovery(t, recoverytest.Settings{Lease: recoveryLease, Repeat: part.repeat}, transactional, func(p *recoverytest.Proof) {
					part.prove(p, 2**rounds)
					require.Empty(t, p.Violations(9))
				})
			})
		}
	}
}

// TestFindsBrokenRecoveries demands that each broken build is found, and nothing in one that
// is not broken.
func TestFindsBrokenRecoveries(t *testing.T) {
	t.Parallel()
	for i, b := range recoverytest.Breakages {
		t.Run(b.Name, func(t *testing.T) {
			t.Parallel()
			proveRecovery(t, recoverytest.Settings{Lease: b.Lease(), Repeat: b.Repeat, Broken: b.Name}, i%2 == 0, func(p *recoverytest.Proof) {
				b.Prove(p)
				require.Equal(t, b.Finds != "", p.Found(b.Finds) > 0, p.Violations(9))
				t.Log(p.Violations(1))
			})
		})
	}
}

// proveRecovery makes a proof with records of its own. What the servers of one that is not
// broken have written in their transactions must be there once for each key.
func proveRecovery(t *testing.T, s recoverytest.Settings, transactional bool, prove func(p *recoverytest.Proof)) {
	w := newWorld(t, requireServers(t), "")
	target, err := json.Marshal(recoveryTarget{w.config.URL, w.config.Schema, transactional})
	require.NoError(t, err)
	s.Target, s.Lanes, s.Seed = string(target), 6, *seed
	p, err := recoverytest.New(s)
	require.NoError(t, err)
	defer p.Stop()
	prove(p)
	t.Log(p.Counted())
	if !transactional || s.Broken != "" {
		return
	}
	var written, keys int
	w.read(&written, `SELECT count(*) FROM runs`)
	w.read(&keys, `SELECT count(DISTINCT key) FROM runs`)
	require.Equal(t, p.Count("keys"), written)
	require.Equal(t, p.Count("keys"), keys)
}
