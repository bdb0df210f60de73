package idempotency_test

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/internal/redistest"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// noWrites is a Redis that accepts no writes after stop, and does again after
// start.
type noWrites struct {
	name, code  string
	config      []string
	stop, start func(t *testing.T, client *redis.Client)
}

func configSet(parameter, value string) func(t *testing.T, client *redis.Client) {
	return func(t *testing.T, client *redis.Client) {
		t.Helper()
		require.NoError(t, client.ConfigSet(t.Context(), parameter, value).Err())
	}
}

var fullRedis = noWrites{"full", "OOM", []string{"maxmemory-policy noeviction"}, configSet("maxmemory", "1"), configSet("maxmemory", "0")}

func allNoWrites() []noWrites {
	replicaOf := func(host, port string) func(t *testing.T, client *redis.Client) {
		return func(t *testing.T, client *redis.Client) {
			require.NoError(t, client.ReplicaOf(t.Context(), host, port).Err())
		}
	}
	return []noWrites{
		fullRedis,
		// No primary answers there: it keeps its data.
		{"a replica", "READONLY", nil, replicaOf("127.0.0.1", "1"), replicaOf("no", "one")},
		{"too few replicas", "NOREPLICAS", nil, configSet("min-replicas-to-write", "1"), configSet("min-replicas-to-write", "0")},
		{"cannot save", "MISCONF", []string{"dbfilename taken", "save 3600 1"}, func(t *testing.T, client *redis.Client) {
			dir := client.ConfigGet(t.Context(), "dir").Val()["dir"]
			require.NoError(t, os.MkdirAll(filepath.Join(dir, "taken"), 0o700), "a directory stands where the file would be")
			require.NoError(t, client.Set(t.Context(), "changed", "", 0).Err())
			require.NoError(t, client.BgSave(t.Context()).Err())
			require.Eventually(t, func() bool {
				return strings.Contains(client.Info(t.Context(), "persistence").Val(), "rdb_last_bgsave_status:err")
			}, time.Minute, 10*time.Millisecond)
		}, configSet("stop-writes-on-bgsave-error", "no")},
	}
}

// requireCode checks that err is Redis's of that code, and ErrFull where that is OOM.
func requireCode(t *testing.T, err error, code string) {
	t.Helper()
	require.True(t, redis.HasErrorPrefix(err, code), "%v", err)
	require.Equal(t, code == "OOM", strings.Contains(err.Error(), idempotency.ErrFull.Error()))
	if code == "OOM" {
		require.ErrorIs(t, err, idempotency.ErrFull)
	} else {
		require.NotErrorIs(t, err, idempotency.ErrFull)
	}
}

// A Redis that accepts no writes claims nothing, and still replays what it has.
func TestRedisWithoutWrites(t *testing.T) {
	mine := claimOf("mine")
	retry, other := retryOf(mine, "retry"), claimOf("other")
	allTerms := map[string]idempotency.Terms{
		"plain":     lease(time.Hour),
		"trace":     traced(time.Hour, time.Hour),
		"take over": {Lease: time.Hour, Trace: time.Hour, TakeOver: true},
	}
	for _, how := range allNoWrites() {
		t.Run(how.name, func(t *testing.T) {
			server := redistest.Start(t, how.config...)
			admin := server.Client(t)
			opts := server.Options()
			opts.MaxRetries = -1 // go-redis tries again on a replica, for half a second.
			once := redis.NewClient(opts)
			t.Cleanup(func() { once.Close() })
			client, wire := tapped(t, once)
			client.Options().MaxRetries = 0
			b := provenRedis(t, client)
			fresh := idempotency.NewRedis(once)
			learnScripts(t, b)
			ctx := t.Context()

			require.NoError(t, b.Complete(ctx, keyOf("completed"), mine, []byte("{}"), time.Hour))
			require.NoError(t, b.Complete(ctx, keyOf("any fingerprint"), idempotency.Claim{Token: mine.Token}, []byte("{}"), time.Hour))
			mustClaim(t, b, keyOf("outstanding"), mine, lease(time.Hour))
			require.NoError(t, b.Release(ctx, keyOf("interrupted"), mine, time.Hour))
			require.NoError(t, admin.Set(ctx, "idempotency:"+keyOf("garbage").String(), "\x01\x02garbage", 0).Err())
			how.stop(t, admin)

			replay := idempotency.Record{Claim: mine, State: idempotency.StateCompleted, Response: []byte("{}")}
			for name, terms := range allTerms {
				require.Equal(t, replay, mustHold(t, b, keyOf("completed"), retry, terms), name)
				require.Equal(t, replay, mustHold(t, b, keyOf("completed"), mine, terms), name)
				require.Equal(t, replay, mustHold(t, fresh, keyOf("completed"), retry, terms), name)
				require.Equal(t, []byte("{}"), mustHold(t, b, keyOf("any fingerprint"), retry, terms).Response, name)
				_, claimed, err := b.Claim(ctx, keyOf("free"), mine, terms)
				require.False(t, claimed)
				requireCode(t, err, how.code)
			}
			commands := names(wire.during(func() {
				require.Equal(t, replay, mustHold(t, b, keyOf("completed"), retry, lease(time.Hour)))
			}))
			// go-redis makes its connection anew after an answer of READONLY.
			commands = slices.DeleteFunc(commands, func(name string) bool { return name == "HELLO" || name == "CLIENT" })
			require.Equal(t, []string{"SET", "GET"}, commands, "by one read")

			// Nothing else counts there.
			for _, test := range []struct {
				key   string
				claim idempotency.Claim
				terms idempotency.Terms
			}{
				{"completed", other, lease(time.Hour)},
				{"outstanding", retry, lease(time.Hour)},
				{"outstanding", other, lease(time.Hour)},
				{"interrupted", retry, lease(time.Hour)},
				{"interrupted", retry, allTerms["take over"]},
				{"garbage", mine, lease(time.Hour)},
			} {
				rec, claimed, err := b.Claim(ctx, keyOf(test.key), test.claim, test.terms)
				require.False(t, claimed, test.key)
				require.Zero(t, rec, test.key)
				requireCode(t, err, how.code)
			}
			requireCode(t, b.Complete(ctx, keyOf("outstanding"), mine, []byte("{}"), time.Hour), how.code)
			requireCode(t, b.Renew(ctx, keyOf("outstanding"), mine, lease(time.Hour), []byte("step 1")), how.code)
			require.ErrorIs(t, b.Complete(ctx, keyOf("outstanding"), other, []byte("{}"), time.Hour), idempotency.ErrClaimLost)
			require.NoError(t, b.Complete(ctx, keyOf("completed"), mine, []byte("again"), time.Hour))

			// What could not be done is done later.
			how.start(t, admin)
			require.Eventually(t, func() bool {
				_, claimed, err := b.Claim(ctx, keyOf("free"), mine, lease(time.Hour))
				return err == nil && claimed
			}, time.Minute, 10*time.Millisecond)
			want := idempotency.Record{Claim: mine, State: idempotency.StateOutstanding}
			require.Equal(t, want, mustHold(t, b, keyOf("outstanding"), retry, lease(time.Hour)))
			require.NoError(t, b.Complete(ctx, keyOf("outstanding"), mine, []byte("{}"), time.Hour))
			want.State = idempotency.StateInterrupted
			require.Equal(t, want, mustHold(t, b, keyOf("interrupted"), retry, lease(time.Hour)))
		})
	}
}

// A full Redis still does what needs no room: renewals, releases, and what an
// operator asks.
func TestRedisFull(t *testing.T) {
	admin := redistest.Start(t, fullRedis.config...).Client(t)
	b := provenRedis(t, admin)
	learnScripts(t, b)
	ctx, mine := t.Context(), claimOf("mine")
	terms, longer := traced(time.Hour, time.Hour), traced(9*time.Hour, time.Hour)
	for _, key := range []string{"renewed", "with progress", "released", "released with a trace", "released with another"} {
		mustClaim(t, b, keyOf(key), mine, terms)
	}
	require.NoError(t, b.Renew(ctx, keyOf("with progress"), mine, terms, []byte("step 1")))
	for _, key := range []string{"interrupted", "to forget"} {
		require.NoError(t, b.Release(ctx, keyOf(key), mine, time.Hour))
	}
	retry := retryOf(mine, "retry")
	takeOver := idempotency.Terms{Lease: time.Hour, Trace: time.Hour, TakeOver: true}
	require.NoError(t, b.Release(ctx, keyOf("taken over"), mine, time.Hour))
	mustClaim(t, b, keyOf("taken over"), retry, takeOver)
	fullRedis.stop(t, admin)

	lookup := func(key string) (rec idempotency.Record, left time.Duration, ok bool) {
		t.Helper()
		rec, left, ok, err := b.Lookup(ctx, keyOf(key))
		require.NoError(t, err)
		return rec, left, ok
	}
	requireRecord := func(key string, want idempotency.Record, ends time.Duration) {
		t.Helper()
		rec, left, ok := lookup(key)
		require.True(t, ok, key)
		require.Equal(t, want, rec, key)
		require.InDelta(t, ends, left, float64(30*time.Minute), key)
	}
	outstanding := idempotency.Record{Claim: mine, State: idempotency.StateOutstanding}
	interrupted := idempotency.Record{Claim: mine, State: idempotency.StateInterrupted}
	withProgress := idempotency.Record{Claim: mine, State: idempotency.StateOutstanding, Progress: []byte("step 1")}

	// A renewal without more progress needs no room.
	require.NoError(t, b.Renew(ctx, keyOf("renewed"), mine, longer, nil))
	requireRecord("renewed", outstanding, 10*time.Hour)
	require.NoError(t, b.Renew(ctx, keyOf("interrupted"), mine, longer, nil))
	requireRecord("interrupted", outstanding, 10*time.Hour)
	for _, progress := range []string{"", "s", "step 2"} {
		require.NoError(t, b.Renew(ctx, keyOf("with progress"), mine, longer, []byte(progress)))
		requireRecord("with progress", withProgress, 10*time.Hour)
	}
	// Nor does a claim by the same token.
	require.Zero(t, mustClaim(t, b, keyOf("with progress"), mine, terms))
	requireRecord("with progress", withProgress, 2*time.Hour)
	require.Equal(t, idempotency.Record{Claim: retry, State: idempotency.StateInterrupted}, mustClaim(t, b, keyOf("taken over"), retry, takeOver))
	// More progress does, and leaves the record as it is.
	require.ErrorIs(t, b.Renew(ctx, keyOf("with progress"), mine, longer, []byte("step 1, step 2")), idempotency.ErrFull)
	requireRecord("with progress", withProgress, 2*time.Hour)
	require.ErrorIs(t, b.Renew(ctx, keyOf("nothing"), mine, longer, nil), idempotency.ErrFull)

	require.NoError(t, b.Release(ctx, keyOf("released"), mine, 0))
	require.NoError(t, b.Release(ctx, keyOf("nothing"), mine, 0))
	require.NoError(t, b.Release(ctx, keyOf("released with a trace"), mine, time.Hour), "the trace of its terms is there already")
	requireRecord("released with a trace", interrupted, time.Hour)
	require.ErrorIs(t, b.Release(ctx, keyOf("released with another"), mine, 9*time.Hour), idempotency.ErrFull)
	requireRecord("released with another", outstanding, 2*time.Hour)
	require.ErrorIs(t, b.Release(ctx, keyOf("nothing"), mine, time.Hour), idempotency.ErrFull)
	require.NoError(t, b.Release(ctx, keyOf("taken over"), retry, 0))
	requireRecord("taken over", idempotency.Record{Claim: retry, State: idempotency.StateInterrupted}, time.Hour)
	for _, key := range []string{"released", "nothing"} {
		_, _, ok := lookup(key)
		require.False(t, ok, key)
	}

	seen, _, _ := lookup("to forget")
	require.Equal(t, interrupted, seen)
	forgotten, err := b.Forget(ctx, keyOf("to forget"), seen)
	require.NoError(t, err)
	require.True(t, forgotten)
}

// A store that takes no writes still tells that another request has the key, or that
// its record cannot be read: no handler runs then, also with WithFailOpen.
func TestNothingRunsBesideARecordWithoutWrites(t *testing.T) {
	for name, opts := range map[string][]idempotency.Option{
		"closed": with(quiet), "open": with(quiet, idempotency.WithFailOpen()), "at most once": with(quiet, idempotency.WithAtMostOnce()),
	} {
		t.Run(name, func(t *testing.T) {
			client := redistest.Start(t, "maxmemory-policy noeviction").Client(t)
			backend, p := idempotency.NewRedis(client), &payments{}
			h := idempotency.New(backend, opts...)(p)
			require.Equal(t, http.StatusCreated, send(h, request("warm", "b")).Code)
			mustClaim(t, backend, keyOf("held"), claimOf("another"), lease(time.Hour))
			require.NoError(t, client.Set(t.Context(), "idempotency:"+keyOf("unreadable").String(), "\x09garbage", 0).Err())
			require.NoError(t, client.ConfigSet(t.Context(), "maxmemory", "1").Err())
			requireProblem(t, send(h, request("unreadable", "b")), http.StatusServiceUnavailable, "ErrUnreadable")
			held := send(h, request("held", "b"))
			if name == "at most once" { // Its script reads before it writes.
				requireProblem(t, held, http.StatusUnprocessableEntity, "ErrKeyReused")
			} else {
				requireProblem(t, held, http.StatusServiceUnavailable, "ErrUnavailable")
			}
			require.EqualValues(t, 1, p.runs.Load())
		})
	}
}
