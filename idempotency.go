package idempotency

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"time"
)

// New returns middleware that serves the requests with a key and keeps their
// claims and responses in backend. It panics if the backend is nil or an option
// has a bad value. The middleware is safe for concurrent use, and may wrap any
// number of handlers: a mux, a router's group, a single route.
//
// If it stands twice in one chain, the inner one steps aside for a request
// whose header and storage key the outer one serves, and the outer one's settings
// hold. If the inner one has another mode, or a [Transactor] that the outer one
// has not, the request gets 500.
func New(backend Backend, opts ...Option) func(http.Handler) http.Handler {
	if isNil(backend) {
		panic("idempotency: New: nil backend")
	}
	transactor := transactorOf(backend)
	c := newConfig(opts, transactor != nil)
	warnings, waits := new(warnings), new(waits)
	return func(next http.Handler) http.Handler {
		if next == nil {
			panic("idempotency: New: nil handler to wrap")
		}
		recovering := c.recovering(next)
		return &handler{config: c, backend: backend, transactor: transactor, warnings: warnings, waits: waits,
			next: next, recovering: recovering}
	}
}

// transactorOf returns the backend as a Transactor, or nil if it is none. It panics
// if the backend is a wrapper that hides one: what the handlers write would not
// commit with their responses.
func transactorOf(backend Backend) Transactor {
	if t, ok := backend.(Transactor); ok {
		return t
	}
	for inner := backend; ; {
		wrapper, ok := inner.(interface{ Unwrap() Backend })
		if !ok {
			return nil
		}
		if inner = wrapper.Unwrap(); inner == nil {
			return nil
		}
		if _, hidden := inner.(Transactor); hidden {
			panic(fmt.Sprintf("idempotency: New: %T wraps a Transactor and is none: give it the method Begin", backend))
		}
	}
}

// handler is the middleware around one http.Handler.
type handler struct {
	config
	backend    Backend
	transactor Transactor // the backend; nil if it is none
	warnings   *warnings
	waits      *waits
	next       http.Handler
	recovering http.Handler // runs in place of next where its claim took over
}

// exchange is a request with a key, on its way through the middleware. It is also
// a context with the request's values that never ends, as [context.WithoutCancel] makes.
type exchange struct {
	h          *handler
	outer      *run // of another instance, whose handler this request came to
	values     context.Context
	key        string
	scope      string // of storageKey
	plainKey   Key    // of scope and key
	storageKey Key    // the same, but for a second header of one chain
	claim      Claim
	recovers   bool      // The claim took over the key of an interrupted run.
	leaseFrom  time.Time // when the call was sent that the lease counts from
	claiming   bounded   // the context of the first Claim
	panicked   *Event    // what is observed if the handler panics; nil if nobody observes
	body       requestBody
}

// ServeHTTP passes on other methods and what has no key, and observes the rest.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !slices.Contains(h.methods, r.Method) {
		h.next.ServeHTTP(w, r)
		return
	}
	var key string
	var keyErr error
	if h.keyFunc == nil {
		key, keyErr = parseKey(r.Header[h.header])
		if key == "" && keyErr == nil && !h.required {
			h.next.ServeHTTP(w, r)
			return
		}
	}
	x := &exchange{h: h, outer: fromContext(r.Context()), values: r.Context(), key: key}
	if len(h.observers) == 0 {
		x.serve(w, r, keyErr)
		return
	}
	start := time.Now()
	event := Event{Outcome: Panicked} // Assume a panic; serve returns another event.
	x.panicked = &event
	defer func() {
		if event.Outcome == "" {
			return // Another instance serves and observes the request, or it has no key.
		}
		event.Request, event.Key, event.StorageKey, event.Duration = r, x.key, x.storageKey, time.Since(start)
		event.Recovered = x.recovers
		for _, observe := range h.observers {
			observe(r.Context(), event)
		}
	}()
	event = x.serve(w, r, keyErr)
}

// serve takes a request from its key to its answer, and returns what became of it:
// the zero Event if an instance around this one serves it, or it has no key.
func (x *exchange) serve(w http.ResponseWriter, r *http.Request, keyErr error) Event {
	h := x.h
	x.claim.Token.make(time.Now())
	x.body.start(r, h.bufferLimit)
	if h.keyFunc != nil {
		x.key, keyErr = x.keyOfBody()
		if x.key == "" && keyErr == nil && !h.required {
			return x.stepAside(w, r)
		}
	}
	var nested error
	if outer := x.setStorageKey(); outer != nil {
		if nested = h.agrees(outer.h); nested == nil {
			return x.stepAside(w, r)
		}
	}
	if keyErr == nil && x.key != "" && h.validator != nil {
		if err := h.validator(x.key); err != nil {
			keyErr = &keyError{err}
		}
	}
	switch {
	case keyErr != nil:
		return x.refuse(w, r, Rejected, keyErr)
	case x.key == "":
		return x.refuse(w, r, Rejected, ErrKeyMissing)
	case nested != nil:
		x.logFault("request refused", nested)
		return x.refuse(w, r, Failed, nested)
	}
	if h.echo {
		w.Header()[h.header] = slices.Clone(r.Header[h.header])
	}
	fingerprint, err := x.fingerprint(r)
	switch {
	case errors.Is(err, ErrBodyUnreadable):
		return x.refuse(w, r, Rejected, err)
	case err != nil:
		x.logFault("request refused", err)
		return x.refuse(w, r, Failed, err)
	}
	x.claim.Fingerprint = fingerprint
	held, claimed, err := x.claimKey()
	return x.answer(w, r, held, claimed, err)
}

// answer answers a request by what its claim has met.
func (x *exchange) answer(w http.ResponseWriter, r *http.Request, held Record, claimed bool, err error) Event {
	switch {
	case errors.Is(err, ErrUnreadable):
		return x.unreadable(w, r, err)
	case err != nil:
		return x.unavailable(w, r, err)
	case claimed:
		return x.serveClaimed(w, r, held)
	case !held.Claim.matches(x.claim):
		return x.refuse(w, r, Reused, ErrKeyReused)
	case held.State == StateOutstanding:
		return x.refuse(w, r, Outstanding, ErrOutstanding)
	case held.State == StateInterrupted:
		return x.refuse(w, r, Interrupted, ErrInterrupted)
	}
	x.body.finish()
	status := 0
	response, err := x.opened(held, sealedResponse, held.Response)
	if err == nil {
		status, err = x.h.replay(w, r.Method, response)
	}
	if err != nil {
		return x.unreadable(w, r, err)
	}
	return Event{Outcome: Replayed, Status: status}
}

// Value returns the request's values.
func (x *exchange) Value(key any) any { return x.values.Value(key) }

// Deadline, Done and Err are those of a context that does not end.
func (x *exchange) Deadline() (time.Time, bool) { return time.Time{}, false }
func (x *exchange) Done() <-chan struct{}       { return nil }
func (x *exchange) Err() error                  { return nil }

// refuse answers a request that the handler does not get.
func (x *exchange) refuse(w http.ResponseWriter, r *http.Request, outcome Outcome, err error) Event {
	x.body.finish()
	for o := x.outer; o != nil && !o.h.atMostOnce; o = o.outer {
		o.rec.refused.Store(true) // Its response contains a refusal, which a retry may not get.
	}
	if x.h.errorHandler == nil {
		return Event{Outcome: outcome, Status: x.h.answers.write(w, err), Err: err}
	}
	if x.h.answers != standard {
		r = r.WithContext(context.WithValue(r.Context(), answersKey{}, x.h.answers)) // for WriteError
	}
	rec := &recorder{w: w, state: streaming}
	x.h.errorHandler(rec, r, err)
	if rec.status == 0 && rec.state != hijacked {
		WriteError(rec, r, err) // Nothing written would be a 200.
	}
	return Event{Outcome: outcome, Status: rec.status, Err: err}
}

// unreadable answers a request whose key is held by a record that cannot be read.
func (x *exchange) unreadable(w http.ResponseWriter, r *http.Request, err error) Event {
	x.logFault("record not readable", err)
	return x.refuse(w, r, Failed, err)
}

// unavailable answers a request whose key could not be claimed.
func (x *exchange) unavailable(w http.ResponseWriter, r *http.Request, cause error) Event {
	x.releaseFailed()
	x.logNotClaimed(cause)
	err := fmt.Errorf("%w: %w", ErrUnavailable, cause)
	recorded := errors.Is(cause, ErrOutstanding) // The store takes no writes, and has a record of another.
	if recorded {
		err = fmt.Errorf("%w: %v", ErrUnavailable, cause) // It is answered as any other fault.
	}
	if x.h.failOpen && !recorded && !errors.Is(cause, ErrClaimLost) { // Nothing runs beside another request.
		return x.newRun().serveUnprotected(w, r, err)
	}
	return x.refuse(w, r, Failed, err)
}

// log returns where the user wants faults to be logged.
func (h *handler) log() *slog.Logger {
	if h.logger != nil {
		return h.logger
	}
	return slog.Default()
}

// logFault logs what an operator should know. The storage key is a hash.
func (x *exchange) logFault(what string, err error, more ...any) {
	args := append([]any{"error", err, "storage_key", x.storageKey.String(), "claim", x.claim.Token.String()}, more...)
	x.h.log().ErrorContext(x, "idempotency: "+what, args...)
}
