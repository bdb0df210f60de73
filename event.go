package idempotency

import (
	"net/http"
	"time"
)

// An Event tells an observer what became of one request; see [WithObserver].
type Event struct {
	// Request is the request as it came to the middleware. Its Pattern is the
	// one that an [http.ServeMux] inside has matched, if it ran.
	Request *http.Request
	// Key is the client's key, unquoted; "" where it was missing or malformed.
	Key string
	// Outcome is what the middleware did.
	Outcome Outcome
	// Status is the status code that was sent; 0 if none was.
	Status int
	// Duration is how long the request took, from its arrival at the middleware
	// until it was answered, its handler included.
	Duration time.Duration
	// Err is what went wrong, or nil. It wraps one of this package's sentinels
	// where the request was refused. It may be set also where the handler's
	// response was sent: with NotStored it is why the response could not be
	// stored, or the key not be let go of.
	Err error
}

// An Outcome is what the middleware did with a request.
type Outcome string

const (
	// Stored is a request whose handler ran and whose response was stored.
	Stored Outcome = "stored"
	// NotStored is a request whose handler ran and whose response was not
	// stored; Err is set where it should have been. With a [Transactor] one below
	// 400 that could not be stored was not sent either: 500.
	NotStored Outcome = "not_stored"
	// Panicked is a request whose handler did not return.
	Panicked Outcome = "panicked"
	// Replayed is a retry that was answered with the stored response.
	Replayed Outcome = "replayed"
	// Outstanding is a duplicate of a request that still runs: 409.
	Outstanding Outcome = "outstanding"
	// NotReplayable is a retry of a request whose answer was not kept: 409.
	NotReplayable Outcome = "not_replayable"
	// Reused is a key that came before with another request: 422.
	Reused Outcome = "reused"
	// Rejected is a request whose key is missing (400) or invalid (422), or
	// whose body broke off (400 or 413).
	Rejected Outcome = "rejected"
	// Failed is a request that was refused because the backend failed, or because
	// its client left before the key was claimed: 503. With a [Transactor] it is
	// also one whose handler ran and whose transaction did not commit: 503, or 409
	// where the claim was lost.
	Failed Outcome = "failed"
	// Unprotected is a request whose handler ran although the backend failed;
	// see [WithFailOpen].
	Unprotected Outcome = "unprotected"
)
