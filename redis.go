package idempotency

import (
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

// The scripts know this very claim, while it is outstanding, by the begin of its
// record (ARGV[1], up to and with the token) and its length: the fingerprint
// takes 32 bytes more. What else they find they leave as it is, and return. Else
// they return 1 (nil would be an error to go-redis, at some cost).
var (
	// putScript sets KEYS[1] to ARGV[2] with a time to live of ARGV[3]
	// milliseconds (0 is for ever) where it holds the claim, or nothing.
	putScript = newScript(`
local held = redis.call('GET', KEYS[1])
if held and (#held ~= #ARGV[1] + 32 or string.sub(held, 1, #ARGV[1]) ~= ARGV[1]) then
  return held
end
if ARGV[3] == '0' then
  redis.call('SET', KEYS[1], ARGV[2])
else
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
return 1
`)
	// deleteScript deletes KEYS[1] where it holds the claim.
	deleteScript = newScript(`
local held = redis.call('GET', KEYS[1])
if not held then
  return 1
end
if #held ~= #ARGV[1] + 32 or string.sub(held, 1, #ARGV[1]) ~= ARGV[1] then
  return held
end
redis.call('DEL', KEYS[1])
return 1
`)
)

// Redis is a [Backend] in Redis 7.0 or newer, or Valkey: one server, Sentinel
// or Cluster. All processes that share the store and the prefix share their
// claims and responses. It is safe for concurrent use.
//
// A record is one Redis key, so that every command stays in one slot. To claim,
// replay or refuse takes one round trip, to renew, complete or release one more.
// Times are Redis's, in whole milliseconds, rounded up.
//
// What Redis loses is lost here too: a claim that was acknowledged by a primary
// and not yet replicated when it failed, or that an eviction policy dropped,
// lets a retry run the handler again. Give the keys a database that does not
// evict (maxmemory-policy noeviction).
type Redis struct {
	client redis.UniversalClient
	prefix string
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
// between its tries, and with ContextTimeoutEnabled also while it reads. NewRedis
// sends nothing. It panics if client is nil.
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
func (b *Redis) Claim(ctx context.Context, key string, claim Claim, lease time.Duration) (Record, bool, error) {
	held, claimed, err := b.take(ctx, b.prefix+key, claim, lease)
	if claimed || err != nil {
		return Record{}, claimed, err
	}
	return held.export(), false, nil
}

func (b *Redis) claim(ctx context.Context, key recordKey, fingerprint [sha256.Size]byte, lease time.Duration) (found, error) {
	ctx, cancel := context.WithTimeout(ctx, claimTime)
	defer cancel()
	begun := time.Now()
	claim := Claim{newToken(), fingerprint}
	held, claimed, err := b.take(ctx, b.name(key), claim, lease)
	if claimed || err != nil {
		claimed, err = inTime(claimed, err, begun, lease)
		return found{token: claim.Token, claimed: claimed}, err
	}
	return found{same: held.claim.Fingerprint == fingerprint, response: held.response}, nil
}

// name returns the Redis key of a record.
func (b *Redis) name(key recordKey) string {
	room := make([]byte, 0, 128)
	return string(key.append(append(room, b.prefix...)))
}

// take claims the Redis key name by one SET with NX and GET.
func (b *Redis) take(ctx context.Context, name string, claim Claim, lease time.Duration) (record, bool, error) {
	args := []any{"set", name, encodeClaim(claim), "nx", "get", "px", milliseconds(lease)}
	if lease == 0 {
		args = args[:5]
	}
	cmd := redis.NewStringCmd(ctx, args...)
	_ = b.client.Process(ctx, cmd) // The error is the command's.
	text, err := cmd.Result()
	if errors.Is(err, redis.Nil) {
		return record{}, true, nil
	}
	if err != nil {
		return record{}, false, fmt.Errorf("idempotency: redis claim: %w", err)
	}
	raw, _ := cmd.Bytes() // the same bytes
	held, err := decodeRecord(text, raw)
	if err != nil {
		return record{}, false, err
	}
	return held, held.response == nil && held.claim.Token == claim.Token, nil
}

// Renew implements [Backend].
func (b *Redis) Renew(ctx context.Context, key string, claim Claim, lease time.Duration) error {
	return b.put(ctx, b.prefix+key, claim, encodeClaim(claim), lease)
}

func (b *Redis) renew(ctx context.Context, key recordKey, claim Claim, lease time.Duration) error {
	return b.put(ctx, b.name(key), claim, encodeClaim(claim), lease)
}

// Complete implements [Backend].
func (b *Redis) Complete(ctx context.Context, key string, claim Claim, resp *Response, expiry time.Duration) error {
	return b.put(ctx, b.prefix+key, claim, encodeResponse(claim, &response{status: resp.Status, header: newFields(resp.Header), buffer: resp.Body}), expiry)
}

func (b *Redis) complete(ctx context.Context, key recordKey, claim Claim, resp *response, expiry time.Duration) error {
	return b.put(ctx, b.name(key), claim, encodeResponse(claim, resp), expiry)
}

// lead is room for the head of most records.
func (b *Redis) lead() int { return 256 }

// put sets the Redis key name where it holds claim, outstanding, or nothing.
func (b *Redis) put(ctx context.Context, name string, claim Claim, value []byte, ttl time.Duration) error {
	held, err := b.run(ctx, putScript, name, encodeToken(claim), value, milliseconds(ttl))
	if err != nil || held == nil || held.claim.Token == claim.Token {
		return err
	}
	return ErrClaimLost
}

// Release implements [Backend].
func (b *Redis) Release(ctx context.Context, key string, claim Claim) error {
	_, err := b.run(ctx, deleteScript, b.prefix+key, encodeToken(claim))
	return err
}

func (b *Redis) release(ctx context.Context, key recordKey, claim Claim) error {
	return b.Release(ctx, key.String(), claim)
}

// script is a Lua script. Redis knows it by its hash, once it was sent whole. It
// is what [redis.Script] is, and builds its command at once.
type script struct{ text, hash any }

func newScript(text string) script {
	hash := sha1.Sum([]byte(text))
	return script{text, hex.EncodeToString(hash[:])}
}

// run runs a script on the Redis key name, and returns the record that stood in
// its way, or nil if none did.
func (b *Redis) run(ctx context.Context, s script, name string, argv ...any) (*record, error) {
	args := append(make([]any, 0, 8), "evalsha", s.hash, 1, name)
	args = append(args, argv...)
	cmd := redis.NewCmd(ctx, args...)
	_ = b.client.Process(ctx, cmd) // The error is the command's.
	if redis.HasErrorPrefix(cmd.Err(), "NOSCRIPT") {
		args[0], args[1] = "eval", s.text
		cmd = redis.NewCmd(ctx, args...)
		_ = b.client.Process(ctx, cmd)
	}
	reply, err := cmd.Result()
	if err != nil {
		return nil, fmt.Errorf("idempotency: redis: %w", err)
	}
	text, found := reply.(string)
	if !found {
		return nil, nil
	}
	held, err := decodeRecord(text, []byte(text))
	if err != nil {
		return nil, err
	}
	return &held, nil
}

// milliseconds rounds up, so that nothing is let go of before its time.
func milliseconds(d time.Duration) int64 {
	ms := d / time.Millisecond
	if d%time.Millisecond > 0 {
		ms++
	}
	return int64(ms)
}
