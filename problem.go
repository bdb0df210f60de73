package idempotency

import (
	"encoding/json"
	"errors"
	"net/http"
)

// problem is the answer to a request that is refused, in the form of RFC 9457.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
}

// documentation is where each sentinel is explained.
const documentation = "https://pkg.go.dev/github.com/idempotency-go/idempotency#"

// problems has an answer for each sentinel; the first that fits is given.
var problems = []struct {
	err    error
	name   string
	title  string
	status int
	retry  bool // soon, with the same key
	detail string
}{
	{ErrKeyMissing, "ErrKeyMissing", "Idempotency key missing", http.StatusBadRequest, false,
		"This operation needs an idempotency key. Send the request with a key that is new for each operation, and repeat that key only to retry it."},
	{ErrKeyInvalid, "ErrKeyInvalid", "Idempotency key invalid", http.StatusUnprocessableEntity, false,
		"The idempotency key is not valid. Send one that is, for example a version 4 UUID."},
	{ErrKeyReused, "ErrKeyReused", "Idempotency key reused", http.StatusUnprocessableEntity, false,
		"This idempotency key was used before with a different request. To retry, send the request as it was sent first; for another operation, use a new key."},
	{ErrOutstanding, "ErrOutstanding", "Request outstanding", http.StatusConflict, true,
		"A request with this idempotency key is still being processed. Wait, then send the same request with the same key again to get its response."},
	{ErrNotReplayable, "ErrNotReplayable", "Response not kept", http.StatusConflict, false,
		"A request with this idempotency key has been processed, but its response was not kept, and it will not be processed again. Look up its outcome before you send it with a new key."},
	{ErrBodyUnreadable, "ErrBodyUnreadable", "Request body unreadable", http.StatusBadRequest, false,
		"The request's body ended before it was complete. Nothing was processed. Send the request again with the same key."},
	{ErrClaimLost, "ErrClaimLost", "Claim lost", http.StatusConflict, true,
		"Another request with this idempotency key has taken over. Send the same request with the same key again to get its response."},
	{ErrUnavailable, "ErrUnavailable", "Idempotency store unavailable", http.StatusServiceUnavailable, true,
		"The idempotency key could not be checked. Nothing was processed. Send the same request with the same key again."},
	{ErrFull, "ErrFull", "Idempotency store full", http.StatusServiceUnavailable, true,
		"The idempotency store has no room left. Nothing was processed. Send the same request with the same key again."},
}

// WriteError answers a request with the problem (application/problem+json, RFC
// 9457) that stands for err, and with Retry-After where a retry will help. It
// is the default of [WithErrorHandler], for error handlers that delegate to it.
// The answer shows neither the key nor anything of another request; of err
// itself it shows only what a validator of [WithKeyValidator] returned. An err
// that wraps none of the sentinels is answered with 500.
func WriteError(w http.ResponseWriter, r *http.Request, err error) {
	p := problem{
		Type:   "about:blank",
		Title:  http.StatusText(http.StatusInternalServerError),
		Status: http.StatusInternalServerError,
		Detail: "The request could not be processed.",
	}
	header := w.Header()
	sentinel := err
	var invalid *keyError
	if errors.As(err, &invalid) {
		sentinel = ErrKeyInvalid // Whatever the validator's error wraps.
	}
	for _, known := range problems {
		if errors.Is(sentinel, known.err) {
			p = problem{documentation + known.name, known.title, known.status, known.detail}
			if known.retry {
				header.Set("Retry-After", "1")
			}
			break
		}
	}
	var tooLarge *http.MaxBytesError
	switch {
	case errors.Is(sentinel, ErrBodyUnreadable) && errors.As(err, &tooLarge):
		p.Title = "Request body too large"
		p.Status = http.StatusRequestEntityTooLarge
		p.Detail = "The request's body is larger than this server takes. Nothing was processed. Send a smaller one with a new key."
	case invalid != nil:
		p.Detail = "The idempotency key is not valid: " + invalid.reason.Error()
	}
	body, _ := json.Marshal(p) // A struct of texts and a number: it cannot fail.
	body = append(body, '\n')  // For whoever reads it in a terminal.
	header.Set("Content-Type", "application/problem+json")
	setLength(header, p.Status, body)
	w.WriteHeader(p.Status)
	_, _ = w.Write(body) // The client may be gone.
}
