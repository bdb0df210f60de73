package proof

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	mathrand "math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/postgres"
)

var (
	rounds = flag.Int("rounds", 6, "how often a server dies at each step; other tests grow with it")
	seed   = flag.Uint64("seed", 1, "what the random choices follow from")
)

// seeded returns a source of random numbers for one purpose.
func seeded(purpose uint64) *mathrand.Rand { return mathrand.New(mathrand.NewPCG(*seed, purpose)) }

// world is a schema of a database, with the servers and clients that use it.
type world struct {
	t       *testing.T
	config  serverConfig
	pool    *pgxpool.Pool // the test's own
	client  *http.Client
	verdict verdict
}

// steadyLease is much longer than a claim takes from a server that has just started, on a busy
// machine. A claim whose reply comes late is refused.
const steadyLease = 2 * time.Second

// patience is how long anything may take that is waited for.
const patience = 40 * time.Second

// newWorld makes a schema in the database of url. Its servers are of the broken
// build of that name, if it is not "".
func newWorld(t *testing.T, url, broken string) *world {
	t.Helper()
	schema := "proof_" + strings.ToLower(rand.Text())
	settings, err := pgxpool.ParseConfig(url)
	require.NoError(t, err)
	settings.ConnConfig.RuntimeParams["search_path"] = schema
	// A connection that PostgreSQL's end has killed is found before it is used.
	settings.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return true }
	pool, err := pgxpool.NewWithConfig(context.Background(), settings)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	_, err = pool.Exec(t.Context(), strings.ReplaceAll(`
		CREATE SCHEMA SCHEMA_;
		CREATE TABLE SCHEMA_.runs (key text NOT NULL);
		CREATE TABLE SCHEMA_.accounts (id integer PRIMARY KEY);
		INSERT INTO SCHEMA_.accounts VALUES (1);
		CREATE TABLE SCHEMA_.payments (
			id bigserial PRIMARY KEY, key text NOT NULL, amount integer NOT NULL,
			account integer NOT NULL REFERENCES SCHEMA_.accounts DEFERRABLE INITIALLY DEFERRED);
		CREATE INDEX ON SCHEMA_.payments (key)`, "SCHEMA_", schema))
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := pool.Exec(context.Background(), `DROP SCHEMA `+schema+` CASCADE`)
		require.NoError(t, err)
	})
	require.NoError(t, postgres.New(pool, postgres.WithTable(schema+".records")).Migrate(t.Context()))
	transport := &http.Transport{DisableKeepAlives: true} // Servers die.
	return &world{
		t:      t,
		config: serverConfig{URL: url, Schema: schema, Lease: 500 * time.Millisecond, Conns: 8, Broken: broken},
		pool:   pool,
		client: &http.Client{Transport: transport, Timeout: patience},
	}
}

// node starts a server, which is stopped when the test is over.
func (w *world) node(change func(*serverConfig)) *node {
	w.t.Helper()
	n := &node{Variable: serverVariable, Config: w.config}
	if change != nil {
		change(&n.Config)
	}
	require.NoError(w.t, n.Start())
	w.t.Cleanup(func() { n.Stop() })
	return n
}

// answer is what a client got.
type answer struct {
	err         error // there was none, or not all of it
	status      int
	body        []byte
	replayed    bool
	interrupted bool   // it is the refusal of an interrupted key
	commit      string // what became of a COMMIT whose outcome was not known
}

// interrupted is the type of the refusal of an interrupted key, as the library
// tells it.
var interrupted = func() string {
	w := httptest.NewRecorder()
	idempotency.WriteError(w, httptest.NewRequest(http.MethodPost, "/", nil), idempotency.ErrInterrupted)
	return problemType(w.Body.Bytes())
}()

func problemType(body []byte) string {
	var problem struct{ Type string }
	_ = json.Unmarshal(body, &problem) // What is no problem has no type.
	return problem.Type
}

// headers are those of one request.
type headers map[string]string

// ofBody is where headers have another body than that of most requests.
const ofBody = "Proof-Body"

// send sends a payment once.
func (w *world) send(ctx context.Context, n *node, key string, h headers) answer {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, n.URL("/payments"), strings.NewReader(cmp.Or(h[ofBody], `{"amount":100}`)))
	if err != nil {
		return answer{err: err}
	}
	req.GetBody = nil // net/http would retry by itself a request with this header.
	req.Header.Set("Idempotency-Key", key)
	for name, value := range h {
		req.Header.Set(name, value)
	}
	resp, err := w.client.Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	a := answer{err: err, status: resp.StatusCode, body: body,
		replayed: resp.Header.Get("Idempotent-Replayed") != "", commit: resp.Header.Get(headerCommit)}
	a.interrupted = problemType(body) == interrupted
	if a.interrupted && (a.status != http.StatusConflict || resp.Header.Get("Retry-After") != "") {
		w.verdict.violate("status", "%s: told interrupted with %d %v", key, a.status, resp.Header)
	}
	return a
}

// tell sends a server what is no payment.
func (w *world) tell(n *node, path string) {
	resp, err := w.client.Post(n.URL(path), "", nil)
	if err != nil {
		w.verdict.violate("harness", "%s: %v", path, err)
		return
	}
	resp.Body.Close()
}

// state asks a server for its state.
func (w *world) state(n *node) (state serverState) {
	resp, err := w.client.Get(n.URL("/state"))
	if err == nil {
		err = json.NewDecoder(resp.Body).Decode(&state)
		resp.Body.Close()
	}
	if err != nil {
		w.verdict.violate("harness", "state: %v", err)
	}
	return state
}

// read reads one value from the database, which may just be recovering.
func (w *world) read(into any, sql string, args ...any) {
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = w.pool.QueryRow(context.Background(), sql, args...).Scan(into); err == nil {
			return
		}
	}
	w.verdict.violate("harness", "%s: %v", sql, err)
}

// until waits for what happens soon.
func (w *world) until(what string, happened func() bool) {
	for end := time.Now().Add(patience / 2); !happened(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			w.verdict.violate("stuck", "%s: not within %v", what, patience/2)
			return
		}
	}
}

// stopAt sends a payment whose server is to stop at a step, again if it was refused before,
// and returns once the server has stopped. After it is resumed, its answer comes.
func (w *world) stopAt(n *node, step, key string) <-chan answer {
	answered := make(chan answer, 1)
	var over atomic.Bool
	go func() {
		for {
			a := w.send(context.Background(), n, key, headers{headerPause: step})
			if a.status != http.StatusServiceUnavailable || over.Load() {
				answered <- a
				return
			}
		}
	}()
	w.until("the process stops", func() bool { return stopped(n) })
	over.Store(true)
	return answered
}

// pursue sends a payment until it is answered for good, which may be that its run
// was interrupted, and returns all answers.
// The headers go with the first request, and again after one that was refused
// before it came to what they ask for.
func (w *world) pursue(n *node, key string, h headers) []answer {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var all []answer
	for {
		a := w.send(ctx, n, key, h)
		all = append(all, a)
		switch {
		case a.err == nil && (a.status == http.StatusCreated || a.interrupted):
			return all
		case ctx.Err() != nil:
			w.verdict.violate("stuck", "%s: no answer in %v: %d %s %v", key, patience, a.status, a.body, a.err)
			return all
		case a.err != nil:
			h = nil
		case a.status == http.StatusConflict, a.status == http.StatusServiceUnavailable:
		case a.status == http.StatusInternalServerError: // The handler's own, whose connection broke.
		default:
			w.verdict.violate("status", "%s: %d %s", key, a.status, a.body)
			return all
		}
		time.Sleep(time.Duration(5+mathrand.IntN(15)) * time.Millisecond)
	}
}

// check demands that a key has one payment, that every answer that told of one
// told of it, and that one more retry gets the same bytes, replayed. With at most
// once a key may be interrupted instead: it then has no payment, and no answer told
// of one. Its handler has run once at most.
func (w *world) check(n *node, key string, answers ...answer) {
	atMostOnce := w.config.Mode == modeAtMostOnce
	if atMostOnce {
		// A claim of which no run came may be interrupted before it is released. The
		// key is then free.
		answers = append(answers, w.pursue(n, key, nil)...)
	}
	var ids []int64
	w.read(&ids, `SELECT coalesce(array_agg(id), '{}') FROM payments WHERE key = $1`, key)
	w.verdict.count("keys", 1)
	w.verdict.count("payments", len(ids))
	again := w.pursue(n, key, nil)
	replay := again[len(again)-1]
	switch {
	case len(ids) > 1:
		w.verdict.violate("doubled", "%s: payments %v", key, ids)
	case len(ids) == 1 && !replay.replayed:
		w.verdict.violate("replay", "%s: not replayed: %d %s %v", key, replay.status, replay.body, replay.err)
	case len(ids) == 0 && atMostOnce && replay.interrupted:
		w.verdict.count("interrupted", 1)
	case len(ids) == 0:
		w.verdict.violate("missing", "%s: no payment", key)
	}
	if atMostOnce {
		w.checkRuns(key)
	}
	for _, a := range append(answers, replay) {
		if a.commit != "" {
			w.verdict.count("COMMITs of unknown outcome, "+a.commit, 1)
			if committed := a.commit == foundCommitted; committed != (a.status == http.StatusCreated) {
				w.verdict.violate("status", "%s: the COMMIT was %s, and the client got %d", key, a.commit, a.status)
			}
		}
		if a.err != nil || a.status != http.StatusCreated {
			continue
		}
		var told receipt
		if err := json.Unmarshal(a.body, &told); err != nil || !slices.Contains(ids, told.Payment) || told.Key != key {
			w.verdict.violate("answer", "%s: %s tells of a payment that is not there: %v", key, a.body, ids)
		}
		if !bytes.Equal(a.body, replay.body) {
			w.verdict.violate("answer", "%s: %s, and then %s", key, a.body, replay.body)
		}
	}
}

// checkRuns demands that the handler of a key has run once at most.
func (w *world) checkRuns(key string) {
	var runs int
	w.read(&runs, `SELECT count(*) FROM runs WHERE key = $1`, key)
	w.verdict.count("runs", runs)
	if runs > 1 {
		w.verdict.violate("again", "%s: %d runs", key, runs)
	}
}

// checkRest demands that nothing is left when all requests are over: no open
// transaction, and no connection in use.
func (w *world) checkRest(nodes ...*node) {
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		var open int
		w.read(&open, `SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND state LIKE 'idle in transaction%'`, w.config.Schema)
		for _, n := range nodes {
			open += int(w.state(n).Acquired)
		}
		switch {
		case open == 0:
			return
		case time.Now().After(end):
			w.verdict.violate("open", "%d transactions and connections are left open", open)
			return
		}
	}
}

// require demands that nothing was violated, and logs what was counted. It counts
// all payments once more: one may have come after its key was checked.
func (w *world) require() {
	w.t.Helper()
	var doubled int
	w.read(&doubled, `SELECT count(*) - count(DISTINCT key) FROM payments`)
	if doubled > 0 {
		w.verdict.violate("doubled", "in the end there are %d payments too many", doubled)
	}
	w.t.Log(&w.verdict)
	require.Empty(w.t, w.verdict.violations[:min(9, len(w.verdict.violations))], "%d violations, the first:", len(w.verdict.violations))
}

// verdict is what was counted, and which promises were not kept.
type verdict struct {
	mu         sync.Mutex
	counts     map[string]int
	violations []violation
}

// violation is a promise that was not kept.
type violation struct{ kind, text string }

func (v *verdict) violate(kind, format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.violations = append(v.violations, violation{kind, fmt.Sprintf(format, args...)})
}

func (v *verdict) count(what string, n int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.counts == nil {
		v.counts = make(map[string]int)
	}
	v.counts[what] += n
}

// counted returns how many there were.
func (v *verdict) counted(what string) int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.counts[what]
}

// found reports whether a promise of this kind was not kept.
func (v *verdict) found(kind string) bool { return v.first(kind) != "" }

// first tells how a promise of this kind was not kept for the first time, or "".
func (v *verdict) first(kind string) string {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, found := range v.violations {
		if found.kind == kind {
			return found.text
		}
	}
	return ""
}

// String tells what was counted.
func (v *verdict) String() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	kinds := map[string]int{"doubled": 0, "missing": 0}
	for _, found := range v.violations {
		kinds[found.kind]++
	}
	var told []string
	for _, what := range slices.Sorted(maps.Keys(v.counts)) {
		told = append(told, fmt.Sprintf("%d %s", v.counts[what], what))
	}
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		told = append(told, fmt.Sprintf("%d %s", kinds[kind], kind))
	}
	return strings.Join(told, ", ")
}
