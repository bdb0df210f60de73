package idempotency

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/idempotency-go/idempotency/internal/batch"
)

// Redis is a [Backend] in Redis 7.0 or newer, or Valkey: one server, Sentinel
// or Cluster. All processes that share the store and the prefix share their
// claims and responses. It is safe for concurrent use.
//
// A record is one Redis key, so that every command stays in one slot. To claim,
// replay or refuse takes one round trip, to renew, complete or release one more.
// (A claim without a trace that meets a record with one takes a second.) Times
// are Redis's, in whole milliseconds, rounded up, and at most 146 years but for the
// expiry [Forever]. It is an [Inspector].
//
// It needs the commands SET, GET, GETRANGE, SETRANGE, STRLEN, DEL, PTTL, PEXPIRE,
// EVALSHA and EVAL on keys with its prefix, in the words of an ACL:
//
//	~idempotency:* +set +get +getrange +setrange +strlen +del +pttl +pexpire +evalsha +eval
//
// The first claim in a process finds out whether it has them all, and fails if
// not: no handler runs whose response could not be stored.
//
// What Redis loses is lost here too: a claim that was acknowledged by a primary
// and not yet replicated when it failed, or that an eviction policy dropped,
// lets a retry run the handler again. Give the keys a database that does not
// evict (maxmemory-policy noeviction).
type Redis struct {
	client  redis.UniversalClient
	prefix  string
	allowed atomic.Bool // the commands it needs, all of them

	lease    atomic.Int64 // of the last claim
	renewals batch.Leases[*redisRenewals]
}

// RedisOption is a setting of [NewRedis].
type RedisOption func(*Redis)

// WithPrefix sets what the names of the Redis keys begin with, to share a
// database with others. A hash tag in it ("{…}") would put all records of a
// Cluster into one slot. The default is "idempotency:".
func WithPrefix(p string) RedisOption {
	return func(b *Redis) { b.prefix = p }
}

// NewRedis returns a [Backend] that keeps its records in Redis. The client
// stays its caller's, to configure and to close; its time-outs and retries
// decide how long a request waits for a Redis that does not answer. The
// middleware gives each call a context that ends after 5 s, which go-redis heeds
// between its tries, and with ContextTimeoutEnabled also while it reads. If the
// client gets no answer to what stores a response or the result of a [Step], or none
// within 2.5 s, that is tried over connections like those of renewals too. NewRedis sends
// nothing. It panics if client
// is nil.
//
// Renewals do not queue behind what else the client sends, if it is a
// *redis.Client or a *redis.ClusterClient: they have connections of their own, with
// the client's options, but without its hooks, its limiter and its cache. (So a hook
// that changes the names of keys is not supported: use [WithPrefix].) The first is
// made when a claim is first renewed, or at the first claim for a Cluster. For each
// lease, those that are due together are sent together to their server: one
// connection is enough, and while some hang there are at most 256. If they get no answer,
// the client itself is tried, by one batch at a time. They are closed when the backend is
// no longer used. Any other client renews by itself: give it
// ContextTimeoutEnabled, and a pool that has room for that.
func NewRedis(client redis.UniversalClient, opts ...RedisOption) *Redis {
	if isNil(client) {
		panic("idempotency: NewRedis: nil client")
	}
	b := &Redis{client: client, prefix: "idempotency:"}
	for _, opt := range opts {
		if opt == nil {
			panic("idempotency: NewRedis: nil option")
		}
		opt(b)
	}
	return b
}

// Claim implements [Backend].
func (b *Redis) Claim(ctx context.Context, key Key, claim Claim, terms Terms) (held Record, claimed bool, err error) {
	if err := terms.check(); err != nil {
		return Record{}, false, err
	}
	b.meetCluster(terms.Lease)
	name := b.name(key)
	if terms.Trace == 0 && !terms.TakeOver && b.allowed.Load() {
		var raw string
		raw, claimed, err = b.setIfFree(ctx, name, claim, terms.Lease)
		if err != nil {
			return b.whileReadOnly(ctx, name, claim, err)
		}
		if claimed {
			return Record{}, true, nil
		}
		held, trace, err := decodeRecord(raw, claim)
		// Without a trace a record that is not completed is outstanding.
		if err != nil || held.State == StateCompleted || trace == 0 && held.Claim.Token != claim.Token {
			return held, false, err
		}
	}
	held, claimed, err = b.claimByScript(ctx, name, claim, terms)
	if err != nil {
		return b.whileReadOnly(ctx, name, claim, err)
	}
	return held, claimed, nil
}

// setIfFree claims by one command if no trace is to be left.
func (b *Redis) setIfFree(ctx context.Context, name string, claim Claim, lease time.Duration) (held string, claimed bool, err error) {
	cmd := redis.NewStringCmd(ctx, "set", name, encodeClaim(claim, 0), "nx", "get", "px", milliseconds(lease))
	_ = b.client.Process(ctx, cmd) // The error is the command's.
	held, err = cmd.Result()
	if errors.Is(err, redis.Nil) {
		return "", true, nil
	}
	return held, false, explained(err)
}

func (b *Redis) claimByScript(ctx context.Context, name string, claim Claim, terms Terms) (Record, bool, error) {
	takeOver, prove := "0", "0"
	if terms.TakeOver {
		takeOver = "1"
	}
	if !b.allowed.Load() {
		prove = "1"
	}
	reply, err := claimScript.run(ctx, b.client, name, encodeClaim(claim, terms.Trace), milliseconds(terms.Lease), takeOver, prove)
	if err != nil {
		return Record{}, false, err
	}
	b.allowed.Store(true)
	switch reply := reply.(type) {
	case string: // the progress
		return Record{Claim: claim, State: StateInterrupted, Progress: textBytes(reply)}, true, nil
	case []any:
		held, _, err := decodeReply(reply, claim)
		return held, false, err
	}
	return Record{}, true, nil
}

// whileReadOnly returns the completed record of the same request, if there is one,
// if the claim failed with err because Redis takes no writes. Any other record makes
// the error tell of it: nothing may run beside it.
func (b *Redis) whileReadOnly(ctx context.Context, name string, claim Claim, err error) (Record, bool, error) {
	failed := fmt.Errorf("idempotency: redis claim: %w", err)
	if !takesNoWrites(err) {
		return Record{}, false, failed
	}
	cmd := redis.NewStringCmd(ctx, "get", name)
	_ = b.client.Process(ctx, cmd)
	raw, readErr := cmd.Result()
	if errors.Is(readErr, redis.Nil) {
		return Record{}, false, failed
	}
	var held Record
	if readErr = explained(readErr); readErr == nil {
		held, _, readErr = decodeRecord(raw, claim)
	}
	switch {
	case readErr != nil:
		return Record{}, false, fmt.Errorf("%w: %w", readErr, failed)
	case held.State == StateCompleted && held.Claim.matches(claim):
		return held, false, nil
	case held.Claim.Token != claim.Token:
		return Record{}, false, fmt.Errorf("%w: %w", ErrOutstanding, failed)
	}
	return Record{}, false, failed
}

// takesNoWrites reports whether Redis is full, a replica, short of replicas, or
// cannot save.
func takesNoWrites(err error) bool {
	return redis.HasErrorPrefix(err, "OOM") || redis.HasErrorPrefix(err, "READONLY") ||
		redis.HasErrorPrefix(err, "NOREPLICAS") || redis.HasErrorPrefix(err, "MISCONF")
}

// Release implements [Backend].
func (b *Redis) Release(ctx context.Context, key Key, claim Claim, trace time.Duration) error {
	if err := checkTrace(trace); err != nil {
		return err
	}
	err := b.update(ctx, b.client, releaseScript, key, claim, encodeClaim(claim, trace))
	if errors.Is(err, ErrClaimLost) {
		return nil
	}
	return err
}

// update runs a script that changes a record only if it is this very claim, or
// nothing.
func (b *Redis) update(ctx context.Context, client redis.UniversalClient, s script, key Key, claim Claim, argv ...any) error {
	reply, err := s.run(ctx, client, b.name(key), argv...)
	return updated(reply, err, claim)
}

// updated returns what the reply of such a script tells.
func updated(reply any, err error, claim Claim) error {
	if err != nil {
		return fmt.Errorf("idempotency: redis: %w", err)
	}
	if reply == nil { // No script returns that.
		return fmt.Errorf("idempotency: redis: %w", errNoReply)
	}
	raw, held := reply.(string)
	if !held {
		return nil
	}
	rec, _, err := decodeRecord(raw, claim)
	if err != nil || rec.Claim.Token == claim.Token { // It has its response already.
		return err
	}
	return ErrClaimLost
}

// Lookup implements [Inspector].
func (b *Redis) Lookup(ctx context.Context, key Key) (rec Record, left time.Duration, ok bool, err error) {
	reply, err := lookupScript.run(ctx, b.client, b.name(key))
	if err != nil {
		return Record{}, 0, false, fmt.Errorf("idempotency: redis lookup: %w", err)
	}
	held, found := reply.([]any)
	if !found {
		return Record{}, 0, false, nil
	}
	rec, left, err = decodeReply(held, Claim{})
	return rec, left, err == nil, err
}

// Forget implements [Inspector].
func (b *Redis) Forget(ctx context.Context, key Key, seen Record) (bool, error) {
	reply, err := forgetScript.run(ctx, b.client, b.name(key), encodeHead(seen.Claim, kindClaim), int(seen.State))
	if err != nil {
		return false, fmt.Errorf("idempotency: redis forget: %w", err)
	}
	return reply == int64(1), nil
}

// name returns the Redis key of a record.
func (b *Redis) name(key Key) string {
	room := make([]byte, 0, 128)
	return string(key.append(append(room, b.prefix...)))
}

// explained returns err as ErrFull if Redis has no room left, and as
// ErrUnreadable if the key holds another type.
func explained(err error) error {
	switch {
	case err == nil:
		return nil
	case redis.HasErrorPrefix(err, "OOM"):
		return fmt.Errorf("%w: %w", ErrFull, err)
	case redis.HasErrorPrefix(err, "WRONGTYPE"):
		return fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	return err
}

// longest is how long a lease or a trace lasts in Redis that is for ever. The sum of
// two is a time.Duration still.
const longest = 146 * 365 * 24 * time.Hour

// milliseconds rounds up, so that nothing ends before its time.
func milliseconds(d time.Duration) int64 {
	return int64((min(d, longest) + time.Millisecond - 1) / time.Millisecond)
}
