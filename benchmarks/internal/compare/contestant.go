// Package compare measures the library beside Fiber's idempotency middleware and
// beside what services write by hand, in one run, each beside its own server
// without idempotency.
package compare

import (
	"net/http"

	"github.com/redis/go-redis/v9"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/benchmarks/internal/work"
)

// contestant is a service that is measured, with or without idempotency.
type contestant struct {
	name  string // as it stands in the report
	bare  string // the name of the same server without idempotency
	redis bool   // whether it needs a Redis
	lacks string // what it does not do, in short; differences has it in full
	open  opener
}

// opener makes a contestant ready: in this process, or on a server of its own
// that listens on loopback. The client is nil where no Redis is needed.
type opener func(service *work.Service, client *redis.Client, loopback bool) (*session, error)

// session is a contestant that is ready.
type session struct {
	url       string // "" where it has no server
	newClient func() work.Client
	close     func() error
}

const (
	bareNetHTTP = "net/http, bare"
	bareFiber   = "Fiber, bare"
)

// contestants has the contestants in the order of the report.
var contestants = []contestant{
	{
		name: bareNetHTTP, bare: bareNetHTTP, lacks: "all of it",
		open: onNetHTTP(func(next http.Handler, _ *redis.Client) http.Handler { return next }),
	},
	{
		name: "net/http + this package, memory", bare: bareNetHTTP,
		open: onNetHTTP(func(next http.Handler, _ *redis.Client) http.Handler {
			return idempotency.New(idempotency.NewMemory())(next)
		}),
	},
	{
		name: "net/http + this package, Redis", bare: bareNetHTTP, redis: true,
		open: onNetHTTP(func(next http.Handler, client *redis.Client) http.Handler {
			return idempotency.New(idempotency.NewRedis(client))(next)
		}),
	},
	{
		name: "net/http + SETNX by hand, Redis", bare: bareNetHTTP, redis: true,
		lacks: "fingerprint, renewal, fence, status and headers, replay mark, a client that leaves",
		open:  onNetHTTP(byHand),
	},
	{
		name: bareFiber, bare: bareFiber, lacks: "all of it",
		open: onFiber(nil),
	},
	{
		name: "Fiber + its middleware, memory", bare: bareFiber,
		lacks: "fingerprint, replay mark, a bound on memory; a duplicate blocks",
		open:  onFiber(fiberIdempotency),
	},
	{
		name: "Fiber + its middleware, Redis", bare: bareFiber, redis: true,
		lacks: "fingerprint, replay mark, a claim in Redis (two processes both run the handler); a duplicate blocks",
		open:  onFiber(fiberIdempotency),
	},
}

func contestantNamed(name string) (contestant, bool) {
	for _, c := range contestants {
		if c.name == name {
			return c, true
		}
	}
	return contestant{}, false
}
