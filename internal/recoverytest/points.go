package recoverytest

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/internal/leash"
)

// The headers that tell a server what is to happen to one request. They are no part of the
// fingerprint.
const (
	headerDie   = "Proof-Die"   // the point at which the server kills itself
	headerPause = "Proof-Pause" // the point at which the run is cut off, and waits at a gate
	headerHold  = "Proof-Hold"  // It waits there, and is not cut off.
)

// visit is a request on its way through a server.
type visit struct {
	die, pause string
	holds      bool
	key        string
	server     *server
	step       string      // that is taken
	cutOff     atomic.Bool // Renewals do not reach the store.
}

type visitKey struct{}

// visitOf returns the visit of ctx, or nil. The middleware keeps the values of a request's
// context in every call of its backend.
func visitOf(ctx context.Context) *visit {
	v, _ := ctx.Value(visitKey{}).(*visit)
	return v
}

// at dies, or waits, at a point, if that is what the request wants.
func (v *visit) at(point string) {
	switch {
	case v == nil:
	case v.die == point:
		leash.Die()
	case v.pause == point:
		v.cutOff.Store(!v.holds)
		v.server.tell("/wait", url.Values{"order": {v.key}, "gate": {point}}, nil)
		v.cutOff.Store(false)
	}
}

// watched is a Backend with points in its calls.
type watched struct {
	idempotency.Backend
	repeat bool
}

// watchedTransactor is one that is a Transactor.
type watchedTransactor struct {
	watched
	transactor idempotency.Transactor
}

func (b watchedTransactor) Begin(ctx context.Context, key idempotency.Key, claim idempotency.Claim, expiry time.Duration) context.Context {
	return b.transactor.Begin(ctx, key, claim, expiry)
}

// watch returns a backend with points in its calls.
func watch(b idempotency.Backend, c config) idempotency.Backend {
	w := watched{b, c.Repeat}
	if transactor, ok := b.(idempotency.Transactor); ok {
		return watchedTransactor{w, transactor}
	}
	return w
}

// Claim implements [idempotency.Backend].
func (b watched) Claim(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
	v := visitOf(ctx)
	v.at("claim-start")
	held, claimed, err := b.Backend.Claim(ctx, key, claim, terms)
	if b.repeat && claimed {
		v.at("repeated")
		held, claimed, err = b.Backend.Claim(ctx, key, claim, terms)
	}
	if claimed {
		v.at("claim-end")
	}
	return held, claimed, err
}

var errCutOff = errors.New("cut off")

// Renew implements [idempotency.Backend].
func (b watched) Renew(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms, progress []byte) error {
	v := visitOf(ctx)
	if progress == nil {
		if v.cutOff.Load() {
			return errCutOff
		}
		return b.Backend.Renew(ctx, key, claim, terms, progress)
	}
	v.at("keep-start-" + v.step)
	err := b.Backend.Renew(ctx, key, claim, terms, progress)
	v.at("keep-end-" + v.step)
	return err
}

// Complete implements [idempotency.Backend].
func (b watched) Complete(ctx context.Context, key idempotency.Key, claim idempotency.Claim, response []byte, expiry time.Duration) error {
	visitOf(ctx).at("returned")
	err := b.Backend.Complete(ctx, key, claim, response, expiry)
	visitOf(ctx).at("completed")
	return err
}

// answering is the ResponseWriter outside of the middleware.
type answering struct {
	http.ResponseWriter
	visit *visit
}

func (w answering) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w answering) Write(b []byte) (int, error) {
	if strings.HasPrefix(w.Header().Get("Content-Type"), "application/json") {
		w.visit.at("answer")
	}
	return w.ResponseWriter.Write(b)
}
