package idempotency

import (
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"time"
)

// config has every setting. It does not change after New.
type config struct {
	header    string // of the key; "" with keyFunc
	keyFunc   func(r *http.Request, body []byte) (key string, err error)
	methods   []string
	required  bool
	echo      bool
	validator func(key string) error
	scope     func(*http.Request) string

	fingerprintFunc func(r *http.Request, body []byte) []byte // nil is the default
	fingerprintOff  bool
	lease           time.Duration
	atMostOnce      bool
	recovery        func(next http.Handler) http.Handler // nil is none
	wait            time.Duration
	bufferLimit     int

	expiry       time.Duration
	replayHeader string
	contentTypes []string
	everyType    bool // "*" is among the content types
	storeIf      func(status int, header http.Header) bool
	headerFilter func(name string) bool

	secrets [][]byte // The first seals, each opens; nil is no encryption.

	failOpen     bool
	errorHandler func(w http.ResponseWriter, r *http.Request, err error) // nil is WriteError
	answers      *answers
	observers    []func(ctx context.Context, e Event)
	logger       *slog.Logger // nil is slog.Default()

	// What follows from the settings and the backend.
	transactional bool  // see Transactor
	terms         Terms // of a claim
}

// newConfig applies the options to the defaults and checks the result.
func newConfig(opts []Option, transactional bool) config {
	c := config{
		methods:      []string{http.MethodPost, http.MethodPatch},
		lease:        30 * time.Second,
		bufferLimit:  1 << 20,
		expiry:       24 * time.Hour,
		replayHeader: "Idempotent-Replayed",
		headerFilter: func(name string) bool { return name != "Set-Cookie" },
		answers:      standard,

		transactional: transactional,
	}
	for _, opt := range opts {
		if opt == nil {
			panic("idempotency: New: nil option")
		}
		opt(&c)
	}
	must(!c.atMostOnce || !c.failOpen, "WithAtMostOnce", "cannot be had together with WithFailOpen")
	must(c.recovery == nil || !c.atMostOnce, "WithRecovery", "cannot be had together with WithAtMostOnce")
	must(c.recovery == nil || !c.failOpen, "WithRecovery", "cannot be had together with WithFailOpen")
	must(c.keyFunc == nil || c.header == "", "WithKeyFunc", "cannot be had together with WithHeader")
	must(c.keyFunc == nil || !c.echo, "WithKeyFunc", "cannot be had together with WithEcho")
	if c.header == "" && c.keyFunc == nil {
		c.header = "Idempotency-Key"
	}
	if c.contentTypes == nil {
		c.contentTypes, c.everyType = []string{mediaTypeJSON}, transactional
	}
	if c.expiry == 0 {
		c.expiry = Forever
	}
	c.terms.Lease = c.lease
	c.terms.TakeOver = c.recovery != nil
	if c.atMostOnce || c.terms.TakeOver {
		c.terms.Trace = c.expiry
	}
	return c
}

// recovering returns the handler of WithRecovery around next, or next itself.
func (c *config) recovering(next http.Handler) http.Handler {
	if c.recovery == nil {
		return next
	}
	h := c.recovery(next)
	must(h != nil, "WithRecovery", "nil handler")
	return h
}

// must panics with the name of the option whose value is bad.
func must(ok bool, option, problem string) {
	if !ok {
		panic("idempotency: " + option + ": " + problem)
	}
}

// isPage reports whether s is the URL of a page, to which a fragment can be added.
func isPage(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.Scheme != "" && u.Host != "" && !strings.ContainsAny(s, "#<>\"")
}

// isToken reports whether s is a token of RFC 9110, section 5.6.2, which the
// names of headers and methods are.
func isToken(s string) bool {
	const marks = "!#$%&'*+-.^_`|~"
	for i := range len(s) {
		c := s[i]
		alphanumeric := '0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z'
		if !alphanumeric && strings.IndexByte(marks, c) < 0 {
			return false
		}
	}
	return s != ""
}

// isNil reports whether v is nil, or an interface that holds a nil pointer.
func isNil(v any) bool {
	if v == nil {
		return true
	}
	p := reflect.ValueOf(v)
	return p.Kind() == reflect.Pointer && p.IsNil()
}
