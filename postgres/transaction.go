package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/idempotency-go/idempotency"
)

// transaction is the one of a claim.
//
// A setting that is local to it, idempotency.claim, has the claim's token. The
// setting is gone when the transaction ends, however that comes about, and stays
// after a ROLLBACK TO SAVEPOINT: if it is missing, the handler has ended the
// transaction, and the connection is in another one.
type transaction struct {
	backend *Backend
	key     idempotency.Key
	claim   idempotency.Claim
	expiry  time.Duration // that Begin was given

	raw     atomic.Pointer[pgconn.PgConn] // of conn
	mu      sync.Mutex                    // is held while conn is used
	ended   bool                          // for the handler
	conn    *pgxpool.Conn                 // nil before the handler asks for it, and when it is over
	tx      pgx.Tx                        // on conn
	role    string                        // of the pool's connection, if the handler may have changed it
	suspect bool                          // a statement of the handler's may have ended the transaction
	ending  bool                          // one did: what the handler wrote may be there
	tried   bool                          // COMMIT was tried, or cannot be
	known   bool                          // what became of it
	outcome error                         // nil is committed
}

// errEnded is what a handler did that must not.
var errEnded = errors.New("the handler has ended the transaction itself; what it wrote may be there")

// begin returns the transaction, which begins with the first call.
func (t *transaction) begin(ctx context.Context) (pgx.Tx, error) {
	if !t.mu.TryLock() {
		return nil, errInUse
	}
	begun, ended := t.tx, t.ended
	t.mu.Unlock()
	if ended {
		return nil, ErrNoTx
	}
	if begun != nil {
		return handlerTx{savepoint{begun, t}}, nil
	}
	// It may take long to get a connection: nobody waits for that.
	conn, err := t.backend.pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	tx, err := conn.BeginTx(ctx, t.options())
	if err != nil {
		conn.Release()
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended || t.tx != nil {
		_ = tx.Rollback(ctx) // A connection on which this fails is closed, which has the same effect.
		conn.Release()
		return nil, ErrNoTx
	}
	t.conn, t.tx = conn, tx
	t.raw.Store(conn.Conn().PgConn())
	return handlerTx{savepoint{tx, t}}, nil
}

// options returns how the transaction begins: as the user has it, and with the
// setting that it is known by, in one round trip.
func (t *transaction) options() pgx.TxOptions {
	opts := t.backend.tx
	if opts.BeginQuery == "" {
		opts.BeginQuery = "begin"
		if opts.IsoLevel != "" {
			opts.BeginQuery += " isolation level " + string(opts.IsoLevel)
		}
		if opts.AccessMode != "" {
			opts.BeginQuery += " " + string(opts.AccessMode)
		}
		if opts.DeferrableMode != "" {
			opts.BeginQuery += " " + string(opts.DeferrableMode)
		}
	}
	opts.BeginQuery += "; SET LOCAL idempotency.claim = '" + t.claim.Token.String() + "'"
	return opts
}

// end ends the transaction without a commit. It returns true if the handler has
// ended it before: its writes may be there.
func (t *transaction) end(ctx context.Context) bool {
	defer t.seize()()
	t.undo(ctx)
	return t.ending
}

// seize takes the transaction from the handler, and returns what unlocks it. If
// a goroutine of the handler's has left a statement under way, it cuts the
// connection: nobody can tell what of that would commit.
func (t *transaction) seize() (unlock func()) {
	if !t.mu.TryLock() {
		if raw := t.raw.Load(); raw != nil {
			_ = raw.Conn().Close()
		}
		t.mu.Lock()
	}
	t.ended = true
	return t.mu.Unlock
}

// undo rolls back, and finds out if the handler has ended the transaction, in one
// round trip. A connection on which it fails is closed, which undoes as well.
func (t *transaction) undo(ctx context.Context) {
	if t.conn == nil {
		return
	}
	raw := t.conn.Conn().PgConn()
	switch raw.TxStatus() {
	case 'I':
		t.ending = true
	case 'T':
		results, err := raw.Exec(ctx, "SELECT "+marker+"; ROLLBACK").ReadAll()
		if err != nil || len(results) == 0 || len(results[0].Rows) != 1 {
			t.ending = t.ending || t.suspect
		} else if string(results[0].Rows[0][0]) != t.claim.Token.String() {
			t.ending = true
		}
	default: // A statement has failed. Nothing but a ROLLBACK is possible.
		_, _ = raw.Exec(ctx, "ROLLBACK").ReadAll()
		t.ending = t.ending || t.suspect
	}
	t.release()
}

// release gives the connection back to the pool, which closes it if it is still in
// a transaction.
func (t *transaction) release() {
	t.conn.Release()
	t.conn = nil
}

// complete commits the handler's writes together with the response. A call after
// one whose outcome is not known looks it up.
func (t *transaction) complete(ctx context.Context, response []byte, expiry time.Duration) error {
	defer t.seize()()
	if !t.tried {
		if t.conn == nil { // There is nothing to commit with it.
			return t.completeAlone(ctx, response, expiry)
		}
		t.tried = true
		t.commit(ctx, response, expiry)
	}
	if !t.known {
		t.lookUp(ctx)
	}
	return t.outcome
}

// completeAlone stores the response if the handler has asked for no transaction.
func (t *transaction) completeAlone(ctx context.Context, response []byte, expiry time.Duration) error {
	return again(ctx, func() error {
		var outside, written, completed bool
		err := t.backend.pool.QueryRow(ctx, t.backend.sql.commit, t.arguments(response, expiry, nil)...).Scan(&outside, &written, &completed)
		if err == nil && !written && !completed {
			return idempotency.ErrClaimLost
		}
		return err
	})
}

func (t *transaction) arguments(response []byte, expiry time.Duration, marker *string) []any {
	return []any{t.key[:], t.claim.Token.String(), response, microseconds(expiry), marker}
}

// commit leaves a transaction that it could not commit to be undone: the claim is
// released next.
func (t *transaction) commit(ctx context.Context, response []byte, expiry time.Duration) {
	t.known = true
	switch t.conn.Conn().PgConn().TxStatus() {
	case 'I': // The record would be written by itself.
		t.outcome = t.isEnded()
		return
	case 'E':
		t.outcome = t.notCommitted(errors.New("a statement has failed"))
		return
	}
	this, written, err := t.write(ctx, response, expiry)
	switch {
	case err != nil:
		t.outcome = t.notCommitted(full(err))
		return
	case !this:
		t.outcome = t.isEnded()
		return
	case !written:
		t.outcome = fmt.Errorf("%w, or the handler has changed the search path (see WithTable)", idempotency.ErrClaimLost)
		return
	}
	err = t.tx.Commit(ctx)
	t.release()
	if errors.Is(err, pgx.ErrTxCommitRollback) {
		t.outcome = t.notCommitted(err)
		return
	}
	// After any other error the COMMIT may have taken effect.
	t.known, t.outcome = err == nil, err
}

// write writes the response in the transaction, under the role of the pool's
// connection. It returns whether that is this one, and whether the key held this
// very claim.
func (t *transaction) write(ctx context.Context, response []byte, expiry time.Duration) (this, written bool, err error) {
	if t.role != "" {
		// Not in one batch with the record: that would be prepared first, under the
		// handler's role.
		if _, err := t.conn.Exec(ctx, "SELECT set_config('role', $1, true)", t.role); err != nil {
			return false, false, err
		}
	}
	token := t.claim.Token.String()
	var completed bool
	err = t.conn.QueryRow(ctx, t.backend.sql.commit, t.arguments(response, expiry, &token)...).Scan(&this, &written, &completed)
	return this, written, err
}

// lookUp finds out what became of a COMMIT: if it has taken effect, the claim
// has its response.
func (t *transaction) lookUp(ctx context.Context) {
	var committed bool
	err := again(ctx, func() error {
		return t.backend.pool.QueryRow(ctx, t.backend.sql.look, t.key[:], t.claim.Token.String()).Scan(&committed)
	})
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		t.known, t.outcome = true, idempotency.ErrClaimLost
	case err != nil:
		t.outcome = fmt.Errorf("postgres: the outcome of COMMIT is not known: %w", err)
	case committed:
		t.known, t.outcome = true, nil
	default:
		t.known, t.outcome = true, t.notCommitted(t.outcome)
	}
}

// notCommitted returns that nothing was committed, or that the handler may have
// committed something itself: if a statement has failed, the database does not
// tell in which transaction.
func (t *transaction) notCommitted(cause error) error {
	if t.suspect {
		return fmt.Errorf("%w: %w", t.isEnded(), cause)
	}
	return fmt.Errorf("%w: postgres: %w", idempotency.ErrNotCommitted, cause)
}

// isEnded notes that the handler has ended the transaction itself.
func (t *transaction) isEnded() error {
	t.ending = true
	return fmt.Errorf("%w: postgres: %w", idempotency.ErrInterrupted, errEnded)
}
