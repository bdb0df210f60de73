package idempotency_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/internal/redistest"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// provenRedis returns a backend that has found out that it may use all commands.
func provenRedis(t testing.TB, client redis.UniversalClient, opts ...idempotency.RedisOption) *idempotency.Redis {
	t.Helper()
	b := idempotency.NewRedis(client, opts...)
	mustClaim(t, b, keyOf("proof"), claimOf("proof"), lease(time.Hour))
	require.NoError(t, b.Release(t.Context(), keyOf("proof"), claimOf("proof"), 0))
	return b
}

// learnScripts lets the server get to know the scripts.
func learnScripts(t testing.TB, b *idempotency.Redis) {
	t.Helper()
	key, claim := keyOf("scripts"), claimOf("scripts")
	mustClaim(t, b, key, claim, traced(time.Hour, time.Hour))
	require.NoError(t, b.Renew(t.Context(), key, claim, traced(time.Hour, time.Hour), nil))
	require.NoError(t, b.Complete(t.Context(), key, claim, nil, time.Hour))
	require.NoError(t, b.Release(t.Context(), key, claim, 0))
	seen, _, _, err := b.Lookup(t.Context(), key)
	require.NoError(t, err)
	forgotten, err := b.Forget(t.Context(), key, seen)
	require.NoError(t, err)
	require.True(t, forgotten)
}

func TestRedisRoundTrips(t *testing.T) {
	const hour = time.Hour
	mine, other := claimOf("mine"), claimOf("other")
	plain, trace := lease(hour), traced(hour, hour)
	takeOver := idempotency.Terms{Lease: hour, Trace: hour, TakeOver: true}
	onlyTakeOver := idempotency.Terms{Lease: hour, TakeOver: true}
	forEachRedis(t, func(t *testing.T, newClient func(t *testing.T) *redis.Client) {
		direct := newClient(t)
		client, wire := tapped(t, direct)
		prefix := freshPrefix(t, direct)
		b := provenRedis(t, client, idempotency.WithPrefix(prefix))
		learnScripts(t, b)
		ctx := t.Context()
		claim := func(key string, c idempotency.Claim, terms idempotency.Terms, want bool) func() {
			return func() {
				_, claimed, err := b.Claim(ctx, keyOf(key), c, terms)
				require.NoError(t, err)
				require.Equal(t, want, claimed)
			}
		}
		renew := func(key string, c idempotency.Claim, terms idempotency.Terms, progress string, want error) func() {
			return func() { require.ErrorIs(t, b.Renew(ctx, keyOf(key), c, terms, []byte(progress)), want) }
		}
		complete := func(key string, c idempotency.Claim, expiry time.Duration, want error) func() {
			return func() { require.ErrorIs(t, b.Complete(ctx, keyOf(key), c, []byte("{}"), expiry), want) }
		}
		release := func(key string, c idempotency.Claim, trace time.Duration) func() {
			return func() { require.NoError(t, b.Release(ctx, keyOf(key), c, trace)) }
		}
		for _, step := range []struct {
			name, key string
			call      func()
			sent      string
		}{
			{"claim", "a", claim("a", mine, plain, true), "SET"},
			{"refuse: outstanding", "a", claim("a", other, plain, false), "SET"},
			{"refuse by a script", "a", claim("a", other, trace, false), "EVALSHA"},
			{"refuse who would take over", "a", claim("a", other, onlyTakeOver, false), "EVALSHA"},
			{"claim again by its own token", "a", claim("a", mine, plain, true), "SET EVALSHA"},
			{"renew", "a", renew("a", mine, plain, "", nil), "EVALSHA"},
			{"renew with progress", "a", renew("a", mine, plain, "step 1", nil), "EVALSHA"},
			{"renew, lost", "a", renew("a", other, plain, "", idempotency.ErrClaimLost), "EVALSHA"},
			{"complete, lost", "a", complete("a", other, hour, idempotency.ErrClaimLost), "EVALSHA"},
			{"release, not its own", "a", release("a", other, 0), "EVALSHA"},
			{"release with a trace, not its own", "a", release("a", other, hour), "EVALSHA"},
			{"complete", "a", complete("a", mine, hour, nil), "EVALSHA"},
			{"complete again", "a", complete("a", mine, hour, nil), "EVALSHA"},
			{"replay", "a", claim("a", retryOf(mine, "retry"), plain, false), "SET"},
			{"replay by a script", "a", claim("a", retryOf(mine, "retry"), trace, false), "EVALSHA"},
			{"replay to its own token", "a", claim("a", mine, plain, false), "SET"},
			{"refuse: reused", "a", claim("a", other, plain, false), "SET"},
			{"renew a response", "a", renew("a", mine, plain, "step", nil), "EVALSHA"},
			{"claim another", "b", claim("b", mine, plain, true), "SET"},
			{"release", "b", release("b", mine, 0), "EVALSHA"},
			{"release nothing", "b", release("b", mine, 0), "EVALSHA"},
			{"claim with a trace", "c", claim("c", mine, trace, true), "EVALSHA"},
			{"a claim without a trace meets one with one", "c", claim("c", other, plain, false), "SET EVALSHA"},
			{"claim with a trace again", "c", claim("c", mine, trace, true), "EVALSHA"},
			{"release with a trace", "c", release("c", mine, hour), "EVALSHA"},
			{"refuse: interrupted", "c", claim("c", retryOf(mine, "retry"), trace, false), "EVALSHA"},
			{"take over", "c", claim("c", retryOf(mine, "retry"), takeOver, true), "EVALSHA"},
			{"complete what was taken over, for ever", "c", complete("c", retryOf(mine, "retry"), idempotency.Forever, nil), "EVALSHA"},
			{"lookup", "c", func() {
				_, _, ok, err := b.Lookup(ctx, keyOf("c"))
				require.NoError(t, err)
				require.True(t, ok)
			}, "EVALSHA"},
			{"forget, of another state", "c", func() {
				forgotten, err := b.Forget(ctx, keyOf("c"), idempotency.Record{Claim: mine, State: idempotency.StateOutstanding})
				require.NoError(t, err)
				require.False(t, forgotten)
			}, "EVALSHA"},
		} {
			commands := wire.during(step.call)
			require.Equal(t, step.sent, strings.Join(names(commands), " "), step.name)
			for _, command := range commands {
				requireOneKey(t, command, prefix+keyOf(step.key).String())
			}
		}
	})
}

// requireOneKey checks that a command names one key and no other.
func requireOneKey(t *testing.T, command []string, key string) {
	t.Helper()
	switch strings.ToUpper(command[0]) {
	case "SET", "GET":
		require.Equal(t, key, command[1])
	case "EVAL", "EVALSHA":
		require.Equal(t, "1", command[2], "the number of keys")
		require.Equal(t, key, command[3])
	default:
		t.Fatalf("unknown command %q", command)
	}
}

// A plain claim is one SET with these arguments, and no script.
func TestRedisPlainClaimOnTheWire(t *testing.T) {
	client, wire := tapped(t, miniRedis(t))
	b := provenRedis(t, client)
	commands := wire.during(func() { mustClaim(t, b, keyOf("k"), claimOf("mine"), lease(time.Minute)) })
	require.Len(t, commands, 1)
	require.Len(t, commands[0], 7)
	require.Equal(t, []string{"set", "idempotency:" + keyOf("k").String()}, commands[0][:2])
	require.Equal(t, []string{"nx", "get", "px", "60000"}, commands[0][3:])
}

// A refusal does not fetch the response that another request has stored.
func TestRedisRefusalFetchesNoResponse(t *testing.T) {
	forEachRedis(t, func(t *testing.T, newClient func(t *testing.T) *redis.Client) {
		client := newClient(t)
		b := provenRedis(t, client, idempotency.WithPrefix(freshPrefix(t, client)))
		key, mine, terms := keyOf("k"), claimOf("mine"), traced(time.Hour, time.Hour)
		response := strings.Repeat("r", 100_000)
		require.NoError(t, b.Complete(t.Context(), key, mine, []byte(response), time.Hour))
		replies := &repliesHook{}
		client.AddHook(replies)
		require.Equal(t, response, string(mustHold(t, b, key, retryOf(mine, "retry"), terms).Response))
		require.Greater(t, replies.size, len(response))
		replies.size = 0
		rec := mustHold(t, b, key, claimOf("other"), terms)
		require.Equal(t, mine, rec.Claim)
		require.ErrorIs(t, b.Renew(t.Context(), key, claimOf("other"), terms, nil), idempotency.ErrClaimLost)
		require.ErrorIs(t, b.Complete(t.Context(), key, claimOf("other"), nil, time.Hour), idempotency.ErrClaimLost)
		require.NoError(t, b.Release(t.Context(), key, claimOf("other"), 0))
		require.NoError(t, b.Complete(t.Context(), key, mine, nil, time.Hour))
		require.Positive(t, replies.size)
		require.Less(t, replies.size, 1000)
	})
}

// repliesHook adds up the sizes of the texts that Redis answers with.
type repliesHook struct{ size int }

func (h *repliesHook) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h *repliesHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if cmd, ok := cmd.(*redis.Cmd); ok {
			h.size += len(fmt.Sprint(cmd.Val()))
		}
		return err
	}
}

func (h *repliesHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// The server itself says which keys it sees in a command.
func TestRedisCommandGetKeys(t *testing.T) {
	plain := redistest.Client(t)
	client, wire := tapped(t, plain)
	prefix := freshPrefix(t, plain)
	b := provenRedis(t, client, idempotency.WithPrefix(prefix))
	key, claim := keyOf("k"), claimOf("mine")
	commands := wire.during(func() {
		mustClaim(t, b, key, claim, lease(time.Hour))
		mustClaim(t, b, key, claim, traced(time.Hour, time.Hour))
		require.NoError(t, b.Renew(t.Context(), key, claim, lease(time.Hour), []byte("step 1")))
		require.NoError(t, b.Complete(t.Context(), key, claim, []byte("{}"), time.Hour))
		require.NoError(t, b.Release(t.Context(), key, claim, 0))
		seen, _, _, err := b.Lookup(t.Context(), key)
		require.NoError(t, err)
		_, err = b.Forget(t.Context(), key, seen)
		require.NoError(t, err)
	})
	require.GreaterOrEqual(t, len(commands), 7)
	for _, command := range commands {
		args := []any{"command", "getkeys"}
		for _, arg := range command {
			args = append(args, arg)
		}
		keys, err := plain.Do(t.Context(), args...).StringSlice()
		require.NoError(t, err)
		require.Equal(t, []string{prefix + key.String()}, keys, command[0])
	}
}

// A server that was restarted does not know the scripts: each costs one command
// more, once.
func TestRedisScriptsForgotten(t *testing.T) {
	key, mine, terms := keyOf("k"), claimOf("mine"), traced(time.Hour, time.Hour)
	test := func(t *testing.T, plain *redis.Client) {
		client, wire := tapped(t, plain)
		prefix := freshPrefix(t, plain)
		b := provenRedis(t, client, idempotency.WithPrefix(prefix))
		ctx := t.Context()
		for _, call := range []func(){
			func() { mustClaim(t, b, key, mine, terms) },
			func() { require.NoError(t, b.Renew(ctx, key, mine, terms, nil)) },
			func() { require.NoError(t, b.Release(ctx, key, claimOf("other"), 0)) },
			func() { require.NoError(t, b.Complete(ctx, key, mine, []byte("{}"), time.Hour)) },
			func() {
				rec, _, ok, err := b.Lookup(ctx, key)
				require.NoError(t, err)
				require.True(t, ok)
				require.Equal(t, []byte("{}"), rec.Response)
			},
			func() {
				forgotten, err := b.Forget(ctx, key, idempotency.Record{Claim: mine, State: idempotency.StateInterrupted})
				require.NoError(t, err)
				require.False(t, forgotten)
			},
		} {
			require.NoError(t, plain.ScriptFlush(ctx).Err())
			commands := wire.during(call)
			require.Equal(t, []string{"EVALSHA", "EVAL"}, names(commands))
			for _, command := range commands {
				requireOneKey(t, command, prefix+key.String())
			}
			require.Equal(t, []string{"EVALSHA"}, names(wire.during(call)))
		}
		require.Equal(t, []byte("{}"), mustHold(t, b, key, retryOf(mine, "retry"), terms).Response)
	}
	t.Run("miniredis", func(t *testing.T) { test(t, miniRedis(t)) })
	// The scripts of a server that is shared are not this test's to flush.
	t.Run("redis", func(t *testing.T) { test(t, redistest.Start(t).Client(t)) })
}

func TestRedisKeyNames(t *testing.T) {
	key := idempotency.NewKey("tenant", "8e03978e-40d5-43dd-bc93-6894a57f9324 of "+t.Name())
	for _, test := range []struct {
		name, prefix string
		opts         []idempotency.RedisOption
	}{
		{"default", "idempotency:", nil},
		{"its own", "shop:", []idempotency.RedisOption{idempotency.WithPrefix("shop:")}},
		{"long", strings.Repeat("shop", 100), []idempotency.RedisOption{idempotency.WithPrefix(strings.Repeat("shop", 100))}},
		{"empty", "", []idempotency.RedisOption{idempotency.WithPrefix("")}},
		{"a hash tag", "{shop}:", []idempotency.RedisOption{idempotency.WithPrefix("{shop}:")}},
		{"the last of two", "b:", []idempotency.RedisOption{idempotency.WithPrefix("a:"), idempotency.WithPrefix("b:")}},
	} {
		t.Run(test.name, func(t *testing.T) {
			client := miniRedis(t)
			b := idempotency.NewRedis(client, test.opts...)
			mine, ctx := claimOf("mine"), t.Context()
			only := []string{test.prefix + key.String()}
			keys := func() []string { return client.Keys(ctx, "*").Val() }
			require.Empty(t, keys(), "NewRedis sends nothing")
			mustClaim(t, b, key, mine, lease(time.Hour))
			require.Equal(t, only, keys())
			require.NoError(t, b.Renew(ctx, key, mine, lease(time.Hour), []byte("step 1")))
			require.Equal(t, only, keys())
			require.NoError(t, b.Complete(ctx, key, mine, []byte("{}"), time.Hour))
			require.Equal(t, only, keys())
			require.Equal(t, "string", client.Type(ctx, only[0]).Val())
			other := idempotency.NewKey("tenant", "other")
			mustClaim(t, b, other, mine, lease(time.Hour))
			require.ElementsMatch(t, append(only, test.prefix+other.String()), keys())
			require.NoError(t, b.Release(ctx, other, mine, 0))
			require.Equal(t, only, keys())
		})
	}
}

// Two processes on one server share their claims; those of several prefixes are
// apart.
func TestRedisShared(t *testing.T) {
	forEachRedis(t, func(t *testing.T, newClient func(t *testing.T) *redis.Client) {
		client := newClient(t)
		prefix := freshPrefix(t, client)
		ctx, key, terms := t.Context(), keyOf("k"), lease(time.Hour)
		one := idempotency.NewRedis(client, idempotency.WithPrefix(prefix))
		secondClient, _ := tapped(t, client) // another connection to the same server
		two := idempotency.NewRedis(secondClient, idempotency.WithPrefix(prefix))
		apart := idempotency.NewRedis(client, idempotency.WithPrefix(prefix+"apart:"))
		first := claimOf("first")
		second := retryOf(first, "second")

		require.Zero(t, mustClaim(t, one, key, first, terms))
		want := idempotency.Record{Claim: first, State: idempotency.StateOutstanding}
		require.Equal(t, want, mustHold(t, two, key, second, terms))
		mustClaim(t, apart, key, second, terms)

		require.ErrorIs(t, two.Complete(ctx, key, second, []byte("other"), time.Hour), idempotency.ErrClaimLost)
		require.NoError(t, one.Complete(ctx, key, first, []byte("{}"), time.Hour))
		want = idempotency.Record{Claim: first, State: idempotency.StateCompleted, Response: []byte("{}")}
		require.Equal(t, want, mustHold(t, two, key, second, terms))
		require.NoError(t, apart.Release(ctx, key, second, 0))
		require.EqualValues(t, 0, client.Exists(ctx, prefix+"apart:"+key.String()).Val())
		require.EqualValues(t, 1, client.Exists(ctx, prefix+key.String()).Val())
	})
}

// A store that lost a claim, by a restart or an eviction, accepts what its owner
// does as if it were still there.
func TestRedisLostClaimIsRestored(t *testing.T) {
	forEachRedis(t, func(t *testing.T, newClient func(t *testing.T) *redis.Client) {
		client := newClient(t)
		prefix := freshPrefix(t, client)
		b := idempotency.NewRedis(client, idempotency.WithPrefix(prefix))
		ctx, key, terms := t.Context(), keyOf("k"), traced(time.Hour, time.Hour)
		mine := claimOf("mine")
		other := retryOf(mine, "other")
		lose := func() { require.EqualValues(t, 1, client.Del(ctx, prefix+key.String()).Val()) }
		mustClaim(t, b, key, mine, terms)

		lose()
		require.NoError(t, b.Renew(ctx, key, mine, terms, nil))
		require.Equal(t, idempotency.Record{Claim: mine, State: idempotency.StateOutstanding}, mustHold(t, b, key, other, terms))
		lose()
		require.NoError(t, b.Renew(ctx, key, mine, terms, []byte("step 1")))
		want := idempotency.Record{Claim: mine, State: idempotency.StateOutstanding, Progress: []byte("step 1")}
		require.Equal(t, want, mustHold(t, b, key, other, terms))
		lose()
		require.NoError(t, b.Release(ctx, key, mine, time.Hour))
		require.Equal(t, idempotency.Record{Claim: mine, State: idempotency.StateInterrupted}, mustHold(t, b, key, other, terms))
		lose()
		require.NoError(t, b.Complete(ctx, key, mine, []byte("{}"), time.Hour))
		require.Equal(t, []byte("{}"), mustHold(t, b, key, other, terms).Response)
		lose()
		require.NoError(t, b.Release(ctx, key, mine, 0))
		mustClaim(t, b, key, other, terms)
		require.ErrorIs(t, b.Renew(ctx, key, mine, terms, nil), idempotency.ErrClaimLost)
		require.ErrorIs(t, b.Complete(ctx, key, mine, []byte("{}"), time.Hour), idempotency.ErrClaimLost)
		require.NoError(t, b.Release(ctx, key, mine, 0))
		require.Equal(t, idempotency.Record{Claim: other, State: idempotency.StateOutstanding}, mustHold(t, b, key, mine, terms))
	})
}

func TestNewRedisPanics(t *testing.T) {
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:0"})
	defer client.Close()
	for _, test := range []struct {
		name, text string
		call       func()
	}{
		{"nil", "idempotency: NewRedis: nil client", func() { idempotency.NewRedis(nil) }},
		{"nil *Client", "idempotency: NewRedis: nil client", func() { idempotency.NewRedis((*redis.Client)(nil)) }},
		{"nil *ClusterClient", "idempotency: NewRedis: nil client", func() { idempotency.NewRedis((*redis.ClusterClient)(nil)) }},
		{"nil *Ring", "idempotency: NewRedis: nil client", func() { idempotency.NewRedis((*redis.Ring)(nil)) }},
		{"nil option", "idempotency: NewRedis: nil option", func() { idempotency.NewRedis(client, nil) }},
		{"nil option after another", "idempotency: NewRedis: nil option", func() {
			idempotency.NewRedis(client, idempotency.WithPrefix("p"), nil)
		}},
	} {
		t.Run(test.name, func(t *testing.T) { requirePanics(t, test.text, test.call) })
	}
	require.NotPanics(t, func() { idempotency.NewRedis(client) }, "it sends nothing, so that nobody needs to answer")
}
