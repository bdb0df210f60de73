package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/internal/netfault"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// switchedDialer dials, refuses, or returns connections that stay silent.
type switchedDialer struct {
	refuses, silent atomic.Bool
	stale           atomic.Bool // The connections that there were are silent.
	dialed, open    atomic.Int32
	hold            chan struct{} // what a connection waits for; nil is nothing
	takes           atomic.Int64  // how long a connection takes, in nanoseconds
}

var errRefused = errors.New("the switch is off")

func (d *switchedDialer) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d.dialed.Add(1)
	if d.refuses.Load() {
		return nil, &net.OpError{Op: "dial", Net: network, Err: errRefused}
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	d.open.Add(1)
	if d.hold != nil {
		<-d.hold
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(time.Duration(d.takes.Load())):
	}
	return &switchedConn{Conn: conn, dialer: d, silent: d.silent.Load(), old: !d.stale.Load()}, nil
}

type switchedConn struct {
	net.Conn
	dialer *switchedDialer
	silent bool
	old    bool // from before the others fell silent
	once   sync.Once
}

func (c *switchedConn) Write(p []byte) (int, error) {
	if c.silent || c.old && c.dialer.stale.Load() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

func (c *switchedConn) Close() error {
	c.once.Do(func() { c.dialer.open.Add(-1) })
	return c.Conn.Close()
}

// renewed claims a key and returns what renews it.
func renewed(t *testing.T, b *idempotency.Redis, lease time.Duration) func(ctx context.Context) error {
	t.Helper()
	key, claim, terms := keyOf("k"), claimOf("mine"), idempotency.Terms{Lease: lease}
	mustClaim(t, b, key, claim, terms)
	return func(ctx context.Context) error { return b.Renew(ctx, key, claim, terms, nil) }
}

// Renewals do not queue for the client's connections.
func TestRedisRenewalsHaveTheirOwnConnections(t *testing.T) {
	server := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr(), PoolSize: 1})
	defer client.Close()
	renew := renewed(t, idempotency.NewRedis(client), time.Hour)
	busy := client.Conn() // It has the only connection.
	require.NoError(t, busy.Ping(t.Context()).Err())
	require.NoError(t, renew(t.Context()))
	require.NoError(t, busy.Close())
	require.NoError(t, client.Ping(t.Context()).Err())
}

// However often Redis refused, the next renewal asks it: go-redis's pool would say for a
// second at a time that it still refuses.
func TestRedisRenewalsAfterManyRefusals(t *testing.T) {
	dialer := &switchedDialer{}
	client := redis.NewClient(&redis.Options{Addr: miniredis.RunT(t).Addr(), Dialer: dialer.dial, PoolSize: 1, MaxRetries: -1, DialerRetries: 1,
		ConnMaxIdleTime: time.Nanosecond}) // It has no connection.
	defer client.Close()
	renew := renewed(t, idempotency.NewRedis(client), time.Hour)
	dialer.refuses.Store(true)
	before := dialer.dialed.Load()
	const refusals = 3000 // more than there is room for connections
	for range refusals {
		require.ErrorIs(t, renew(t.Context()), errRefused)
	}
	require.GreaterOrEqual(t, dialer.dialed.Load()-before, int32(refusals), "each is dialed")
	dialer.refuses.Store(false)
	require.NoError(t, renew(t.Context()))
}

// dialing sends renewals until the dialer has made n connections more.
func dialing(t *testing.T, dialer *switchedDialer, n int, renew func(ctx context.Context) error) (done *sync.WaitGroup) {
	t.Helper()
	done = new(sync.WaitGroup)
	most := dialer.open.Load() + int32(n)
	require.Eventually(t, func() bool {
		done.Go(func() { _ = renew(t.Context()) })
		return dialer.open.Load() >= most
	}, time.Minute, time.Millisecond)
	return done
}

// Renewals that hang keep no other out.
func TestRedisRenewalsThatHang(t *testing.T) {
	dialer, server := &switchedDialer{}, miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr(), Dialer: dialer.dial, PoolSize: 1})
	defer client.Close()
	renew := renewed(t, idempotency.NewRedis(client), time.Second)
	dialer.silent.Store(true)
	busy := client.Conn() // It has the only connection.
	defer busy.Close()
	require.NoError(t, busy.Ping(t.Context()).Err())
	hung := dialing(t, dialer, 3, renew)
	dialer.silent.Store(false)
	require.NoError(t, renew(t.Context()))
	server.Close() // That ends what hangs.
	hung.Wait()
}

// Renewals that are due together are sent together, and each gets its own answer.
func TestRedisRenewalsTogether(t *testing.T) {
	forEachRedis(t, func(t *testing.T, newClient func(t *testing.T) *redis.Client) {
		plain := newClient(t)
		prefix := freshPrefix(t, plain)
		b := idempotency.NewRedis(plain, idempotency.WithPrefix(prefix))
		const n = 100
		for i := range n {
			mustClaim(t, b, keyOf(fmt.Sprint(i)), claimOf(fmt.Sprint(i)), lease(time.Hour))
		}
		for forgotten := range 2 {
			if forgotten == 1 {
				require.NoError(t, plain.ScriptFlush(t.Context()).Err())
			}
			var all sync.WaitGroup
			for i := range n {
				all.Go(func() {
					claim, want := claimOf(fmt.Sprint(i)), error(nil)
					if i%10 == 7 {
						claim, want = claimOf("another"), idempotency.ErrClaimLost
					}
					if err := b.Renew(t.Context(), keyOf(fmt.Sprint(i)), claim, lease(2*time.Hour), nil); !errors.Is(err, want) {
						t.Error(i, err)
					}
				})
			}
			all.Wait()
			for i := range n {
				_, left, ok, err := b.Lookup(t.Context(), keyOf(fmt.Sprint(i)))
				require.NoError(t, err)
				require.True(t, ok)
				require.Equal(t, i%10 != 7, left > 90*time.Minute, i)
			}
		}
	})
}

// The connections that an outage has left are not tried one after the other, once they
// have fallen silent.
func TestRedisRenewalConnectionsOfAnOutage(t *testing.T) {
	const lease, left = 2 * time.Second, 30
	dialer := &switchedDialer{}
	client := redis.NewClient(&redis.Options{Addr: miniredis.RunT(t).Addr(), Dialer: dialer.dial})
	defer client.Close()
	renew := renewed(t, idempotency.NewRedis(client), lease)
	dialer.hold = make(chan struct{}) // Each is dialed before the first is used.
	dialed := dialing(t, dialer, left, renew)
	close(dialer.hold)
	dialed.Wait()
	dialer.stale.Store(true)
	tries := 0
	require.Eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), lease/20)
		defer cancel()
		tries++
		return renew(ctx) == nil
	}, time.Minute, time.Nanosecond)
	require.Less(t, tries, left/2)
}

// A backend that nobody else refers to keeps its connections while it renews.
func TestRedisRenewalOfAForgottenBackend(t *testing.T) {
	dialer, server := &switchedDialer{}, miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr(), Dialer: dialer.dial})
	defer client.Close()
	require.NoError(t, client.Ping(t.Context()).Err())
	dialer.silent.Store(true)
	done := make(chan error)
	go func() {
		done <- idempotency.NewRedis(client).Renew(t.Context(), keyOf("k"), claimOf("mine"), lease(time.Hour), nil)
	}()
	require.Eventually(t, func() bool { return dialer.open.Load() == 2 }, time.Minute, time.Millisecond)
	for range 10 {
		runtime.GC()
	}
	server.Close() // That ends what hangs, if its time is not over.
	err := <-done
	require.Error(t, err)
	require.NotErrorIs(t, err, net.ErrClosed)
	require.NotErrorIs(t, err, redis.ErrClosed)
}

// A renewal ends with its context, also while it reads, which go-redis does not by default.
func TestRedisRenewalsHeedTheirContext(t *testing.T) {
	dialer := &switchedDialer{}
	client := redis.NewClient(&redis.Options{Addr: miniredis.RunT(t).Addr(), Dialer: dialer.dial, ReadTimeout: time.Hour})
	defer client.Close()
	renew := renewed(t, idempotency.NewRedis(client), time.Hour)
	dialer.silent.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	require.Error(t, renew(ctx))
}

// A response is stored although the client's connections have fallen silent.
func TestRedisCompleteWhileTheClientIsSilent(t *testing.T) {
	t.Parallel() // It waits for some seconds.
	dialer := &switchedDialer{}
	server := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr(), Dialer: dialer.dial, ReadTimeout: time.Hour})
	defer client.Close()
	another := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer another.Close()
	b := idempotency.NewRedis(client)
	require.NoError(t, renewed(t, b, time.Hour)(t.Context()))
	dialer.stale.Store(true)
	dialer.takes.Store(int64(700 * time.Millisecond)) // longer than the first try
	require.NoError(t, b.Renew(t.Context(), keyOf("k"), claimOf("mine"), traced(time.Hour, time.Hour), []byte("progress")))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, b.Complete(ctx, keyOf("k"), claimOf("mine"), []byte("response"), time.Hour))
	rec, _, ok, err := idempotency.NewRedis(another).Lookup(t.Context(), keyOf("k"))
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, []byte("response"), rec.Response)
}

// A response is stored as soon as Redis takes connections again, although go-redis's pool
// still says for a second that it refuses.
func TestRedisCompleteAfterManyRefusals(t *testing.T) {
	dialer, server := &switchedDialer{}, miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr(), Dialer: dialer.dial, PoolSize: 1, MaxRetries: -1, DialerRetries: 1})
	defer client.Close()
	dialer.refuses.Store(true)
	b := idempotency.NewRedis(client)
	complete := func() error {
		return b.Complete(t.Context(), keyOf("k"), claimOf("mine"), []byte("response"), time.Hour)
	}
	for range 10 {
		require.ErrorIs(t, complete(), errRefused)
	}
	dialer.refuses.Store(false)
	require.NoError(t, complete())
	require.NoError(t, complete(), "it is stored already")
	require.ErrorIs(t, b.Complete(t.Context(), keyOf("k"), claimOf("another"), []byte("response"), time.Hour), idempotency.ErrClaimLost)
}

// A panic of what the client calls is an error, and does not end the process.
func TestRedisClientThatPanics(t *testing.T) {
	dialer, server := &switchedDialer{}, miniredis.RunT(t)
	var panics atomic.Bool
	client := redis.NewClient(&redis.Options{Addr: server.Addr(), Dialer: dialer.dial, ConnMaxIdleTime: time.Nanosecond,
		OnConnect: func(context.Context, *redis.Conn) error {
			if panics.Load() {
				panic("boom")
			}
			return nil
		}})
	defer client.Close()
	b := idempotency.NewRedis(client)
	mustClaim(t, b, keyOf("k"), claimOf("mine"), traced(time.Second, time.Hour))
	panics.Store(true)
	for _, progress := range [][]byte{nil, []byte("progress")} {
		require.ErrorContains(t, b.Renew(t.Context(), keyOf("k"), claimOf("mine"), traced(time.Second, time.Hour), progress), "boom")
	}
	require.ErrorContains(t, b.Complete(t.Context(), keyOf("k"), claimOf("mine"), nil, time.Hour), "boom")
}

// A Complete that hangs takes no connection from renewals: its own are others.
func TestRedisCompletesTakeNoConnectionOfRenewals(t *testing.T) {
	dialer, server := &switchedDialer{}, miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr(), Dialer: dialer.dial, PoolSize: 1, MaxRetries: -1, DialerRetries: 1,
		ConnMaxIdleTime: time.Nanosecond}) // It dials for each command.
	defer client.Close()
	b := idempotency.NewRedis(client)
	require.NoError(t, renewed(t, b, time.Hour)(t.Context()))
	complete := func() error {
		return b.Complete(t.Context(), keyOf("k"), claimOf("mine"), []byte("response"), time.Hour)
	}
	dialer.refuses.Store(true)
	for range 10 { // From then on the client's pool says for a second that Redis refuses.
		require.ErrorIs(t, complete(), errRefused)
	}
	require.EqualValues(t, 1, dialer.open.Load(), "the connection of renewals is idle")
	dialer.refuses.Store(false)
	require.NoError(t, complete())
	require.Eventually(t, func() bool { return dialer.open.Load() == 2 }, time.Minute, time.Millisecond, "it is idle still")
}

// Claims are renewed by the client itself if no other connection can be had: one that was
// refused, or says nothing.
func TestRedisRenewalsWithoutAConnection(t *testing.T) {
	forEachRedis(t, func(t *testing.T, newClient func(t *testing.T) *redis.Client) {
		for _, how := range []string{"refused", "silent"} {
			t.Run(how, func(t *testing.T) {
				dialer, options := &switchedDialer{}, *newClient(t).Options()
				options.Dialer, options.PoolSize = dialer.dial, 1
				client := redis.NewClient(&options)
				defer client.Close()
				b := idempotency.NewRedis(client, idempotency.WithPrefix(freshPrefix(t, client)))
				mustClaim(t, b, keyOf("k"), claimOf("mine"), traced(time.Second, time.Hour))
				dialer.refuses.Store(how == "refused")
				dialer.silent.Store(how == "silent")
				for _, progress := range [][]byte{nil, []byte("progress")} {
					require.NoError(t, b.Renew(t.Context(), keyOf("k"), claimOf("mine"), traced(2*time.Second, time.Hour), progress))
				}
				rec, left, ok, err := b.Lookup(t.Context(), keyOf("k"))
				require.NoError(t, err)
				require.True(t, ok)
				require.Equal(t, idempotency.StateOutstanding, rec.State)
				require.Equal(t, []byte("progress"), rec.Progress)
				require.Greater(t, left, time.Hour)

				forgotten, err := b.Forget(t.Context(), keyOf("k"), rec)
				require.NoError(t, err)
				require.True(t, forgotten)
				require.Error(t, b.Renew(t.Context(), keyOf("k"), claimOf("mine"), traced(2*time.Second, time.Hour), nil))
				_, _, ok, err = b.Lookup(t.Context(), keyOf("k"))
				require.NoError(t, err)
				require.False(t, ok, "it may have been sent before its claim was released")
			})
		}
	})
}

// What an outage has left over is closed when it is back in the pool.
func TestRedisRenewalConnectionsThatAreTooMany(t *testing.T) {
	dialer := &switchedDialer{hold: make(chan struct{})}
	client := redis.NewClient(&redis.Options{Addr: miniredis.RunT(t).Addr()})
	defer client.Close()
	options := *client.Options()
	options.Dialer = dialer.dial
	over := redis.NewClient(&options)
	defer over.Close()
	claimed := idempotency.NewRedis(client)
	mustClaim(t, claimed, keyOf("k"), claimOf("mine"), lease(time.Second))
	b := idempotency.NewRedis(over)
	dialed := dialing(t, dialer, 4, func(ctx context.Context) error {
		return b.Renew(ctx, keyOf("k"), claimOf("mine"), lease(time.Second), nil)
	})
	close(dialer.hold)
	dialed.Wait()
	require.Eventually(t, func() bool { return dialer.open.Load() <= 3 }, time.Minute, time.Millisecond, "two, and that of the client")
}

// The new master of a Cluster is found although the old one has fallen silent, and each renewal
// runs out of its time.
func TestRedisRenewalsFindANewMaster(t *testing.T) {
	server := miniredis.RunT(t)
	old, err := netfault.Start("127.0.0.1:0", server.Addr())
	require.NoError(t, err)
	defer old.Close()
	addr := server.Addr() // It may be asked for when the server is closed.
	var moved atomic.Bool
	client := redis.NewClusterClient(&redis.ClusterOptions{
		ReadTimeout: time.Hour, // It does not find out by itself.
		ClusterSlots: func(context.Context) ([]redis.ClusterSlot, error) {
			master := old.Addr()
			if moved.Load() {
				master = addr
			}
			return []redis.ClusterSlot{{Start: 0, End: 16383, Nodes: []redis.ClusterNode{{Addr: master}}}}, nil
		},
	})
	defer client.Close()
	const lease = 1400 * time.Millisecond
	renew := renewed(t, idempotency.NewRedis(client), lease)
	require.NoError(t, renew(t.Context()))
	require.NoError(t, old.Shut(netfault.Dead))
	moved.Store(true)
	require.Eventually(t, func() bool {
		ctx, end := context.WithTimeout(t.Context(), lease/3)
		defer end()
		return renew(ctx) == nil
	}, 20*time.Second, time.Millisecond)
}

// A renewal that was not sent is none: go-redis tells no command of a pipeline why its
// connection could not be set up, if Redis itself said so.
func TestRedisRenewalThatIsNotSent(t *testing.T) {
	server := miniredis.RunT(t)
	server.RequireAuth("old")
	password := "old"
	client := redis.NewClient(&redis.Options{Addr: server.Addr(), CredentialsProvider: func() (string, string) { return "", password },
		ConnMaxIdleTime: time.Nanosecond}) // It makes a connection for each command, and so is no way out.
	defer client.Close()
	b := idempotency.NewRedis(client)
	mustClaim(t, b, keyOf("k"), claimOf("mine"), lease(time.Hour))
	server.RequireAuth("new")
	require.ErrorContains(t, b.Renew(t.Context(), keyOf("k"), claimOf("mine"), lease(2*time.Hour), nil), "WRONGPASS")
	require.LessOrEqual(t, server.TTL("idempotency:"+keyOf("k").String()), time.Hour)
	password = "new"
	require.NoError(t, b.Renew(t.Context(), keyOf("k"), claimOf("mine"), lease(2*time.Hour), nil))
}

// The client's hooks see all but the renewals.
func TestRedisHooks(t *testing.T) {
	client := miniRedis(t)
	hook := new(countingHook)
	client.AddHook(hook)
	b := idempotency.NewRedis(client)
	require.NoError(t, renewed(t, b, time.Hour)(t.Context()))
	before := hook.processed.Load()
	require.NotZero(t, before, "the claim")
	require.NoError(t, b.Complete(t.Context(), keyOf("k"), claimOf("mine"), []byte("response"), time.Hour))
	require.Greater(t, hook.processed.Load(), before)
}

type countingHook struct {
	redis.Hook
	processed atomic.Int32
}

func (h *countingHook) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h *countingHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		h.processed.Add(1)
		return next(ctx, cmd)
	}
}

func (h *countingHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// A connection whose first command has failed is closed, and not left to the garbage
// collector.
func TestRedisRenewalConnectionsThatFailAreClosed(t *testing.T) {
	dialer := &switchedDialer{}
	client := redis.NewClient(&redis.Options{Addr: miniredis.RunT(t).Addr(), Dialer: dialer.dial})
	defer client.Close()
	b := idempotency.NewRedis(client)
	mustClaim(t, b, keyOf("k"), claimOf("mine"), lease(time.Hour))
	open := dialer.open.Load()
	dialer.silent.Store(true)
	for range 20 {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		require.Error(t, b.Renew(ctx, keyOf("k"), claimOf("mine"), lease(100*time.Millisecond), nil))
		cancel()
	}
	require.Eventually(t, func() bool { return dialer.open.Load() == open }, time.Minute, time.Millisecond)
}

// A client of another kind is used itself.
func TestRedisRenewalsOfAnotherClient(t *testing.T) {
	client := miniRedis(t)
	calls := &countingClient{UniversalClient: client}
	require.NoError(t, renewed(t, idempotency.NewRedis(calls), time.Hour)(t.Context()))
	require.EqualValues(t, 4, calls.processed.Load(), "a claim and a renewal, each by hash and by text")
}

type countingClient struct {
	redis.UniversalClient
	processed atomic.Int32
}

func (c *countingClient) Process(ctx context.Context, cmd redis.Cmder) error {
	c.processed.Add(1)
	return c.UniversalClient.Process(ctx, cmd)
}

// The connections of a backend that is no longer used are closed.
func TestRedisRenewalConnectionsAreClosed(t *testing.T) {
	dialer := &switchedDialer{}
	client := redis.NewClient(&redis.Options{Addr: miniredis.RunT(t).Addr(), Dialer: dialer.dial})
	defer client.Close()
	require.NoError(t, renewed(t, idempotency.NewRedis(client), time.Hour)(t.Context()))
	require.EqualValues(t, 2, dialer.open.Load())
	require.Eventually(t, func() bool { runtime.GC(); return dialer.open.Load() == 1 }, time.Minute, time.Millisecond)
}
