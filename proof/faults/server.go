package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/idempotency-go/idempotency"
)

// serverConfig is what a server process is told when it starts.
type serverConfig struct {
	Name     string        `json:"name"` // of this process: a restarted server has another
	Addr     string        `json:"addr"`
	Ledger   string        `json:"ledger"`
	Redis    redisTarget   `json:"redis"`
	Mode     string        `json:"mode"`
	Lease    time.Duration `json:"lease"`
	Seed     uint64        `json:"seed"`
	Unstored float64       `json:"unstored"` // the share of runs whose answer is not to be stored
	Long     bool          `json:"long"`     // Handlers run for leases.
	Break    string        `json:"break"`    // names a deliberately broken build
}

// The modes of the middleware.
const (
	modeAgain      = "again"
	modeAtMostOnce = "at-most-once"
)

// server is a payments service with the middleware around it.
type server struct {
	config      serverConfig
	ledger      *ledger
	backend     *countingBackend
	outstanding atomic.Int64 // requests that have come and are not yet observed
	runs        atomic.Int64
}

// visit is a request on its way through a server.
type visit struct {
	arrived time.Time
	run     string // of the handler, if it ran
}

// visitKey is where a request's context carries its visit.
type visitKey struct{}

// serve is a server process: it serves until it is killed.
func serve(text string) error {
	var config serverConfig
	if err := json.Unmarshal([]byte(text), &config); err != nil {
		return fmt.Errorf("the server's configuration: %w", err)
	}
	book, err := openLedger(config.Ledger)
	if err != nil {
		return err
	}
	stalls, err := os.OpenFile(stallsOf(config.Ledger), os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	go watchStalls(context.Background(), config.Lease, nil, func(from, to int64) { fmt.Fprintln(stalls, from, to) })
	counted := &countingBackend{Backend: idempotency.NewRedis(config.Redis.client())}
	s := &server{config: config, ledger: book, backend: counted}
	service := &http.Server{
		Addr:              config.Addr,
		Handler:           s.handler(),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(slog.DiscardHandler, 0),
	}
	return service.ListenAndServe()
}

// handler returns the service's routes.
func (s *server) handler() http.Handler {
	options := []idempotency.Option{
		idempotency.WithLease(s.config.Lease),
		idempotency.WithExpiry(time.Hour), // longer than any run of the harness
		idempotency.WithScope(func(r *http.Request) string { return r.Header.Get(headerScope) }),
		idempotency.WithObserver(s.observe),
		idempotency.WithLogger(slog.New(slog.DiscardHandler)),
	}
	if s.config.Mode == modeAtMostOnce {
		options = append(options, idempotency.WithAtMostOnce())
	}
	options = append(options, brokenOptions(s.config.Break)...)
	payments := brokenHandler(s.config.Break, http.HandlerFunc(s.pay))
	wrapped := idempotency.New(brokenBackend(s.config.Break, s.backend, s.config), options...)(payments)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /payments", func(w http.ResponseWriter, r *http.Request) {
		s.outstanding.Add(1)
		defer s.outstanding.Add(-1)
		ctx := context.WithValue(r.Context(), visitKey{}, &visit{arrived: time.Now()})
		wrapped.ServeHTTP(w, r.WithContext(ctx))
	})
	mux.HandleFunc("GET /state", s.state)
	return mux
}

// observe writes to the ledger what became of a request whose handler ran.
func (s *server) observe(ctx context.Context, e idempotency.Event) {
	v, _ := ctx.Value(visitKey{}).(*visit)
	if v == nil || v.run == "" {
		return
	}
	r := record{Kind: recordEvent, Run: v.run, Time: time.Now().UnixNano(), Outcome: string(e.Outcome)}
	switch {
	case errors.Is(e.Err, idempotency.ErrClaimLost):
		r.Err = errorLost
	case errors.Is(e.Err, idempotency.ErrFull):
		r.Err = errorFull
	case e.Err != nil:
		r.Err = errorUnreachable
	}
	if err := s.ledger.append(r); err != nil {
		s.giveUp(err)
	}
}

// The errors of an event, told apart.
const (
	errorLost        = "claim lost"
	errorFull        = "store full"
	errorUnreachable = "store unreachable"
)

// giveUp ends a server whose ledger cannot be written: nothing could be proved.
func (s *server) giveUp(err error) {
	fmt.Fprintln(os.Stderr, "server", s.config.Name+": ledger:", err)
	os.Exit(1)
}

// serverState is what a server tells of itself.
type serverState struct {
	Goroutines  int    `json:"goroutines"`
	Heap        uint64 `json:"heap"` // bytes in use, after a collection
	Outstanding int64  `json:"outstanding"`
	Renewals    int64  `json:"renewals"` // since the process began
}

// state answers with the server's state.
func (s *server) state(w http.ResponseWriter, _ *http.Request) {
	runtime.GC()
	runtime.GC() // What finalizers and pools held is freed by the second.
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(serverState{
		Goroutines:  runtime.NumGoroutine(),
		Heap:        memory.HeapAlloc,
		Outstanding: s.outstanding.Load(),
		Renewals:    s.backend.renewals.Load(),
	})
}

// readState asks a server for its state.
func readState(ctx context.Context, client *http.Client, addr string) (serverState, error) {
	var state serverState
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/state", nil)
	if err != nil {
		return state, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return state, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return state, err
	}
	return state, json.Unmarshal(text, &state)
}

// countingBackend counts renewals: a claim timer that is left over would renew
// for ever.
type countingBackend struct {
	idempotency.Backend
	renewals atomic.Int64
}

// Renew implements [idempotency.Backend].
func (b *countingBackend) Renew(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms, progress []byte) error {
	b.renewals.Add(1)
	return b.Backend.Renew(ctx, key, claim, terms, progress)
}
