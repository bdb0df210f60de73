package idempotency

import (
	"errors"
	"fmt"
)

// The errors that the middleware answers with, logs, and reports in an [Event].
// Compare with [errors.Is]: they come wrapped around their cause.
var (
	// ErrKeyMissing is a request without a key if [WithRequired] asks for
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
	// ErrInterrupted is a retry of a request whose run ended without an answer,
	// with [WithAtMostOnce], or after it in a process without [WithRecovery]. The client
	// gets 409 without Retry-After.
	ErrInterrupted = errors.New("idempotency: request with this key was interrupted")
	// ErrBodyUnreadable is a request whose body broke off before the handler ran.
	// The client gets 400, or 413 if the cause is an [http.MaxBytesError].
	ErrBodyUnreadable = errors.New("idempotency: request body unreadable")
	// ErrNotCommitted is a request whose handler ran in the transaction of a
	// [Transactor] that did not commit, or is not known to have. The client
	// gets 503 with Retry-After.
	ErrNotCommitted = errors.New("idempotency: transaction not committed")
	// ErrUnavailable is a backend that failed before the handler ran. The
	// client gets 503 with Retry-After.
	ErrUnavailable = errors.New("idempotency: backend unavailable")
	// ErrUnreadable is a record that cannot be read: it was cut, or is of
	// another version. It is left as it is. The client gets 503.
	ErrUnreadable = errors.New("idempotency: record unreadable")
	// ErrClaimLost is returned by a [Backend] if another request holds the
	// claim. It is also the cause ([context.Cause]) with which the context of
	// the handler that lost its claim ends.
	ErrClaimLost = errors.New("idempotency: claim lost to another request")
	// ErrFull is returned by a [Backend] that has no room left. From Claim it is
	// an ErrUnavailable to the client; from Complete it is what the [Event] of a
	// response that was sent and not stored tells.
	ErrFull = errors.New("idempotency: backend full")
)

// errOutcomeUnknown is an ErrNotCommitted of which it is not known whether it was committed.
var errOutcomeUnknown = fmt.Errorf("%w, as far as is known", ErrNotCommitted)
