package proof

import (
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/idempotency-go/idempotency/internal/pgtest"
)

// requireServers skips a test where there can be no servers, and returns the URL
// of a PostgreSQL.
func requireServers(t *testing.T) string {
	t.Helper()
	if err := supported(); err != nil {
		t.Skip("SKIPPED: ", err)
	}
	return pgtest.URL(t)
}

// isolations are PostgreSQL's settings for the levels that a database may have by
// default.
var isolations = map[string]map[string]string{
	"read committed":  nil,
	"repeatable read": {"default_transaction_isolation": "repeatable read"},
	"serializable":    {"default_transaction_isolation": "serializable"},
}

// TestKill kills servers at every step of a request.
func TestKill(t *testing.T) {
	t.Parallel()
	for name, settings := range isolations {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, requireServers(t), "")
			w.config.Settings = settings
			n := *rounds
			if settings != nil {
				n = (n + 2) / 3
			}
			w.proveKills(steps, n)
			w.require()
		})
	}
}

// proveKills kills a server at each of the steps, n times.
func (w *world) proveKills(steps []string, n int) {
	work := make(chan string)
	var wg sync.WaitGroup
	for lane := range 8 {
		victim := w.node(nil)
		wg.Go(func() {
			round := 0
			for step := range work {
				w.killAt(victim, step, fmt.Sprintf("kill-%d.%d", lane, round))
				round++
			}
			w.checkRest(victim)
		})
	}
	for range n {
		for _, step := range steps {
			work <- step
		}
	}
	close(work)
	wg.Wait()
}

// killAt makes a payment whose server dies at a step, and others at the same
// time, which may be at any.
func (w *world) killAt(victim *node, step, key string) {
	const bystanders = 2
	var answers [1 + bystanders][]answer
	var wg sync.WaitGroup
	for i := range answers {
		var first headers
		if i == 0 {
			first = headers{headerDie: step}
		}
		wg.Go(func() { answers[i] = w.pursue(victim, fmt.Sprintf("%s.%d", key, i), first) })
	}
	if err := victim.Await(patience); err != nil {
		w.verdict.violate("harness", "%s at %s: %v", key, step, err)
		victim.Stop()
	}
	if err := victim.Start(); err != nil {
		w.verdict.violate("harness", "%s at %s: %v", key, step, err)
		return // The clients run into their patience.
	}
	wg.Wait()
	w.verdict.count("kills", 1)
	for i, all := range answers {
		if len(all) > 1 {
			w.verdict.count("requests that were cut off or had to retry", 1)
		}
		if i == 0 && !slices.ContainsFunc(all, func(a answer) bool { return a.err != nil }) {
			w.verdict.violate("harness", "%s at %s: no request was cut off", key, step)
		}
		w.check(victim, fmt.Sprintf("%s.%d", key, i), all...)
	}
}

// TestPostgresKilled kills PostgreSQL itself, and servers too, at random moments
// while clients make payments.
func TestPostgresKilled(t *testing.T) {
	t.Parallel()
	if err := supported(); err != nil {
		t.Skip("SKIPPED: ", err)
	}
	server := pgtest.Start(t)
	w := newWorld(t, server.URL(), "")
	w.provePostgresKilled(server, 2**rounds)
	w.require()
}

// provePostgresKilled kills n times while two clients at a time make each
// payment.
func (w *world) provePostgresKilled(server *pgtest.Server, n int) {
	nodes := []*node{w.node(nil), w.node(nil), w.node(nil)}
	var clients sync.WaitGroup
	stop := make(chan struct{})
	answered := make(chan struct{})
	var mu sync.Mutex
	paid := make(map[string][]answer)
	for client := range 8 {
		clients.Go(func() {
			for i := 0; ; i++ {
				key := fmt.Sprintf("load-%d.%d", client/2, i)
				all := w.pursue(nodes[(client+i)%len(nodes)], key, nil)
				mu.Lock()
				paid[key] = append(paid[key], all...)
				mu.Unlock()
				select {
				case answered <- struct{}{}:
				case <-stop:
					return
				}
			}
		})
	}
	random := seeded(2)
	for round := range n {
		w.load(answered, time.Duration(20+random.IntN(200))*time.Millisecond)
		switch round % 3 {
		case 0:
			w.killPostmaster(server)
		case 1:
			w.killSession()
		case 2:
			w.killNode(nodes[random.IntN(len(nodes))])
		}
	}
	close(stop)
	clients.Wait()
	for key, all := range paid {
		w.check(nodes[0], key, all...)
	}
	w.checkRest(nodes...)
}

// load lets the load come back and go on for a while.
func (w *world) load(answered <-chan struct{}, while time.Duration) {
	enough, over := 8, time.After(while)
	for more := true; more || enough > 0; {
		select {
		case <-answered:
			enough--
		case <-over:
			more = false
		case <-time.After(patience):
			w.verdict.violate("stuck", "no payment after a fault")
			return
		}
	}
}

// killNode kills a server, wherever it stands.
func (w *world) killNode(n *node) {
	n.Stop()
	if err := n.Start(); err != nil {
		w.verdict.violate("harness", "%v", err)
	}
	w.verdict.count("kills of a server", 1)
}

// killPostmaster kills PostgreSQL's first process. Its sessions end what they
// are at, and then themselves.
func (w *world) killPostmaster(server *pgtest.Server) {
	if err := server.Kill(); err != nil {
		w.verdict.violate("harness", "kill PostgreSQL: %v", err)
	}
	if err := server.Restart(); err != nil {
		w.verdict.violate("harness", "restart PostgreSQL: %v", err)
	}
	w.verdict.count("kills of PostgreSQL", 1)
}

// killSession kills a session's process, whereupon PostgreSQL kills all the
// others where they stand, and recovers.
func (w *world) killSession() {
	w.until("a session is killed", func() bool {
		var pid int
		w.read(&pid, `SELECT pid FROM pg_stat_activity WHERE application_name = $1 ORDER BY state = 'active' DESC LIMIT 1`, w.config.Schema)
		session, err := os.FindProcess(pid)
		return err == nil && session.Kill() == nil // It may have ended meanwhile.
	})
	w.verdict.count("crashes of PostgreSQL", 1)
}
