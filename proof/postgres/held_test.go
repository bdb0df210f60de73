package proof

import (
	"context"
	"fmt"
	mathrand "math/rand/v2"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency/internal/netfault"
)

// The faults that must not cost a claim if they are short enough.
const (
	faultRefused = "refused"
	faultSilent  = "silent"
	faultAnswers = "answers" // What PostgreSQL answers is held.
	faultMixed   = "mixed"
	faultPaused  = "paused"
)

var faults = []string{faultRefused, faultSilent, faultAnswers, faultMixed, faultPaused}

// holds is how long, in leases, a fault may last that costs no claim.
const holds = 0.9

// TestClaimsHold keeps servers from PostgreSQL, or stops them, for 0.3 to 0.9 of a
// lease at any moment: no other request gets their claims.
func TestClaimsHold(t *testing.T) {
	t.Parallel()
	w := newWorld(t, requireServers(t), "")
	// A tenth of it is much longer than a new connection takes on a machine that is busy.
	w.config.Lease = 8 * time.Second
	w.proveHeld(faults, *rounds)
	w.require()
	for _, kind := range faults {
		require.NotZero(t, w.verdict.counted("faults, "+kind), kind)
	}
}

// proveHeld befalls owners with n faults of each kind.
func (w *world) proveHeld(kinds []string, n int) {
	w.t.Helper()
	target, err := url.Parse(w.config.URL)
	require.NoError(w.t, err)
	heir := w.node(nil)
	var wg sync.WaitGroup
	const lanes = 3
	for _, kind := range kinds {
		for lane := range lanes {
			g, err := netfault.Start("127.0.0.1:0", target.Host)
			require.NoError(w.t, err)
			w.t.Cleanup(g.Close)
			through := *target
			through.Host = g.Addr()
			h := held{world: w, kind: kind, gate: g, owner: w.node(func(c *serverConfig) { c.URL, c.Direct = through.String(), w.config.URL }), heir: heir,
				random: seeded(uint64(lane)<<8 + uint64(len(kind)))}
			wg.Go(func() {
				for left := (n + lane) / lanes; left > 0; {
					key := fmt.Sprintf("held-%s-%d.%d", kind, lane, left)
					left -= h.run(key, min(left, 2)) // A client waits for no more.
				}
			})
		}
	}
	wg.Wait()
}

// run has a handler of the owner's run through some faults while the heir wants its
// key. It returns how many there were.
func (h held) run(key string, faults int) (n int) {
	h.tell(h.owner, "/reset") // The pool may have connections that are silent for ever, on which claims would hang.
	first := make(chan answer, 1)
	before := h.state(h.owner).Gated
	go func() {
		first <- h.send(context.Background(), h.owner, key, headers{headerDo: doNothing, headerGate: key})
	}()
	var early *answer
	h.until("the handler of "+key+" runs", func() bool {
		select {
		case a := <-first:
			early = &a
			return true
		default:
			return h.state(h.owner).Gated > before
		}
	})
	if early != nil { // Its claim failed: the last fault has left connections that are dead.
		time.Sleep(20 * time.Millisecond)
		return 0
	}
	ctx, stop := context.WithCancel(context.Background())
	again := make(chan answer, 1)
	go func() { again <- h.want(ctx, key) }()
	var longest float64
	var told []string
	for n < faults && ctx.Err() == nil && len(again) == 0 {
		h.rest(0.25, 0.6)
		lasted, how := h.befall()
		longest, told = max(longest, lasted), append(told, fmt.Sprintf("%.2f %s", lasted, how))
		n++
	}
	h.rest(0.25, 0.6)
	stop()
	second := <-again
	h.tell(h.owner, "/open?gate="+url.QueryEscape(key))
	a := <-first
	switch {
	case longest > holds:
		h.verdict.count("runs under longer faults", 1)
	case second.status == http.StatusCreated:
		h.verdict.violate("again", "%s: another run, after faults of %v leases; the owner's client got %d %s", key, told, a.status, a.body)
	case a.status == http.StatusServiceUnavailable: // Its connections are dead still.
		h.verdict.count("answers not stored", 1)
	case a.status != http.StatusCreated:
		h.verdict.violate("status", "%s: %d %s %v", key, a.status, a.body, a.err)
	}
	return n
}

// want asks the heir for the key until it has it, or ctx ends.
func (h held) want(ctx context.Context, key string) (last answer) {
	for ctx.Err() == nil {
		if last = h.send(context.Background(), h.heir, key, headers{headerDo: doNothing}); last.status == http.StatusCreated {
			return last
		}
		time.Sleep(h.config.Lease / 200)
	}
	return last
}

// held is an owner, the gate between it and PostgreSQL, and an heir.
type held struct {
	*world
	kind        string
	gate        *netfault.Proxy
	owner, heir *node
	random      *mathrand.Rand
}

// rest waits for a random time between two, in leases.
func (h held) rest(least, most float64) { time.Sleep(h.leases(least, most)) }

func (h held) leases(least, most float64) time.Duration {
	return time.Duration((least + h.random.Float64()*(most-least)) * float64(h.config.Lease))
}

// befall injects a fault, and returns how many leases it lasted, and how it was. The
// machine may have made it longer than was planned.
func (h held) befall() (lasted float64, how string) {
	lasts := h.leases(0.3, holds)
	from := time.Now()
	h.tell(h.owner, "/reach") // What a renewal takes now, it may have taken before the fault,
	if h.kind == faultPaused {
		if err := pause(h.owner.Process()); err != nil {
			h.verdict.violate("harness", "%v", err)
		}
		time.Sleep(lasts)
		h.resume(h.owner)
	} else {
		ways := h.ways()
		how = fmt.Sprint(ways)
		for _, way := range ways {
			h.shut(way)
			time.Sleep(lasts / time.Duration(len(ways)))
		}
		if err := h.gate.Open(); err != nil {
			h.verdict.violate("harness", "%v", err)
		}
	}
	h.tell(h.owner, "/reach") // and takes after it.
	lasted = float64(time.Since(from)) / float64(h.config.Lease)
	if lasted > holds {
		h.verdict.count("faults that the machine made longer than 0.9 of a lease", 1)
	} else {
		h.verdict.count("faults, "+h.kind, 1)
	}
	return lasted, how
}

func (h held) shut(way netfault.Way) {
	if err := h.gate.Shut(way); err != nil {
		h.verdict.violate("harness", "%v", err)
	}
}

// ways returns the ways in which a fault shuts the gate, one after the other.
func (h held) ways() []netfault.Way {
	silent := []netfault.Way{netfault.Held, netfault.Dead, netfault.Stale}
	switch h.kind {
	case faultRefused:
		return []netfault.Way{netfault.Refused}
	case faultAnswers:
		return []netfault.Way{netfault.Late}
	case faultSilent:
		return silent[h.random.IntN(3):][:1]
	}
	var ways []netfault.Way
	for i, n := 0, h.random.IntN(2); i < 2+h.random.IntN(3); i++ {
		if (i+n)%2 == 0 {
			ways = append(ways, netfault.Refused)
		} else {
			ways = append(ways, silent[h.random.IntN(2)])
		}
	}
	return ways
}
