package compare

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/idempotency-go/idempotency/benchmarks/internal/work"
)

// Operation is what a client does again and again.
type Operation string

// The operations, in the order of the report.
const (
	NoKey  Operation = "no key"
	First  Operation = "first request"
	Replay Operation = "replay"
)

var operations = []Operation{NoKey, First, Replay}

// replayed is how many keys each client replays in turn. Requests with them, or
// as many without a key, also warm up connections and pools.
const replayed = 64

// A Cell is one measurement.
type Cell struct {
	Contestant string
	Operation  Operation
	Loopback   bool // or in one process, without a network
	Clients    int  // at once, each with a connection of its own
	Time       time.Duration
}

// A Result is what a measurement gave.
type Result struct {
	PerOp     float64 // nanoseconds that a client spends on an operation
	PerSecond float64 // operations of all clients
	// Allocs has the allocations for each operation, of client and server.
	Allocs float64
}

// Measure takes one measurement. It starts from an empty store, for which it
// empties the Redis, and checks each answer, and how often the handler ran.
func Measure(ctx context.Context, cell Cell, options *redis.Options) (_ Result, err error) {
	c, found := contestantNamed(cell.Contestant)
	if !found {
		return Result{}, fmt.Errorf("no contestant %q", cell.Contestant)
	}
	var client *redis.Client
	if c.redis {
		client = redis.NewClient(options)
		defer client.Close()
		if err := client.FlushDB(ctx).Err(); err != nil {
			return Result{}, err
		}
	}
	service := &work.Service{Answer: work.Answer(work.AnswerSize)}
	s, err := c.open(service, client, cell.Loopback)
	if err != nil {
		return Result{}, err
	}
	defer func() {
		if closed := s.close(); err == nil {
			err = closed
		}
	}()
	workers := make([]*worker, cell.Clients)
	for i := range workers {
		workers[i] = newWorker(s.newClient(), cell.Operation, uint32(i))
		if err := workers[i].warmUp(); err != nil {
			return Result{}, err
		}
	}

	runsBefore := service.Runs()
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	ops, elapsed, err := work.Together(ctx, cell.Time, cell.Clients, func(worker int, n int64) error {
		return workers[worker].do(n)
	})
	if err != nil {
		return Result{}, err
	}
	runtime.ReadMemStats(&after)

	want := ops
	if cell.Operation == Replay && c.name != c.bare {
		want = 0
	}
	if runs := service.Runs() - runsBefore; runs != want {
		return Result{}, fmt.Errorf("%d operations ran the handler %d times, not %d", ops, runs, want)
	}
	return Result{
		PerOp:     float64(elapsed) * float64(cell.Clients) / float64(ops),
		PerSecond: float64(ops) / elapsed.Seconds(),
		Allocs:    float64(after.Mallocs-before.Mallocs) / float64(ops),
	}, nil
}

// worker is a client in a goroutine of its own.
type worker struct {
	client    work.Client
	operation Operation
	set       uint32   // of its keys
	replays   []string // keys
}

func newWorker(client work.Client, operation Operation, n uint32) *worker {
	w := &worker{client: client, operation: operation, set: 2 * n}
	for i := range replayed {
		w.replays = append(w.replays, work.Key(2*n+1, uint64(i)))
	}
	return w
}

// warmUp sends the requests whose answers are replayed later.
func (w *worker) warmUp() error {
	for _, key := range w.replays {
		if w.operation == NoKey {
			key = ""
		}
		if err := w.post(key); err != nil {
			return err
		}
	}
	return nil
}

// do does the operation for the nth time, counted from 0.
func (w *worker) do(n int64) error {
	switch w.operation {
	case First:
		return w.post(work.Key(w.set, uint64(n)))
	case Replay:
		return w.post(w.replays[n%replayed])
	default:
		return w.post("")
	}
}

// post sends a request and checks that the answer is the handler's.
func (w *worker) post(key string) error {
	status, answer, err := w.client.Post(key, work.Body)
	if err != nil {
		return err
	}
	if status != work.Status || len(answer) != work.AnswerSize {
		return fmt.Errorf("%s: answered with status %d and %d bytes", w.operation, status, len(answer))
	}
	return nil
}
