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
	if fault == isTransactor || strings.Contains(fault, "Begin") || strings.Contains(fault, "begun") {
		return &transactor{model: newModel(fault)}
	}
	return newModel(fault)
}

// isTransactor is no fault: what was undone cannot be completed.
const isTransactor = "the backend is a Transactor"

// transactor is a model that begins transactions.
type transactor struct {
	*model
	mu    sync.Mutex
	begun map[string]bool // keys whose transaction is open
}

type transactionKey struct{}

// transaction is what its context carries.
type transaction struct {
	key     string
	claim   idempotency.Claim
	settled bool
	undone  bool
}

func (b *transactor) Begin(ctx context.Context, key string, claim idempotency.Claim) context.Context {
	switch {
	case b.has("Begin loses the context's values"):
		ctx = context.Background()
	case b.has("Begin's context has ended"):
		ended, cancel := context.WithCancel(ctx)
		cancel()
		ctx = ended
	case b.has("Begin's context does not end"):
		ctx = context.WithoutCancel(ctx)
	case ctx.Value(transactionKey{}) != nil && b.has("what was begun within another is settled for that one"):
		return ctx
	case b.has("Begin releases the claim"):
		_ = b.model.Release(ctx, key, claim)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.begun == nil {
		b.begun = make(map[string]bool)
	}
	b.begun[key] = true
	return context.WithValue(ctx, transactionKey{}, &transaction{key: key, claim: claim})
}

// settle ends the transaction of a context, and returns it.
func (b *transactor) settle(ctx context.Context) *transaction {
	tx, _ := ctx.Value(transactionKey{}).(*transaction)
	if tx != nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.begun, tx.key)
	}
	return tx
}

func (b *transactor) Claim(ctx context.Context, key string, claim idempotency.Claim, lease time.Duration) (idempotency.Record, bool, error) {
	if b.has("Claim waits for what was begun") {
		b.mu.Lock()
		begun := b.begun[key]
		b.mu.Unlock()
		if begun {
			return idempotency.Record{}, false, errors.New("waited for too long")
		}
	}
	return b.model.Claim(ctx, key, claim, lease)
}

func (b *transactor) Renew(ctx context.Context, key string, claim idempotency.Claim, lease time.Duration) error {
	if tx, _ := ctx.Value(transactionKey{}).(*transaction); tx != nil && b.has("Renew after Begin does nothing") {
		return nil
	}
	return b.model.Renew(ctx, key, claim, lease)
}

func (b *transactor) Complete(ctx context.Context, key string, claim idempotency.Claim, resp *idempotency.Response, expiry time.Duration) error {
	tx := b.settle(ctx)
	if tx == nil {
		return b.model.Complete(ctx, key, claim, resp, expiry)
	}
	repeated := tx.settled
	tx.settled = true
	switch {
	case tx.undone && b.has(isTransactor):
		return idempotency.ErrNotCommitted
	case b.has("Complete after Begin stores nothing"), resp.Status == 0 && b.has("Complete after Begin stores no mark"):
		return nil
	case repeated && b.has("Complete after Begin is refused when repeated"):
		return idempotency.ErrClaimLost
	case b.has("what was begun within another is settled for that one"):
		key, claim = tx.key, tx.claim
	}
	err := b.model.Complete(ctx, key, claim, resp, expiry)
	if errors.Is(err, idempotency.ErrClaimLost) {
		switch {
		case b.has("Complete after Begin by another is silent"):
			return nil
		case b.has("Complete after Begin is not fenced"):
			b.model.mu.Lock()
			defer b.model.mu.Unlock()
			b.model.rows[key].rec = idempotency.Record{Claim: claim, Response: resp}
		}
	}
	return err
}

func (b *transactor) Release(ctx context.Context, key string, claim idempotency.Claim) error {
	if tx := b.settle(ctx); tx != nil {
		switch {
		case b.has("Release after Begin does nothing"):
			return nil
		case tx.settled && b.has("Release after Begin of nothing is an error"):
			return errors.New("not begun")
		case b.has("what was begun within another is settled for that one"):
			key, claim = tx.key, tx.claim
		}
		tx.settled, tx.undone = true, true
	}
	return b.model.Release(ctx, key, claim)
}
