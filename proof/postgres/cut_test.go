package proof

import (
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestCut cuts the connection to PostgreSQL at every message of a request.
func TestCut(t *testing.T) {
	t.Parallel()
	w := newWorld(t, requireServers(t), "")
	w.proveCuts(cutPasses())
	w.require()
	require.NotZero(t, w.verdict.counted("COMMITs of unknown outcome, "+foundCommitted))
	require.NotZero(t, w.verdict.counted("COMMITs of unknown outcome, "+foundNotCommitted))
	for _, message := range []string{
		"to PostgreSQL: startup", "to PostgreSQL: p", // a password
		"to PostgreSQL: P", "to PostgreSQL: B", "to PostgreSQL: E", "to PostgreSQL: S", // Parse, Bind, Execute, Sync
		"to PostgreSQL: Q begin", "to PostgreSQL: Q commit",
		"from PostgreSQL: R", "from PostgreSQL: 1", "from PostgreSQL: 2", "from PostgreSQL: D", // Authentication, ParseComplete, BindComplete, DataRow
		"from PostgreSQL: C BEGIN", "from PostgreSQL: C COMMIT", "from PostgreSQL: Z", // ReadyForQuery
	} {
		require.NotZero(t, w.verdict.counted("cuts "+message), message)
	}
}

// TestCutWithSettings cuts where the database has settings by which statements
// fail that would else wait or pass.
func TestCutWithSettings(t *testing.T) {
	t.Parallel()
	for name, settings := range map[string]map[string]string{
		"serializable":     isolations["serializable"],
		"lock time-out":    {"lock_timeout": "1ms"},
		"session time-out": {"idle_in_transaction_session_timeout": "20ms", "statement_timeout": "1s"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, requireServers(t), "")
			w.config.Settings = settings
			w.proveCuts([]cutPass{{frontend: true, how: cutKept}, {frontend: true, how: cutLost}})
			w.require()
		})
	}
}

// cutPass is a way to cut, at each message in turn.
type cutPass struct {
	frontend bool
	how      string
	cold     bool          // each request makes its connections first, and prepares its statements
	down     time.Duration // no new connection gets through for so long
	label    string        // if not "", this message alone is cut, in several requests
}

func cutPasses() []cutPass {
	var passes []cutPass
	for _, cold := range []bool{false, true} {
		for _, down := range []time.Duration{0, downTime} {
			if cold && down > 0 {
				continue
			}
			for _, how := range []string{cutLost, cutDelivered, cutKept} {
				passes = append(passes, cutPass{frontend: true, how: how, cold: cold, down: down})
				if how != cutKept {
					passes = append(passes, cutPass{frontend: false, how: how, cold: cold, down: down})
				}
			}
		}
	}
	return passes
}

// lane is a server with a proxy before its PostgreSQL.
type lane struct {
	*world
	proxy *proxy
	node  *node
}

func (w *world) lane() lane {
	w.t.Helper()
	target, err := url.Parse(w.config.URL)
	require.NoError(w.t, err)
	p, err := startProxy(target.Host)
	require.NoError(w.t, err)
	w.t.Cleanup(func() { p.listener.Close() })
	target.Host = p.listener.Addr().String()
	return lane{w, p, w.node(func(c *serverConfig) { c.URL = target.String() })}
}

// proveCuts makes requests, each with one cut, until one passes without.
func (w *world) proveCuts(passes []cutPass) {
	work := make(chan cutPass)
	var wg sync.WaitGroup
	for range min(8, len(passes)) {
		l := w.lane()
		wg.Go(func() {
			for pass := range work {
				l.pass(pass)
			}
			w.checkRest(l.node)
		})
	}
	for _, pass := range passes {
		work <- pass
	}
	close(work)
	wg.Wait()
}

// downTime is how long no connection gets through: longer than the first look
// for what became of a COMMIT, shorter than the last.
const downTime = 150 * time.Millisecond

// labelled is in how many requests the message of a label is cut.
const labelled = 5

func (l lane) pass(pass cutPass) {
	for n := 1; pass.label == "" || n <= labelled; n++ {
		key := fmt.Sprintf("%+v %d", pass, n)
		l.tell(l.node, "/reset")
		if !pass.cold {
			l.pursue(l.node, key+" before", nil)
		}
		plan := &cut{frontend: pass.frontend, n: n, how: pass.how, down: pass.down, label: pass.label}
		if pass.label != "" {
			plan.n = 1
		}
		l.proxy.arm(plan)
		all := l.pursue(l.node, key, nil)
		hit := l.proxy.hit()
		l.proxy.arm(nil)
		l.check(l.node, key, all...)
		if hit == "" {
			if n < 10 {
				l.verdict.violate("harness", "%+v: a request passed with %d messages", pass, n-1)
			}
			return
		}
		l.verdict.count("cuts", 1)
		direction := "from"
		if pass.frontend {
			direction = "to"
		}
		l.verdict.count("cuts "+direction+" PostgreSQL: "+hit, 1)
		l.checkCommit(key, hit, all)
	}
}

// checkCommit demands that the client of the very request whose connection was
// lost in COMMIT is told what became of it. A COMMIT that was delivered may have
// come to nothing: pgx cancels what it has lost. The retry shows which it was.
func (l lane) checkCommit(key, hit string, all []answer) {
	if hit != "Q commit" && hit != "C COMMIT" {
		return
	}
	l.verdict.count("cuts in COMMIT", 1)
	first, last := all[0], all[len(all)-1]
	switch {
	case first.commit == foundCommitted && first.status == http.StatusCreated:
	case first.commit == foundNotCommitted && first.status == http.StatusServiceUnavailable && !last.replayed:
	case first.commit == "" && first.status == http.StatusCreated && l.config.Settings["default_transaction_isolation"] == "serializable":
		// It was that of a renewal, which had met a conflict and was sent again in a
		// transaction: the request's own leaves a mark.
		l.verdict.count("COMMITs of renewals", 1)
	default:
		l.verdict.violate("status", "%s: cut at %q, which was %s, answered with %d, then with %d, replayed: %t",
			key, hit, first.commit, first.status, last.status, last.replayed)
	}
}

// TestCutForLong keeps PostgreSQL away for longer than the middleware looks for
// what became of a COMMIT: the client gets 503, and its retry finds out.
func TestCutForLong(t *testing.T) {
	t.Parallel()
	for _, how := range []string{cutLost, cutDelivered, cutKept} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, requireServers(t), "")
			w.config.Lease = steadyLease
			l := w.lane()
			const forLong = time.Hour
			l.proxy.arm(&cut{frontend: true, n: 1, label: "Q commit", how: how, down: forLong})
			first := l.send(t.Context(), l.node, "key", nil)
			require.Equal(t, "Q commit", l.proxy.hit())
			require.Equal(t, http.StatusServiceUnavailable, first.status)
			require.Equal(t, notFoundOut, first.commit)
			l.proxy.heal()
			retries := l.pursue(l.node, "key", nil)
			require.Equal(t, how != cutLost, retries[len(retries)-1].replayed)
			w.check(l.node, "key", append(retries, first)...)
			w.checkRest(l.node)
			w.require()
		})
	}
}
