// Package idempotency is HTTP middleware that makes retries safe. A client
// sends an Idempotency-Key with a POST or PATCH; the handler runs once, and a
// repeat of the request is answered with the stored response, marked
// Idempotent-Replayed: true.
//
//	backend := idempotency.NewRedis(client)
//	http.ListenAndServe(addr, idempotency.New(backend)(mux))
//
// It follows Stripe's idempotent requests and the IETF draft
// draft-ietf-httpapi-idempotency-key-header.
//
// # The way of a request
//
// A request in another method, or without a key, passes untouched. Otherwise
// the request claims its key, in one atomic step, and then:
//
//   - the claim is its own: the handler runs. Its response is stored, then sent;
//     a response that is not to be stored, and a panic, let go of the claim.
//   - the key has a response: it is replayed.
//   - the key belongs to a request that still runs: 409 [ErrOutstanding].
//   - the key came before with another method, path, query or body: 422
//     [ErrKeyReused].
//   - the backend fails: 503 [ErrUnavailable], and the handler does not run.
//
// Before that a malformed key is refused with 422 [ErrKeyInvalid], and a body
// that breaks off with 400 [ErrBodyUnreadable].
//
// Only valid JSON responses are stored, for 24 hours; see the options.
//
// # The handler
//
// While it runs, its claim is renewed. Its context has the request's values
// and deadline and does not end when the client goes away: what was begun runs
// to its end, and the retry finds the answer. It ends, with cause
// [ErrClaimLost], once another request is known to hold the claim. A handler
// that must bound its own time sets a time-out of its own.
//
// Its ResponseWriter works with [http.NewResponseController]. A response that
// may still be stored is held back until the handler returns; one that will not
// be, because of its Content-Type for one, streams straight through.
//
// # What is promised
//
// Of any number of requests with one key at once, in any number of processes
// that share a [Backend], one runs its handler. It runs again only after a
// response that was not stored, a panic, or the loss of its claim: a process
// that died, or a store that lost data. With [WithAtMostOnce] it runs again,
// within the expiry, only after [NoStore] or where the store lost data. Neither
// can tell how far a handler came before its process died: pass [DeriveKey] on
// to whatever it calls.
package idempotency

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"
)

const (
	// settleTime bounds how long a claim is tried to be completed or released,
	// whatever became of the client.
	settleTime = 5 * time.Second
	// releaseGrace is how long an answer waits for the release of a claim that
	// failed: a backend that hangs takes no more of the client's time.
	releaseGrace = 200 * time.Millisecond
	// The pauses between tries to complete, and between looks while waiting,
	// double from the first to the last.
	firstRetry, lastRetry = 50 * time.Millisecond, time.Second
	firstLook, lastLook   = 10 * time.Millisecond, 200 * time.Millisecond
)

// New returns middleware that serves the requests with a key and keeps their
// claims and responses in backend. It panics if the backend is nil or an option
// has a bad value. The middleware is safe for concurrent use, and may wrap any
// number of handlers: a mux, a router's group, a single route. Where it stands
// twice in one chain, the inner one steps aside for a request whose header and
// key the outer one serves, and the outer one's settings hold.
func New(backend Backend, opts ...Option) func(http.Handler) http.Handler {
	if isNil(backend) {
		panic("idempotency: New: nil backend")
	}
	c := newConfig(opts)
	return func(next http.Handler) http.Handler {
		if next == nil {
			panic("idempotency: New: nil handler to wrap")
		}
		return &handler{config: c, backend: backend, next: next}
	}
}

// handler is the middleware around one http.Handler.
type handler struct {
	config
	backend Backend
	next    http.Handler
}

// exchange is a request on its way through the middleware, once it has a key.
type exchange struct {
	h          *handler
	outer      *exchange // of another instance, around this one
	key        string
	storageKey string
	claim      Claim
	event      Event

	detached context.Context // the request's values, without its end
	running  context.Context // the handler's, which ends with the claim
	lose     context.CancelCauseFunc
	renewal  renewal
	rec      recorder
}

// ServeHTTP lets pass what has no key, and observes the rest.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !slices.Contains(h.methods, r.Method) {
		h.next.ServeHTTP(w, r)
		return
	}
	key, keyErr := parseKey(r.Header[h.header])
	if key == "" && keyErr == nil && !h.required {
		h.next.ServeHTTP(w, r)
		return
	}
	x := &exchange{h: h, outer: fromContext(r.Context()), key: key}
	if key != "" && x.servedOutside() {
		h.next.ServeHTTP(w, r)
		return
	}
	if len(h.observers) > 0 {
		// Whatever does not return has panicked.
		x.event = Event{Request: r, Key: key, Outcome: Panicked}
		start := time.Now()
		defer func() {
			x.event.Duration = time.Since(start)
			for _, observe := range h.observers {
				observe(r.Context(), x.event)
			}
		}()
	}
	x.serve(w, r, keyErr)
}

// servedOutside reports whether an instance around this one serves the key.
func (x *exchange) servedOutside() bool {
	for o := x.outer; o != nil; o = o.outer {
		if o.h.header == x.h.header && o.key == x.key {
			return true
		}
	}
	return false
}

// serve takes a request from its key to its answer.
func (x *exchange) serve(w http.ResponseWriter, r *http.Request, keyErr error) {
	h := x.h
	if keyErr == nil && x.key != "" && h.validator != nil {
		keyErr = h.validator(x.key)
	}
	switch {
	case keyErr != nil:
		x.refuse(w, r, Rejected, &keyError{keyErr})
		return
	case x.key == "":
		x.refuse(w, r, Rejected, ErrKeyMissing)
		return
	}
	x.storageKey = x.recordName(r)
	fingerprint, body, err := h.fingerprint(r)
	if err != nil {
		x.refuse(w, r, Rejected, err)
		return
	}
	x.claim = Claim{Token: newToken(), Fingerprint: fingerprint}
	held, claimed, err := x.take(r.Context())
	switch {
	case err != nil:
		x.unavailable(w, r, body, err)
	case claimed:
		x.run(w, r, body)
	case !x.sameRequest(held):
		x.refuse(w, r, Reused, ErrKeyReused)
	case held.Response == nil:
		x.refuse(w, r, Outstanding, ErrOutstanding)
	case held.Response.Status == 0:
		x.refuse(w, r, NotReplayable, ErrNotReplayable)
	case held.Response.Status < 200 || held.Response.Status > 999:
		x.unavailable(w, r, body, fmt.Errorf("%w: status %d", errRecord, held.Response.Status))
	default:
		x.event.Outcome, x.event.Status = Replayed, held.Response.Status
		replay(w, held.Response, h.replayHeader)
	}
}

// recordName returns the StorageKey of a request.
func (x *exchange) recordName(r *http.Request) string {
	scope := ""
	if x.h.scope != nil {
		scope = x.h.scope(r)
	}
	name := StorageKey(scope, x.key)
	for o := x.outer; o != nil; o = o.outer {
		if o.storageKey == name {
			// The same key in another header is a request of its own: in the
			// record that the outer one holds it would wait for itself.
			return StorageKey(x.h.header+" "+scope, x.key)
		}
	}
	return name
}

// sameRequest reports whether a record was made by the same request as this one.
func (x *exchange) sameRequest(held Record) bool {
	return x.h.fingerprintOff || held.Claim.Fingerprint == x.claim.Fingerprint
}

// take claims the key. While another request has it outstanding, it waits as
// long as the user allows and the client stays.
func (x *exchange) take(ctx context.Context) (held Record, claimed bool, err error) {
	claim := func() bool {
		held, claimed, err = x.h.backend.Claim(ctx, x.storageKey, x.claim, x.h.hold)
		return err != nil || claimed || held.Response != nil || !x.sameRequest(held)
	}
	if claim() || x.h.wait == 0 {
		return held, claimed, err
	}
	wait, cancel := context.WithTimeout(ctx, x.h.wait)
	defer cancel()
	for pause := firstLook; ; pause = min(2*pause, lastLook) {
		// Many that wait for one do not all look at once.
		waited := sleep(wait, pause/2+rand.N(pause))
		if ctx.Err() != nil || claim() || !waited {
			return held, claimed, err
		}
	}
}

// refuse answers a request that the handler does not get.
func (x *exchange) refuse(w http.ResponseWriter, r *http.Request, outcome Outcome, err error) {
	x.event.Outcome, x.event.Err = outcome, err
	for o := x.outer; o != nil && !o.h.atMostOnce; o = o.outer {
		o.rec.noStore.Store(true) // A refusal is no answer for good.
	}
	x.rec.w, x.rec.streaming = w, true
	x.h.errorHandler(&x.rec, r, err)
	x.rec.ensureHeader()
	x.event.Status = x.rec.status
}

// unavailable answers a request whose key could not be claimed.
func (x *exchange) unavailable(w http.ResponseWriter, r *http.Request, body io.ReadCloser, cause error) {
	x.detached = context.WithoutCancel(r.Context())
	x.releaseFailed()
	err := fmt.Errorf("%w: %w", ErrUnavailable, cause)
	// A client that left is not the backend's fault, and waits for no handler.
	gone := r.Context().Err() != nil
	if !gone {
		x.h.logFault(x.detached, "key not claimed", x.storageKey, cause)
	}
	if !x.h.failOpen || gone {
		x.refuse(w, r, Failed, err)
		return
	}
	x.event.Err = err
	x.rec.w, x.rec.streaming = w, true
	defer func() { x.event.Status = x.rec.status }()
	x.next(r, context.WithValue(r.Context(), contextKey{}, x), body)
	x.rec.ensureHeader()
	x.event.Outcome = Unprotected
}

// releaseFailed releases, once, a claim that failed and may have landed all the
// same.
func (x *exchange) releaseFailed() {
	released := make(chan struct{})
	go func() {
		defer close(released)
		_ = guard(x.release) // If this fails too, the claim runs out.
	}()
	grace := time.NewTimer(releaseGrace)
	defer grace.Stop()
	select {
	case <-released:
	case <-grace.C:
	}
}

// guard calls f, and returns a panic of f as an error: in a goroutine of its own
// it would end the process.
func guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("idempotency: backend panicked: %v", p)
		}
	}()
	return f()
}

// run runs the handler under the claim. What is to be stored is stored first and
// sent second; anything else lets go of the claim.
func (x *exchange) run(w http.ResponseWriter, r *http.Request, body io.ReadCloser) {
	x.detached = context.WithoutCancel(r.Context())
	ctx, lose := context.WithCancelCause(context.WithValue(x.detached, contextKey{}, x))
	x.running, x.lose = ctx, lose
	defer lose(nil)
	if x.outer != nil {
		defer context.AfterFunc(r.Context(), func() { x.loseWith(r.Context()) })()
	}
	if deadline, ok := r.Context().Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline)
		defer cancel()
	}
	x.rec.w, x.rec.cfg = w, &x.h.config
	if header := w.Header(); len(header) > 0 {
		x.rec.before = header.Clone()
	}

	x.renewal.start(x.h.renewEvery, x.renew)
	defer x.renewal.stop()
	returned := false
	defer func() {
		// A panic is told from a return without recover, so that it goes on up
		// with its value and its stack.
		if !returned {
			x.event.Outcome, x.event.Err = Panicked, x.letGo()
			x.event.Status = x.rec.sentStatus()
		}
	}()
	x.next(r, ctx, body)
	resp := x.rec.response()
	returned = true

	outcome, err := NotStored, error(nil)
	if resp == nil {
		err = x.letGo()
	} else if err = x.complete(resp); err == nil {
		outcome = Stored
	}
	x.renewal.stop() // The client may take long to read.
	x.event.Outcome, x.event.Status, x.event.Err = outcome, x.rec.status, err
	x.rec.send(resp != nil)
}

// next runs the handler with a context and a body of its own. What net/http and
// a mux inside would tell or do by the request that came, is told and done.
func (x *exchange) next(r *http.Request, ctx context.Context, body io.ReadCloser) {
	req := r.WithContext(ctx)
	req.Body = body
	defer func() {
		r.Pattern = req.Pattern // For metrics outside, and for observers.
		if req.MultipartForm != nil && r.MultipartForm == nil {
			_ = req.MultipartForm.RemoveAll() // net/http sees to r's only.
		}
	}()
	x.h.next.ServeHTTP(&x.rec, req)
}

// loseWith ends the handler's context where an instance around this one, whose
// context has ended, has lost its claim.
func (x *exchange) loseWith(outer context.Context) {
	if errors.Is(context.Cause(outer), ErrClaimLost) {
		x.lose(ErrClaimLost)
	}
}

// complete stores a response, or the mark that there is none.
func (x *exchange) complete(resp *Response) error {
	ctx, cancel := context.WithTimeout(x.detached, settleTime)
	defer cancel()
	for pause := firstRetry; ; pause = min(2*pause, lastRetry) {
		err := x.h.backend.Complete(ctx, x.storageKey, x.claim, resp, x.h.expiry)
		if err == nil {
			return nil
		}
		final := errors.Is(err, ErrClaimLost) || errors.Is(err, ErrFull)
		if final || !sleep(ctx, pause) {
			x.h.logFault(x.detached, "response not stored", x.storageKey, err)
			if x.h.atMostOnce && resp.Status != 0 && errors.Is(err, ErrFull) {
				_ = x.complete(&Response{}) // The mark takes less room; err is what the user is told.
			}
			return err
		}
	}
}

// sleep waits for d and returns true, or returns false once ctx has ended.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// letGo ends a claim without a response: it frees the key or, where a handler
// must not start twice, marks it.
func (x *exchange) letGo() error {
	x.renewal.stop()
	x.renewal.wait()
	if x.h.atMostOnce && !x.rec.noStore.Load() {
		return x.complete(&Response{})
	}
	if err := x.release(); err != nil {
		x.h.logFault(x.detached, "claim not released", x.storageKey, err)
		return err
	}
	if errors.Is(context.Cause(x.running), ErrClaimLost) {
		return ErrClaimLost
	}
	return nil
}

func (x *exchange) release() error {
	ctx, cancel := context.WithTimeout(x.detached, settleTime)
	defer cancel()
	return x.h.backend.Release(ctx, x.storageKey, x.claim)
}

// logFault logs what an operator should know. The storage key is a hash.
func (h *handler) logFault(ctx context.Context, what, storageKey string, err error) {
	logger := h.logger
	if logger == nil {
		logger = slog.Default()
	}
	logger.ErrorContext(ctx, "idempotency: "+what, "error", err, "storage_key", storageKey)
}
