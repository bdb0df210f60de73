package idempotency

import (
	"errors"
	"net/http"
	"sync"
	"time"
)

const (
	// mostWarnings is how many warnings one instance logs.
	mostWarnings = 100
	// fullEvery is how often one instance logs that its store is full: what fills it may
	// be one client's, and every request of the others is refused for it.
	fullEvery = time.Second
)

// warnings are what was warned of: each reason once for each route. It is safe for
// concurrent use.
type warnings struct {
	mu   sync.Mutex
	seen map[warning]bool

	fullAt     time.Time // when it was last logged that the store is full
	suppressed int       // how often it was not, since
}

type warning struct {
	reason  Reason
	pattern string
}

// first reports whether a warning is to be logged.
func (s *warnings) first(w warning) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen[w] || len(s.seen) >= mostWarnings {
		return false
	}
	if s.seen == nil {
		s.seen = make(map[warning]bool)
	}
	s.seen[w] = true
	return true
}

// full reports whether it is to be logged that the store is full, and how often it was
// not since it last was.
func (s *warnings) full(now time.Time) (suppressed int, logged bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.fullAt) < fullEvery {
		s.suppressed++
		return 0, false
	}
	suppressed, s.suppressed, s.fullAt = s.suppressed, 0, now
	return suppressed, true
}

// logNotClaimed logs a fault for which a key was not claimed.
func (x *exchange) logNotClaimed(err error) {
	const what = "key not claimed"
	if !errors.Is(err, ErrFull) {
		x.logFault(what, err)
	} else if suppressed, logged := x.h.warnings.full(time.Now()); logged {
		x.logFault(what, err, "suppressed", suppressed)
	}
}

// warn logs that a response was not stored, if the user may not know: protection
// that is off is never silent. It returns the event.
func (x *run) warn(r *http.Request, event Event) Event {
	switch event.Reason {
	case ReasonNoStore, ReasonStoreIf, ReasonServerError:
		return event // It is what the user asked for.
	}
	pattern := x.request.Pattern
	if x.h.warnings.first(warning{event.Reason, pattern}) {
		x.h.log().WarnContext(x, "idempotency: response not stored, a retry is not replayed",
			"reason", string(event.Reason), "pattern", pattern, "method", r.Method, "storage_key", x.storageKey.String(), "claim", x.claim.Token.String())
	}
	return event
}
