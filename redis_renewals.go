package idempotency

import (
	"context"
	"net"
	"runtime"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

const (
	// renewalConns is how many connections there may be for renewals: one for each that is
	// under way, and for those that hang.
	renewalConns = renewalsAtOnce * (tries/3 + 2)
	// leastDial is how long a connection is dialed with a short lease.
	leastDial = time.Second
	// renewalBuffer is the size of a connection's buffers, in bytes.
	renewalBuffer = 4 << 10
)

// newRenewalClient returns a client with connections of its own, like those of a client for
// one server or for a Cluster; any other client is used itself, and close is nil. It sends
// nothing. The lease says how long a try takes.
func newRenewalClient(like redis.UniversalClient, lease time.Duration) (client redis.UniversalClient, close func() error) {
	switch like := like.(type) {
	case *redis.Client:
		options := *like.Options()
		setForRenewals(&options, lease)
		client := redis.NewClient(&options)
		return client, client.Close
	case *redis.ClusterClient:
		options := *like.Options()
		newClient := options.NewClient
		options.NewClient = func(o *redis.Options) *redis.Client {
			setForRenewals(o, lease)
			return newClient(o)
		}
		client := redis.NewClusterClient(&options)
		return client, client.Close
	}
	return like, nil
}

// setForRenewals changes options so that a command is tried once, and ends with its context:
// who renews a claim tries again.
func setForRenewals(o *redis.Options, lease time.Duration) {
	o.PoolSize, o.MaxConcurrentDials, o.MaxActiveConns, o.MinIdleConns = renewalConns, 0, 0, 0
	o.MaxRetries, o.ContextTimeoutEnabled, o.Limiter = -1, true, nil
	// What has gone silent unseen is used once: of many that an outage has left, few tries
	// would find out that they all have.
	o.ConnMaxIdleTime = lease / 10
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

// forRenewals returns the client that renewals use, so that they do not queue behind what
// else is sent. It is made when a claim is first renewed, and closed once the backend is no
// longer used.
func (b *Redis) forRenewals(lease time.Duration) redis.UniversalClient {
	b.renewals.Do(func() {
		client, close := newRenewalClient(b.client, lease)
		if b.renewalClient = client; close != nil {
			runtime.AddCleanup(b, func(close func() error) { _ = close() }, close)
		}
	})
	return b.renewalClient
}
