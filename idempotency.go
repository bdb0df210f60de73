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
// Only valid JSON responses are stored, for 24 hours; see the options. A backend
// that is a [Transactor] stores every type.
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
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"
)

const (
	// claimTime bounds how long a claim may take.
	claimTime = 5 * time.Second
	// settleTime bounds how long a claim is tried to be completed or released,
	// whatever became of the client.
	settleTime = 5 * time.Second
	// releaseGrace is how long an answer waits for the release of a claim that
	// failed: a backend that hangs takes no more of the client's time.
	releaseGrace = 200 * time.Millisecond
	// deadlineGrace is how long a request's own deadline may come after its
	// handler's, which is due at the same time.
	deadlineGrace = 100 * time.Millisecond
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
	transactor, transactional := backend.(Transactor)
	c := newConfig(opts, transactional)
	return func(next http.Handler) http.Handler {
		if next == nil {
			panic("idempotency: New: nil handler to wrap")
		}
		return &handler{config: c, store: newStore(backend), transactor: transactor, next: next}
	}
}

// handler is the middleware around one http.Handler.
type handler struct {
	config
	store      store
	transactor Transactor // nil for any other backend
	next       http.Handler
}

// exchange is a request with a key, on its way through the middleware.
type exchange struct {
	h     *handler
	outer *execution // of another instance, around this one
	key   string
	name  recordKey // of key and its scope
	claim Claim
	event *Event // nil where nobody observes
}

// execution is an exchange whose handler runs. It is the root of the handler's
// context: the request's values, without its end.
type execution struct {
	exchange
	context.Context

	running  context.Context // the handler's, which ends with the claim
	lose     context.CancelCauseFunc
	renewal  renewal
	settling settling
	request  http.Request // the handler's
	body     requestBody
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
	x := exchange{h: h, outer: fromContext(r.Context()), key: key}
	if key != "" && x.servedOutside() {
		h.next.ServeHTTP(w, r)
		return
	}
	if len(h.observers) == 0 {
		x.serve(w, r, keyErr)
		return
	}
	// Whatever does not return has panicked.
	x.event = &Event{Request: r, Key: key, Outcome: Panicked}
	start := time.Now()
	defer func() {
		x.event.Duration = time.Since(start)
		for _, observe := range h.observers {
			observe(r.Context(), *x.event)
		}
	}()
	x.serve(w, r, keyErr)
}

// observe notes what became of the request.
func (x *exchange) observe(outcome Outcome, status int, err error) {
	if x.event != nil {
		x.event.Outcome, x.event.Status, x.event.Err = outcome, status, err
	}
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
	x.name = x.recordName(r)
	buffer := buffers.Get().(*[]byte)
	fingerprint, body, err := h.fingerprint(r, buffer)
	if err != nil {
		x.refuse(w, r, Rejected, err)
		return
	}
	x.claim.Fingerprint = fingerprint
	held, err := x.take(r.Context())
	x.claim.Token = held.token
	switch {
	case err != nil:
		x.unavailable(w, r, body, err)
	case held.claimed:
		x.execution(x.begin(context.WithoutCancel(r.Context()))).run(w, r, body)
	case !x.sameRequest(held):
		x.refuse(w, r, Reused, ErrKeyReused)
	case held.response == nil:
		x.refuse(w, r, Outstanding, ErrOutstanding)
	case held.response.status == 0:
		x.refuse(w, r, NotReplayable, ErrNotReplayable)
	case held.response.status < 200 || held.response.status > 999:
		x.unavailable(w, r, body, fmt.Errorf("%w: status %d", errRecord, held.response.status))
	default:
		x.observe(Replayed, held.response.status, nil)
		replay(w, held.response, h.replayHeader)
	}
	keep(buffer)
}

// recordName returns the name of the request's record.
func (x *exchange) recordName(r *http.Request) recordKey {
	scope := ""
	if x.h.scope != nil {
		scope = x.h.scope(r)
	}
	name := newRecordKey(scope, x.key)
	for o := x.outer; o != nil; o = o.outer {
		if o.name == name {
			// The same key in another header is a request of its own: in the
			// record that the outer one holds it would wait for itself.
			return newRecordKey(x.h.header+" "+scope, x.key)
		}
	}
	return name
}

// sameRequest reports whether the key is held by the same request as this one.
func (x *exchange) sameRequest(held found) bool { return held.same || x.h.fingerprintOff }

// take claims the key. While another request has it outstanding, it waits as
// long as the user allows and the client stays.
func (x *exchange) take(ctx context.Context) (held found, err error) {
	held, err = x.tryTake(ctx)
	if x.h.wait == 0 || !x.mustWait(held, err) {
		return held, err
	}
	wait, cancel := context.WithTimeout(ctx, x.h.wait)
	defer cancel()
	for pause := firstLook; ; pause = min(2*pause, lastLook) {
		// Many that wait for one do not all look at once.
		waited := sleep(wait, pause/2+rand.N(pause))
		if ctx.Err() != nil {
			return held, err
		}
		held, err = x.tryTake(ctx)
		if !waited || !x.mustWait(held, err) {
			return held, err
		}
	}
}

func (x *exchange) tryTake(ctx context.Context) (held found, err error) {
	return x.h.store.claim(ctx, x.name, x.claim.Fingerprint, x.h.hold)
}

// mustWait reports whether the request is outstanding elsewhere.
func (x *exchange) mustWait(held found, err error) bool {
	return err == nil && !held.claimed && held.response == nil && x.sameRequest(held)
}

// refuse answers a request that the handler does not get.
func (x *exchange) refuse(w http.ResponseWriter, r *http.Request, outcome Outcome, err error) {
	x.observe(outcome, 0, err)
	for o := x.outer; o != nil && !o.h.atMostOnce; o = o.outer {
		o.rec.noStore.Store(true) // A refusal is no answer for good.
	}
	answer := x.h.errorHandler
	if answer == nil {
		answer = WriteError
		if x.event == nil {
			answer(w, r, err) // Nobody asks for its status.
			return
		}
	}
	rec := &recorder{w: w, streaming: true}
	answer(rec, r, err)
	if rec.status == 0 && !rec.hijacked {
		WriteError(rec, r, err) // Nothing written would be a 200.
	}
	x.observe(outcome, rec.status, err)
}

// unavailable answers a request whose key could not be claimed.
func (x *exchange) unavailable(w http.ResponseWriter, r *http.Request, body []byte, cause error) {
	ctx := context.WithoutCancel(r.Context())
	if x.claim.Token != "" { // Without one the store knows that nothing landed.
		x.releaseFailed(ctx)
	}
	err := fmt.Errorf("%w: %w", ErrUnavailable, cause)
	// A client that left is not the backend's fault, and waits for no handler.
	gone := r.Context().Err() != nil
	if !gone {
		x.h.logFault(ctx, "key not claimed", x.name, cause)
	}
	if !x.h.failOpen || gone {
		x.refuse(w, r, Failed, err)
		return
	}
	x.execution(r.Context()).runUnprotected(w, r, body, err)
}

// releaseFailed releases, once, a claim that failed and may have landed all the
// same.
func (x *exchange) releaseFailed(ctx context.Context) {
	store, name, claim := x.h.store, x.name, x.claim
	released := make(chan struct{})
	go func() {
		defer close(released)
		ctx, cancel := context.WithTimeout(ctx, settleTime)
		defer cancel()
		// If this fails too, the claim runs out.
		_ = guard(func() error { return store.release(ctx, name, claim) })
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

// begin adds to the handler's context what a Transactor hands to it.
func (x *exchange) begin(ctx context.Context) context.Context {
	if x.h.transactor == nil {
		return ctx
	}
	return x.h.transactor.Begin(ctx, x.name.String(), x.claim)
}

// execution makes an execution of the exchange, with the values of ctx.
func (x *exchange) execution(ctx context.Context) *execution {
	return &execution{exchange: *x, Context: ctx}
}

// Value adds the execution itself to the values of the request.
func (x *execution) Value(key any) any {
	if key == (contextKey{}) {
		return x
	}
	return x.Context.Value(key)
}

// run runs the handler under the claim. What is to be stored is stored first and
// sent second; anything else lets go of the claim.
func (x *execution) run(w http.ResponseWriter, r *http.Request, body []byte) {
	x.running, x.lose = context.WithCancelCause(x)
	defer x.lose(nil)
	ctx := x.running
	if x.outer != nil {
		defer context.AfterFunc(r.Context(), func() { x.loseWith(r.Context()) })()
	}
	if deadline, ok := r.Context().Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline)
		defer cancel()
	}
	x.rec.w, x.rec.cfg, x.rec.lead = w, &x.h.config, x.h.store.lead()
	if header := w.Header(); len(header) > 0 {
		x.rec.before = newFields(header)
	}

	x.startRenewal()
	defer x.renewal.stop()
	returned := false
	defer func() {
		// A panic is told from a return without recover, so that it goes on up
		// with its value and its stack.
		if !returned {
			status := x.rec.sentStatus()
			x.rec.abandon()
			err := x.letGo(&x.settling)
			x.observe(Panicked, status, err)
		}
	}()
	x.next(r, ctx, body)
	if ctx.Err() == context.DeadlineExceeded {
		// Whoever set the deadline will ask a context whose timer is due now too,
		// but may be a moment later than the handler's.
		sleep(r.Context(), deadlineGrace)
	}
	resp := x.rec.response()
	returned = true

	outcome, err := NotStored, error(nil)
	if resp == nil {
		err = x.letGo(&x.settling)
	} else if err = x.complete(&x.settling, resp); err == nil {
		outcome = Stored
	}
	x.renewal.stop() // The client may take long to read.
	x.observe(outcome, x.rec.status, err)
	if x.h.transactional && resp != nil && err != nil {
		_ = x.letGo(new(settling)) // A retry need not wait for the lease.
		x.takeBack(w, r, Failed, notCommitted(err))
		return
	}
	x.rec.send(resp != nil)
	if x.rec.withheld {
		x.h.logFault(x.Context, "response neither stored nor sent", x.name, errWithheld)
		x.takeBack(w, r, NotStored, errWithheld)
	}
}

// takeBack answers in place of a handler whose response tells of what was undone.
func (x *execution) takeBack(w http.ResponseWriter, r *http.Request, outcome Outcome, err error) {
	x.rec.before.restore(w.Header())
	x.refuse(w, r, outcome, err)
}

func notCommitted(err error) error {
	if errors.Is(err, ErrNotCommitted) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrNotCommitted, err)
}

// runUnprotected runs the handler without a claim: cause is why there is none.
func (x *execution) runUnprotected(w http.ResponseWriter, r *http.Request, body []byte, cause error) {
	x.observe(Panicked, 0, cause)
	x.rec.w, x.rec.streaming = w, true
	outcome := Panicked
	defer func() { x.observe(outcome, x.rec.status, cause) }()
	x.next(r, x, body)
	x.rec.ensureHeader()
	outcome = Unprotected
}

// next runs the handler with a context and a body of its own. What net/http and
// a mux inside would tell or do by the request that came, is told and done.
func (x *execution) next(r *http.Request, ctx context.Context, body []byte) {
	x.request = *r.WithContext(ctx) // Here it takes no memory of its own.
	req := &x.request
	if len(body) > 0 {
		x.body.read, x.body.rest = body, r.Body
		req.Body = &x.body
	}
	defer func() {
		x.body.finish()
		r.Pattern = req.Pattern // For metrics outside, and for observers.
		if req.MultipartForm != nil && r.MultipartForm == nil {
			_ = req.MultipartForm.RemoveAll() // net/http sees to r's only.
		}
	}()
	x.h.next.ServeHTTP(&x.rec, req)
}

// loseWith ends the handler's context where an instance around this one, whose
// context has ended, has lost its claim.
func (x *execution) loseWith(outer context.Context) {
	if errors.Is(context.Cause(outer), ErrClaimLost) {
		x.lose(ErrClaimLost)
	}
}

// complete stores a response, or the mark that there is none.
func (x *execution) complete(s *settling, resp *response) error {
	ctx := s.begin(x.Context)
	defer s.stop()
	for pause := firstRetry; ; pause = min(2*pause, lastRetry) {
		err := x.h.store.complete(ctx, x.name, x.claim, resp, x.h.expiry)
		if err == nil {
			return nil
		}
		final := errors.Is(err, ErrClaimLost) || errors.Is(err, ErrFull) || errors.Is(err, ErrNotCommitted)
		if final || !sleep(ctx, pause) {
			x.h.logFault(x.Context, "response not stored", x.name, err)
			if x.h.atMostOnce && resp.status != 0 && errors.Is(err, ErrFull) {
				_ = x.complete(new(settling), &response{}) // The mark takes less room; err is what the user is told.
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
func (x *execution) letGo(s *settling) error {
	x.renewal.stop()
	x.renewal.wait()
	if x.h.atMostOnce && !x.rec.noStore.Load() {
		return x.complete(s, &response{})
	}
	defer s.stop()
	if err := x.h.store.release(s.begin(x.Context), x.name, x.claim); err != nil {
		x.h.logFault(x.Context, "claim not released", x.name, err)
		return err
	}
	if errors.Is(context.Cause(x.running), ErrClaimLost) {
		return ErrClaimLost
	}
	return nil
}

// logFault logs what an operator should know. The storage key is a hash.
func (h *handler) logFault(ctx context.Context, what string, name recordKey, err error) {
	logger := h.logger
	if logger == nil {
		logger = slog.Default()
	}
	logger.ErrorContext(ctx, "idempotency: "+what, "error", err, "storage_key", name.String())
}
