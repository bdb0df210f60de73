package proof

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/postgres"
)

// The builds that break a promise on purpose, to show that the proof finds it.
const (
	brokenApart        = "writes first"       // commits the handler's writes before and apart from the record
	brokenRecordFirst  = "record first"       // stores the record before and apart from the writes
	brokenCommitted    = "guesses yes"        // takes a COMMIT that failed for done
	brokenNotCommitted = "guesses no"         // takes a COMMIT that failed for not done, and frees the key
	brokenAdmitsNone   = "never looks"        // the same, but leaves the record, so that only the client is told wrong
	brokenFoundNone    = "finds none"         // takes a COMMIT that failed for done if there is no record of its claim
	brokenFence        = "no fence"           // commits also where another holds the claim
	brokenClaimFence   = "no fence of claims" // commits where another claim is outstanding
	brokenLeaves       = "leaves"             // ends a claim with its client, and does not release it
	brokenSeldom       = "renews seldom"      // every 0.9 of a lease
	brokenOnce         = "renews no more"     // once a renewal has failed
	brokenKeepsWrites  = "commits refusals"   // commits the writes of what is not stored
	brokenLeavesOpen   = "never rolls back"   // leaves the transaction of what is not stored open
	brokenRaces        = "claim races"        // claims by a read and then a write
	brokenHolds        = "holds connections"  // and waits for the first request with them
	brokenChanges      = "changes answers"
	brokenForgets      = "no trace" // of what was interrupted
	brokenNot          = "not broken"
)

// broken is a Transactor that breaks one of its promises.
type broken struct {
	*postgres.Transactional
	pool    *pgxpool.Pool
	records string
	name    string
	lease   time.Duration

	mu     sync.Mutex
	known  map[idempotency.Token]time.Time // when a claim was renewed, or first was to be
	failed map[idempotency.Token]bool      // a renewal has
}

func newBroken(config serverConfig, pool *pgxpool.Pool) *broken {
	records := config.Schema + ".records"
	return &broken{Transactional: postgres.NewTransactional(pool, postgres.WithTable(records)), pool: pool, records: records, name: config.Broken,
		lease: config.Lease, known: make(map[idempotency.Token]time.Time), failed: make(map[idempotency.Token]bool)}
}

// own is the transaction of a broken build, which the right one does not see.
type own struct {
	mu sync.Mutex
	tx pgx.Tx
}

type ownKey struct{}

// Begin implements [idempotency.Transactor].
func (b *broken) Begin(ctx context.Context, _ idempotency.Key, _ idempotency.Claim, _ time.Duration) context.Context {
	return context.WithValue(ctx, ownKey{}, &own{})
}

func (b *broken) tx(ctx context.Context) (pgx.Tx, error) {
	o := ctx.Value(ownKey{}).(*own)
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.tx == nil {
		tx, err := b.pool.Begin(ctx)
		if err != nil {
			return nil, err
		}
		o.tx = tx
	}
	return o.tx, nil
}

// Claim implements [idempotency.Backend].
func (b *broken) Claim(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
	switch b.name {
	case brokenForgets:
		terms.Trace = 0
	case brokenLeaves:
		ctx = visitOf(ctx).client
	case brokenRaces:
		var held bool
		err := b.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM `+b.records+` WHERE key = $1 AND ends > clock_timestamp())`, key[:]).Scan(&held)
		if err != nil || held {
			break
		}
		// The one that is late deletes what the other has committed meanwhile.
		time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond)
		if _, err := b.pool.Exec(ctx, `DELETE FROM `+b.records+` WHERE key = $1`, key[:]); err != nil {
			return idempotency.Record{}, false, err
		}
	case brokenHolds:
		// It waits for the first request with a connection in its hand.
		conn, err := b.pool.Acquire(ctx)
		if err != nil {
			return idempotency.Record{}, false, err
		}
		defer conn.Release()
		outstanding := func() (is bool, err error) {
			err = conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM `+b.records+` WHERE key = $1 AND state <> 2 AND ends > clock_timestamp())`, key[:]).Scan(&is)
			return is, err
		}
		for is, err := outstanding(); is || err != nil; is, err = outstanding() {
			if err != nil {
				return idempotency.Record{}, false, err
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	held, claimed, err := b.Backend.Claim(ctx, key, claim, terms)
	if b.name == brokenChanges && held.Response != nil {
		held.Response, err = changeBody(held.Response)
	}
	return held, claimed, err
}

// changeBody returns a stored response with a longer body.
func changeBody(stored []byte) ([]byte, error) {
	var response idempotency.Response
	if err := response.UnmarshalBinary(stored); err != nil {
		return nil, err
	}
	response.Body = append([]byte(" "), response.Body...)
	return response.MarshalBinary()
}

// Renew implements [idempotency.Backend].
func (b *broken) Renew(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms, progress []byte) error {
	if b.name == brokenForgets {
		terms.Trace = 0
	}
	if b.skips(claim) {
		return nil
	}
	err := b.Backend.Renew(ctx, key, claim, terms, progress)
	if err != nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.failed[claim.Token] = true
	}
	return err
}

// skips reports whether a renewal is left out.
func (b *broken) skips(claim idempotency.Claim) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch b.name {
	case brokenOnce:
		return b.failed[claim.Token]
	case brokenSeldom:
		now := time.Now()
		if known, ok := b.known[claim.Token]; ok && now.Sub(known) < b.lease*9/10 {
			return true
		}
		b.known[claim.Token] = now
	}
	return false
}

// Complete implements [idempotency.Transactor].
func (b *broken) Complete(ctx context.Context, key idempotency.Key, claim idempotency.Claim, response []byte, expiry time.Duration) error {
	o := ctx.Value(ownKey{}).(*own)
	if o.tx == nil { // It was tried before.
		return b.Backend.Complete(ctx, key, claim, response, expiry)
	}
	tx := o.tx
	o.tx = nil
	defer func() { _ = tx.Rollback(ctx) }() // After a COMMIT it does nothing.
	switch b.name {
	case brokenApart:
		if err := tx.Commit(ctx); err != nil {
			return notCommitted(err)
		}
		return b.Backend.Complete(ctx, key, claim, response, expiry)
	case brokenRecordFirst:
		if err := b.Backend.Complete(ctx, key, claim, response, expiry); err != nil {
			return err
		}
		return tx.Commit(ctx)
	}
	written, err := tx.Exec(ctx, `UPDATE `+b.records+` SET state = 2, trace = 0, progress = NULL, response = $3,
		ends = clock_timestamp() + interval '1 hour', sweep_from = clock_timestamp() + interval '1 hour'
		WHERE key = $1 AND ($4 OR (token = $2 OR $5) AND state <> 2)`, key[:], claim.Token.String(), response,
		b.name == brokenFence, b.name == brokenClaimFence)
	switch {
	case err != nil:
		return notCommitted(err)
	case written.RowsAffected() == 0:
		return idempotency.ErrClaimLost
	}
	err = tx.Commit(ctx)
	switch {
	case err == nil || b.name == brokenCommitted:
		return nil
	case b.name == brokenFoundNone:
		return b.lookUp(ctx, claim)
	}
	return notCommitted(err)
}

// lookUp finds out what became of a COMMIT, and takes no record for a response.
func (b *broken) lookUp(ctx context.Context, claim idempotency.Claim) error {
	for {
		completed := true
		err := b.pool.QueryRow(ctx, `SELECT state = 2 FROM `+b.records+` WHERE token = $1`, claim.Token.String()).Scan(&completed)
		switch {
		case ctx.Err() != nil:
			return err
		case err != nil && !errors.Is(err, pgx.ErrNoRows):
			time.Sleep(10 * time.Millisecond)
		case completed:
			return nil
		default:
			return idempotency.ErrNotCommitted
		}
	}
}

func notCommitted(err error) error { return fmt.Errorf("%w: %w", idempotency.ErrNotCommitted, err) }

// Release implements [idempotency.Transactor].
func (b *broken) Release(ctx context.Context, key idempotency.Key, claim idempotency.Claim, trace time.Duration) error {
	o, _ := ctx.Value(ownKey{}).(*own)
	if o != nil && o.tx != nil {
		switch b.name {
		case brokenKeepsWrites:
			_ = o.tx.Commit(ctx) // The proof tells whether it worked.
		case brokenLeavesOpen:
		default:
			_ = o.tx.Rollback(ctx) // A connection on which this fails is closed.
		}
		o.tx = nil
	}
	switch b.name {
	case brokenLeaves:
		if visitOf(ctx).client.Err() != nil {
			return nil
		}
	case brokenNotCommitted:
		_, err := b.pool.Exec(ctx, `DELETE FROM `+b.records+` WHERE key = $1 AND token = $2`, key[:], claim.Token.String())
		return err
	case brokenForgets:
		trace = 0
	}
	return b.Backend.Release(ctx, key, claim, trace)
}
