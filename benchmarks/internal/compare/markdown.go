package compare

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	"github.com/idempotency-go/idempotency/benchmarks/internal/report"
)

// markdown returns the report.
func (c *comparison) markdown() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, `# Beside others

Written by `+"`go run . compare`"+` in benchmarks/, in one run of %d rounds, each measurement for %v.

`, c.Rounds, c.Time)
	c.machine.Write(&b, "github.com/gofiber/fiber/v3", "github.com/gofiber/storage/redis/v3",
		"github.com/valyala/fasthttp", "github.com/redis/go-redis/v9")
	fmt.Fprintf(&b, "- how quiet it was: bare requests without a key took %s on net/http, %s on Fiber, over the rounds\n",
		c.spread(bareNetHTTP), c.spread(bareFiber))
	fmt.Fprintf(&b, `
![Time of a request, and requests a second, of each contestant](compare.svg)

The request has 150 bytes and a key of 36 characters. The handler reads it and answers 201 with 200 bytes of JSON, a
Content-Type and a Location. This package and Fiber's middleware have their defaults, but for the name of Fiber's
header: `+"`Idempotency-Key`"+`. By hand is what many services write themselves: `+"`SETNX` before the handler, `GET`"+` where the
key is taken, `+"`SET`"+` after it.

Every figure is the median of the rounds, in which the contestants take turns; each measurement has a process and an
empty store of its own. "Bare" is the same request to the same server without idempotency, in the same round: net/http's
server and client are one pair, Fiber's another, so that their ratios say nothing without their times. Every answer is
checked, and how often the handler ran. A measurement of first requests may fill this package's memory backend, which
then drops a response for each that it stores; Fiber's storage in memory has no bound.

## Over loopback

The client is net/http's, or Fiber's by its `+"`Do`"+`. Client and server are one process, so that allocations are those of
both, and share the cores with Redis. The last two figures are those of %d clients at once, the others of one.

`, c.Clients)
	for _, op := range operations {
		fmt.Fprintf(&b, "### Loopback: %s\n\n", op)
		c.loopbackTable(&b, op)
	}
	fmt.Fprint(&b, `## In one process

The handler is called without a network, on net/http's side with a ResponseWriter that costs nothing, on Fiber's with a
request's context that is used again. Allocations include the handler's, and one for each new key.

`)
	for _, op := range operations {
		fmt.Fprintf(&b, "### In process: %s\n\n", op)
		c.directTable(&b, op)
	}
	fmt.Fprint(&b, "## What they do\n\n")
	writeDifferences(&b)
	return b.Bytes()
}

// spread renders the least and the most time of a request to a bare server.
func (c *comparison) spread(bare string) string {
	results := c.results[c.cell(bare, NoKey, true, 1)]
	byTime := func(a, b Result) int { return cmp.Compare(a.PerOp, b.PerOp) }
	return report.Duration(slices.MinFunc(results, byTime).PerOp) + " to " + report.Duration(slices.MaxFunc(results, byTime).PerOp)
}

func (c *comparison) loopbackTable(b *bytes.Buffer, op Operation) {
	var rows [][]string
	for _, who := range contestants {
		one, many := c.cell(who.name, op, true, 1), c.cell(who.name, op, true, c.Clients)
		bare := bareOf(one)
		rows = append(rows, []string{
			who.name,
			report.Duration(c.median(one, perOp)),
			report.Ratio(c.ratio(one, perOp)),
			report.Duration(c.median(one, perOp) - c.median(bare, perOp)),
			report.Count(c.median(one, allocs)),
			report.Count(c.median(one, allocs) - c.median(bare, allocs)),
			report.Count(c.median(many, perSecond)),
			report.Ratio(c.ratio(many, perSecond)),
			who.lacks,
		})
	}
	report.Table(b, []string{
		"contestant", "time", "× bare", "over bare", "allocations", "over bare",
		fmt.Sprintf("%d clients: requests/s", c.Clients), "× bare", "does without",
	}, betweenFirstAndLast(9), rows)
}

func (c *comparison) directTable(b *bytes.Buffer, op Operation) {
	var rows [][]string
	for _, who := range contestants {
		cell := c.cell(who.name, op, false, 1)
		rows = append(rows, []string{
			who.name,
			report.Duration(c.median(cell, perOp)),
			report.Ratio(c.ratio(cell, perOp)),
			report.Count(c.median(cell, allocs)),
			who.lacks,
		})
	}
	report.Table(b, []string{"contestant", "time", "× bare", "allocations", "does without"}, betweenFirstAndLast(5), rows)
}

// betweenFirstAndLast says that all columns but these two are numeric.
func betweenFirstAndLast(columns int) func(int) bool {
	return func(i int) bool { return i > 0 && i < columns-1 }
}
