package scale

import (
	"fmt"
	"io"
	"strconv"

	"github.com/idempotency-go/idempotency/benchmarks/internal/report"
	"github.com/idempotency-go/idempotency/benchmarks/internal/work"
)

// markdown writes the report.
func (r *results) markdown(w io.Writer) {
	fmt.Fprint(w, "# Scale\n\nWritten by `go run . scale` in benchmarks/.\n\n")
	r.machine.Write(w, "github.com/redis/go-redis/v9")
	fmt.Fprintf(w, `
## The memory backend

It holds responses of %d bytes of JSON with a Content-Type and a Location of their own, stored through the middleware.
"Beyond the body" is the live heap after a garbage collection, less the heap before and the bodies, for each response.
It counts key, token, fingerprint, headers and index. "In spans" counts the room between the objects too, which later
ones of the same sizes get; for few responses it is rough.

`, work.AnswerSize)
	var rows, rateRows [][]string
	for _, h := range r.holdings {
		held := report.Count(float64(h.records))
		rows = append(rows, []string{held, bytesOf(h.objects), bytesOf(h.spans)})
		for _, l := range h.loads {
			rateRows = append(rateRows, []string{
				held, strconv.Itoa(l.goroutines), l.replays.perSecond(), l.found.perSecond(), l.fresh.perSecond(),
			})
		}
	}
	report.Table(w, []string{"responses held", "beyond the body", "in spans"}, everyColumn, rows)
	fmt.Fprintf(w, `Replays go through the middleware, by a request and a ResponseWriter that cost nothing; claims to the backend itself,
of keys that have a response, and of new keys, each released again. All take keys from all over the store. Each figure
is the middle one of %d rounds, in which the stores take turns.

`, rounds)
	report.Table(w, []string{
		"responses held", "goroutines", "replays/s", "claims/s of held keys", "claims and releases/s of new keys",
	}, everyColumn, rateRows)

	fmt.Fprintf(w, `### While all expire

%s claims of new keys, one after another, each released again, with as many responses held: ones that last, and
ones that have all expired a moment before the first claim. The times are those of the claims, what the garbage
collector takes included.

`, report.Count(float64(r.expiring.records)))
	rows = nil
	for _, l := range []struct {
		name string
		latencies
	}{{"while none expires", r.expiring.before}, {"while all expire", r.expiring.while}} {
		rows = append(rows, []string{
			l.name, report.Duration(l.median), report.Duration(l.slow), report.Duration(l.slowMean), report.Duration(l.slowest),
		})
	}
	report.Table(w, []string{"claims", "median", "slowest 0.1 %: from", "mean", "slowest"}, afterFirst, rows)
	fmt.Fprintf(w, "With all of them the live heap was %s MB, after the claims %s MB: what the index has once grown to stays.\n\n",
		report.Count(float64(r.expiring.full)/1e6), report.Count(float64(r.expiring.left)/1e6))

	fmt.Fprintf(w, `## Redis

Responses stored through the middleware, by %d clients at once. The record is what the library writes: token,
fingerprint, headers and body. `+"`MEMORY USAGE`"+` is what Redis takes for it and its key, the last column what its
`+"`used_memory`"+` has grown by for each, which has the tables of its keys and of their expiry too.

`, redisClients)
	rows = nil
	for _, s := range r.stored {
		rows = append(rows, []string{
			bytesOf(s.body), report.Count(float64(s.records)),
			bytesOf(s.value), bytesOf(s.usage), bytesOf(s.usage - int64(s.body)), bytesOf(s.grown),
		})
	}
	report.Table(w, []string{"body", "responses", "record", "MEMORY USAGE", "beyond the body", "used_memory for each"}, everyColumn, rows)

	fmt.Fprint(w, `What a request costs there: bytes on the wire, counted at the connection, without its set-up, and the time of the Redis
process (system and user, by INFO). A core's worth is how many such requests fill one core of this machine.

`)
	rows = nil
	for _, s := range r.stored {
		for _, op := range []struct {
			name string
			cost
		}{{"first request", s.first}, {"replay", s.replay}} {
			rows = append(rows, []string{
				bytesOf(s.body), op.name, bytesOf(op.sent), bytesOf(op.received),
				report.Duration(op.cpu), report.Count(1e9 / op.cpu),
			})
		}
	}
	report.Table(w, []string{"body", "request", "sent to Redis", "received", "Redis's time", "a core's worth, requests/s"},
		func(i int) bool { return i != 1 }, rows)
}

func bytesOf[N int | int64 | float64](n N) string { return report.Count(float64(n)) + " B" }

func everyColumn(int) bool { return true }

func afterFirst(i int) bool { return i > 0 }
