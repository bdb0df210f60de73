package idempotency_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/internal/redistest"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/stretchr/testify/require"
)

func TestMain(m *testing.M) {
	logging.Disable() // go-redis says on stderr that a server is gone; some tests want it gone.
	code := m.Run()
	redistest.Stop()
	os.Exit(code)
}

// forEachBackend runs test as a subtest for each backend: memory, miniredis,
// and a real Redis, which is skipped where there is none. newBackend gives a
// fresh and empty backend at each call.
func forEachBackend(t *testing.T, test func(t *testing.T, newBackend func(t *testing.T) idempotency.Backend)) {
	t.Helper()
	t.Run("memory", func(t *testing.T) {
		test(t, func(*testing.T) idempotency.Backend { return idempotency.NewMemory() })
	})
	forEachRedis(t, func(t *testing.T, newClient func(t *testing.T) *redis.Client) {
		test(t, func(t *testing.T) idempotency.Backend {
			client := newClient(t)
			return idempotency.NewRedis(client, idempotency.WithPrefix(freshPrefix(t, client)))
		})
	})
}

// forEachRedis runs test as a subtest for miniredis and for a real Redis, which
// is skipped where there is none.
func forEachRedis(t *testing.T, test func(t *testing.T, newClient func(t *testing.T) *redis.Client)) {
	t.Helper()
	t.Run("miniredis", func(t *testing.T) { test(t, miniRedis) })
	t.Run("redis", func(t *testing.T) {
		redistest.Client(t) // It skips the whole subtest where there is no Redis.
		test(t, func(t *testing.T) *redis.Client { return redistest.Client(t) })
	})
}

// freshPrefix returns a prefix that no other test uses, and deletes the keys
// that begin with it when the test is over. Tests may run against a database
// that has other keys in it, and leave those alone.
func freshPrefix(t testing.TB, client *redis.Client) string {
	t.Helper()
	prefix := "idempotency-test:" + rand.Text() + ":"
	t.Cleanup(func() {
		ctx := context.Background()
		keys := client.Scan(ctx, 0, prefix+"*", 1000).Iterator()
		for keys.Next(ctx) {
			client.Del(ctx, keys.Val())
		}
	})
	return prefix
}

// miniRedis returns a client on a miniredis of its own.
//
// Keys in miniredis do not age by themselves. They age by the time that has gone
// by whenever a command is about to be sent: no key is ever older than the call
// that wrote it, however slow the machine is, which a goroutine with a ticker
// could not promise.
func miniRedis(t *testing.T) *redis.Client {
	t.Helper()
	aging := &aging{server: miniredis.RunT(t), last: time.Now()}
	client := redis.NewClient(&redis.Options{Addr: aging.server.Addr(), Dialer: aging.dial})
	t.Cleanup(func() { client.Close() })
	return client
}

// aging lets the keys of a miniredis age before each command, of whatever client.
type aging struct {
	server *miniredis.Miniredis
	mu     sync.Mutex
	last   time.Time
}

func (a *aging) age() {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	a.server.FastForward(now.Sub(a.last))
	a.last = now
}

func (a *aging) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return agingConn{conn, a}, nil
}

// agingConn is a connection on which a client sends its commands.
type agingConn struct {
	net.Conn
	*aging
}

func (c agingConn) Write(p []byte) (int, error) {
	c.age()
	return c.Conn.Write(p)
}

// keyOf returns the storage key of a name.
func keyOf(name string) idempotency.Key { return idempotency.NewKey("", name) }

// claimOf returns the claim of a name. Its token and its fingerprint are no
// other name's.
func claimOf(name string) idempotency.Claim {
	token := sha256.Sum256([]byte("token of " + name))
	return idempotency.Claim{Token: idempotency.Token(token[:16]), Fingerprint: sha256.Sum256([]byte("request of " + name))}
}

// retryOf returns the claim of another request that is the same as first's.
func retryOf(first idempotency.Claim, name string) idempotency.Claim {
	claim := claimOf(name)
	claim.Fingerprint = first.Fingerprint
	return claim
}

// lease returns terms without a trace.
func lease(d time.Duration) idempotency.Terms { return idempotency.Terms{Lease: d} }

// traced returns terms with a trace.
func traced(lease, trace time.Duration) idempotency.Terms {
	return idempotency.Terms{Lease: lease, Trace: trace}
}

// mustClaim claims a key and returns the record that came with it.
func mustClaim(t testing.TB, b idempotency.Backend, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) idempotency.Record {
	t.Helper()
	rec, claimed, err := b.Claim(t.Context(), key, claim, terms)
	require.NoError(t, err)
	require.True(t, claimed)
	return rec
}

// mustHold returns the record that keeps claim from a key.
func mustHold(t testing.TB, b idempotency.Backend, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) idempotency.Record {
	t.Helper()
	rec, claimed, err := b.Claim(t.Context(), key, claim, terms)
	require.NoError(t, err)
	require.False(t, claimed)
	return rec
}

// requirePanics checks that f panics with a string that contains text.
func requirePanics(t *testing.T, text string, f func()) {
	t.Helper()
	defer func() {
		t.Helper()
		value := recover()
		require.NotNil(t, value, "no panic")
		require.IsType(t, "", value)
		require.Contains(t, value, text)
	}()
	f()
}
