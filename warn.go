package idempotency

import (
	"net/http"
	"sync"
)

// mostWarnings is how many warnings one instance logs.
const mostWarnings = 100

// warnings are what was warned of: each reason once for each route. It is safe for
// concurrent use.
type warnings struct {
	mu   sync.Mutex
	seen map[warning]bool
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
