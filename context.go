package idempotency

import (
	"context"
	"time"

	"github.com/google/uuid"
)

// contextKey is where a context carries its run.
type contextKey struct{}

func fromContext(ctx context.Context) *run {
	x, _ := ctx.Value(contextKey{}).(*run)
	return x
}

// KeyFromContext returns, inside the handler, the client's key, unquoted. ok is
// false if the request has none or did not pass through the middleware.
func KeyFromContext(ctx context.Context) (key string, ok bool) {
	x := fromContext(ctx)
	if x == nil {
		return "", false
	}
	return x.key, true
}

// derivedKeys is the namespace of the UUIDs that DeriveKey makes. To change it
// would change every derived key, and let calls downstream happen twice.
var derivedKeys = uuid.MustParse("b0c3a4a6-63a5-4be6-8a2b-6cbb1c8c1a3e")

// DeriveKey returns, inside the handler, a key for a call downstream: to a
// payment provider, say, that takes idempotency keys itself. It is a version 5
// UUID (RFC 9562, section 5.5) made from the scope, the client's key and name:
// the same on every attempt of this request and in every release, another for
// each name. If a handler is run again after a crash, the provider sees the
// same key again and does not act twice; a recovery ([WithRecovery]) asks it by that
// key. It is "" if there is no key.
func DeriveKey(ctx context.Context, name string) string {
	x := fromContext(ctx)
	if x == nil {
		return ""
	}
	return uuid.NewSHA1(derivedKeys, []byte(x.storageKey.String()+name)).String()
}

// NoStore says, inside the handler, that this response is not to be stored and
// the key is to be released, so that a retry runs the handler again: after a
// time-out upstream, say, before anything was done. The key's fingerprint is
// forgotten with it: the next request with the key may be another one. If the
// outcome is unknown, answer without it. In a recovery ([WithRecovery]), and after a
// [Step] whose result may be kept, the key stays interrupted, and a retry recovers. It
// takes effect until the handler returns, and may be called from any goroutine. What is
// written or flushed afterwards is sent at once. Without a key it does nothing.
func NoStore(ctx context.Context) {
	for x := fromContext(ctx); x != nil; x = x.outer {
		x.rec.noStore.Store(true)
	}
}

// SetExpiry sets, inside the handler, how long this response is stored, in place of
// [WithExpiry]; 0 is for ever. With [WithAtMostOnce] it can only lengthen that. The last call
// before the handler returns counts. It may be called from any goroutine, and panics if d is
// negative. Without a key it does nothing more.
func SetExpiry(ctx context.Context, d time.Duration) {
	must(d >= 0, "SetExpiry", "negative duration")
	if d == 0 {
		d = Forever
	}
	for x := fromContext(ctx); x != nil; x = x.outer {
		x.ownExpiry.Store(int64(d))
	}
}

// expiry returns how long the run's response is stored.
func (x *run) expiry() time.Duration {
	own := time.Duration(x.ownExpiry.Load())
	if own == 0 || x.h.atMostOnce {
		return max(own, x.h.expiry)
	}
	return own
}
