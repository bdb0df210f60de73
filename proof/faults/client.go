package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/idempotency-go/idempotency"
)

// crowd is the clients. Each pursues one payment after another, and retries with
// the same key until it has a final answer.
type crowd struct {
	seed     uint64
	scenario scenario
	addrs    []string
	http     *http.Client
	next     atomic.Int64  // the number of the next payment
	requests atomic.Int64  // that have been answered, or not, so far
	patience time.Duration // how long a client waits for an answer

	mu       sync.Mutex
	attempts []attempt
	goals    []*goal
}

// patience is how long a client waits for an answer of a handler that does not take
// longer.
const patience = 2 * time.Second

// order is a request that a client sends again and again.
type order struct {
	payment
	body    string
	number  string // of the payment: what its choices follow from
	hangUps float64
}

// newOrder returns the order for a number, by the seed.
func (c *crowd) newOrder(n int64) order {
	rng := seeded(c.seed, fmt.Sprint("order ", n))
	return order{
		payment: payment{scope: []string{"alice", "bob", "carol"}[rng.IntN(3)], key: fmt.Sprint("order-", n)},
		body:    fmt.Sprintf(`{"amount":%d}`, 1+rng.IntN(10_000)),
		number:  fmt.Sprint(n),
		hangUps: c.scenario.hangUps,
	}
}

// work pursues payments until no more are to be begun; those that were begun are
// pursued until ctx ends.
func (c *crowd) work(ctx context.Context, more func() bool) {
	for more() && ctx.Err() == nil {
		n := c.next.Add(1)
		o := c.newOrder(n)
		rng := seeded(c.seed, fmt.Sprint("client ", n))
		g := c.want(o.payment)
		copies := 1
		if rng.Float64() < 0.1 {
			copies = 2 + rng.IntN(4) // The same request at once, by several.
		}
		if c.scenario.longLived() {
			copies = 4 // Some look at servers that a fault has befallen.
		}
		var wg sync.WaitGroup
		for i := range copies {
			wg.Go(func() { c.pursue(ctx, o, g, fmt.Sprintf("%d.%d", n, i)) })
		}
		wg.Wait()
		if rng.Float64() < 0.3 {
			c.again(ctx, o, fmt.Sprint(n, ".again"), rng.IntN(2)+1)
		}
		if n > 100 && rng.Float64() < 0.2 {
			// An old one, of before some faults.
			c.again(ctx, c.newOrder(1+rng.Int64N(n-100)), fmt.Sprint(n, ".old"), 1)
		}
		if rng.Float64() < 0.05 && g.final != 0 {
			c.other(ctx, o)
		}
	}
}

// other sends the key with another body, and in another scope.
func (c *crowd) other(ctx context.Context, o order) {
	reused := o
	reused.body = `{"amount":0}`
	c.again(ctx, reused, o.number+".reused", 1)
	foreign := o
	foreign.scope = "mallory"
	c.pursue(ctx, foreign, c.want(foreign.payment), o.number+".foreign")
}

// want notes a new goal.
func (c *crowd) want(p payment) *goal {
	g := &goal{payment: p}
	c.mu.Lock()
	c.goals = append(c.goals, g)
	c.mu.Unlock()
	return g
}

// again sends a request that may have been answered before, and takes any answer.
func (c *crowd) again(ctx context.Context, o order, choices string, times int) {
	rng := seeded(c.seed, choices)
	o.hangUps = 0
	for i := range times {
		c.send(ctx, o, fmt.Sprint(choices, "-", i), rng)
	}
}

// pursue sends a request until it has its final answer.
func (c *crowd) pursue(ctx context.Context, o order, g *goal, choices string) {
	rng := seeded(c.seed, choices)
	for i := 0; ; i++ {
		a := c.send(ctx, o, fmt.Sprint(choices, "-", i), rng)
		if c.judge(g, a) || ctx.Err() != nil {
			return
		}
		pause := 20 + rng.IntN(60)
		if c.scenario.longLived() {
			pause += 40
		}
		if a.status == http.StatusServiceUnavailable {
			pause += 50
		}
		if a.problem == idempotency.ErrOutstanding && rng.Float64() < 0.05 {
			pause = 1000 // A polite one, which does as Retry-After says.
		}
		if !rest(ctx, time.Duration(pause)*time.Millisecond) {
			return
		}
	}
}

// judge notes in a goal what came of an attempt, and reports whether that is
// final.
func (c *crowd) judge(g *goal, a attempt) (final bool) {
	final = a.kept || a.problem == idempotency.ErrInterrupted || a.problem == idempotency.ErrKeyReused
	c.mu.Lock()
	defer c.mu.Unlock()
	if g.final == 0 {
		g.problem = a.problem
		if final {
			g.final = a.done
		}
	}
	return final
}

// send sends a request once, to one of the servers, and notes what came of it.
func (c *crowd) send(ctx context.Context, o order, token string, rng *rand.Rand) attempt {
	addr := c.addrs[rng.IntN(len(c.addrs))]
	limit, hangUp := c.patience, rng.Float64() < o.hangUps
	if hangUp {
		limit = time.Duration(1+rng.IntN(25)) * time.Millisecond
	}
	a := attempt{payment: o.payment, token: token, body: digest([]byte(o.body))}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	a.sent = time.Now().UnixNano()
	c.exchange(ctx, &a, addr, o.body)
	a.done = time.Now().UnixNano()
	a.hungUp = hangUp && a.status == 0
	c.requests.Add(1)
	c.mu.Lock()
	c.attempts = append(c.attempts, a)
	c.mu.Unlock()
	return a
}

// exchange sends one request and reads its answer.
func (c *crowd) exchange(ctx context.Context, a *attempt, addr, body string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+"/payments", strings.NewReader(body))
	if err != nil {
		return
	}
	req.GetBody = nil // net/http would retry by itself a request with this header.
	req.Header.Set(headerKey, a.key)
	req.Header.Set(headerScope, a.scope)
	req.Header.Set(headerAttempt, a.token)
	resp, err := c.http.Do(req)
	if err != nil {
		return
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return
	}
	a.status = resp.StatusCode
	if resp.Header.Get("Content-Type") == "application/problem+json" {
		var refusal struct{ Type string }
		_ = json.Unmarshal(text, &refusal) // A refusal of no known type is not a final answer.
		a.problem, a.retryAfter = problems[refusal.Type], resp.Header.Get("Retry-After") != ""
		return
	}
	if json.Unmarshal(text, &a.receipt) != nil || resp.Header.Get(headerRun) == "" {
		return
	}
	a.sum = sha256.Sum256(text)
	a.replayed = resp.Header.Get(headerReplay) != ""
	a.kept = resp.Header.Get(headerKept) == ""
}

// problems has the sentinel of each type of problem, as the library tells it.
var problems = func() map[string]error {
	types := make(map[string]error)
	for _, sentinel := range []error{idempotency.ErrKeyReused, idempotency.ErrOutstanding, idempotency.ErrInterrupted,
		idempotency.ErrUnavailable, idempotency.ErrUnreadable} {
		w := httptest.NewRecorder()
		idempotency.WriteError(w, httptest.NewRequest(http.MethodPost, "/", nil), sentinel)
		var refusal struct{ Type string }
		if err := json.Unmarshal(w.Body.Bytes(), &refusal); err != nil {
			panic(err)
		}
		types[refusal.Type] = sentinel
	}
	return types
}()

// lastLookTime bounds the last look.
const lastLookTime = 20 * time.Second

// lastLook asks once more for keys without a final answer, and for a sample of
// the others.
func (c *crowd) lastLook(ctx context.Context, workers, sample int) {
	ctx, cancel := context.WithTimeout(ctx, lastLookTime)
	defer cancel()
	c.mu.Lock()
	goals := append([]*goal(nil), c.goals...)
	c.mu.Unlock()
	seeded(c.seed, "last look").Shuffle(len(goals), func(i, j int) { goals[i], goals[j] = goals[j], goals[i] })
	work := make(chan *goal, len(goals))
	for _, g := range goals {
		if g.final == 0 {
			work <- g
		} else if sample > 0 {
			sample--
			work <- g
		}
	}
	close(work)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for g := range work {
				var n int64
				if _, err := fmt.Sscanf(g.key, "order-%d", &n); err != nil {
					continue
				}
				o := c.newOrder(n)
				o.payment, o.hangUps = g.payment, 0
				choices := g.String() + ".last"
				if g.final != 0 {
					c.again(ctx, o, choices, 1)
				} else {
					c.judge(g, c.send(ctx, o, choices, seeded(c.seed, choices)))
				}
			}
		})
	}
	wg.Wait()
}
