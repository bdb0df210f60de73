package idempotency_test

import (
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/internal/redistest"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// Redis's times are whole milliseconds, rounded up: nothing ends before its time.
func TestRedisRoundsTimesUp(t *testing.T) {
	b, _ := agedRedis(t) // Nothing ages there.
	key, mine := keyOf("k"), claimOf("mine")
	for _, test := range []struct{ d, want time.Duration }{
		{1, time.Millisecond},
		{time.Microsecond, time.Millisecond},
		{time.Millisecond - 1, time.Millisecond},
		{time.Millisecond, time.Millisecond},
		{time.Millisecond + 1, 2 * time.Millisecond},
		{1500 * time.Microsecond, 2 * time.Millisecond},
		{2 * time.Millisecond, 2 * time.Millisecond},
		{30 * time.Second, 30 * time.Second},
		{30*time.Second + 1, 30*time.Second + time.Millisecond},
		{24 * time.Hour, 24 * time.Hour},
		{century / 2, century / 2},
	} {
		t.Run(test.d.String(), func(t *testing.T) {
			ctx := t.Context()
			requireLeft := func(want time.Duration) {
				t.Helper()
				_, left, ok, err := b.Lookup(ctx, key)
				require.NoError(t, err)
				require.True(t, ok)
				require.Equal(t, want, left)
			}
			mustClaim(t, b, key, mine, lease(test.d))
			requireLeft(test.want)
			mustClaim(t, b, key, mine, traced(test.d, test.d))
			requireLeft(2 * test.want)
			require.NoError(t, b.Renew(ctx, key, mine, traced(test.d, 2*test.want), nil))
			requireLeft(3 * test.want)
			require.NoError(t, b.Renew(ctx, key, mine, traced(test.d, test.d), []byte("step 1")))
			requireLeft(2 * test.want)
			require.NoError(t, b.Release(ctx, key, mine, test.d))
			requireLeft(test.want)
			require.NoError(t, b.Release(ctx, key, mine, 0))
			require.NoError(t, b.Release(ctx, key, mine, test.d))
			requireLeft(test.want)
			require.NoError(t, b.Release(ctx, key, mine, 0))
			mustClaim(t, b, key, mine, traced(test.d, test.d))
			requireLeft(2 * test.want)
			require.NoError(t, b.Complete(ctx, key, mine, nil, test.d))
			requireLeft(test.want)
			seen := idempotency.Record{Claim: mine, State: idempotency.StateCompleted}
			forgotten, err := b.Forget(ctx, key, seen)
			require.NoError(t, err)
			require.True(t, forgotten)
		})
	}
}

// A record with a lease always has a time to live, and only a response that is
// kept for ever has none.
func TestRedisTimesToLive(t *testing.T) {
	const (
		hour    = time.Hour
		longest = 146 * 365 * 24 * time.Hour // how long a lease or a trace lasts that is for ever
	)
	mine := claimOf("mine")
	other := retryOf(mine, "other")
	takeOver := func(lease, trace time.Duration) idempotency.Terms {
		return idempotency.Terms{Lease: lease, Trace: trace, TakeOver: true}
	}
	type step func(t *testing.T, b idempotency.Backend, key idempotency.Key)
	claim := func(c idempotency.Claim, terms idempotency.Terms) step {
		return func(t *testing.T, b idempotency.Backend, key idempotency.Key) { mustClaim(t, b, key, c, terms) }
	}
	shown := func(c idempotency.Claim, terms idempotency.Terms) step {
		return func(t *testing.T, b idempotency.Backend, key idempotency.Key) { mustHold(t, b, key, c, terms) }
	}
	renew := func(c idempotency.Claim, terms idempotency.Terms, progress string, want error) step {
		return func(t *testing.T, b idempotency.Backend, key idempotency.Key) {
			require.ErrorIs(t, b.Renew(t.Context(), key, c, terms, []byte(progress)), want)
		}
	}
	complete := func(expiry time.Duration) step {
		return func(t *testing.T, b idempotency.Backend, key idempotency.Key) {
			require.NoError(t, b.Complete(t.Context(), key, mine, []byte("{}"), expiry))
		}
	}
	release := func(c idempotency.Claim, trace time.Duration) step {
		return func(t *testing.T, b idempotency.Backend, key idempotency.Key) {
			require.NoError(t, b.Release(t.Context(), key, c, trace))
		}
	}
	lost := idempotency.ErrClaimLost
	// The times of two steps are far apart, so that no slow machine makes one look
	// like the other.
	tests := []struct {
		name  string
		steps []step
		want  time.Duration
	}{
		{"claim", []step{claim(mine, lease(hour))}, hour},
		{"claim with a trace", []step{claim(mine, traced(hour, 8*hour))}, 9 * hour},
		{"claim for ever", []step{claim(mine, lease(idempotency.Forever))}, longest},
		{"claim with a trace for ever", []step{claim(mine, traced(hour, idempotency.Forever))}, longest + hour},
		{"claim again", []step{claim(mine, lease(hour)), claim(mine, lease(9*hour))}, 9 * hour},
		{"claim again with a trace", []step{claim(mine, lease(hour)), claim(mine, traced(hour, 8*hour))}, 9 * hour},
		{"claim again without a trace", []step{claim(mine, traced(hour, 8*hour)), claim(mine, lease(3*hour))}, 3 * hour},
		{"claim by another: the first lease stands", []step{claim(mine, lease(hour)), shown(other, lease(9*hour))}, hour},
		{"renew for longer", []step{claim(mine, lease(hour)), renew(mine, lease(9*hour), "", nil)}, 9 * hour},
		{"renew for less", []step{claim(mine, lease(9*hour)), renew(mine, lease(hour), "", nil)}, hour},
		{"renew for ever", []step{claim(mine, lease(hour)), renew(mine, lease(idempotency.Forever), "", nil)}, longest},
		{"renew what was for ever", []step{claim(mine, lease(idempotency.Forever)), renew(mine, lease(hour), "", nil)}, hour},
		{"renew with a longer trace", []step{claim(mine, traced(hour, hour)), renew(mine, traced(hour, 8*hour), "", nil)}, 9 * hour},
		{"renew with a shorter trace", []step{claim(mine, traced(hour, 8*hour)), renew(mine, traced(hour, hour), "", nil)}, 2 * hour},
		{"renew with progress", []step{claim(mine, traced(hour, hour)), renew(mine, traced(hour, 8*hour), "step 1", nil)}, 9 * hour},
		{"renew where nothing is held", []step{renew(mine, traced(hour, 8*hour), "", nil)}, 9 * hour},
		{"renew where nothing is held, with progress", []step{renew(mine, traced(hour, 8*hour), "step 1", nil)}, 9 * hour},
		{"renew by another: nothing changes", []step{claim(mine, lease(hour)), renew(other, lease(9*hour), "step 1", lost)}, hour},
		{"complete", []step{claim(mine, traced(hour, 4*hour)), complete(9 * hour)}, 9 * hour},
		{"complete for ever", []step{claim(mine, lease(hour)), complete(idempotency.Forever)}, idempotency.Forever},
		{"complete almost for ever", []step{claim(mine, lease(hour)), complete(idempotency.Forever - 1)}, longest},
		{"complete what was for ever", []step{claim(mine, lease(idempotency.Forever)), complete(hour)}, hour},
		{"complete where nothing is held", []step{complete(hour)}, hour},
		{"complete again: the first expiry stands", []step{complete(hour), complete(9 * hour)}, hour},
		{"complete again, for ever: the first expiry stands", []step{complete(hour), complete(idempotency.Forever)}, hour},
		{"renew a response: its expiry stands", []step{complete(hour), renew(mine, lease(9*hour), "step 1", nil)}, hour},
		{"renew a response that is for ever", []step{complete(idempotency.Forever), renew(mine, lease(hour), "", nil)}, idempotency.Forever},
		{"claim a response again: its expiry stands", []step{complete(hour), shown(mine, traced(hour, 9*hour))}, hour},
		{"release a response: its expiry stands", []step{complete(hour), release(mine, 0), release(mine, 9*hour)}, hour},
		{"release with a trace", []step{claim(mine, lease(hour)), release(mine, 9*hour)}, 9 * hour},
		{"release with a shorter trace", []step{claim(mine, traced(hour, 9*hour)), release(mine, hour)}, hour},
		{"release with a trace for ever", []step{claim(mine, lease(hour)), release(mine, idempotency.Forever)}, longest},
		{"release where nothing is held", []step{release(mine, hour)}, hour},
		{"release again", []step{release(mine, hour), release(mine, 9*hour)}, 9 * hour},
		{"release another's", []step{claim(mine, lease(hour)), release(other, 0), release(other, 9*hour)}, hour},
		{"take over: the longest trace stays", []step{release(mine, 8*hour), claim(other, takeOver(hour, 2*hour))}, 9 * hour},
		{"take over with a longer trace", []step{release(mine, hour), claim(other, takeOver(hour, 8*hour))}, 9 * hour},
		{"claim again what was taken over", []step{
			release(mine, 8*hour), claim(other, takeOver(hour, hour)), claim(other, lease(2*hour)),
		}, 10 * hour},
		{"renew what was taken over", []step{
			release(mine, 8*hour), claim(other, takeOver(hour, hour)), renew(other, lease(2*hour), "step 1", nil),
		}, 10 * hour},
		{"release what was taken over", []step{release(mine, 8*hour), claim(other, takeOver(hour, hour)), release(other, 0)}, 8 * hour},
		{"release what was taken over for longer", []step{
			release(mine, 2*hour), claim(other, takeOver(hour, hour)), release(other, 8*hour),
		}, 8 * hour},
	}
	forEachRedis(t, func(t *testing.T, newClient func(t *testing.T) *redis.Client) {
		client := newClient(t)
		prefix := freshPrefix(t, client)
		b := provenRedis(t, client, idempotency.WithPrefix(prefix))
		for _, test := range tests {
			t.Run(test.name, func(t *testing.T) {
				key := keyOf(test.name)
				for _, step := range test.steps {
					step(t, b, key)
				}
				_, left, ok, err := b.Lookup(t.Context(), key)
				require.NoError(t, err)
				require.True(t, ok)
				ms, err := client.Do(t.Context(), "pttl", prefix+key.String()).Int64() // The longest does not fit PTTL's time.Duration.
				require.NoError(t, err)
				if test.want == idempotency.Forever {
					require.EqualValues(t, -1, ms)
					require.Equal(t, idempotency.Forever, left)
					return
				}
				require.InDelta(t, test.want.Milliseconds(), ms, float64(30*time.Minute.Milliseconds()))
				require.LessOrEqual(t, ms, test.want.Milliseconds()+1)
				if test.want < longest {
					require.InDelta(t, test.want, left, float64(30*time.Minute))
				}
			})
		}
	})
}

// What is for ever to the caller is told so, where its record has a time to live
// for Redis.
func TestRedisForever(t *testing.T) {
	client := redistest.Client(t)
	b := provenRedis(t, client, idempotency.WithPrefix(freshPrefix(t, client)))
	key, mine := keyOf("k"), claimOf("mine")
	const half = 146 * 365 * 24 * time.Hour
	for _, test := range []struct{ trace, outstanding, interrupted time.Duration }{
		{idempotency.Forever, idempotency.Forever, idempotency.Forever},
		{idempotency.Forever - 1, idempotency.Forever, idempotency.Forever},
		{half - time.Millisecond, 2*half - time.Minute, half - time.Minute},
	} {
		terms := traced(test.trace, test.trace)
		requireRecord := func(want idempotency.State, atLeast time.Duration) {
			t.Helper()
			rec, left, ok, err := b.Lookup(t.Context(), key)
			require.NoError(t, err)
			require.True(t, ok)
			require.Equal(t, want, rec.State)
			require.GreaterOrEqual(t, left, atLeast)
		}
		mustClaim(t, b, key, mine, terms)
		requireRecord(idempotency.StateOutstanding, test.outstanding)
		require.NoError(t, b.Renew(t.Context(), key, mine, terms, []byte("step 1")))
		requireRecord(idempotency.StateOutstanding, test.outstanding)
		require.NoError(t, b.Release(t.Context(), key, mine, test.trace))
		requireRecord(idempotency.StateInterrupted, test.interrupted)
		require.NoError(t, b.Release(t.Context(), key, mine, 0))
	}
}

// agedRedis returns a backend on a miniredis whose keys age when they are told to.
func agedRedis(t *testing.T) (b *idempotency.Redis, age func(time.Duration)) {
	t.Helper()
	server := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { client.Close() })
	return provenRedis(t, client), server.FastForward
}

// A claim is interrupted once its lease is over, not sooner, and free once its
// trace is.
func TestRedisInterruption(t *testing.T) {
	b, age := agedRedis(t)
	key, mine, terms := keyOf("k"), claimOf("mine"), traced(time.Minute, time.Hour)
	plain, takeOver := lease(time.Minute), idempotency.Terms{Lease: time.Minute, Trace: time.Hour, TakeOver: true}
	retry := retryOf(mine, "retry")
	requireState := func(want idempotency.State, ends time.Duration) {
		t.Helper()
		rec, left, ok, err := b.Lookup(t.Context(), key)
		require.NoError(t, err)
		require.True(t, ok)
		require.Equal(t, want, rec.State)
		require.Equal(t, ends, left)
		for _, terms := range []idempotency.Terms{plain, terms} {
			require.Equal(t, want, mustHold(t, b, key, retry, terms).State)
		}
	}
	mustClaim(t, b, key, mine, terms)
	requireState(idempotency.StateOutstanding, time.Hour+time.Minute)
	age(time.Minute - time.Millisecond)
	requireState(idempotency.StateOutstanding, time.Hour+time.Millisecond)
	require.Equal(t, idempotency.StateOutstanding, mustHold(t, b, key, retry, takeOver).State)
	forgotten, err := b.Forget(t.Context(), key, idempotency.Record{Claim: mine, State: idempotency.StateInterrupted})
	require.NoError(t, err)
	require.False(t, forgotten)
	age(2 * time.Millisecond) // The first millisecond may have been half over.
	requireState(idempotency.StateInterrupted, time.Hour)
	forgotten, err = b.Forget(t.Context(), key, idempotency.Record{Claim: mine, State: idempotency.StateOutstanding})
	require.NoError(t, err)
	require.False(t, forgotten)
	require.NoError(t, b.Renew(t.Context(), key, mine, terms, nil), "its own token finds it outstanding again")
	requireState(idempotency.StateOutstanding, time.Hour+time.Minute)
	age(time.Hour + time.Minute)
	requireState(idempotency.StateInterrupted, time.Millisecond)
	require.Equal(t, mine, mustHold(t, b, key, claimOf("another request"), takeOver).Claim)
	age(time.Millisecond)
	require.Zero(t, mustClaim(t, b, key, retry, takeOver), "the key is free")
}

// A claim without a trace is never interrupted, not even in its last millisecond,
// of which Redis says that none is left.
func TestRedisLastMillisecondOfALease(t *testing.T) {
	b, age := agedRedis(t)
	key, mine := keyOf("k"), claimOf("mine")
	retry := retryOf(mine, "retry")
	mustClaim(t, b, key, mine, lease(time.Minute))
	age(time.Minute - time.Microsecond)
	want := idempotency.Record{Claim: mine, State: idempotency.StateOutstanding}
	require.Equal(t, want, mustHold(t, b, key, retry, lease(time.Minute)))
	require.Equal(t, want, mustHold(t, b, key, retry, traced(time.Minute, time.Hour)))
	require.Equal(t, want, mustHold(t, b, key, retry, idempotency.Terms{Lease: time.Minute, Trace: time.Hour, TakeOver: true}))
	rec, _, ok, err := b.Lookup(t.Context(), key)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, want, rec)
	forgotten, err := b.Forget(t.Context(), key, rec)
	require.NoError(t, err)
	require.True(t, forgotten)
}
