package idempotency

import (
	"context"
	"log/slog"
	"net/http"
	"net/textproto"
	"slices"
	"time"
)

// An Option is a setting of [New]. Of two equal options the last one wins,
// except [WithObserver], which adds. A bad value makes New panic with a text
// that names the option.
type Option func(*config)

// WithHeader sets the request header that carries the key. The default is
// "Idempotency-Key", as in the IETF draft
// draft-ietf-httpapi-idempotency-key-header, section 2.
func WithHeader(name string) Option {
	return func(c *config) {
		must(isToken(name), "WithHeader", "malformed header name")
		c.header = textproto.CanonicalMIMEHeaderKey(name)
	}
}

// WithMethods sets the methods that the middleware serves, in place of the
// default list; a request with another method passes untouched. Methods are
// case-sensitive. The default is POST and PATCH.
func WithMethods(methods ...string) Option {
	return func(c *config) {
		must(len(methods) > 0, "WithMethods", "no method")
		for _, m := range methods {
			must(isToken(m), "WithMethods", "malformed method")
		}
		c.methods = slices.Clone(methods)
	}
}

// WithRequired refuses a request without a key, in a listed method, with 400
// and [ErrKeyMissing]. The default is to let it pass.
func WithRequired() Option {
	return func(c *config) { c.required = true }
}

// WithKeyFunc takes the key from the request in place of a header: a field of its body, say,
// or the id of an event. f gets the whole body, which the handler gets too, also as a form.
// A body over the limit of [WithBufferLimit] is refused with 413, and f is not called. What
// f returns is checked as any key, and never unquoted. "" is no key: the request passes, as
// a copy with its body restored. An error is an [ErrKeyInvalid], 422, and its text is told
// to the client. f is called from many goroutines. It cannot be had together with
// [WithHeader] or [WithEcho]. The default is none.
func WithKeyFunc(f func(r *http.Request, body []byte) (key string, err error)) Option {
	return func(c *config) {
		must(f != nil, "WithKeyFunc", "nil function")
		c.keyFunc = f
	}
}

// WithKeyValidator adds a check of the key after the built-in ones (1 to 255
// printable ASCII characters). A key for which f returns an error is refused
// with 422 and [ErrKeyInvalid], and the text of the error is told to the
// client. f is called from many goroutines. The default is none; see [UUIDv4] and [UUIDv7].
func WithKeyValidator(f func(key string) error) Option {
	return func(c *config) {
		must(f != nil, "WithKeyValidator", "nil function")
		c.validator = f
	}
}

// WithScope keeps the keys of one tenant, account or API credential apart from
// those of another: f returns the scope of a request, and the same key in two
// scopes is two keys. If clients do not trust each other a scope is
// necessary, or one could be answered with what another was told. Take it from
// what authentication has established, never from what the client merely
// claims. f may read r.Body, up to the limit of [WithBufferLimit], or parse it as a
// form: the handler gets it whole all the same. A longer body ends for f with an
// [http.MaxBytesError], and as a form it has no values. f is called from many goroutines.
// The default is one scope for all.
func WithScope(f func(*http.Request) string) Option {
	return func(c *config) {
		must(f != nil, "WithScope", "nil function")
		c.scope = f
	}
}

// WithFingerprint sets what must be the same in a retry: what f returns is
// hashed and compared, and a key that comes with another fingerprint is refused
// with 422 and [ErrKeyReused]. body is the request's body, or as much of it as
// [WithBufferLimit] allows: let f return r.ContentLength too if more may come. f may
// neither keep body, because its memory is used again, nor change it. f may read r.Body
// and parse it as a form, as the function of [WithScope] may. f is called from many
// goroutines. A nil f turns the comparison off, and the body is then not read before the
// handler or a scope reads it, which a stream in both directions needs: its client may
// wait for an answer before it ends its body.
//
// The default is the method, the path (as the handler sees it, and as it was
// sent), the query and the body, byte for byte, but for the boundary of a multipart body.
//
// A form that middleware outside has parsed counts by its names and values, and by the
// names, types and bytes of its files; f gets all of those as body, with the values
// as [net/url.Values.Encode] has them.
//
// Other middleware outside that reads a body must put it back whole, before this one. A
// body that was not put back is refused with 500 if that can be noticed: it is shorter than
// its Content-Length and within the limit; it is empty and no length is declared; or it is
// an urlencoded form of which net/http's parser has read 10 MiB and given up, and
// r.PostForm is empty and not nil. That refuses an empty body in chunks too: a client that
// has no body must not send one. If a part was read of another body in chunks, the rest is
// compared as if it were the whole. So it is with one over the limit; if the handler reads
// that to its end and it is shorter than its Content-Length, the response is not stored.
// With a nil f nothing is refused.
func WithFingerprint(f func(r *http.Request, body []byte) []byte) Option {
	return func(c *config) {
		c.fingerprintFunc, c.fingerprintOff = f, f == nil
	}
}

// WithLease sets how long a claim outlives its process: if the process dies,
// a retry can run the handler again, or recover, one lease later. While the handler
// runs the claim is renewed every twentieth of its lease, and every fortieth while that
// fails or hangs, so that a lease need not be as long as the slowest handler. No
// claim is lost to a process that is paused, or to a store that is out of reach,
// for up to 0.9 of a lease. After more than that, a retry may run the handler
// beside the first run, whose context then ends with [ErrClaimLost]. So the lease
// should be longer than any pause and any failover, with that much to spare, and
// over ten round trips to the store. The least is 100 milliseconds. The default
// is 30 seconds.
func WithLease(d time.Duration) Option {
	return func(c *config) {
		must(d >= leastLease, "WithLease", "lease under 100ms")
		c.lease = d
	}
}

// leastLease is the shortest lease that can be renewed in time.
const leastLease = 100 * time.Millisecond

// WithAtMostOnce never starts a handler twice for one key within the expiry, for an
// operation that is worse done twice than not at all. A crash, a panic and a
// response that is not stored leave the key interrupted for the expiry, and a retry
// gets 409 and [ErrInterrupted]; after a crash, one lease later. [NoStore] alone
// frees the key. A backend that evicts or loses data is the exception. If a claim
// lands although the backend answered with an error, and cannot be released
// either, its key is interrupted without a run.
//
// The default is to run the handler again on a retry after a crash, a panic or
// a response that was not stored.
func WithAtMostOnce() Option {
	return func(c *config) { c.atMostOnce = true }
}

// WithRecovery recovers what a run without an answer has begun. A crash, a panic and
// a response that is not stored leave the key interrupted for the expiry. A retry then
// runs f(next) in place of next, the handler that the middleware wraps. It finds out
// downstream what the run before has done: [DeriveKey] returns the same keys again. Then
// it answers, and its response is stored as any other; or it calls next, to run the
// handler again. It must expect that all was done before, or a part, or nothing.
//
// After a crash a retry recovers one lease later. Only one of many retries recovers,
// under a claim of its own; until it has answered, the others get [ErrOutstanding], or
// wait. A recovery that crashes, panics or is not stored is recovered in turn. An owner
// that was merely slow, and comes back late, cannot replace what the recovery answers.
// [NoStore] frees the key in a run that recovers nothing and has kept no step; else it
// leaves the key interrupted, because something may have been done. [Step] lets a run go on
// where the one before was.
//
// f is called once for each handler that the middleware wraps, and its handler is called
// from many goroutines. WithRecovery cannot be had together with [WithAtMostOnce] or
// [WithFailOpen]. The default is to run the handler again.
func WithRecovery(f func(next http.Handler) http.Handler) Option {
	return func(c *config) {
		must(f != nil, "WithRecovery", "nil function")
		c.recovery = f
	}
}

// WithWait lets a duplicate of an outstanding request wait for up to d, or until
// its client leaves, for the first one's response. If the first releases its
// claim, the duplicate runs the handler, or recovers ([WithRecovery]). The store is asked
// about five times a second for each key that is waited for, by each process. While a
// duplicate waits, it holds its body, up to the limit of [WithBufferLimit]. The default is
// 0: it gets 409 and [ErrOutstanding] at once.
func WithWait(d time.Duration) Option {
	return func(c *config) {
		must(d >= 0, "WithWait", "negative duration")
		c.wait = d
	}
}

// WithBufferLimit sets how many bytes of a request's body, of a response's, and of the
// names and results of its steps ([Step]) are held in memory. A longer request body is compared by its first n bytes
// and its declared length, and reaches the handler whole all the same; a longer
// response is not stored, and streams to the client: from its header on if it declares its
// length. If a longer request body breaks off while the handler reads its rest, what the
// handler answers is not stored. Of a request's body nothing is held once the handler has
// read or closed it.
//
// The middleware reads these bytes before the handler runs, and so before any time limit
// that the handler sets: set [http.Server.ReadTimeout], or a read deadline outside.
// The default is 1 MiB.
func WithBufferLimit(n int) Option {
	return func(c *config) {
		must(n >= 0, "WithBufferLimit", "negative limit")
		c.bufferLimit = n
	}
}

// WithFailOpen runs the handler unprotected if the backend fails before it
// runs: for services that would rather do something twice than not at all. It
// cannot be had together with [WithAtMostOnce] or [WithRecovery]. The default is to fail
// closed: 503 and [ErrUnavailable].
func WithFailOpen() Option {
	return func(c *config) { c.failOpen = true }
}

// WithErrorHandler sets what answers a request that the middleware refuses. err
// wraps one of this package's sentinels, unless the answer is 500: a response of a
// [Transactor] that cannot be stored, two instances in one chain that disagree, or a
// body that was read outside. f is called from many goroutines; it writes the whole
// answer, and may delegate to [WriteError], which is the default, and also answers if f
// writes nothing.
func WithErrorHandler(f func(w http.ResponseWriter, r *http.Request, err error)) Option {
	return func(c *config) {
		must(f != nil, "WithErrorHandler", "nil function")
		c.errorHandler = f
	}
}

// WithDocumentation sets the page of the API that explains its idempotency keys to its
// clients, an absolute URL without a fragment. The "type" of each problem is that URL with
// the fragment that names the problem, such as "#key-reused", and refusals carry
// Link: <url>; rel="describedby" (the IETF draft, section 2.7). The default is the page
// docs/PROBLEMS.md of this library, which has them all, and no Link.
func WithDocumentation(url string) Option {
	return func(c *config) {
		must(isPage(url), "WithDocumentation", "no absolute URL without a fragment")
		c.answers = newAnswers(url)
		c.answers.link = []string{"<" + url + `>; rel="describedby"`}
	}
}

// WithEcho sends the client's key back, in the header that carried it and as it was spelled,
// with every answer to a request whose key is valid: the handler's, a replay and a refusal.
// The default is off.
func WithEcho() Option {
	return func(c *config) { c.echo = true }
}

// WithObserver adds an observer: f is called once for each request with a key
// in a listed method, and for each that [WithRequired] refuses, in the request's
// goroutine and after its answer was written. ctx is the request's context,
// and may have ended. f is called from many goroutines. The default is none.
func WithObserver(f func(ctx context.Context, e Event)) Option {
	return func(c *config) {
		must(f != nil, "WithObserver", "nil function")
		c.observers = append(c.observers, f)
	}
}

// WithLogger sets where faults are logged: a backend that fails, a response that
// was sent and could not be stored, a claim that was lost. Neither a key in
// clear nor a body is ever logged. The default is [slog.Default].
func WithLogger(l *slog.Logger) Option {
	return func(c *config) {
		must(l != nil, "WithLogger", "nil logger")
		c.logger = l
	}
}
