package idempotency

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/idempotency-go/idempotency/internal/batch"
)

const (
	// renewalConns is how many connections there may be to a server for the renewals of one
	// lease: one, and those that hang.
	renewalConns = 256
	// ofPersist stands for a lease where there is none: of the connections that are like
	// those of renewals, and tried if the client does not answer what must not be lost. They
	// are tried after hurry, for firstTry at first.
	ofPersist       = 0
	hurry, firstTry = callTime / 2, 500 * time.Millisecond
	// renewalIdle is how many connections are kept that are not used, after an outage.
	renewalIdle = 2
	// mostIdle is how long a connection is kept at most that is not used.
	mostIdle = 3 * time.Second
	// renewalBuffer is the size of a connection's buffers, in bytes.
	renewalBuffer = 4 << 10
)

// redisRenewals renews the claims with one lease.
type redisRenewals struct {
	client redis.UniversalClient

	mu     sync.Mutex
	queues map[string]*batch.Ways[redisRenewal] // by the address of their server
}

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
	renewals := b.renewalsOf(terms.Lease)
	server := renewals.serverOf(ctx, b.name(key))
	if server == nil || progress != nil {
		return b.persist(ctx, func(ctx context.Context, client redis.UniversalClient) error {
			return b.update(ctx, client, renewScript, key, claim, encodeClaim(claim, terms.Trace), milliseconds(terms.Lease), progress)
		})
	}
	own := func(ctx context.Context, due []redisRenewal) []error {
		errs := b.renewBatch(ctx, server, due, renewScript.byHash)
		if slices.ContainsFunc(errs, notRenewed) {
			renewals.learn(ctx)
		}
		return errs
	}
	byClient := func(ctx context.Context, due []redisRenewal) []error {
		return b.renewBatch(ctx, b.client, due, onlyIfThere)
	}
	err := renewals.queueOf(server, terms.Lease).Do(ctx, redisRenewal{key, claim, terms}, own, byClient, notRenewed)
	switch {
	case isNoScript(err):
		reply, err := process(ctx, server, renewScript.byText(b.name(key), encodeClaim(claim, terms.Trace), milliseconds(terms.Lease), ""))
		return updated(reply, err, claim)
	case notRenewed(err) && ctx.Err() != nil:
		return fmt.Errorf("idempotency: redis: %w", err)
	}
	return err
}

// onlyIfThere is the command for what may come late, when its claim has been released. It has
// the script's text: the client's servers may not have the script.
func onlyIfThere(name string, argv ...any) []any {
	return renewScript.byText(name, append(argv, "only if there")...)
}

func isNoScript(err error) bool { return redis.HasErrorPrefix(err, "NOSCRIPT") }

// notRenewed reports whether a renewal may succeed by another way.
func notRenewed(err error) bool {
	return err != nil && !errors.Is(err, ErrClaimLost) && !errors.Is(err, ErrUnreadable) && !isNoScript(err)
}

// errNoReply is a command of which nothing is known.
var errNoReply = errors.New("no reply")

// serverOf returns the server of a name, or nil if that is not known: those of a Cluster
// have queues of their own, so that none that hangs holds up the renewals of another.
func (r *redisRenewals) serverOf(ctx context.Context, name string) *redis.Client {
	switch client := r.client.(type) {
	case *redis.Client:
		return client
	case *redis.ClusterClient:
		server, _ := client.MasterForKey(ctx, name) // If it fails, the client is asked itself.
		return server
	}
	return nil
}

// learn lets the client learn where the keys of a Cluster are now. It holds nobody up.
func (r *redisRenewals) learn(ctx context.Context) {
	if cluster, ok := r.client.(*redis.ClusterClient); ok {
		cluster.ReloadState(ctx)
	}
}

func (r *redisRenewals) queueOf(server *redis.Client, lease time.Duration) *batch.Ways[redisRenewal] {
	r.mu.Lock()
	defer r.mu.Unlock()
	addr := server.Options().Addr
	if r.queues[addr] == nil {
		r.queues[addr] = batch.NewWays[redisRenewal](lease)
	}
	return r.queues[addr]
}

// renewBatch renews claims by one pipeline.
func (b *Redis) renewBatch(ctx context.Context, client redis.UniversalClient, due []redisRenewal, command func(name string, args ...any) []any) []error {
	pipe := client.Pipeline()
	commands := make([]*redis.Cmd, len(due))
	for i, r := range due {
		commands[i] = pipe.Do(ctx, command(b.name(r.key), encodeClaim(r.claim, r.terms.Trace), milliseconds(r.terms.Lease), "")...)
	}
	_, notSent := pipe.Exec(ctx)
	errs := make([]error, len(due))
	for i, r := range due {
		reply, err := commands[i].Result()
		if err == nil && reply == nil {
			err = notSent // The connection could not be set up.
		}
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
		setForRenewals(&options, lease)
		client := redis.NewClient(&options)
		return client, client.Close
	case *redis.ClusterClient:
		options := *like.Options()
		options.ContextTimeoutEnabled = true
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
	o.MaxIdleConns = renewalIdle
	o.MaxRetries, o.ContextTimeoutEnabled, o.Limiter = -1, true, nil
	// What has gone silent unseen is used once: of many that an outage has left, few tries
	// would find out that they all have.
	o.ConnMaxIdleTime = mostIdle
	if lease != ofPersist {
		o.ConnMaxIdleTime = min(lease/10, mostIdle)
		o.DialTimeout = min(o.DialTimeout, batch.Time(lease))
	}
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
		if err != nil {
			closed, other := net.Pipe()
			_, _ = closed.Close(), other.Close()
			return failedConn{closed, err}, nil
		}
		once := &onceConn{Conn: conn}
		if raw, ok := conn.(syscall.Conn); ok {
			return checkedConn{once, raw}, nil
		}
		return once, nil
	}
}

// onceConn is a connection that is closed after an error, and returns that from then on.
// go-redis leaves one open whose first command has failed, until the garbage collector comes.
type onceConn struct {
	net.Conn
	failed atomic.Pointer[error]
}

func (c *onceConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	return n, c.closeAfter(err)
}

func (c *onceConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	return n, c.closeAfter(err)
}

func (c *onceConn) SetDeadline(t time.Time) error     { return c.closeAfter(c.Conn.SetDeadline(t)) }
func (c *onceConn) SetReadDeadline(t time.Time) error { return c.closeAfter(c.Conn.SetReadDeadline(t)) }
func (c *onceConn) SetWriteDeadline(t time.Time) error {
	return c.closeAfter(c.Conn.SetWriteDeadline(t))
}

func (c *onceConn) closeAfter(err error) error {
	if err == nil {
		return nil
	}
	if c.failed.CompareAndSwap(nil, &err) {
		_ = c.Close()
	}
	return *c.failed.Load()
}

// checkedConn is one that go-redis can check before it uses it.
type checkedConn struct {
	*onceConn
	syscall.Conn
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

// renewalsOf returns what renews the claims with a lease. Its connections are no others', so
// that renewals do not queue behind what else is sent. They are made when they are needed, and
// closed once the backend is no longer used.
func (b *Redis) renewalsOf(lease time.Duration) *redisRenewals {
	renewals, _ := b.renewals.Get(lease, func() (*redisRenewals, error) {
		client, close := newRenewalClient(b.client, lease)
		if close != nil {
			runtime.AddCleanup(b, func(close func() error) { _ = close() }, close)
		}
		renewals := &redisRenewals{client: client, queues: make(map[string]*batch.Ways[redisRenewal])}
		renewals.learn(context.Background())
		return renewals, nil
	})
	return renewals
}

// meetCluster lets what renews the claims with a lease learn of the nodes of a Cluster while
// these answer, and not first when a claim must be renewed.
func (b *Redis) meetCluster(lease time.Duration) {
	if time.Duration(b.lease.Swap(int64(lease))) == lease {
		return
	}
	if _, cluster := b.client.(*redis.ClusterClient); cluster {
		b.renewalsOf(lease)
		b.renewalsOf(ofPersist)
	}
}
