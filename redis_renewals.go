package idempotency

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/idempotency-go/idempotency/internal/batch"
)

const (
	// renewalConns is how many connections there may be for renewals: one, and those that
	// hang. To a node of a Cluster, where each is sent by itself, there may be more.
	renewalConns, renewalNodeConns = 256, 1024
	// hurry is how long Complete waits for the client: half of its time. The connections may
	// have fallen silent. It then tries the client for renewals, each time for renewalTry.
	hurry, renewalTry = callTime / 2, 500 * time.Millisecond
	// anyLongLease stands for a lease that is not known. A claim with a shorter one is renewed,
	// and makes the client, before Complete asks for that; longer ones have the same settings.
	anyLongLease = time.Minute
	// mostIdle is how long a connection is kept at most that is not used.
	mostIdle = 3 * time.Second
	// renewalBuffer is the size of a connection's buffers, in bytes.
	renewalBuffer = 4 << 10
)

// redisRenewal is a renewal without progress, which most are.
type redisRenewal struct {
	key   Key
	claim Claim
	terms Terms
}

// Renew implements [Backend].
func (b *Redis) Renew(ctx context.Context, key Key, claim Claim, terms Terms, progress []byte) error {
	if err := terms.check(); err != nil {
		return err
	}
	defer runtime.KeepAlive(b) // Else its connections could be closed meanwhile.
	client := b.forRenewals(terms.Lease)
	// A pipeline to a Cluster would wait for its slowest node.
	if _, oneServer := client.(*redis.Client); oneServer && progress == nil {
		err := b.due.Do(ctx, redisRenewal{key, claim, terms}, terms.Lease, func(ctx context.Context, due []redisRenewal) []error {
			return b.renewBatch(ctx, client, due)
		})
		switch {
		case err != nil && err == context.Cause(ctx):
			return fmt.Errorf("idempotency: redis: %w", err)
		case !redis.HasErrorPrefix(err, "NOSCRIPT"):
			return err
		}
		reply, err := process(ctx, client, renewScript.byText(b.name(key), encodeClaim(claim, terms.Trace), milliseconds(terms.Lease), ""))
		return updated(reply, err, claim)
	}
	return b.update(ctx, client, renewScript, key, claim, encodeClaim(claim, terms.Trace), milliseconds(terms.Lease), progress)
}

// renewBatch renews claims by one pipeline.
func (b *Redis) renewBatch(ctx context.Context, client redis.UniversalClient, due []redisRenewal) []error {
	pipe := client.Pipeline()
	commands := make([]*redis.Cmd, len(due))
	for i, r := range due {
		commands[i] = pipe.Do(ctx, renewScript.byHash(b.name(r.key), encodeClaim(r.claim, r.terms.Trace), milliseconds(r.terms.Lease), "")...)
	}
	_, _ = pipe.Exec(ctx) // The errors are the commands'.
	errs := make([]error, len(due))
	for i, r := range due {
		reply, err := commands[i].Result()
		errs[i] = updated(reply, explained(err), r.claim)
	}
	return errs
}

// newRenewalClient returns a client with connections of its own, like those of a client for
// one server or for a Cluster; any other client is used itself, and close is nil. It sends
// nothing. The lease says how long a try takes.
func newRenewalClient(like redis.UniversalClient, lease time.Duration) (client redis.UniversalClient, close func() error) {
	switch like := like.(type) {
	case *redis.Client:
		options := *like.Options()
		setForRenewals(&options, lease, renewalConns)
		client := redis.NewClient(&options)
		return client, client.Close
	case *redis.ClusterClient:
		options := *like.Options()
		options.ContextTimeoutEnabled = true
		newClient := options.NewClient
		options.NewClient = func(o *redis.Options) *redis.Client {
			setForRenewals(o, lease, renewalNodeConns)
			return newClient(o)
		}
		client := redis.NewClusterClient(&options)
		return client, client.Close
	}
	return like, nil
}

// setForRenewals changes options so that a command is tried once, and ends with its context:
// who renews a claim tries again.
func setForRenewals(o *redis.Options, lease time.Duration, conns int) {
	o.PoolSize, o.MaxConcurrentDials, o.MaxActiveConns, o.MinIdleConns = conns, 0, 0, 0
	o.MaxRetries, o.ContextTimeoutEnabled, o.Limiter = -1, true, nil
	// What has gone silent unseen is used once: of many that an outage has left, few tries
	// would find out that they all have.
	o.ConnMaxIdleTime = min(lease/10, mostIdle)
	o.DialTimeout = min(o.DialTimeout, batch.Time(lease))
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

// hurried returns the client with time-outs that leave Complete the time to use another,
// if it is one for one server.
func hurried(client redis.UniversalClient) redis.UniversalClient {
	if one, ok := client.(*redis.Client); ok {
		if reads := one.Options().ReadTimeout; reads <= 0 || reads > hurry {
			return one.WithTimeout(hurry)
		}
	}
	return client
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

// meetCluster lets the client for renewals learn of the nodes of a Cluster while these answer,
// and not first when a claim must be renewed. It holds nobody up.
func (b *Redis) meetCluster(name string, lease time.Duration) {
	if _, cluster := b.client.(*redis.ClusterClient); !cluster {
		return
	}
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), callTime)
		defer cancel()
		b.forRenewals(lease).PTTL(ctx, name)
		runtime.KeepAlive(b)
	}()
}

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
