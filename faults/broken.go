package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
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
	{"no-fencing", "b", modeAgain, "pause", "Complete overwrites whatever is stored"},
	{"release-anything", "c", modeAgain, "none", "Complete releases the key at once"},
	{"again-on-panic", "d", modeAtMostOnce, "kill", "the claim lasts one lease, and a panic lets go of it"},
	{"any-record", "e", modeAgain, "none", "every key has the same record"},
	{"any-body", "e", modeAgain, "none", "the fingerprint is not compared"},
	{"never-released", "f", modeAgain, "hang-up", "Release does nothing, and claims last for ever"},
	{"goroutine-leak", "g", modeAgain, "none", "a goroutine for each run never ends"},
	{"renewed-forever", "g", modeAgain, "none", "a claim is renewed after its end"},
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
}

// record is where the right backend keeps a key.
func (b *broken) record(key string) string { return "idempotency:" + key }

// forget deletes a record, whoever owns it.
func (b *broken) forget(ctx context.Context, key string) error {
	return b.client.Del(ctx, b.record(key)).Err()
}

// Claim implements [idempotency.Backend].
func (b *broken) Claim(ctx context.Context, key string, claim idempotency.Claim, lease time.Duration) (idempotency.Record, bool, error) {
	switch b.name {
	case "claim-always":
		return idempotency.Record{}, true, b.forget(ctx, key)
	case "claim-races":
		n, err := b.client.Exists(ctx, b.record(key)).Result()
		if err != nil {
			return idempotency.Record{}, false, err
		}
		if n == 0 {
			time.Sleep(time.Millisecond)
			if err := b.forget(ctx, key); err != nil {
				return idempotency.Record{}, false, err
			}
		}
	case "again-on-panic":
		lease = b.lease
	case "never-released":
		lease = 0
	case "any-record":
		held, claimed, err := b.Backend.Claim(ctx, strings.Repeat("a", len(key)), claim, lease)
		held.Claim.Fingerprint = claim.Fingerprint
		return held, claimed, err
	}
	held, claimed, err := b.Backend.Claim(ctx, key, claim, lease)
	if b.name == "replay-changes" && held.Response != nil {
		changed := *held.Response
		changed.Body = slices.Concat(changed.Body, []byte(" "))
		held.Response = &changed
	}
	return held, claimed, err
}

// Renew implements [idempotency.Backend].
func (b *broken) Renew(ctx context.Context, key string, claim idempotency.Claim, lease time.Duration) error {
	switch b.name {
	case "no-renewal":
		return nil
	case "again-on-panic":
		lease = b.lease
	case "any-record":
		key = strings.Repeat("a", len(key))
	}
	return b.Backend.Renew(ctx, key, claim, lease)
}

// Complete implements [idempotency.Backend].
func (b *broken) Complete(ctx context.Context, key string, claim idempotency.Claim, resp *idempotency.Response, expiry time.Duration) error {
	switch b.name {
	case "again-on-panic":
		if resp.Status == 0 {
			return b.forget(ctx, key)
		}
	case "no-fencing":
		if err := b.forget(ctx, key); err != nil {
			return err
		}
	case "release-anything":
		return b.forget(ctx, key)
	case "any-record":
		key = strings.Repeat("a", len(key))
	case "renewed-forever":
		if key[0] != 'A' {
			break // One in 64 is enough to be seen, and leaves time for the others.
		}
		go func() {
			for {
				time.Sleep(b.lease / 3)
				_ = b.Backend.Renew(context.Background(), key, claim, b.lease)
			}
		}()
	}
	return b.Backend.Complete(ctx, key, claim, resp, expiry)
}

// Release implements [idempotency.Backend].
func (b *broken) Release(ctx context.Context, key string, claim idempotency.Claim) error {
	switch b.name {
	case "never-released":
		return nil
	case "any-record":
		key = strings.Repeat("a", len(key))
	}
	return b.Backend.Release(ctx, key, claim)
}
