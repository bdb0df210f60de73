package scale

import (
	"context"
	"net"
	"sync/atomic"

	"github.com/redis/go-redis/v9"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/benchmarks/internal/work"
)

// onWire is how many requests are counted on the wire.
const onWire = 100

// wire counts the bytes of the connections that it has dialled.
type wire struct{ sent, received atomic.Int64 }

// dial is a dialler for go-redis.
func (w *wire) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &countedConn{conn, w}, nil
}

// take returns how many bytes there were for each of n requests since it was
// called before.
func (w *wire) take(n int) cost {
	return cost{
		sent:     float64(w.sent.Swap(0)) / float64(n),
		received: float64(w.received.Swap(0)) / float64(n),
	}
}

// countedConn is a connection whose bytes are counted.
type countedConn struct {
	net.Conn
	wire *wire
}

func (c *countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.wire.received.Add(int64(n))
	return n, err
}

func (c *countedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.wire.sent.Add(int64(n))
	return n, err
}

// measureWire counts the bytes of a first request and of a replay, on one
// connection that has been set up before.
func (s *storedInRedis) measureWire(ctx context.Context, admin *redis.Client, options *redis.Options) error {
	if err := admin.FlushDB(ctx).Err(); err != nil {
		return err
	}
	counted := new(wire)
	withWire := *options
	withWire.Dialer, withWire.PoolSize = counted.dial, 1
	client := redis.NewClient(&withWire)
	defer client.Close()
	one := []work.Client{work.NewDirect(idempotency.New(idempotency.NewRedis(client))(newService(s.body)))}
	if err := postAll(ctx, one, freshKeys, 1); err != nil {
		return err
	}
	counted.take(1)
	if err := postAll(ctx, one, heldKeys, onWire); err != nil {
		return err
	}
	s.first = counted.take(onWire)
	if err := postAll(ctx, one, heldKeys, onWire); err != nil {
		return err
	}
	s.replay = counted.take(onWire)
	return nil
}
