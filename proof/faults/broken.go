package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/idempotency-go/idempotency"
)

// breakage is a deliberately broken build of the servers, and the check that
// must find it.
type breakage struct {
	name     string
	check    string // the letter
	mode     string
	scenario string // in which it shows
	what     string
}

// breakages has at least one for each check.
var breakages = []breakage{
	{"claim-races", "a", modeAgain, "none", "Claim is a GET and then a SET"},
	{"claim-always", "a", modeAgain, "none", "Claim always claims"},
	{"no-renewal", "a", modeAgain, "none", "a claim is never renewed"},
	{"replay-changes", "b", modeAgain, "none", "a replay is not the bytes that were stored"},
	{"no-fencing", "b", modeAgain, "pause", "Complete overwrites what is stored"},
	{"release-anything", "c", modeAgain, "none", "Complete releases the key at once"},
	{"renewal-gives-up", "c", modeAgain, "lease-refused", "a claim is no longer renewed once that has failed"},
	{"renewed-seldom", "c", modeAgain, "lease-paused", "a claim is renewed every 0.9 of a lease"},
	{"late-claim", "c", modeAgain, "lease-late", "a claim that was answered late is not renewed before its run"},
	{"release-unfenced", "c", modeAgain, "cut", "Release frees the key whoever has claimed it"},
	{"no-trace", "d", modeAtMostOnce, "kill", "a crash, a panic and a response that is not stored leave no trace"},
	{"any-record", "e", modeAgain, "none", "every key has the same record"},
	{"any-body", "e", modeAgain, "none", "the fingerprint is not compared"},
	{"never-released", "f", modeAgain, "hang-up", "Release does nothing, and claims last for ever"},
	{"release-overtakes", "f", modeAgain, "unstored", "Release does not wait for the renewal before it"},
	{"never-interrupted", "f", modeAtMostOnce, "kill", "an interrupted key is told outstanding"},
	{"goroutine-leak", "g", modeAgain, "none", "a goroutine for each run never ends"},
	{"renewed-forever", "g", modeAgain, "none", "a claim is renewed after its end"},
	{"interrupted-early", "h", modeAtMostOnce, "none", "an outstanding key is told interrupted"},
	{"trace-of-nothing", "h", modeAgain, "kill", "a crash leaves a trace, which the mode does not have"},
}

// checkBreakage returns an error where there is no such broken build.
func checkBreakage(name string) error {
	var names []string
	for _, b := range breakages {
		if b.name == name {
			return nil
		}
		names = append(names, b.name)
	}
	return fmt.Errorf("-break: no %q; there are %s", name, strings.Join(names, ", "))
}

// brokenOptions returns the options of a broken build.
func brokenOptions(name string) []idempotency.Option {
	if name == "any-body" {
		return []idempotency.Option{idempotency.WithFingerprint(nil)}
	}
	return nil
}

// brokenHandler returns the handler of a broken build.
func brokenHandler(name string, next http.Handler) http.Handler {
	if name != "goroutine-leak" {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		go func() { select {} }()
		next.ServeHTTP(w, r)
	})
}

// brokenBackend returns the backend of a broken build.
func brokenBackend(name string, backend idempotency.Backend, config serverConfig) idempotency.Backend {
	if name == "" {
		return backend
	}
	return &broken{Backend: backend, name: name, lease: config.Lease, client: config.Redis.client()}
}

// broken is a backend that breaks one of its promises.
type broken struct {
	idempotency.Backend
	name   string
	lease  time.Duration
	client redis.UniversalClient
	claims sync.Map // what is known of each claim, by its token
}

// brokenClaim is a claim that is renewed by a rule that is wrong.
type brokenClaim struct {
	mu     sync.Mutex
	known  time.Time // when it was claimed or renewed
	failed bool
	begun  bool // It was renewed, or its first renewal was left out.
}

// skips reports whether a renewal is left out.
func (b *broken) skips(claim idempotency.Claim) bool {
	known, _ := b.claims.LoadOrStore(claim.Token, &brokenClaim{known: time.Now()})
	c := known.(*brokenClaim)
	c.mu.Lock()
	defer c.mu.Unlock()
	first := !c.begun
	c.begun = true
	since := time.Since(c.known)
	switch b.name {
	case "no-renewal":
		return true
	case "renewal-gives-up":
		return c.failed
	case "renewed-seldom":
		if since < b.lease*9/10 {
			return true
		}
		c.known = time.Now()
	case "late-claim":
		return first && since > b.lease/2
	}
	return false
}

// failed notes that a renewal failed.
func (b *broken) failed(claim idempotency.Claim) {
	if known, ok := b.claims.Load(claim.Token); ok {
		c := known.(*brokenClaim)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.failed = true
	}
}

// recordName is where the right backend keeps a key.
func recordName(key idempotency.Key) string { return "idempotency:" + key.String() }

// forget deletes the record of a key.
func (b *broken) forget(ctx context.Context, key idempotency.Key) error {
	return b.client.Del(ctx, recordName(key)).Err()
}

// alter changes what a call is given.
func (b *broken) alter(key *idempotency.Key, claim *idempotency.Claim, terms *idempotency.Terms) {
	switch b.name {
	case "any-record":
		*key, claim.Fingerprint = idempotency.Key{}, [32]byte{}
	case "no-trace":
		terms.Trace = 0
	case "trace-of-nothing":
		terms.Trace = time.Hour
	}
}

// Claim implements [idempotency.Backend].
func (b *broken) Claim(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
	b.alter(&key, &claim, &terms)
	b.claims.Store(claim.Token, &brokenClaim{known: time.Now()})
	switch b.name {
	case "claim-always":
		return idempotency.Record{}, true, b.forget(ctx, key)
	case "claim-races":
		n, err := b.client.Exists(ctx, recordName(key)).Result()
		if err != nil {
			return idempotency.Record{}, false, err
		}
		if n == 0 {
			time.Sleep(time.Millisecond)
			if err := b.forget(ctx, key); err != nil {
				return idempotency.Record{}, false, err
			}
		}
	case "never-released":
		terms.Lease = idempotency.Forever
	}
	held, claimed, err := b.Backend.Claim(ctx, key, claim, terms)
	switch {
	case claimed || err != nil:
	case b.name == "replay-changes":
		held.Response, err = changeBody(held.Response)
	case b.name == "never-interrupted" && held.State == idempotency.StateInterrupted:
		held.State = idempotency.StateOutstanding
	case b.name == "interrupted-early" && held.State == idempotency.StateOutstanding:
		held.State = idempotency.StateInterrupted
	}
	return held, claimed, err
}

// changeBody returns a stored response with a longer body.
func changeBody(stored []byte) ([]byte, error) {
	if stored == nil {
		return nil, nil
	}
	var response idempotency.Response
	if err := response.UnmarshalBinary(stored); err != nil {
		return nil, err
	}
	response.Body = slices.Concat(response.Body, []byte(" "))
	return response.MarshalBinary()
}

// Renew implements [idempotency.Backend].
func (b *broken) Renew(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms, progress []byte) error {
	b.alter(&key, &claim, &terms)
	if b.skips(claim) {
		return nil
	}
	if b.name == "release-overtakes" {
		go func() {
			time.Sleep(30 * time.Millisecond)
			_ = b.Backend.Renew(context.WithoutCancel(ctx), key, claim, terms, progress)
		}()
		return nil
	}
	err := b.Backend.Renew(ctx, key, claim, terms, progress)
	if err != nil {
		b.failed(claim)
	}
	return err
}

// Complete implements [idempotency.Backend].
func (b *broken) Complete(ctx context.Context, key idempotency.Key, claim idempotency.Claim, response []byte, expiry time.Duration) error {
	b.alter(&key, &claim, &idempotency.Terms{})
	switch b.name {
	case "no-fencing":
		if err := b.forget(ctx, key); err != nil {
			return err
		}
	case "release-anything":
		return b.forget(ctx, key)
	case "renewed-forever":
		if key[0] >= 4 {
			break // One in 64 is enough to be seen, and leaves time for the others.
		}
		go func() {
			for {
				time.Sleep(b.lease / 3)
				_ = b.Backend.Renew(context.Background(), key, claim, idempotency.Terms{Lease: b.lease}, nil)
			}
		}()
	}
	return b.Backend.Complete(ctx, key, claim, response, expiry)
}

// Release implements [idempotency.Backend].
func (b *broken) Release(ctx context.Context, key idempotency.Key, claim idempotency.Claim, trace time.Duration) error {
	terms := idempotency.Terms{Trace: trace}
	b.alter(&key, &claim, &terms)
	switch b.name {
	case "never-released":
		return nil
	case "release-unfenced":
		return b.forget(ctx, key)
	case "trace-of-nothing":
		terms.Trace = trace // Only a crash is to leave one.
	}
	return b.Backend.Release(ctx, key, claim, terms.Trace)
}
