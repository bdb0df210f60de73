package idempotency

import (
	"context"
	"net"
	"runtime"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/idempotency-go/idempotency/internal/gate"
)

const (
	// renewalsAtOnce is how many renewals are under way at once, at least.
	renewalsAtOnce = 64
	// renewalConns is how many connections there are for each of those. A try that hangs
	// has its connection longer than its place at the gate.
	renewalConns = 16
	// leastDial is how long a connection is dialed with a short lease.
	leastDial = time.Second
	// renewalBuffer is the size of a connection's buffers, in bytes.
	renewalBuffer = 4 << 10
)

// redisRenewals sends renewals. They have connections of their own, so that they do not
// queue behind what else a client sends.
type redisRenewals struct {
	client redis.UniversalClient
	gate   gate.Gate
	close  func() error
}

// newRedisRenewals makes connections like those of a client for one server or for a Cluster;
// any other client is used itself. It sends nothing. The lease says how long a try takes.
func newRedisRenewals(like redis.UniversalClient, lease time.Duration) *redisRenewals {
	switch like := like.(type) {
	case *redis.Client:
		options := *like.Options()
		n := setForRenewals(&options, lease)
		client := redis.NewClient(&options)
		return &redisRenewals{client, gate.New(n), client.Close}
	case *redis.ClusterClient:
		options := *like.Options()
		newClient := options.NewClient
		options.NewClient = func(o *redis.Options) *redis.Client {
			setForRenewals(o, lease)
			return newClient(o)
		}
		client := redis.NewClusterClient(&options)
		return &redisRenewals{client, gate.New(max(options.PoolSize, renewalsAtOnce)), client.Close}
	}
	return &redisRenewals{like, gate.New(renewalsAtOnce), func() error { return nil }}
}

// setForRenewals changes options so that a command is tried once, and ends with its context:
// who renews a claim tries again. It returns how many may be under way at once.
func setForRenewals(o *redis.Options, lease time.Duration) int {
	n := max(o.PoolSize, renewalsAtOnce)
	o.PoolSize, o.MaxConcurrentDials, o.MaxActiveConns, o.MinIdleConns = n*renewalConns, 0, 0, 0
	o.MaxRetries, o.ContextTimeoutEnabled, o.Limiter = -1, true, nil
	o.DialTimeout = min(o.DialTimeout, max(tryTime(lease), leastDial))
	if o.Dialer == nil {
		o.Dialer = redis.NewDialer(o)
	}
	o.Dialer = dialerThatReturns(o.Dialer)
	o.ReadBufferSize, o.WriteBufferSize = renewalBuffer, renewalBuffer
	o.PipelineReadBufferSize, o.PipelineWriteBufferSize = 0, 0
	o.ClientSideCache, o.ClientSideCacheConfig = nil, nil
	// These would be round trips of their own on each connection.
	o.DisableIdentity, o.MaintNotificationsConfig = true, &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	return n
}

type dialer = func(ctx context.Context, network, addr string) (net.Conn, error)

// dialerThatReturns tells a failure by the connection that it returns. After many errors
// of a dialer, go-redis's pool would fail for a second at a time without asking it.
func dialerThatReturns(dial dialer) dialer {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err == nil {
			return conn, nil
		}
		closed, other := net.Pipe()
		_, _ = closed.Close(), other.Close()
		return failedConn{closed, err}, nil
	}
}

// failedConn is a connection that was not made. It returns the cause of that.
type failedConn struct {
	net.Conn
	err error
}

func (c failedConn) Read([]byte) (int, error)         { return 0, c.err }
func (c failedConn) Write([]byte) (int, error)        { return 0, c.err }
func (c failedConn) SetDeadline(time.Time) error      { return c.err }
func (c failedConn) SetReadDeadline(time.Time) error  { return c.err }
func (c failedConn) SetWriteDeadline(time.Time) error { return c.err }

// renewals returns what sends this backend's renewals. It is made when a claim is first
// renewed, and closed once the backend is no longer used.
func (b *Redis) renewals(lease time.Duration) *redisRenewals {
	b.renewalsOnce.Do(func() {
		b.renewing = newRedisRenewals(b.client, lease)
		runtime.AddCleanup(b, func(r *redisRenewals) { _ = r.close() }, b.renewing)
	})
	return b.renewing
}
