package idempotency

import (
	"bytes"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
	"time"
)

// WithExpiry sets how long a response is stored and a retry is answered with
// it; 0 is for ever. The default is 24 hours.
func WithExpiry(d time.Duration) Option {
	return func(c *config) {
		must(d >= 0, "WithExpiry", "negative duration")
		c.expiry = d
	}
}

// WithReplayHeader sets the response header that marks a replay; its value is
// "true". The default is "Idempotent-Replayed".
func WithReplayHeader(name string) Option {
	return func(c *config) {
		must(isToken(name), "WithReplayHeader", "malformed header name")
		c.replayHeader = textproto.CanonicalMIMEHeaderKey(name)
	}
}

// WithContentTypes sets the media types whose responses are stored, in place of
// the default list, without parameters, as in "application/problem+json". A
// type that is JSON (application/json, or one that ends in "+json") is stored
// with a valid JSON body only. "*" stores every response, of any type and
// body, those without a body too. A response without a Content-Type counts by
// what it begins with, as [http.DetectContentType] has it, and as JSON if it is
// valid JSON. A response that the handler has encoded is stored with "*" only: without
// it, the handler's request has Accept-Encoding: identity, and compression belongs
// outside. The default is "application/json"; with a [Transactor], "*".
func WithContentTypes(types ...string) Option {
	return func(c *config) {
		must(len(types) > 0, "WithContentTypes", "no type")
		for _, t := range types {
			main, sub, _ := strings.Cut(t, "/")
			plain := isToken(main) && isToken(sub) && !strings.Contains(t, "*")
			must(t == "*" || plain, "WithContentTypes", "malformed media type (give it without parameters and wildcards)")
		}
		c.contentTypes = slices.Clone(types)
		c.everyType = slices.Contains(types, "*")
	}
}

// WithStoreIf stores only the responses for which f returns true, of those that
// could be stored otherwise; f is asked when the handler writes its header, and
// may neither keep nor change it. It is called from many goroutines. A response
// that is not stored frees the key; with [WithAtMostOnce] or [WithRecovery] it leaves
// the key interrupted.
// The default is to store every status, as Stripe does: a retry of a request
// that failed is told how it failed.
func WithStoreIf(f func(status int, header http.Header) bool) Option {
	return func(c *config) {
		must(f != nil, "WithStoreIf", "nil function")
		c.storeIf = f
	}
}

// WithHeaderFilter sets which response headers are stored: those for whose
// canonical name f returns true. Never stored are Connection, Keep-Alive,
// Proxy-Connection, TE, Trailer, Transfer-Encoding, Upgrade, Date and
// Content-Length. f is called from many goroutines. The default is all others
// but Set-Cookie, which would hand one client's session to another one that retries.
func WithHeaderFilter(f func(name string) bool) Option {
	return func(c *config) {
		must(f != nil, "WithHeaderFilter", "nil function")
		c.headerFilter = f
	}
}

// WithEncryption seals what is stored of a response, and of the results of [Step], with
// AES-256-GCM: who reads the store reads no answer, unless they know the secret and the
// client's key, or guess that; who writes to it can make no answer up, nor move one to
// another key or claim. An old progress that is put back is not noticed. State, times,
// tokens, the fingerprint and lengths stay visible.
//
// The first secret seals; each of older opens too. A secret has at least 16 bytes, which must
// be random, such as 32 of crypto/rand. To roll it, deploy the new one as an older one
// everywhere, then as the first with the old one after it; drop the old one once no record
// is left that it sealed: after the longest that a response is stored ([WithExpiry],
// [SetExpiry]), and with [WithRecovery] after the last interrupted key of that time was
// recovered. An empty older secret lets records be read that are not sealed, for the time of
// a cut-over. A record that no secret opens is [ErrUnreadable]: 503. The secrets are copied.
// The default is not to seal.
func WithEncryption(secret []byte, older ...[]byte) Option {
	secrets := [][]byte{bytes.Clone(secret)}
	for _, old := range older {
		secrets = append(secrets, bytes.Clone(old))
	}
	return func(c *config) {
		must(len(secret) >= leastSecret, "WithEncryption", "secret under 16 bytes")
		for _, old := range older {
			must(len(old) == 0 || len(old) >= leastSecret, "WithEncryption", "older secret under 16 bytes")
		}
		origin{}.seal(secrets[0], sealedResponse, nil) // It panics now if the machine's rules forbid what it needs.
		c.secrets = secrets
	}
}
