package idempotency

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
)

// problemsPage is the page that explains each problem, unless [WithDocumentation] gives
// another.
const problemsPage = "https://github.com/idempotency-go/idempotency/blob/main/docs/PROBLEMS.md"

// problem is an answer in the form of RFC 9457.
type problem struct {
	Type      string `json:"type"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Detail    string `json:"detail"`
	Retryable bool   `json:"retryable"` // The same request with the same key may succeed later.
}

// body returns the problem as it is sent.
func (p problem) body() []byte {
	b, _ := json.Marshal(p)             // A struct of texts and a number: it cannot fail.
	return slices.Clip(append(b, '\n')) // For a reader in a terminal.
}

// retry says whether the same request with the same key may succeed later.
type retry int

const (
	never retry = iota
	again
	soon // again, after the second that Retry-After tells
)

// refusals has the answer that stands for each sentinel; the first that fits is given. An
// invalid key comes first, whatever the error of its validator wraps.
var refusals = [...]struct {
	err      error
	fragment string // of the page that explains the problem
	title    string
	status   int
	retry    retry
	detail   string
}{
	{ErrKeyInvalid, "key-invalid", "Idempotency key invalid", http.StatusUnprocessableEntity, never,
		"The idempotency key is not valid. Send one that is, for example a version 4 UUID."},
	{ErrKeyMissing, "key-missing", "Idempotency key missing", http.StatusBadRequest, never,
		"This operation needs an idempotency key. Send the request with a key that is new for each operation, and repeat that key only to retry it."},
	{ErrKeyReused, "key-reused", "Idempotency key reused", http.StatusUnprocessableEntity, never,
		"This idempotency key was used before with a different request. To retry, send the request as it was sent first; for another operation, use a new key."},
	{ErrOutstanding, "outstanding", "Request outstanding", http.StatusConflict, soon,
		"A request with this idempotency key is still being processed. Wait, then send the same request with the same key again to get its response."},
	{ErrInterrupted, "interrupted", "Request interrupted", http.StatusConflict, never,
		"A request with this idempotency key was processed in part or whole, and has no answer. It will not be processed again. Look up its outcome before you send it with a new key."},
	{ErrBodyUnreadable, "body-unreadable", "Request body unreadable", http.StatusBadRequest, again,
		"The request's body ended before it was complete. Send the request again with the same key."},
	{ErrClaimLost, "claim-lost", "Claim lost", http.StatusConflict, soon,
		"Another request with this idempotency key has taken over. Send the same request with the same key again to get its response."},
	{ErrNotCommitted, "not-committed", "Not committed", http.StatusServiceUnavailable, soon,
		"The request could not be completed. Send the same request with the same key again: it gets the response if there is one after all, or is processed from the beginning."},
	{ErrUnreadable, "unreadable", "Idempotency record unreadable", http.StatusServiceUnavailable, never,
		"What the idempotency store holds for this key cannot be read. Contact the service: it must look up what became of the request."},
	{ErrUnavailable, "unavailable", "Idempotency store unavailable", http.StatusServiceUnavailable, soon,
		"The idempotency key could not be checked. Send the same request with the same key again."},
	{ErrFull, "full", "Idempotency store full", http.StatusServiceUnavailable, soon,
		"The idempotency store has no room left. Send the same request with the same key again."},
}

// answers are the refusals of an instance, as they are sent.
type answers struct {
	link     []string // the value of Link; nil sends none
	problems [len(refusals)]problem
	bodies   [len(refusals)][]byte
}

// newAnswers returns answers whose problems the given page explains.
func newAnswers(page string) *answers {
	a := new(answers)
	for i, known := range refusals {
		a.problems[i] = problem{page + "#" + known.fragment, known.title, known.status, known.detail, known.retry != never}
		a.bodies[i] = a.problems[i].body()
	}
	return a
}

// standard are the answers without WithDocumentation.
var standard = newAnswers(problemsPage)

// unknown is the answer to an error that is none of the sentinels.
var unknown = problem{"about:blank", http.StatusText(http.StatusInternalServerError),
	http.StatusInternalServerError, "The request could not be processed.", false}

// WriteError answers a request with the problem (application/problem+json, RFC
// 9457) that stands for err. Its "retryable" and the header X-Should-Retry tell
// whether the same request with the same key may succeed later, and Retry-After
// when. It is the default of [WithErrorHandler], for error handlers that delegate
// to it. The answer shows neither the key nor anything of another request; of err
// itself it shows only what a validator of [WithKeyValidator] returned. An err
// that wraps none of the sentinels is answered with 500.
func WriteError(w http.ResponseWriter, r *http.Request, err error) {
	a := standard
	if r != nil {
		if of, ok := r.Context().Value(answersKey{}).(*answers); ok {
			a = of
		}
	}
	a.write(w, err)
}

// answersKey is where the context of a request for an error handler has the answers of
// [WithDocumentation].
type answersKey struct{}

// write returns the status that it has written.
func (a *answers) write(w http.ResponseWriter, err error) (status int) {
	p, body, wait := a.told(err)
	header, room := w.Header(), make([]string, 4)
	room[0], room[1], room[2] = "1", "application/problem+json", strconv.FormatBool(p.Retryable)
	if wait {
		header["Retry-After"] = room[:1:1]
	}
	header["Content-Type"] = room[1:2:2]
	header["X-Should-Retry"] = room[2:3:3]
	if a.link != nil {
		header["Link"] = append(header["Link"], a.link...)
	}
	setLength(header, p.Status, body, room[3:], len(header["Content-Encoding"]) > 0)
	w.WriteHeader(p.Status)
	_, _ = w.Write(body) // The client may be gone.
	return p.Status
}

// refusalOf returns the index of the refusal that stands for err, or -1.
func refusalOf(err error) int {
	for i, known := range refusals {
		if err == known.err { // Most errors are a sentinel, which is found sooner so.
			return i
		}
	}
	for i, known := range refusals {
		if errors.Is(err, known.err) {
			return i
		}
	}
	return -1
}

// told returns the answer to err, with what that itself tells the client, and whether a
// retry should wait.
func (a *answers) told(err error) (p problem, body []byte, wait bool) {
	i := refusalOf(err)
	if i < 0 {
		return unknown, unknown.body(), false
	}
	p = a.problems[i]
	switch refusals[i].err {
	case ErrBodyUnreadable:
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			p.Title = "Request body too large"
			p.Status = http.StatusRequestEntityTooLarge
			p.Detail = "The request's body is larger than this server takes. Send a smaller one with a new key."
			p.Retryable = false
			return p, p.body(), false
		}
	case ErrKeyInvalid:
		var invalid *keyError
		if errors.As(err, &invalid) {
			p.Detail = "The idempotency key is not valid: " + invalid.reason.Error()
			return p, p.body(), false
		}
	case ErrNotCommitted:
		if errors.Is(err, errOutcomeUnknown) {
			p.Retryable = false
			return p, p.body(), false
		}
	}
	return p, a.bodies[i], refusals[i].retry == soon
}
