package proof

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/postgres"
)

// The builds that break a promise on purpose, to show that the proof finds it.
const (
	brokenApart        = "writes first"      // commits the handler's writes before and apart from the record
	brokenRecordFirst  = "record first"      // stores the record before and apart from the writes
	brokenCommitted    = "guesses yes"       // takes a COMMIT that failed for done
	brokenNotCommitted = "guesses no"        // takes a COMMIT that failed for not done, and frees the key
	brokenAdmitsNone   = "never looks"       // the same, but leaves the record, so that only the client is told wrong
	brokenFence        = "no fence"          // commits whoever holds the claim
	brokenKeepsWrites  = "commits refusals"  // commits the writes of what is not stored
	brokenLeavesOpen   = "never rolls back"  // leaves the transaction of what is not stored open
	brokenRaces        = "claim races"       // claims by a read and then a write
	brokenHolds        = "holds connections" // and waits for the first request with them
	brokenChanges      = "changes answers"
	brokenNot          = "not broken"
)

// broken is a Transactor that breaks one of its promises.
type broken struct {
	*postgres.Transactional
	pool    *pgxpool.Pool
	records string
	name    string
}

func newBroken(config serverConfig, pool *pgxpool.Pool) *broken {
	records := config.Schema + ".records"
	return &broken{postgres.NewTransactional(pool, postgres.WithTable(records)), pool, records, config.Broken}
}

// own is the transaction of a broken build, which the right one does not see.
type own struct {
	mu sync.Mutex
	tx pgx.Tx
}

type ownKey struct{}

// Begin implements [idempotency.Transactor].
func (b *broken) Begin(ctx context.Context, _ string, _ idempotency.Claim) context.Context {
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
func (b *broken) Claim(ctx context.Context, key string, claim idempotency.Claim, lease time.Duration) (idempotency.Record, bool, error) {
	switch b.name {
	case brokenRaces:
		var held bool
		err := b.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM `+b.records+` WHERE key = $1 AND expires > clock_timestamp())`, key).Scan(&held)
		if err != nil || held {
			break
		}
		time.Sleep(20 * time.Millisecond)
		if _, err := b.pool.Exec(ctx, `DELETE FROM `+b.records+` WHERE key = $1`, key); err != nil {
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
			err = conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM `+b.records+` WHERE key = $1 AND status IS NULL AND expires > clock_timestamp())`, key).Scan(&is)
			return is, err
		}
		for is, err := outstanding(); is || err != nil; is, err = outstanding() {
			if err != nil {
				return idempotency.Record{}, false, err
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	held, claimed, err := b.Backend.Claim(ctx, key, claim, lease)
	if b.name == brokenChanges && held.Response != nil {
		held.Response.Body = append([]byte(" "), held.Response.Body...)
	}
	return held, claimed, err
}

// Complete implements [idempotency.Transactor].
func (b *broken) Complete(ctx context.Context, key string, claim idempotency.Claim, resp *idempotency.Response, expiry time.Duration) error {
	o := ctx.Value(ownKey{}).(*own)
	if o.tx == nil { // It was tried before.
		return b.Backend.Complete(ctx, key, claim, resp, expiry)
	}
	tx := o.tx
	o.tx = nil
	defer func() { _ = tx.Rollback(ctx) }() // After a COMMIT it does nothing.
	switch b.name {
	case brokenApart:
		if err := tx.Commit(ctx); err != nil {
			return notCommitted(err)
		}
		return b.Backend.Complete(ctx, key, claim, resp, expiry)
	case brokenRecordFirst:
		if err := b.Backend.Complete(ctx, key, claim, resp, expiry); err != nil {
			return err
		}
		return tx.Commit(ctx)
	}
	token := claim.Token
	if b.name == brokenFence {
		token = "%"
	}
	header, err := json.Marshal(resp.Header)
	if err != nil {
		return err
	}
	written, err := tx.Exec(ctx, `UPDATE `+b.records+` SET status = $3, header = $4, body = $5, expires = clock_timestamp() + interval '1 hour'
		WHERE key = $1 AND token LIKE $2 AND (status IS NULL OR $2 = '%')`, key, token, resp.Status, string(header), resp.Body)
	switch {
	case err != nil:
		return notCommitted(err)
	case written.RowsAffected() == 0:
		return idempotency.ErrClaimLost
	}
	err = tx.Commit(ctx)
	if err == nil || b.name == brokenCommitted {
		return nil
	}
	return notCommitted(err)
}

func notCommitted(err error) error { return fmt.Errorf("%w: %w", idempotency.ErrNotCommitted, err) }

// Release implements [idempotency.Transactor].
func (b *broken) Release(ctx context.Context, key string, claim idempotency.Claim) error {
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
	if b.name == brokenNotCommitted {
		_, err := b.pool.Exec(ctx, `DELETE FROM `+b.records+` WHERE key = $1 AND token = $2`, key, claim.Token)
		return err
	}
	return b.Backend.Release(ctx, key, claim)
}
