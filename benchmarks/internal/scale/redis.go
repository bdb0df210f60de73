package scale

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/benchmarks/internal/report"
	"github.com/idempotency-go/idempotency/benchmarks/internal/work"
)

// bodySizes has the sizes of the bodies that are stored in Redis, in bytes.
var bodySizes = []int{200, 4_000, 100_000}

const (
	redisPrefix = "idempotency:" // the default of NewRedis

	// redisClients is how many clients load Redis at once, and loadParts in how
	// many parts: of the times of the parts, the middle one counts.
	redisClients = 8
	loadParts    = 5
	// mostInRedis bounds the bodies that Redis holds at once, in bytes, and
	// shareInRedis is how many records of the memory backend it gets one for.
	mostInRedis  = 256 << 20
	shareInRedis = 50
)

// storedInRedis is what responses with one size of body take in Redis.
type storedInRedis struct {
	body, records int
	value         int64   // the record's length, in bytes
	usage         int64   // MEMORY USAGE of one, in bytes
	grown         float64 // used_memory for each, in bytes
	first, replay cost
}

// cost is what a request costs, apart from this process.
type cost struct {
	sent, received float64 // to and from Redis, in bytes
	cpu            float64 // of the Redis process, in nanoseconds
}

// storeInRedis stores responses of one size and replays them.
func (r *results) storeInRedis(ctx context.Context, admin *redis.Client, size int) (storedInRedis, error) {
	each := max(min(r.Records/shareInRedis, mostInRedis/size)/(redisClients*loadParts), 1)
	s := storedInRedis{body: size, records: each * redisClients * loadParts}
	if err := s.measureWire(ctx, admin, r.Redis); err != nil {
		return s, err
	}
	if err := s.measureLoad(ctx, admin, r.Redis, each); err != nil {
		return s, err
	}
	r.say("redis: bodies of %s bytes: a record takes %s bytes; of Redis's time a first request takes %s, a replay %s",
		report.Count(float64(size)), report.Count(float64(s.usage)), report.Duration(s.first.cpu), report.Duration(s.replay.cpu))
	return s, nil
}

// measureLoad measures what the records take in Redis, and Redis's time for a
// request, in parts in which each client sends so many requests of each kind.
func (s *storedInRedis) measureLoad(ctx context.Context, admin *redis.Client, options *redis.Options, each int) error {
	client := redis.NewClient(options)
	defer client.Close()
	h := idempotency.New(idempotency.NewRedis(client))(newService(s.body))
	clients := make([]work.Client, redisClients)
	for i := range clients {
		clients[i] = work.NewDirect(h)
	}
	// What is sent first opens the connections, and makes room for what they
	// send and receive.
	if err := postAll(ctx, clients, freshKeys, min(each, 100)); err != nil {
		return err
	}
	if err := admin.FlushDB(ctx).Err(); err != nil {
		return err
	}

	before, err := usageOf(ctx, admin)
	if err != nil {
		return err
	}
	var first, replay []float64
	now := before
	for part := range loadParts {
		for _, cpu := range []*[]float64{&first, &replay} {
			if err := postAll(ctx, clients, loadKeys+uint32(part), each); err != nil {
				return err
			}
			then := now
			if now, err = usageOf(ctx, admin); err != nil {
				return err
			}
			*cpu = append(*cpu, (now.cpu-then.cpu)/float64(each*redisClients))
		}
	}
	s.first.cpu, s.replay.cpu = report.Median(first), report.Median(replay)
	s.grown = (now.memory - before.memory) / float64(s.records)

	name := redisPrefix + storageKey(loadKeys, 0).String()
	if s.value, err = admin.StrLen(ctx, name).Result(); err != nil {
		return err
	}
	s.usage, err = admin.MemoryUsage(ctx, name).Result()
	return err
}

// postAll posts n requests from each client, all clients at once, with keys of
// their own from one set.
func postAll(ctx context.Context, clients []work.Client, set uint32, n int) error {
	errs := make([]error, len(clients))
	var wg sync.WaitGroup
	for i, client := range clients {
		wg.Go(func() {
			for k := range n {
				if errs[i] = errors.Join(ctx.Err(), post(client, work.Key(set, uint64(i*n+k)))); errs[i] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// usage is what a Redis process has used so far.
type usage struct {
	memory float64 // bytes
	cpu    float64 // nanoseconds
}

func usageOf(ctx context.Context, admin *redis.Client) (usage, error) {
	info, err := admin.Info(ctx).Result()
	if err != nil {
		return usage{}, err
	}
	var sum usage
	for _, field := range []struct {
		name  string
		unit  float64
		total *float64
	}{
		{"used_memory", 1, &sum.memory},
		{"used_cpu_sys", 1e9, &sum.cpu},
		{"used_cpu_user", 1e9, &sum.cpu},
	} {
		text, _ := report.InfoField(info, field.name)
		value, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return usage{}, fmt.Errorf("redis: %s in INFO: %w", field.name, err)
		}
		*field.total += value * field.unit
	}
	return sum, nil
}
