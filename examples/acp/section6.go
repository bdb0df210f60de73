package main

import (
	"errors"
	"net/http"
	"time"

	"github.com/idempotency-go/idempotency"
)

// section6 returns the middleware that is section 6 of the RFC Agentic Checkout: the handlers
// of the four POSTs know nothing of it, but for the recovery point of a payment.
//
// 6.2 compares the body alone. The fingerprint has the method, the path and the query too: the
// first is always POST, the scope has the second, and these endpoints take no query. After a 5xx
// the key stays with its request: that runs again, and another body is refused.
func section6(backend idempotency.Backend) func(http.Handler) http.Handler {
	return idempotency.New(backend,
		idempotency.WithRequired(),                                                            // 6.1
		idempotency.WithScope(scope),                                                          // 6.1
		idempotency.WithFingerprint(idempotency.JSONFingerprint()),                            // 6.2, 6.7
		idempotency.WithReplayHeader("Idempotent-Replayed"),                                   // 6.3, the default
		idempotency.WithErrorHandler(refuse),                                                  // 6.4
		idempotency.WithStoreIf(func(status int, _ http.Header) bool { return status < 500 }), // 6.5
		idempotency.WithExpiry(24*time.Hour),                                                  // 6.6, the default
		idempotency.WithRecovery(resume),                                                      // 6.8
		idempotency.WithEcho(),                                                                // 3.1
	)
}

// resume runs the handler again, which goes on after its last recovery point.
func resume(next http.Handler) http.Handler { return next }

// scope keeps apart the keys of each authenticated identity and of each endpoint.
func scope(r *http.Request) string { return identity(r.Context()) + " " + r.URL.Path }

// refuse answers a request that the middleware refuses, in the RFC's form of an error.
func refuse(w http.ResponseWriter, _ *http.Request, err error) {
	var tooLarge *http.MaxBytesError
	switch {
	case errors.Is(err, idempotency.ErrKeyMissing):
		invalid(http.StatusBadRequest, "idempotency_key_required",
			"Idempotency-Key header is required on all POST requests").write(w)
	case errors.Is(err, idempotency.ErrKeyReused):
		invalid(http.StatusUnprocessableEntity, "idempotency_conflict",
			"Idempotency-Key has already been used with a different request body").write(w)
	case errors.Is(err, idempotency.ErrOutstanding), errors.Is(err, idempotency.ErrClaimLost):
		w.Header().Set("Retry-After", "1")
		invalid(http.StatusConflict, "idempotency_in_flight",
			"A request with this Idempotency-Key is currently being processed").write(w)
	case errors.Is(err, idempotency.ErrKeyInvalid): // 6.4 names no code for it.
		invalid(http.StatusBadRequest, "idempotency_key_invalid",
			"Idempotency-Key must be 1 to 255 printable ASCII characters").write(w)
	case errors.As(err, &tooLarge):
		invalid(http.StatusRequestEntityTooLarge, "too_large", "The request body is too large").write(w)
	case errors.Is(err, idempotency.ErrBodyUnreadable):
		invalid(http.StatusBadRequest, "invalid", "The request body is incomplete").write(w)
	default:
		w.Header().Set("Retry-After", "1")
		failed(http.StatusServiceUnavailable, "service_unavailable").write(w)
	}
}
