package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
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
//     and release the claim: a retry is processed afresh. (With
//     [idempotency.WithAtMostOnce] only NoStore frees the key. With
//     [idempotency.WithRecovery] the retry recovers.)
//   - A response that is not stored because of what it is (too large,
//     with trailers) or because WithStoreIf or WithContentTypes do not want it,
//     undoes the writes. From 400 on it is sent; below, the client gets 500.
//   - A transaction that cannot commit, because its claim was lost or a
//     statement in it has failed, is undone: the client gets 409 or 503, and a
//     retry is processed afresh. A handler that answers after a failed statement
//     can go on from a savepoint (tx.Begin).
//   - A connection that is lost in the COMMIT leaves open what became of it: it
//     is looked up, for up to 5 s. If the database stays away, the client gets
//     503, after up to 10 s, and its retry finds out.
//   - The result of an [idempotency.Step] is no part of the transaction, and stays if that is
//     undone. Its function must not write in the transaction: a retry, which has the
//     result, would not write again.
//   - A handler that ends the transaction itself, by a COMMIT or a ROLLBACK of its
//     own, is found out. What it wrote may be there, and no response is: the key is
//     interrupted until a response would have expired, in every mode, and the client
//     gets [idempotency.ErrInterrupted].
//
// The record is written under the role that the pool's connection had, also if
// the handler has changed it (SET LOCAL ROLE), as long as the word "role" is in a
// statement that it sent; a role that a function has changed stays. That takes two
// more round trips. Triggers that are deferred then run under the pool's role. The search path stays as the handler
// has left it; see [WithTable].
//
// The key is claimed outside of the transaction, so that a duplicate is refused,
// or waits, without a connection while the first request runs. A handler holds
// one connection from its call of Tx to its end, and every claim needs one for a
// moment: give the pool more connections than there are handlers at once, or
// duplicates wait for a handler to end. (Renewals have connections of their own.)
// On the server set idle_in_transaction_session_timeout, longer than a handler takes
// between two statements, and TCP keepalives: they end the transaction of a process
// that has stopped, or was cut off, between the record and its COMMIT. Until then
// its record is locked, and retries get 503.
type Transactional struct{ *Backend }

var _ idempotency.Transactor = (*Transactional)(nil)

// NewTransactional is [New] for handlers that write in a transaction.
func NewTransactional(pool *pgxpool.Pool, opts ...Option) *Transactional {
	return &Transactional{New(pool, opts...)}
}

// ErrNoTx is returned by [Tx] if there is no transaction to be had: the
// request has no key, did not pass through the middleware of a [Transactional],
// runs unprotected (see [idempotency.WithFailOpen]), or its handler has returned.
var ErrNoTx = errors.New("postgres: no transaction for this request")

// Tx returns, inside the handler, the transaction that commits with the
// response. It begins with the first call, on a connection of the pool, and
// every further call returns the same. It is not for concurrent use, and ends
// when the handler returns: what a goroutine does with it later has no effect,
// and if a statement is still under way by then, nothing commits. The error is
// [ErrNoTx], or why the transaction could not begin.
//
// Its Commit and Rollback do nothing but return an error; Begin makes a savepoint,
// which can be committed and rolled back. Its Conn and LargeObjects panic: what they
// would return could be used after the handler, in the transaction of another
// request. (The Conn of its Rows is nil. Large objects have SQL functions, such as
// lo_put.)
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
func (b *Transactional) Begin(ctx context.Context, key idempotency.Key, claim idempotency.Claim, expiry time.Duration) context.Context {
	return context.WithValue(ctx, contextKey{}, &transaction{backend: b.Backend, key: key, claim: claim, expiry: expiry})
}

// Complete implements [idempotency.Transactor]. If the handler has ended the
// transaction itself, the error wraps [idempotency.ErrInterrupted]: no repetition
// mends it, and Release makes the key interrupted.
func (b *Transactional) Complete(ctx context.Context, key idempotency.Key, claim idempotency.Claim, response []byte, expiry time.Duration) error {
	t := transactionOf(ctx, key, claim)
	if t == nil {
		return b.Backend.Complete(ctx, key, claim, response, expiry)
	}
	if err := checkExpiry(expiry); err != nil {
		return err
	}
	return t.complete(ctx, present(response), expiry)
}

// Release implements [idempotency.Transactor].
func (b *Transactional) Release(ctx context.Context, key idempotency.Key, claim idempotency.Claim, trace time.Duration) error {
	if err := checkTrace(trace); err != nil {
		return err
	}
	if t := transactionOf(ctx, key, claim); t != nil && t.end(ctx) {
		trace = max(trace, t.expiry) // The handler's writes may be there.
	}
	return b.Backend.Release(ctx, key, claim, trace)
}

// transactionOf returns the transaction of a claim, or nil. The context may have
// that of another claim, whose handler this one's request came from.
func transactionOf(ctx context.Context, key idempotency.Key, claim idempotency.Claim) *transaction {
	t, _ := ctx.Value(contextKey{}).(*transaction)
	if t == nil || t.key != key || t.claim.Token != claim.Token {
		return nil
	}
	return t
}
