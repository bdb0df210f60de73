package idempotency

import (
	"context"
	"errors"
	"net/http"
	"time"
)

// A Backend keeps one record for each key: the claim of an outstanding request,
// or the response of one that has run. [Memory] and [Redis] are the two that
// come with this package; the package idempotencytest has the conformance suite
// for any other.
//
// The middleware calls a Backend from many goroutines at once, and the promise
// that a handler runs once rests on Claim being atomic across all of them, in
// every process that shares the store.
//
// A key is a [StorageKey]: 43 bytes of URL-safe base64. A lease or an expiry is
// counted from the call; 0 means for ever, and a negative one is never given.
// What a Backend returns is read-only to its caller. What a Backend was given
// is its caller's again once the call returns, so that it copies what it keeps.
//
// A returned error means that the outcome is unknown: the call may have taken
// effect all the same. Absence is a result, not an error.
type Backend interface {
	// Claim takes the key for claim and returns true, or returns the record
	// that holds the key and false. It is atomic: of any number of calls for
	// one key, one gets it. A Claim that finds its own token outstanding has
	// claimed, because a client library may send a command twice. A claim that
	// is neither renewed nor completed frees its key when the lease is over.
	//
	// A store that is full returns [ErrFull] and keeps what it holds.
	Claim(ctx context.Context, key string, claim Claim, lease time.Duration) (held Record, claimed bool, err error)

	// Renew makes the lease of an outstanding claim run for lease from now.
	// It takes effect where the key holds this very claim, or nothing (the
	// store was restarted, or it evicted the claim); it returns [ErrClaimLost]
	// where another claim holds the key. Renew never alters a response, nor how
	// long it is kept: where the key holds this claim's response it does
	// nothing and returns nil.
	Renew(ctx context.Context, key string, claim Claim, lease time.Duration) error

	// Complete replaces the claim by the response and keeps it for expiry. It
	// takes effect where the key holds this very claim, or nothing; it returns
	// [ErrClaimLost] where another claim holds the key. A Complete repeated
	// with its token returns nil and changes nothing. A store with no room for
	// the response returns [ErrFull] and leaves the claim.
	Complete(ctx context.Context, key string, claim Claim, resp *Response, expiry time.Duration) error

	// Release deletes this very claim while it is outstanding, never another
	// claim and never a response. It returns nil where there was nothing of
	// its own to delete.
	Release(ctx context.Context, key string, claim Claim) error
}

// A Transactor is a Backend whose handlers write in a transaction that commits
// together with their response, or not at all: a request is processed exactly
// once, as far as what it does are those writes. [New] finds out by itself that
// its backend is one. The middleware then does some things differently:
//
//   - Complete, given a context with the values of Begin's, commits. A response
//     that could not be completed is not sent: the client gets 503
//     ([ErrNotCommitted]), or 409 where the claim was lost, and its retry finds
//     nothing done. Complete returns an error that wraps ErrNotCommitted, which
//     is not retried, where it is certain that nothing was committed. After any
//     other error it is called again, and looks up what became of the first
//     call.
//   - Release, given such a context, undoes what the handler wrote, whether or
//     not the claim is still its own. It is called whenever the response is not
//     stored: by [NoStore] or [WithStoreIf], after a panic, and for every status
//     of 500 and more.
//   - Complete with Status 0 (see [WithAtMostOnce]) undoes it too.
//   - Every type of response is stored, unless [WithContentTypes] is given. A
//     response of a status below 400 that is not stored (a body over the limit, a
//     Content-Encoding, trailers; another type, or what [WithStoreIf] refuses; one
//     whose handler had a request refused by middleware inside) is not sent,
//     because what it tells of was undone: the client gets 500. With NoStore it
//     is sent.
//   - A connection cannot be hijacked.
//   - Middleware inside the handler with a backend of its own stores on its own:
//     what it stored stays where the transaction around it is undone.
type Transactor interface {
	Backend

	// Begin is called once for each claim that was claimed, before its handler
	// runs. It returns ctx with what the handler needs to write in the
	// transaction, and the calls that settle the claim to find it again. It does
	// not wait: a transaction begins when the handler first asks for it.
	Begin(ctx context.Context, key string, claim Claim) context.Context
}

// A Claim is what a request puts into a Backend before its handler runs.
type Claim struct {
	// Token is the claim's identity: two claims are the same if their tokens
	// are. The middleware makes a random one for each request.
	Token string
	// Fingerprint tells one request from another under the same key. It is
	// zero where the comparison is off.
	Fingerprint [32]byte
}

// A Record is what a Backend holds for one key.
type Record struct {
	Claim Claim
	// Response is nil while the request is outstanding.
	Response *Response
}

// A Response is what a handler answered, as it is stored and replayed.
type Response struct {
	// Status is the HTTP status code. It is 0 where the handler ran and its
	// answer was not kept; see [WithAtMostOnce].
	Status int
	// Header has the headers that the handler added or changed. A name with no
	// values is a header that the handler took away.
	Header http.Header
	// Body is the whole body.
	Body []byte
}

// The errors that the middleware answers with, logs, and reports in an [Event].
// Compare with [errors.Is]: they come wrapped around their cause.
var (
	// ErrKeyMissing is a request without a key where [WithRequired] asks for
	// one. The client gets 400.
	ErrKeyMissing = errors.New("idempotency: key missing")
	// ErrKeyInvalid is a malformed key, or one that the validator of
	// [WithKeyValidator] refused. The client gets 422.
	ErrKeyInvalid = errors.New("idempotency: key invalid")
	// ErrKeyReused is a key that came before with another request: another
	// method, path, query or body. The client gets 422.
	ErrKeyReused = errors.New("idempotency: key reused with a different request")
	// ErrOutstanding is a duplicate of a request that still runs. The client
	// gets 409 with Retry-After.
	ErrOutstanding = errors.New("idempotency: request with this key is outstanding")
	// ErrNotReplayable is a retry of a request whose handler ran and whose
	// answer was not kept; see [WithAtMostOnce]. The client gets 409.
	ErrNotReplayable = errors.New("idempotency: request ran, its response was not kept")
	// ErrBodyUnreadable is a request whose body broke off while it was read.
	// The client gets 400, or 413 where the cause is an [http.MaxBytesError].
	ErrBodyUnreadable = errors.New("idempotency: request body unreadable")
	// ErrNotCommitted is a request whose handler ran in the transaction of a
	// [Transactor] that did not commit, or is not known to have. The client
	// gets 503 with Retry-After.
	ErrNotCommitted = errors.New("idempotency: transaction not committed")
	// ErrUnavailable is a backend that failed before the handler ran. The
	// client gets 503 with Retry-After.
	ErrUnavailable = errors.New("idempotency: backend unavailable")
	// ErrClaimLost is returned by a [Backend] where another request holds the
	// claim. It is also the cause ([context.Cause]) with which the context of
	// the handler that lost its claim ends.
	ErrClaimLost = errors.New("idempotency: claim lost to another request")
	// ErrFull is returned by a [Backend] that has no room left. From Claim it is
	// an ErrUnavailable to the client; from Complete it is what the [Event] of a
	// response that was sent and not stored tells.
	ErrFull = errors.New("idempotency: backend full")
)
