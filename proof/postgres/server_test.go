package proof

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/internal/leash"
	"github.com/idempotency-go/idempotency/internal/pgtest"
	"github.com/idempotency-go/idempotency/internal/recoverytest"
	"github.com/idempotency-go/idempotency/postgres"
)

// serverVariable has the configuration of a server: the test binary is one if it is set.
const serverVariable = "IDEMPOTENCY_PROOF_SERVER"

// node is a server process.
type node = leash.Node[serverConfig]

// TestMain is also the server processes of the tests.
func TestMain(m *testing.M) {
	recoverytest.ServeIfAsked(openRecoveryStore)
	if config := os.Getenv(serverVariable); config != "" {
		fmt.Fprintln(os.Stderr, serve(config))
		os.Exit(1)
	}
	flag.Parse()
	status := m.Run()
	pgtest.Stop()
	os.Exit(status)
}

// serverConfig is what a server process is told when it starts.
type serverConfig struct {
	URL      string            `json:"url"`
	Direct   string            `json:"direct"` // what leads to the same database past a proxy
	Schema   string            `json:"schema"`
	Lease    time.Duration     `json:"lease"`
	Wait     time.Duration     `json:"wait"`
	Conns    int32             `json:"conns"`
	Settings map[string]string `json:"settings"` // of PostgreSQL, for every session
	Broken   string            `json:"broken"`   // names a deliberately broken build
	Mode     string            `json:"mode"`     // of the middleware
	Repeat   bool              `json:"repeat"`   // every claim is sent twice
}

// The modes of the middleware.
const (
	modeAgain      = "" // its default
	modeAtMostOnce = "at most once"
	modeTakeOver   = "take-over" // as at most once, but an interrupted key is claimed and its handler runs again
)

// server is a payments service with the middleware around it.
type server struct {
	pool    *pgxpool.Pool
	mode    string
	backend idempotency.Transactor
	mu      sync.Mutex
	gates   map[string]chan struct{} // by their names
	gated   atomic.Int64             // handlers that have come to a gate
	came    atomic.Int64             // requests
}

// serve is a server process: it serves until it is killed.
func serve(text string) error {
	var config serverConfig
	if err := json.Unmarshal([]byte(text), &config); err != nil {
		return err
	}
	pool, err := config.pool()
	if err != nil {
		return err
	}
	records := postgres.WithTable(config.Schema + ".records")
	s := &server{pool: pool, mode: config.Mode, backend: postgres.NewTransactional(pool, records), gates: make(map[string]chan struct{})}
	if config.Broken != "" {
		s.backend = newBroken(config, pool)
	}
	options := []idempotency.Option{idempotency.WithLease(config.Lease), idempotency.WithWait(config.Wait),
		idempotency.WithLogger(slog.New(slog.DiscardHandler))}
	if config.Mode != modeAgain {
		options = append(options, idempotency.WithAtMostOnce())
	}
	backend := watched{s.backend, config.Mode == modeTakeOver, config.Repeat}
	payments := idempotency.New(backend, options...)(http.HandlerFunc(s.pay))
	mux := http.NewServeMux()
	mux.HandleFunc("POST /payments", func(w http.ResponseWriter, r *http.Request) {
		s.came.Add(1)
		v := &visit{die: r.Header.Get(headerDie), pause: r.Header.Get(headerPause), leave: r.Header.Get(headerLeave)}
		v.client = context.WithValue(r.Context(), visitKey{}, v)
		payments.ServeHTTP(answering{w, v}, r.WithContext(v.client))
	})
	mux.HandleFunc("POST /open", func(_ http.ResponseWriter, r *http.Request) { close(s.gate(r.URL.Query().Get("gate"))) })
	mux.HandleFunc("POST /reset", func(http.ResponseWriter, *http.Request) { s.pool.Reset() })
	mux.HandleFunc("POST /reach", func(_ http.ResponseWriter, r *http.Request) {
		if conn, err := pgx.Connect(r.Context(), config.Direct); err == nil {
			_ = conn.Close(r.Context())
		}
	})
	mux.HandleFunc("GET /state", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(serverState{Acquired: pool.Stat().AcquiredConns(), Gated: s.gated.Load(), Came: s.came.Load(), Left: left.Load()})
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr())
	service := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	return service.Serve(listener)
}

// pool returns a server's pool.
func (config serverConfig) pool() (*pgxpool.Pool, error) {
	settings, err := pgxpool.ParseConfig(config.URL)
	if err != nil {
		return nil, err
	}
	settings.MaxConns = config.Conns
	settings.ConnConfig.Tracer = tracer{}
	settings.ConnConfig.DialFunc = dialMortal
	settings.ConnConfig.RuntimeParams["application_name"] = config.Schema
	settings.ConnConfig.RuntimeParams["search_path"] = config.Schema
	maps.Copy(settings.ConnConfig.RuntimeParams, config.Settings)
	return pgxpool.NewWithConfig(context.Background(), settings)
}

// serverState is what a server tells of itself.
type serverState struct {
	Acquired int32 `json:"acquired"` // connections that are in use
	Gated    int64 `json:"gated"`    // handlers that have come to a gate
	Came     int64 `json:"came"`     // requests
	Left     int64 `json:"left"`     // requests that have come to the step at which their client is to leave
}

// receipt is the answer to a payment.
type receipt struct {
	Payment int64  `json:"payment"`
	Key     string `json:"key"`
	Amount  int    `json:"amount"`
}

// The ways in which a handler ends, besides with its receipt.
const (
	doPanic     = "panic"
	doAbort     = "abort" // the panic that net/http does not log
	doGoexit    = "goexit"
	doFail      = "500"
	doNoStore   = "no-store"
	doStatement = "failed statement" // and the handler answers as if nothing were
	doDeferred  = "deferred constraint"
	doCancelled = "cancelled statement"
	doTooLarge  = "too large"
	doRollback  = "rolls back" // by itself, past what Tx forbids
	doNothing   = "nothing"    // without a transaction, which a cut would end
)

// gate returns the gate of a name, which POST /open opens.
func (s *server) gate(name string) chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gates[name] == nil {
		s.gates[name] = make(chan struct{})
	}
	return s.gates[name]
}

// wait waits at the gate of a request, if it has one.
func (s *server) wait(r *http.Request) {
	if name := r.Header.Get(headerGate); name != "" {
		s.gated.Add(1)
		<-s.gate(name)
	}
}

// pay is the handler.
func (s *server) pay(w http.ResponseWriter, r *http.Request) {
	ctx, do := r.Context(), r.Header.Get(headerDo)
	v := visitOf(ctx)
	key, _ := idempotency.KeyFromContext(ctx)
	if do == doNothing {
		s.wait(r)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		_ = json.NewEncoder(w).Encode(receipt{Key: key})
		return
	}
	if s.mode == modeAtMostOnce {
		// A run is counted apart from the transaction.
		if _, err := s.pool.Exec(ctx, `INSERT INTO runs (key) VALUES ($1)`, key); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	v.at("claimed")
	tx, err := s.tx(ctx)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	v.at("begun")
	paid, err := s.write(ctx, tx, key, do)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	v.at("written")
	s.wait(r)
	switch do {
	case doPanic:
		panic("the handler panics")
	case doAbort:
		panic(http.ErrAbortHandler)
	case doGoexit:
		runtime.Goexit()
	case doFail:
		http.Error(w, `{"error":"the handler failed"}`, http.StatusInternalServerError)
		return
	case doNoStore:
		idempotency.NoStore(ctx)
	case doStatement:
		_, _ = tx.Exec(ctx, "SELECT 1/0")
	case doCancelled:
		short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
		_, _ = tx.Exec(short, "SELECT pg_sleep(10)")
		cancel()
	case doTooLarge:
		_, _ = w.Write(make([]byte, 2<<20))
		return
	case doRollback:
		_, _ = tx.Exec(ctx, "ROLLBACK")
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(paid) // The client may be gone.
}

// write makes the payment and reads it back.
func (s *server) write(ctx context.Context, tx pgx.Tx, key, do string) (receipt, error) {
	paid := receipt{Key: key}
	var accounts int
	if err := tx.QueryRow(ctx, `SELECT count(*) FROM accounts`).Scan(&accounts); err != nil {
		return paid, err
	}
	visitOf(ctx).at("read")
	account := 1
	if do == doDeferred {
		account = 2 // There is none, which shows at COMMIT.
	}
	if err := tx.QueryRow(ctx, `INSERT INTO payments (key, amount, account) VALUES ($1, 100, $2) RETURNING id`, key, account).Scan(&paid.Payment); err != nil {
		return paid, err
	}
	return paid, tx.QueryRow(ctx, `SELECT amount FROM payments WHERE id = $1`, paid.Payment).Scan(&paid.Amount)
}

// tx returns the handler's transaction.
func (s *server) tx(ctx context.Context) (pgx.Tx, error) {
	if b, ok := s.backend.(*broken); ok {
		return b.tx(ctx)
	}
	return postgres.Tx(ctx)
}
