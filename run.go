package idempotency

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"sync/atomic"
	"time"
)

const (
	// deadlineGrace is how long a request's own deadline may come after its
	// handler's, which is due at the same time.
	deadlineGrace = 100 * time.Millisecond
	// The pauses between tries to complete double from the first to the last.
	firstRetry, lastRetry = 50 * time.Millisecond, time.Second
)

// run is an exchange whose handler runs.
type run struct {
	*exchange
	root      context.Context // of the handler's, and of Complete's and Release's
	running   context.Context // the handler's, which ends with the claim
	lose      context.CancelCauseFunc
	detach    func() bool // ends what followClient began; nil if it did not
	renewal   renewal
	steps     steps
	ending    bounded // the context of Complete, or of Release
	request   http.Request
	rec       recorder
	ownExpiry atomic.Int64 // what SetExpiry was given; 0 is nothing
	plain     [1]string    // the values of Accept-Encoding
}

// newRun returns a run of the exchange's handler. The run is the root of its
// contexts.
func (x *exchange) newRun() *run {
	run := &run{exchange: x}
	run.root = run
	return run
}

// Value adds the run itself to the values of the request.
func (x *run) Value(key any) any {
	if key == (contextKey{}) {
		return x
	}
	return x.exchange.Value(key)
}

// serve runs the handler under the claim. A response that is to be stored is stored
// first and sent second. Any other releases the claim.
func (x *run) serve(w http.ResponseWriter, r *http.Request) Event {
	if x.h.transactor != nil {
		x.root = x.h.transactor.Begin(x.root, x.storageKey, x.claim, x.h.expiry)
	}
	x.rec.start(w, &x.h.config, &x.body)
	x.running, x.lose = context.WithCancelCause(x.root)
	defer x.endContext()
	running, stop := x.boundByRequest(r)
	defer stop()
	if x.h.terms.Trace == 0 && x.h.transactor == nil {
		x.rec.run = x // At most once, and in a transaction, what was begun runs to its end.
	}
	x.startRenewal()
	defer x.renewal.stop()
	returned := false
	defer func() {
		// A panic is told from a return without recover, so that it goes on up
		// with its value and its stack.
		if !returned {
			status := x.rec.sentStatus()
			x.rec.reset()
			x.observePanic(status, x.release(&x.ending))
		}
	}()
	x.serveNext(r, running)
	x.rec.run = nil // What is sent from here on ends nothing.
	if running.Err() == context.DeadlineExceeded {
		// Middleware outside that set the deadline asks its own context next. That
		// timer is due now too, but may fire a moment later: wait for it.
		sleep(r.Context(), deadlineGrace)
	}
	response := x.rec.response()
	returned = true
	if response == nil {
		return x.notStored(w, r)
	}
	return x.stored(w, r, response)
}

// boundByRequest returns the handler's context with the deadline of the request. The
// context ends too if an instance around this one loses its claim.
func (x *run) boundByRequest(r *http.Request) (ctx context.Context, stop func()) {
	deadline, bound := r.Context().Deadline()
	if x.outer == nil && !bound {
		return x.running, func() {}
	}
	ctx, cancel := x.running, context.CancelFunc(func() {})
	if bound {
		ctx, cancel = context.WithDeadline(ctx, deadline)
	}
	detach := context.AfterFunc(r.Context(), func() {
		if errors.Is(context.Cause(r.Context()), ErrClaimLost) {
			x.lose(ErrClaimLost)
		}
	})
	return ctx, func() {
		detach()
		cancel()
	}
}

// followClient ends the handler's context with the client from now on, as without the
// middleware: part of a response was sent that no retry will get. The client may have
// left before.
func (x *run) followClient() {
	if x == nil || x.detach != nil {
		return
	}
	client := x.values
	x.detach = context.AfterFunc(client, func() {
		// At the request's deadline the handler's context ends by itself, as one that
		// ran out of time.
		if client.Err() != context.DeadlineExceeded {
			x.lose(context.Cause(client))
		}
	})
}

// endContext ends the handler's context, if nothing else has.
func (x *run) endContext() {
	if x.detach != nil {
		x.detach()
	}
	x.lose(nil)
}

// serveNext runs the handler with a context, a header and a body of its own. Under a
// claim the header asks for no encoding.
func (x *run) serveNext(r *http.Request, ctx context.Context) {
	defer x.steps.end()
	x.request = *r.WithContext(ctx) // The copy lies in the run: no allocation.
	x.request.Header = maps.Clone(r.Header)
	if x.rec.state == holding && !x.h.everyType {
		// What is encoded inside could not be stored. Without the header net/http's
		// Transport, in a proxy inside, asks for gzip by itself.
		x.plain[0] = "identity"
		x.request.Header["Accept-Encoding"] = x.plain[:]
	}
	x.runNext(&x.rec, &x.request)
}

// runNext runs the handler, or the recovery, with a copy of the request, to which it
// gives the body. Afterwards it does for the request what a mux and net/http would have
// done: it copies the Pattern, and removes multipart files.
func (x *exchange) runNext(w http.ResponseWriter, r *http.Request) {
	x.body.give(r)
	defer func() {
		x.body.finish()
		x.body.request.Pattern = r.Pattern // For metrics outside, and for observers.
		removeFiles(r, x.body.request)
	}()
	if x.recovers {
		x.h.recovering.ServeHTTP(w, r)
		return
	}
	x.h.next.ServeHTTP(w, r)
}

// stored stores the response and sends it.
func (x *run) stored(w http.ResponseWriter, r *http.Request, response []byte) Event {
	err := x.complete(response)
	x.renewal.stop() // Now: to send may take as long as the client reads.
	if err == nil {
		x.rec.send(r.Method)
		return Event{Outcome: Stored, Status: x.rec.status}
	}
	if x.h.transactor != nil {
		_ = x.release(new(bounded)) // A retry need not wait for the lease.
		switch {
		case errors.Is(err, ErrNotCommitted):
		case !errors.Is(err, ErrInterrupted):
			err = fmt.Errorf("%w: %w", errOutcomeUnknown, err)
		case x.h.terms.TakeOver:
			err = fmt.Errorf("%w: %v", errOutcomeUnknown, err) // A retry recovers.
		}
		return x.answerInstead(w, r, Failed, err)
	}
	x.rec.send(r.Method)
	return x.warn(r, Event{Outcome: NotStored, Reason: ReasonStoreFailed, Status: x.rec.status, Err: err})
}

// notStored releases the claim and sends the response.
func (x *run) notStored(w http.ResponseWriter, r *http.Request) Event {
	err := x.release(&x.ending)
	if withheld := x.rec.finish(); withheld {
		x.logFault("response neither stored nor sent", errWithheld)
		event := x.answerInstead(w, r, NotStored, errWithheld)
		event.Reason = x.rec.reason
		return x.warn(r, event)
	}
	return x.warn(r, Event{Outcome: NotStored, Reason: x.rec.reason, Status: x.rec.status, Err: err})
}

// answerInstead answers in place of a handler whose response tells of what was undone.
func (x *run) answerInstead(w http.ResponseWriter, r *http.Request, outcome Outcome, err error) Event {
	header := w.Header()
	clear(header)
	maps.Copy(header, x.rec.before)
	x.rec.buffer = nil // Nobody gets it.
	return x.refuse(w, r, outcome, err)
}

// serveUnprotected runs the handler without a claim: cause is why there is none.
func (x *run) serveUnprotected(w http.ResponseWriter, r *http.Request, cause error) Event {
	x.rec.w, x.rec.state = w, streaming
	defer func() { x.observePanic(x.rec.status, cause) }() // If the handler returns, ServeHTTP overwrites this.
	x.serveNext(r, context.WithValue(r.Context(), contextKey{}, x))
	x.rec.ensureHeader()
	return Event{Outcome: Unprotected, Status: x.rec.status, Err: cause}
}

// observePanic tells what became of the request if the handler panics.
func (x *run) observePanic(status int, err error) {
	if x.panicked != nil {
		x.panicked.Status, x.panicked.Err = status, err
	}
}

// complete stores the response. It is tried for some time, whatever became of the
// client, unless no retry can mend the fault.
func (x *run) complete(response []byte) error {
	response = x.sealed(sealedResponse, response)
	ctx := x.ending.begin(x.root, time.Now(), callTime)
	defer x.ending.stop()
	err := persist(ctx, func() error {
		return x.h.backend.Complete(ctx, x.storageKey, x.claim, response, x.expiry())
	})
	if err != nil {
		x.logFault("response not stored", err)
	}
	return err
}

// persist calls f until it returns nil or a fault that no retry mends, or ctx has ended.
func persist(ctx context.Context, f func() error) error {
	for pause := firstRetry; ; pause = min(2*pause, lastRetry) {
		if err := f(); err == nil || isFinal(err) || !sleep(ctx, pause) {
			return err
		}
	}
}

// isFinal reports whether a call, made again, would return the same error.
func isFinal(err error) bool {
	for _, final := range []error{ErrClaimLost, ErrFull, ErrNotCommitted, ErrInterrupted, ErrUnreadable, errStepLate} {
		if errors.Is(err, final) {
			return true
		}
	}
	return false
}

// release ends the claim without a response. The key is then free, or keeps a trace
// of the run as the mode has it. NoStore alone leaves no trace, unless a step may be kept.
func (x *run) release(b *bounded) error {
	x.renewal.stop()
	mayLand := x.renewal.wait()
	mayLand = x.steps.wait() || mayLand
	trace := x.h.terms.Trace
	if x.rec.noStore.Load() && !x.steps.any() {
		trace = 0
	}
	defer b.stop()
	err := x.h.backend.Release(b.begin(x.root, time.Now(), callTime), x.storageKey, x.claim, trace)
	if err != nil || mayLand {
		x.releaseLater(x.root, trace)
	}
	if err != nil {
		x.logFault("claim not released", err)
		return err
	}
	if errors.Is(context.Cause(x.running), ErrClaimLost) {
		return ErrClaimLost
	}
	return nil
}
