package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/idempotency-go/idempotency"
)

const (
	maxBody   = 64 << 10
	maxAmount = 100_000_000
)

var (
	currencyCode = regexp.MustCompile(`^[A-Z]{3}$`)

	errNotFound = errors.New("there is no such payment")
	errTooMuch  = errors.New("the refunds would exceed the payment")
)

type api struct {
	payments store
	cards    *processor
	log      *slog.Logger
}

// handler puts the API together, and its page in front. Authentication stands
// outside the middleware, which takes the scope of a key from it.
func (a *api) handler(backend idempotency.Backend) http.Handler {
	paid := runs{of: make(map[string]int)}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /payments", paid.counted(a.pay))
	mux.HandleFunc("GET /counts", a.counts(&paid))
	mux.HandleFunc("GET /payments", a.list)
	mux.HandleFunc("GET /payments/{id}", a.get)
	mux.HandleFunc("POST /payments/{id}/refunds", a.refund)

	once := idempotency.New(backend,
		idempotency.WithRequired(),
		// Alice's order-1 is not Bob's.
		idempotency.WithScope(func(r *http.Request) string { return account(r.Context()) }),
		idempotency.WithRecovery(a.recovery),
		idempotency.WithLogger(a.log),
		// The log tells what became of a request, but not its key: who has both a
		// token and a key can have the answer replayed.
		idempotency.WithObserver(func(ctx context.Context, e idempotency.Event) {
			a.log.InfoContext(ctx, "request", "account", account(ctx), "method", e.Request.Method,
				"path", e.Request.URL.Path, "outcome", e.Outcome, "recovered", e.Recovered, "status", e.Status, "took", e.Duration)
		}),
	)
	return withPage(authenticate(a.survive(http.MaxBytesHandler(once(mux), maxBody))))
}

// accounts has the demo's API tokens. A service keeps hashes of them.
var accounts = map[string]string{"alice-secret": "alice", "bob-secret": "bob"}

// accountKey is where a context carries the account that authentication found.
type accountKey struct{}

func account(ctx context.Context) string {
	name, _ := ctx.Value(accountKey{}).(string)
	return name
}

func authenticate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		name, ok := accounts[token]
		if !ok {
			w.Header().Set("WWW-Authenticate", "Bearer")
			refuse(w, r, http.StatusUnauthorized, "send Authorization: Bearer with an API token")
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), accountKey{}, name)))
	})
}

// survive answers for a handler that panics. net/http would hang up, after which a
// browser may send the request again by itself.
func (a *api) survive(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if p := recover(); p != nil {
				a.log.ErrorContext(r.Context(), "handler panicked", "account", account(r.Context()), "panic", p)
				writeJSON(w, http.StatusInternalServerError, map[string]string{"error": "crashed: send it again with the same key"})
			}
		}()
		next.ServeHTTP(w, r)
	})
}

// pay charges a card and records the payment. Both steps have a name that is
// the same on every attempt, so that a run after a crash repeats neither.
func (a *api) pay(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	var order struct {
		Amount   int64
		Currency string
		Card     string
	}
	if err := json.NewDecoder(r.Body).Decode(&order); err != nil {
		refuse(w, r, http.StatusBadRequest, "the body is not the JSON of a payment: "+err.Error())
		return
	}
	if order.Amount < 1 || order.Amount > maxAmount || !currencyCode.MatchString(order.Currency) || !strings.HasPrefix(order.Card, "tok_") {
		refuse(w, r, http.StatusUnprocessableEntity,
			"give an amount from 1 to 100000000, a currency of three capitals, and a card that begins with tok_")
		return
	}

	charge := idempotency.DeriveKey(ctx, "charge")
	m := movement{account(ctx), order.Amount, order.Currency}
	err := a.cards.move(ctx, charge, order.Card, m)
	if errors.Is(err, errDeclined) {
		// Stored like a success: a retry is told the same.
		writeJSON(w, http.StatusPaymentRequired, map[string]string{"error": "the card was declined"})
		return
	}
	if errors.Is(err, errOther) {
		refuse(w, r, http.StatusUnprocessableEntity, err.Error())
		return
	}
	if err != nil {
		a.unfinished(w, r, err)
		return
	}

	if order.Card == "tok_crash" {
		panic("the card is charged, and then the process dies")
	}
	a.record(w, r, charge, m)
}

// recovery answers the retry of a request that was interrupted, such as by a crash. The
// processor is asked what it did for the run before: DeriveKey returns the same key
// again. If it has charged, the payment is recorded; if not, the handler runs again.
func (a *api) recovery(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		charge := idempotency.DeriveKey(r.Context(), "charge")
		m, ok := a.cards.find(charge)
		if !ok {
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Charge-Found", "true")
		a.record(w, r, charge, m)
	})
}

// record records the payment for a charge, and answers with it.
func (a *api) record(w http.ResponseWriter, r *http.Request, charge string, m movement) {
	ctx := r.Context()
	id := "pay_" + idempotency.DeriveKey(ctx, "payment")
	// The client's key stays with the payment, as the client's own name for it.
	reference, _ := idempotency.KeyFromContext(ctx)
	p, err := a.payments.Update(ctx, account(ctx), id, func(p *payment) error {
		if p.ID == "" {
			*p = payment{id, m.amount, m.currency, charge, reference, time.Now().UTC(), []refund{}}
		}
		return nil
	})
	if err != nil {
		a.unfinished(w, r, err)
		return
	}
	w.Header().Set("Location", "/payments/"+id)
	writeJSON(w, http.StatusCreated, p)
}

// refund pays back a part of a payment, or all of it. It records the refund
// first, so that of two at once none goes beyond the payment.
func (a *api) refund(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	var order struct{ Amount int64 }
	if err := json.NewDecoder(r.Body).Decode(&order); err != nil {
		refuse(w, r, http.StatusBadRequest, "the body is not the JSON of a refund: "+err.Error())
		return
	}
	if order.Amount < 1 {
		refuse(w, r, http.StatusUnprocessableEntity, "the amount must be 1 or more")
		return
	}
	key := idempotency.DeriveKey(ctx, "refund")
	back := refund{"re_" + key, order.Amount}
	p, err := a.payments.Update(ctx, account(ctx), r.PathValue("id"), func(p *payment) error {
		if p.ID == "" {
			return errNotFound
		}
		if slices.Contains(p.Refunds, back) {
			return nil // An earlier attempt came this far.
		}
		left := p.Amount - back.Amount
		for _, earlier := range p.Refunds {
			left -= earlier.Amount
		}
		if left < 0 {
			return errTooMuch
		}
		p.Refunds = append(p.Refunds, back)
		return nil
	})
	if err == nil {
		err = a.cards.move(ctx, key, p.Charge, movement{account(ctx), -back.Amount, p.Currency})
	}
	switch {
	case errors.Is(err, errNotFound):
		refuse(w, r, http.StatusNotFound, err.Error())
	case errors.Is(err, errTooMuch):
		refuse(w, r, http.StatusUnprocessableEntity, err.Error())
	case err != nil:
		a.unfinished(w, r, err)
	default:
		writeJSON(w, http.StatusCreated, back)
	}
}

func (a *api) list(w http.ResponseWriter, r *http.Request) {
	payments, err := a.payments.List(r.Context(), account(r.Context()))
	if err != nil {
		a.unfinished(w, r, err)
		return
	}
	writeJSON(w, http.StatusOK, map[string][]payment{"payments": payments})
}

func (a *api) get(w http.ResponseWriter, r *http.Request) {
	payments, err := a.payments.List(r.Context(), account(r.Context()))
	i := slices.IndexFunc(payments, func(p payment) bool { return p.ID == r.PathValue("id") })
	switch {
	case err != nil:
		a.unfinished(w, r, err)
	case i < 0:
		refuse(w, r, http.StatusNotFound, errNotFound.Error())
	default:
		writeJSON(w, http.StatusOK, payments[i])
	}
}

// unfinished answers where a step failed, or may have. The retry runs the
// handler again, which repeats no step that was done.
func (a *api) unfinished(w http.ResponseWriter, r *http.Request, err error) {
	a.log.WarnContext(r.Context(), "request not finished", "account", account(r.Context()), "error", err)
	w.Header().Set("Retry-After", "1")
	refuse(w, r, http.StatusServiceUnavailable, "not finished: send it again with the same key")
}

// refuse answers without storing the answer, so that the client can send the
// request again, mended if need be, with the same key.
func refuse(w http.ResponseWriter, r *http.Request, status int, text string) {
	idempotency.NoStore(r.Context())
	writeJSON(w, status, map[string]string{"error": text})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // The client may have left.
}
