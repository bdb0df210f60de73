package idempotency

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
)

// documentation is where each sentinel is explained.
const documentation = "https://pkg.go.dev/github.com/idempotency-go/idempotency#"

// problem is an answer in the form of RFC 9457.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
}

// body returns the problem as it is sent.
func (p problem) body() []byte {
	b, _ := json.Marshal(p)             // A struct of texts and a number: it cannot fail.
	return slices.Clip(append(b, '\n')) // For a reader in a terminal.
}

// refusal is the answer that stands for a sentinel.
type refusal struct {
	problem
	err   error
	retry bool   // soon, with the same key
	text  []byte // the problem's body
}

func newRefusal(err error, name, title string, status int, retry bool, detail string) *refusal {
	p := problem{documentation + name, title, status, detail}
	return &refusal{p, err, retry, p.body()}
}

// refusals has an answer for each sentinel; the first that fits is given. An
// invalid key comes first, whatever the error of its validator wraps.
var refusals = []*refusal{
	newRefusal(ErrKeyInvalid, "ErrKeyInvalid", "Idempotency key invalid", http.StatusUnprocessableEntity, false,
		"The idempotency key is not valid. Send one that is, for example a version 4 UUID."),
	newRefusal(ErrKeyMissing, "ErrKeyMissing", "Idempotency key missing", http.StatusBadRequest, false,
		"This operation needs an idempotency key. Send the request with a key that is new for each operation, and repeat that key only to retry it."),
	newRefusal(ErrKeyReused, "ErrKeyReused", "Idempotency key reused", http.StatusUnprocessableEntity, false,
		"This idempotency key was used before with a different request. To retry, send the request as it was sent first; for another operation, use a new key."),
	newRefusal(ErrOutstanding, "ErrOutstanding", "Request outstanding", http.StatusConflict, true,
		"A request with this idempotency key is still being processed. Wait, then send the same request with the same key again to get its response."),
	newRefusal(ErrInterrupted, "ErrInterrupted", "Request interrupted", http.StatusConflict, false,
		"A request with this idempotency key was processed in part or whole, and has no answer. It will not be processed again. Look up its outcome before you send it with a new key."),
	newRefusal(ErrBodyUnreadable, "ErrBodyUnreadable", "Request body unreadable", http.StatusBadRequest, false,
		"The request's body ended before it was complete. Send the request again with the same key."),
	newRefusal(ErrClaimLost, "ErrClaimLost", "Claim lost", http.StatusConflict, true,
		"Another request with this idempotency key has taken over. Send the same request with the same key again to get its response."),
	newRefusal(ErrNotCommitted, "ErrNotCommitted", "Not committed", http.StatusServiceUnavailable, true,
		"The request could not be completed. Send the same request with the same key again: it gets the response if there is one after all, or is processed from the beginning."),
	newRefusal(ErrUnreadable, "ErrUnreadable", "Idempotency record unreadable", http.StatusServiceUnavailable, false,
		"What the idempotency store holds for this key cannot be read. Contact the service: it must look up what became of the request."),
	newRefusal(ErrUnavailable, "ErrUnavailable", "Idempotency store unavailable", http.StatusServiceUnavailable, true,
		"The idempotency key could not be checked. Send the same request with the same key again."),
	newRefusal(ErrFull, "ErrFull", "Idempotency store full", http.StatusServiceUnavailable, true,
		"The idempotency store has no room left. Send the same request with the same key again."),
}

// unknown is the answer to an error that is none of the sentinels.
var unknown = problem{"about:blank", http.StatusText(http.StatusInternalServerError),
	http.StatusInternalServerError, "The request could not be processed."}

// WriteError answers a request with the problem (application/problem+json, RFC
// 9457) that stands for err, and with Retry-After if a retry will help. It
// is the default of [WithErrorHandler], for error handlers that delegate to it.
// The answer shows neither the key nor anything of another request; of err
// itself it shows only what a validator of [WithKeyValidator] returned. An err
// that wraps none of the sentinels is answered with 500.
func WriteError(w http.ResponseWriter, r *http.Request, err error) { writeProblem(w, err) }

// writeProblem returns the status that it has written.
func writeProblem(w http.ResponseWriter, err error) (status int) {
	header, room := w.Header(), make([]string, 3)
	status, body := unknown.Status, []byte(nil)
	if known := refusalOf(err); known == nil {
		body = unknown.body()
	} else {
		status, body = known.told(err)
		if known.retry {
			room[0] = "1"
			header["Retry-After"] = room[:1:1]
		}
	}
	room[1] = "application/problem+json"
	header["Content-Type"] = room[1:2:2]
	setLength(header, status, body, room[2:], len(header["Content-Encoding"]) > 0)
	w.WriteHeader(status)
	_, _ = w.Write(body) // The client may be gone.
	return status
}

// refusalOf returns the refusal that stands for err, or nil.
func refusalOf(err error) *refusal {
	for _, known := range refusals {
		if err == known.err { // Most errors are a sentinel, which is found sooner so.
			return known
		}
	}
	for _, known := range refusals {
		if errors.Is(err, known.err) {
			return known
		}
	}
	return nil
}

// told returns the answer with what err itself tells the client.
func (known *refusal) told(err error) (status int, body []byte) {
	p := known.problem
	switch known.err {
	case ErrBodyUnreadable:
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			p.Title = "Request body too large"
			p.Status = http.StatusRequestEntityTooLarge
			p.Detail = "The request's body is larger than this server takes. Send a smaller one with a new key."
			return p.Status, p.body()
		}
	case ErrKeyInvalid:
		var invalid *keyError
		if errors.As(err, &invalid) {
			p.Detail = "The idempotency key is not valid: " + invalid.reason.Error()
			return p.Status, p.body()
		}
	}
	return p.Status, known.text
}
