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

// Transactional is a Backend whose handlers write in a transaction that commits
// together with their response, or not at all; see [Tx] and
// [idempotency.Transactor]. Whatever ends the process, the connection or the
// database: either the writes are there and every retry is answered with their
// response, or nothing of them is and the retry runs the handler again.
//
//	once := idempotency.New(postgres.NewTransactional(pool), idempotency.WithRequired())
//	mux.Handle("POST /payments", once(http.HandlerFunc(pay)))
//
//	func pay(w http.ResponseWriter, r *http.Request) {
//		tx, err := postgres.Tx(r.Context())
//		…
//		_, err = tx.Exec(r.Context(), "INSERT INTO payments …")
//
// What is committed with what:
//
//   - A response that is stored commits the writes with it. That is every
//     response of a status below 500, of any type, unless the middleware's
//     options say otherwise.
//   - A status of 500 or more, [idempotency.NoStore] and a panic undo the writes
//     and let go of the key: a retry is processed afresh. (With
//     [idempotency.WithAtMostOnce] only NoStore lets go of it.)
//   - A response that is not stored because of what it is (too large, encoded,
//     with trailers) or because WithStoreIf or WithContentTypes do not want it,
//     undoes the writes. From 400 on it is sent; below, the client gets 500.
//   - A transaction that cannot commit, because its claim was lost or a
//     statement in it has failed, is undone: the client gets 409 or 503, and a
//     retry is processed afresh. A handler that answers after a failed statement
//     can go on from a savepoint (tx.Begin).
//   - A connection that is lost in the COMMIT leaves open what became of it: it
//     is looked up, for up to 5 s. If the database stays away, the client gets
//     503, after up to 10 s, and its retry finds out.
//
// The key is claimed outside of the transaction, so that a duplicate is refused,
// or waits, without a connection while the first request runs. A handler holds
// one connection from its call of Tx to its end, and its claim needs another one
// for a moment, to be renewed: give the pool more connections than there are
// handlers at once, or no claim is renewed while they all run. On the server set
// idle_in_transaction_session_timeout, longer than a handler takes between two
// statements, and TCP keepalives: they end the transaction of a process that has
// stopped, or was cut off, between the record and its COMMIT. Until then its
// record is locked, and retries get 503.
type Transactional struct{ *Backend }

var _ idempotency.Transactor = (*Transactional)(nil)

// NewTransactional is [New] for handlers that write in a transaction.
func NewTransactional(pool *pgxpool.Pool, opts ...Option) *Transactional {
	return &Transactional{New(pool, opts...)}
}

// ErrNoTx is returned by [Tx] where there is no transaction to be had: the
// request has no key, did not pass through the middleware of a [Transactional],
// runs unprotected (see [idempotency.WithFailOpen]), or its handler has returned.
var ErrNoTx = errors.New("postgres: no transaction for this request")

// Tx returns, inside the handler, the transaction that commits with the
// response. It begins with the first call, on a connection of the pool, and
// every further call returns the same. It is not for concurrent use, and ends
// when the handler returns: what a goroutine does with it later has no effect,
// and if a statement is still under way by then, nothing commits. Its Commit and
// Rollback do nothing but return an error; Begin makes a savepoint, which can be
// committed and rolled back. The error is [ErrNoTx], or why the transaction could
// not begin.
func Tx(ctx context.Context) (pgx.Tx, error) {
	t, _ := ctx.Value(contextKey{}).(*transaction)
	if t == nil {
		return nil, ErrNoTx
	}
	return t.begin(ctx)
}

// contextKey is where a context carries its transaction.
type contextKey struct{}

// Begin implements [idempotency.Transactor].
func (b *Transactional) Begin(ctx context.Context, key string, claim idempotency.Claim) context.Context {
	return context.WithValue(ctx, contextKey{}, &transaction{backend: b.Backend, key: key, claim: claim})
}

// Complete implements [idempotency.Transactor].
func (b *Transactional) Complete(ctx context.Context, key string, claim idempotency.Claim, resp *idempotency.Response, expiry time.Duration) error {
	if t := transactionOf(ctx, key, claim); t != nil {
		return t.complete(ctx, resp, expiry)
	}
	return b.Backend.Complete(ctx, key, claim, resp, expiry)
}

// Release implements [idempotency.Transactor].
func (b *Transactional) Release(ctx context.Context, key string, claim idempotency.Claim) error {
	if t := transactionOf(ctx, key, claim); t != nil {
		t.end(ctx)
	}
	return b.Backend.Release(ctx, key, claim)
}

// transactionOf returns the transaction of a claim, or nil. The context may have
// that of another claim, whose handler this one's request came from.
func transactionOf(ctx context.Context, key string, claim idempotency.Claim) *transaction {
	t, _ := ctx.Value(contextKey{}).(*transaction)
	if t == nil || t.key != key || t.claim.Token != claim.Token {
		return nil
	}
	return t
}

// transaction is the one of a claim.
type transaction struct {
	backend *Backend
	key     string
	claim   idempotency.Claim

	conn    atomic.Pointer[pgconn.PgConn] // of tx
	mu      sync.Mutex                    // is held by whatever uses tx
	ended   bool                          // for the handler
	tx      pgx.Tx                        // nil before the handler asks for it, and when it is over
	tried   bool                          // COMMIT was tried, or cannot be
	known   bool                          // what became of it
	outcome error                         // nil is committed
}

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
	tx, err := t.backend.pool.BeginTx(ctx, t.backend.tx)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended || t.tx != nil {
		_ = tx.Rollback(ctx)
		return nil, ErrNoTx
	}
	t.tx = tx
	t.conn.Store(tx.Conn().PgConn())
	return handlerTx{savepoint{tx, t}}, nil
}

// end ends the transaction without a commit.
func (t *transaction) end(ctx context.Context) {
	defer t.seize()()
	t.undo(ctx)
}

// seize takes the transaction from the handler, and returns what lets go of the
// lock on it. Where a goroutine of the handler's has left a statement under way,
// it cuts the connection: nobody can tell what of that would commit.
func (t *transaction) seize() (unlock func()) {
	if !t.mu.TryLock() {
		if conn := t.conn.Load(); conn != nil {
			_ = conn.Conn().Close()
		}
		t.mu.Lock()
	}
	t.ended = true
	return t.mu.Unlock
}

func (t *transaction) undo(ctx context.Context) {
	if t.tx != nil {
		// A connection on which this fails is closed, which has the same effect.
		_ = t.tx.Rollback(ctx)
		t.tx = nil
	}
}

// complete commits the handler's writes together with the response. A call after
// one whose outcome is not known looks it up.
func (t *transaction) complete(ctx context.Context, resp *idempotency.Response, expiry time.Duration) error {
	defer t.seize()()
	if resp.Status == 0 {
		t.undo(ctx)
		return t.backend.Complete(ctx, t.key, t.claim, resp, expiry)
	}
	if !t.tried {
		if t.tx == nil { // There is nothing to commit with it.
			return t.backend.Complete(ctx, t.key, t.claim, resp, expiry)
		}
		t.tried = true
		t.commit(ctx, resp, expiry)
	}
	if !t.known {
		t.lookUp(ctx)
	}
	return t.outcome
}

// commit leaves a transaction that it could not commit to be undone: the claim is
// released next.
func (t *transaction) commit(ctx context.Context, resp *idempotency.Response, expiry time.Duration) {
	t.known = true
	if t.tx.Conn().PgConn().TxStatus() == 'I' { // The record would be written by itself.
		t.outcome = notCommitted(errors.New("the handler has ended the transaction itself; what it wrote may be there"))
		return
	}
	row, err := encode(resp)
	if err != nil {
		t.outcome = notCommitted(err)
		return
	}
	tag, err := t.tx.Exec(ctx, t.backend.sql.commit, t.key, t.claim.Token, row.status, row.header, row.body, microseconds(expiry))
	if err != nil {
		t.outcome = notCommitted(err)
		return
	}
	if tag.RowsAffected() == 0 {
		t.outcome = fmt.Errorf("%w, or the handler has changed the search path (see WithTable)", idempotency.ErrClaimLost)
		return
	}
	err = t.tx.Commit(ctx)
	if errors.Is(err, pgx.ErrTxCommitRollback) {
		t.outcome = notCommitted(err)
		return
	}
	// Whatever else went wrong, the COMMIT may have taken effect.
	t.known, t.outcome = err == nil, err
}

// lookUp finds out what became of a COMMIT: where it has taken effect, the claim
// has its response.
func (t *transaction) lookUp(ctx context.Context) {
	var committed bool
	err := again(ctx, func() error {
		return t.backend.pool.QueryRow(ctx, t.backend.sql.look, t.key, t.claim.Token).Scan(&committed)
	})
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		t.known, t.outcome = true, idempotency.ErrClaimLost
	case err != nil:
		t.outcome = fmt.Errorf("the outcome of COMMIT is not known: %w", err)
	case committed:
		t.known, t.outcome = true, nil
	default:
		t.known, t.outcome = true, notCommitted(t.outcome)
	}
}

func notCommitted(cause error) error {
	return fmt.Errorf("%w: %w", idempotency.ErrNotCommitted, cause)
}
