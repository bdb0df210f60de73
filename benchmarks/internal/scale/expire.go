package scale

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/benchmarks/internal/report"
	"github.com/idempotency-go/idempotency/benchmarks/internal/work"
)

// fillTries is how often the memory backend is filled, each time with twice the
// time, to have all responses in it before the first expires.
const fillTries = 5

var errTooLate = errors.New("the responses expire before all are stored: the machine is too busy")

// expiring is a memory backend whose responses expire all at once.
type expiring struct {
	records       int
	before, while latencies // of as many claims as there are records
	// The live heap with all responses, and after the claims, in bytes. What a
	// map has once grown to stays in it.
	full, left uint64
}

// latencies are the times of many claims, in nanoseconds.
type latencies struct {
	median, slow, slowMean, slowest float64 // slow is the fastest of the slowest 0.1 %
}

// expire claims new keys, one after another, of a memory backend that is full of
// responses, and of one whose responses have all expired a moment ago.
func (r *results) expire(ctx context.Context) (e expiring, err error) {
	e.records = r.Records
	begin := time.Now()
	lasting := idempotency.NewMemory(idempotency.WithMaxBytes(unbounded))
	if err := r.fillUntil(ctx, lasting, begin.Add(lease)); err != nil {
		return e, err
	}
	room := 2*time.Since(begin) + 100*time.Millisecond
	if e.before, err = timeClaims(ctx, lasting, r.Records); err != nil {
		return e, err
	}
	r.say("memory: claims while nothing expires: slowest 0.1 %% from %s", report.Duration(e.before.slow))

	base := heap().HeapAlloc
	backend, end, err := r.fillInTime(ctx, room)
	if err != nil {
		return e, err
	}
	e.full = heap().HeapAlloc - base
	r.say("memory: %v until all %s responses expire", max(0, time.Until(end)).Round(100*time.Millisecond), report.Count(float64(r.Records)))
	select {
	case <-ctx.Done():
		return e, ctx.Err()
	case <-time.After(time.Until(end) + time.Millisecond):
	}
	if e.while, err = timeClaims(ctx, backend, r.Records); err != nil {
		return e, err
	}
	e.left = max(heap().HeapAlloc, base) - base
	r.say("memory: claims while all expire: slowest 0.1 %% from %s", report.Duration(e.while.slow))
	// They have expired.
	return e, claimNew(ctx, backend, storageKey(heldKeys, 0), newClaim(uint64(r.Records)))
}

// fillInTime fills a memory backend with responses that expire at one moment,
// which it returns, and which comes in no less than room.
func (r *results) fillInTime(ctx context.Context, room time.Duration) (*idempotency.Memory, time.Time, error) {
	for try := 1; ; try++ {
		backend, end := idempotency.NewMemory(idempotency.WithMaxBytes(unbounded)), time.Now().Add(room)
		err := r.fillUntil(ctx, backend, end)
		if !errors.Is(err, errTooLate) || try == fillTries {
			return backend, end, err
		}
		room *= 2
		r.say("memory: not filled in time; once more, in %v", room.Round(time.Second))
	}
}

// fillUntil stores responses that expire at end.
func (r *results) fillUntil(ctx context.Context, backend idempotency.Backend, end time.Time) error {
	response, err := idempotency.Response{
		Status: work.Status,
		Header: http.Header{"Content-Type": {"application/json"}, "Location": {work.Location}},
		Body:   work.Answer(work.AnswerSize),
	}.MarshalBinary()
	if err != nil {
		return err
	}
	for i := range r.Records {
		key, claim := storageKey(heldKeys, i), newClaim(uint64(i))
		if err := claimNew(ctx, backend, key, claim); err != nil {
			return err
		}
		left := time.Until(end)
		if left <= 0 {
			return errTooLate
		}
		if err := backend.Complete(ctx, key, claim, slices.Clone(response), left); err != nil {
			return err
		}
		if err := r.sayFilled(ctx, i+1, r.Records); err != nil {
			return err
		}
	}
	return nil
}

// timeClaims times n claims of new keys, and releases each.
func timeClaims(ctx context.Context, backend idempotency.Backend, n int) (latencies, error) {
	times := make([]time.Duration, n)
	for i := range times {
		key, claim := storageKey(freshKeys, i), newClaim(uint64(i))
		begin := time.Now()
		err := claimNew(ctx, backend, key, claim)
		times[i] = time.Since(begin)
		if err != nil {
			return latencies{}, err
		}
		if err := backend.Release(ctx, key, claim, 0); err != nil {
			return latencies{}, err
		}
	}
	return summarise(times), nil
}

// summarise sorts times, of which there are 1,000 at the least.
func summarise(times []time.Duration) latencies {
	slices.Sort(times)
	slowest := times[len(times)-len(times)/1000:]
	sum := time.Duration(0)
	for _, d := range slowest {
		sum += d
	}
	return latencies{
		median:   float64(times[len(times)/2]),
		slow:     float64(slowest[0]),
		slowMean: float64(sum) / float64(len(slowest)),
		slowest:  float64(slowest[len(slowest)-1]),
	}
}
