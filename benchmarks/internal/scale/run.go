// Package scale measures what a record takes in each backend, and whether many
// records slow them down.
package scale

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/idempotency-go/idempotency/benchmarks/internal/report"
	"github.com/idempotency-go/idempotency/benchmarks/internal/work"
)

// Config is what is measured, and how.
type Config struct {
	Records  int           // how many responses the memory backend is filled with
	Time     time.Duration // of each measurement of claims per second
	Redis    *redis.Options
	Progress io.Writer // It is told what is being done.
	Out      string    // the directory that scale.md is written to
}

// leastRecords is what the slowest 0.1 % can be told of.
const leastRecords = 1000

// results is what was found.
type results struct {
	Config
	machine  report.Machine
	holdings []holding
	expiring expiring
	stored   []storedInRedis
}

// Run measures both backends and writes the report. It empties the Redis.
func Run(ctx context.Context, config Config) error {
	switch {
	case config.Records < leastRecords:
		return fmt.Errorf("records: fewer than %d", leastRecords)
	case config.Time <= 0:
		return errors.New("time: not positive")
	}
	machine, err := report.Describe(ctx, config.Redis)
	if err != nil {
		return err
	}
	r := &results{Config: config, machine: machine}
	if r.expiring, err = r.expire(ctx); err != nil {
		return err
	}
	for _, n := range sizes(config.Records) {
		h, err := r.hold(ctx, n)
		if err != nil {
			return err
		}
		r.holdings = append(r.holdings, h)
	}
	if err := r.measureRates(ctx); err != nil {
		return err
	}
	client := redis.NewClient(config.Redis)
	defer client.Close()
	for _, size := range bodySizes {
		s, err := r.storeInRedis(ctx, client, size)
		if err != nil {
			return err
		}
		r.stored = append(r.stored, s)
	}
	var b bytes.Buffer
	r.markdown(&b)
	return report.Save(config.Out, "scale.md", b.Bytes())
}

// sizes returns the powers of ten from 1,000 up to n, and n.
func sizes(n int) []int {
	var all []int
	for size := 1000; size < n; size *= 10 {
		all = append(all, size)
	}
	return append(all, n)
}

func (r *results) say(format string, args ...any) {
	fmt.Fprintf(r.Progress, format+"\n", args...)
}

// newService returns a handler that answers with n bytes, each time with a
// Location of its own, as a real one does.
func newService(n int) *work.Service {
	return &work.Service{
		Answer:   work.Answer(n),
		Location: func(run int64) string { return "/payments/" + strconv.FormatInt(run, 10) },
	}
}

// post posts under a key, and expects the handler's answer.
func post(client work.Client, key string) error {
	status, _, err := client.Post(key, work.Body)
	if err == nil && status != work.Status {
		err = fmt.Errorf("answered with status %d", status)
	}
	return err
}
