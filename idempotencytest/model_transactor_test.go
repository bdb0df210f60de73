package idempotencytest_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/idempotency-go/idempotency"
)

// newFaulty returns a backend with a fault, which is a transactor where the fault
// is one of those.
func newFaulty(fault string) idempotency.Backend {
	switch fault {
	case isBare:
		return bare{newModel(fault)}
	case isWrapped, "Forget of a backend that is wrapped does nothing":
		return wrapper{wrapper{newModel(strings.Replace(fault, "of a backend that is wrapped does", "deletes", 1))}}
	}
	if fault == isTransactor || fault == needsClaim || strings.Contains(fault, "Begin") || strings.Contains(fault, "begun") {
		return &transactor{model: newModel(fault)}
	}
	return newModel(fault)
}

// What a backend may be, which is no fault.
const (
	isBare       = "the backend is no Inspector"
	isWrapped    = "the backend is wrapped, and shows what it is"
	isTransactor = "the backend is a Transactor"
	needsClaim   = "a Transactor completes this very claim only"
)

// transactor is a model that begins transactions.
type transactor struct {
	*model
	mu    sync.Mutex
	begun map[idempotency.Key]bool // keys whose transaction is open
}

type transactionKey struct{}

// transaction is what its context carries.
type transaction struct {
	key    idempotency.Key
	claim  idempotency.Claim
	ended  bool
	undone bool
}

func (b *transactor) Begin(ctx context.Context, key idempotency.Key, claim idempotency.Claim, expiry time.Duration) context.Context {
	switch {
	case b.has("Begin loses the context's values"):
		ctx = context.Background()
	case b.has("Begin's context has ended"):
		ended, cancel := context.WithCancel(ctx)
		cancel()
		ctx = ended
	case b.has("Begin's context does not end"):
		ctx = context.WithoutCancel(ctx)
	case ctx.Value(transactionKey{}) != nil && b.has("what was begun within another counts as that one"):
		return ctx
	case b.has("Begin releases the claim"):
		_ = b.model.Release(ctx, key, claim, 0)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.begun == nil {
		b.begun = make(map[idempotency.Key]bool)
	}
	b.begun[key] = true
	return context.WithValue(ctx, transactionKey{}, &transaction{key: key, claim: claim})
}

// end ends the transaction of a context, and returns it.
func (b *transactor) end(ctx context.Context) *transaction {
	tx, _ := ctx.Value(transactionKey{}).(*transaction)
	if tx != nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.begun, tx.key)
	}
	return tx
}

func (b *transactor) Claim(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
	if b.has("Claim waits for what was begun") {
		b.mu.Lock()
		begun := b.begun[key]
		b.mu.Unlock()
		if begun {
			return idempotency.Record{}, false, errors.New("waited for too long")
		}
	}
	return b.model.Claim(ctx, key, claim, terms)
}

func (b *transactor) Renew(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms, progress []byte) error {
	tx, _ := ctx.Value(transactionKey{}).(*transaction)
	if tx != nil && b.has("Renew after Begin does nothing") {
		return nil
	}
	if tx != nil && b.has("Renew after Begin keeps no progress") {
		progress = nil
	}
	return b.model.Renew(ctx, key, claim, terms, progress)
}

func (b *transactor) Complete(ctx context.Context, key idempotency.Key, claim idempotency.Claim, response []byte, expiry time.Duration) error {
	tx := b.end(ctx)
	if tx == nil {
		return b.model.Complete(ctx, key, claim, response, expiry)
	}
	repeated := tx.ended
	tx.ended = true
	switch {
	case tx.undone && b.has(isTransactor):
		return idempotency.ErrNotCommitted
	case b.has("Complete after Begin stores nothing"):
		return nil
	case b.has("Complete after Begin stores no empty response") && len(response) == 0:
		return nil
	case b.has(needsClaim), b.has("Complete after Begin refuses interrupted claims"), b.has("Complete after Begin where the key holds nothing is another error"),
		b.has("Complete after Begin where the key holds nothing is silent"):
		b.model.mu.Lock()
		r := b.model.live(key)
		refused := r == nil || b.model.state(r) == interrupted && b.has("Complete after Begin refuses interrupted claims")
		b.model.mu.Unlock()
		switch {
		case refused && b.has("Complete after Begin where the key holds nothing is another error"):
			return errors.New("no claim")
		case refused && b.has("Complete after Begin where the key holds nothing is silent"):
			return nil
		case refused:
			return idempotency.ErrClaimLost
		}
	case repeated && b.has("Complete after Begin is refused when repeated"):
		return idempotency.ErrClaimLost
	case b.has("what was begun within another counts as that one"):
		key, claim = tx.key, tx.claim
	}
	err := b.model.Complete(ctx, key, claim, response, expiry)
	if errors.Is(err, idempotency.ErrClaimLost) {
		switch {
		case b.has("Complete after Begin by another is silent"):
			return nil
		case b.has("Complete after Begin is not fenced"):
			b.model.mu.Lock()
			defer b.model.mu.Unlock()
			b.model.rows[key] = &row{claim: claim, completed: true, response: response}
			return err
		}
	}
	return err
}

func (b *transactor) Release(ctx context.Context, key idempotency.Key, claim idempotency.Claim, trace time.Duration) error {
	if tx := b.end(ctx); tx != nil {
		switch {
		case b.has("Release after Begin does nothing"):
			return nil
		case b.has("Release after Begin ignores its trace"):
			trace = 0
		case b.has("Release after Begin deletes a claim that took over") && trace == 0:
			b.model.mu.Lock()
			if r := b.model.live(key); r != nil && r.claim.Token == claim.Token {
				r.tookOver = false
			}
			b.model.mu.Unlock()
		case tx.ended && b.has("Release after Begin of nothing is an error"):
			return errors.New("not begun")
		case b.has("what was begun within another counts as that one"):
			key, claim = tx.key, tx.claim
		}
		tx.ended, tx.undone = true, true
	}
	return b.model.Release(ctx, key, claim, trace)
}
