package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// settings is what the user chooses of a run.
type settings struct {
	seed     uint64
	duration time.Duration
	lease    time.Duration
	servers  int
	clients  int
	keep     bool   // keep the ledgers
	broken   string // the deliberately broken build, for the harness's own test
	progress io.Writer
}

// result is a row of the table.
type result struct {
	scenario  string
	mode      string
	lease     time.Duration
	requests  int
	keys      int
	runs      int
	faults    map[faultKind]int
	felt      int // requests that failed, were refused, or met an outstanding or interrupted key
	hangUps   int
	maxGo     int           // goroutines of a quiet server beyond its first, at most
	slowest   time.Duration // from the end of the faults to the last final answer
	verdict   *verdict
	longLived []longFaults
	noEffect  bool // it had faults, and no request saw any of them
	took      time.Duration
	kept      string // where the ledgers are, if they are kept
}

// failed reports whether the row is a defect.
func (r *result) failed() bool { return len(r.verdict.violations) > 0 || r.noEffect }

// faultCount returns how many faults of all kinds there were.
func (r *result) faultCount() int {
	n := 0
	for _, of := range r.faults {
		n += of
	}
	return n
}

// runScenario runs a scenario in a mode and checks its history.
func runScenario(ctx context.Context, s scenario, mode string, set settings) (*result, error) {
	began := time.Now()
	dir, err := os.MkdirTemp("", "idempotency-faults-")
	if err != nil {
		return nil, err
	}
	h, err := makeHistory(ctx, s, mode, set, dir)
	if ctx.Err() != nil {
		return nil, errors.Join(ctx.Err(), os.RemoveAll(dir))
	}
	if err != nil {
		return nil, fmt.Errorf("scenario %s, %s (files in %s): %w", s.name, mode, dir, err)
	}
	r := summarise(h, judge(h, len(s.faults) == 0 && s.hangUps == 0 && s.unstored == 0))
	if s.longLived() {
		r.longLived = h.longFaults()
	}
	r.scenario, r.lease, r.took = s.name, set.lease, time.Since(began)
	r.noEffect = (len(s.faults) > 0 && (len(h.windows) == 0 || r.felt == 0)) || (s.hangUps > 0 && r.hangUps == 0)
	if r.failed() || set.keep {
		r.kept = dir
		return r, nil
	}
	return r, os.RemoveAll(dir)
}

// makeHistory runs a scenario.
func makeHistory(ctx context.Context, s scenario, mode string, set settings, dir string) (*history, error) {
	backing, err := startStore(s.store, dir, set.servers)
	if err != nil {
		return nil, err
	}
	defer backing.stop()
	transport := &http.Transport{MaxIdleConnsPerHost: set.clients, DisableCompression: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	servers, err := startFleet(dir, set.servers, serverConfig{Mode: mode, Lease: set.lease,
		Seed: set.seed, Unstored: s.unstored, Long: s.longLived() && !s.brief, Break: set.broken}, backing, client)
	if err != nil {
		return nil, err
	}
	defer servers.stop()
	c := &crowd{seed: set.seed, scenario: s, http: client, patience: patience}
	for _, m := range servers.servers {
		c.addrs = append(c.addrs, m.addr)
	}
	in := &injector{fleet: servers, store: backing, turns: s.store == storeCluster}
	h := &history{mode: mode, lease: set.lease, longest: longestRun}
	if s.longLived() {
		in.lanes, h.longest, h.silence = set.servers, longLivedRun, silence
		set.clients = (set.clients + 3) / 4 // Each has duplicates, which look all the time.
		c.patience = max(patience, (longLivedRun+2)*set.lease)
	}
	watched := h.watch(ctx, backing)
	defer watched()
	if err := load(ctx, s, set, c, in, h); err != nil {
		return nil, err
	}
	if err := writeWindows(filepath.Join(dir, "faults.txt"), in.windows); err != nil {
		return nil, err
	}
	h.windows, h.deaths, h.attempts = in.windows, servers.deaths, c.attempts
	for _, g := range c.goals {
		h.goals = append(h.goals, *g)
	}
	watched()
	if h.leftover, err = servers.leftovers(5 * time.Second); err != nil {
		return nil, err
	}
	servers.stop()
	ledgers, err := readLedgers(dir)
	if err != nil {
		return nil, err
	}
	h.runs = runsOf(ledgers)
	ofServers, err := readStalls(dir)
	h.stalls = append(h.stalls, ofServers...)
	return h, err
}

// watch notes when the harness or Redis stood still, until it is told to end.
func (h *history) watch(ctx context.Context, s store) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	var probe func(context.Context) error
	if redis, ok := s.(interface{ ping(context.Context) error }); ok {
		probe = redis.ping
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		watchStalls(ctx, h.lease, probe, func(from, to int64) {
			h.stalls = append(h.stalls, window{kind: faultStall, from: from, to: to})
		})
	}()
	return func() {
		cancel()
		<-ended
	}
}

// writeWindows writes down the faults, to be read beside the ledgers.
func writeWindows(path string, windows []window) error {
	var text strings.Builder
	for _, w := range windows {
		fmt.Fprintf(&text, "%s %s from %d to %d, data lost: %t\n", w.kind, w.process, w.from, w.to, w.lost)
	}
	return os.WriteFile(path, []byte(text.String()), 0o600)
}

// load has the clients work while faults are injected, until both have ended.
func load(ctx context.Context, s scenario, set settings, c *crowd, in *injector, h *history) error {
	plans := planFaults(set.seed, s, set.duration, set.lease, set.servers)
	busy, stop := context.WithTimeout(ctx, set.duration)
	defer stop()
	loading, unload := context.WithCancel(ctx)
	defer unload()
	working, giveUp := context.WithCancel(ctx)
	defer giveUp()
	var workers sync.WaitGroup
	for range set.clients {
		workers.Go(func() { c.work(working, func() bool { return loading.Err() == nil }) })
	}
	go progress(loading, s, h.mode, c, in, set.progress)
	err := in.run(busy, plans)
	if err == nil {
		<-busy.Done()
	}
	unload()
	h.healed = time.Now().UnixNano()
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		giveUp()
		workers.Wait()
		return err
	}
	// What is not final by its deadline is given up; the check will say so.
	late := time.AfterFunc(time.Until(time.Unix(0, h.deadline()))+time.Second, giveUp)
	defer late.Stop()
	workers.Wait()
	c.lastLook(ctx, set.clients, lastSample)
	return ctx.Err()
}

// lastSample is how many keys with a final answer are asked for again at the
// end.
const lastSample = 3000

// progress prints a line every few seconds.
func progress(ctx context.Context, s scenario, mode string, c *crowd, in *injector, w io.Writer) {
	for rest(ctx, 5*time.Second) {
		in.mu.Lock()
		faults := len(in.windows)
		in.mu.Unlock()
		fmt.Fprintf(w, "  %s, %s: %d requests, %d keys, %d faults\n", s.name, mode, c.requests.Load(), c.next.Load(), faults)
	}
}

// summarise counts what a history has.
func summarise(h *history, v *verdict) *result {
	r := &result{mode: h.mode, requests: len(h.attempts), faults: make(map[faultKind]int), verdict: v}
	for i := range h.attempts {
		if h.attempts[i].hungUp {
			r.hangUps++
		}
		if h.attempts[i].felt() {
			r.felt++
		}
	}
	for _, w := range h.windows {
		r.faults[w.kind]++
	}
	keys := make(map[payment]bool)
	for _, g := range h.goals {
		keys[g.payment] = true
		if g.final != 0 {
			r.slowest = max(r.slowest, time.Duration(g.final-h.healed))
		}
	}
	r.keys = len(keys)
	for _, runs := range h.runs {
		r.runs += len(runs)
	}
	for _, l := range h.leftover {
		r.maxGo = max(r.maxGo, l.quiet.Goroutines-l.baseline.Goroutines)
	}
	return r
}
