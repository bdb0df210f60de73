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
	// Key is the client's key, unquoted; "" if it was missing or malformed.
	Key string
	// StorageKey is the name of the key in the store; zero if Key is "".
	StorageKey Key
	// Outcome is what the middleware did.
	Outcome Outcome
	// Reason is why the response was not stored; "" unless Outcome is NotStored.
	Reason Reason
	// Status is the status code that was sent; 0 if none was.
	Status int
	// Recovered is true if the handler of [WithRecovery] ran, whatever Outcome is.
	Recovered bool
	// Duration is how long the request took, from its arrival at the middleware
	// until it was answered, its handler included.
	Duration time.Duration
	// Err is what went wrong, or nil. It wraps one of this package's sentinels
	// if the request was refused. It may be set also if the handler's
	// response was sent: with NotStored it is why the response could not be
	// stored, or the claim not be released.
	Err error
}

// An Outcome is what the middleware did with a request.
type Outcome string

const (
	// Stored is a request whose handler ran and whose response was stored.
	Stored Outcome = "stored"
	// NotStored is a request whose handler ran and whose response was not
	// stored; Err is set if it should have been. With a [Transactor] one below
	// 400 that could not be stored was not sent either: 500.
	NotStored Outcome = "not_stored"
	// Panicked is a request whose handler, an option's function or backend
	// panicked.
	Panicked Outcome = "panicked"
	// Replayed is a retry that was answered with the stored response.
	Replayed Outcome = "replayed"
	// Outstanding is a duplicate of a request that still runs: 409.
	Outstanding Outcome = "outstanding"
	// Interrupted is a retry of a request whose run ended without an answer, and that
	// does not recover it: 409.
	Interrupted Outcome = "interrupted"
	// Reused is a key that came before with another request: 422.
	Reused Outcome = "reused"
	// Rejected is a request whose key is missing (400) or invalid (422), or
	// whose body broke off (400 or 413).
	Rejected Outcome = "rejected"
	// Failed is a request that was refused because the backend failed, or because
	// its record could not be read: 503; or because the set-up is wrong, as where
	// middleware outside has read its body: 500. With a [Transactor] it is
	// also one whose handler ran and whose transaction did not commit: 503, or 409
	// if the claim was lost.
	Failed Outcome = "failed"
	// Unprotected is a request whose handler ran although the backend failed;
	// see [WithFailOpen].
	Unprotected Outcome = "unprotected"
)

// A Reason is why a response was not stored. One that the user has not asked for
// is logged as a warning, once for each route.
type Reason string

const (
	// ReasonNoStore is a call of [NoStore], or a request of the handler's that
	// middleware inside has refused.
	ReasonNoStore Reason = "no_store"
	// ReasonStoreIf is what [WithStoreIf] refuses.
	ReasonStoreIf Reason = "store_if"
	// ReasonContentType is a type that [WithContentTypes] does not list.
	ReasonContentType Reason = "content_type"
	// ReasonInvalidJSON is a body that is not the JSON that its type says.
	ReasonInvalidJSON Reason = "invalid_json"
	// ReasonEncoded is a Content-Encoding that the handler set; with "*" among the
	// content types such a response is stored.
	ReasonEncoded Reason = "encoded"
	// ReasonTooLarge is a body, or a declared Content-Length, over the limit of
	// [WithBufferLimit].
	ReasonTooLarge Reason = "too_large"
	// ReasonLength is a declared Content-Length that the body did not meet.
	ReasonLength Reason = "length"
	// ReasonTrailers is a response with trailers.
	ReasonTrailers Reason = "trailers"
	// ReasonHijacked is a connection that the handler took over, or status 101.
	ReasonHijacked Reason = "hijacked"
	// ReasonRequestBody is a request's body that broke off, or was shorter than it
	// declared, while the handler read what is over the limit of [WithBufferLimit].
	ReasonRequestBody Reason = "request_body"
	// ReasonServerError is a status of 500 or more with a [Transactor].
	ReasonServerError Reason = "server_error"
	// ReasonStoreFailed is a [Backend] that did not store the response.
	ReasonStoreFailed Reason = "store_failed"
)
