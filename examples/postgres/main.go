// Postgres is a small payments API that processes each request exactly once: its
// handler writes in a PostgreSQL transaction that commits together with the
// stored response, or not at all.
//
//	go run . -postgres postgres://user:password@127.0.0.1:5432/database
//
// It makes two tables, payments_example and payments_example_keys, and prints
// curl lines to try. With -crash the process dies in the middle of a payment.
package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/postgres"
)

const (
	connectTimeout  = 3 * time.Second  // for PostgreSQL to answer at start
	shutdownTimeout = 15 * time.Second // longer than any handler takes
	lease           = 3 * time.Second  // how long a retry waits for a process that died
	sweepEvery      = time.Minute
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	flags := flag.NewFlagSet("postgres", flag.ExitOnError)
	url := flags.String("postgres", "", "`URL` of a PostgreSQL, such as postgres://user:password@127.0.0.1:5432/database")
	addr := flags.String("addr", "127.0.0.1:8080", "`host:port` to listen on; port 0 is any free one")
	crash := flags.Bool("crash", false, "let the process die when it has written a payment, before that commits")
	_ = flags.Parse(os.Args[1:]) // It exits itself.
	died := func() {}
	if *crash {
		died = func() { os.Exit(3) }
	}
	if err := serve(ctx, *url, *addr, os.Stdout, died); err != nil {
		fmt.Fprintln(os.Stderr, "postgres:", err)
		os.Exit(1)
	}
}

// serve serves the API until ctx ends, and then lets what was begun end. written
// is called when a payment is written and not yet committed.
func serve(ctx context.Context, url, addr string, stdout io.Writer, written func()) error {
	pool, err := connect(ctx, url)
	if err != nil {
		return err
	}
	defer pool.Close()
	backend := postgres.NewTransactional(pool, postgres.WithTable("payments_example_keys"))
	if err := errors.Join(backend.Migrate(ctx), migrate(ctx, pool)); err != nil {
		return err
	}
	go backend.SweepEvery(ctx, sweepEvery, func(err error) { slog.Error("old keys not swept", "error", err) })

	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: handler(pool, backend, written), ReadHeaderTimeout: 5 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	fmt.Fprint(stdout, strings.NewReplacer("URL", "http://"+listener.Addr().String(), "NUM", rand.Text()[:4]).Replace(intro))

	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	return server.Shutdown(grace)
}

// connect returns a pool on a PostgreSQL that answers.
func connect(ctx context.Context, url string) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(url)
	if url == "" || err != nil {
		// The cause may quote the URL, and with it a password.
		return nil, errors.New("-postgres: give a PostgreSQL's URL, such as postgres://user:password@127.0.0.1:5432/database")
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	if err := pool.Ping(ctx); err != nil {
		pool.Close()
		return nil, fmt.Errorf("no answer from PostgreSQL at %s: %w", config.ConnConfig.Host, err)
	}
	return pool, nil
}

// migrate makes the service's own table.
func migrate(ctx context.Context, pool *pgxpool.Pool) error {
	_, err := pool.Exec(ctx, `CREATE TABLE IF NOT EXISTS payments_example (
		id      bigserial PRIMARY KEY,
		amount  bigint NOT NULL CHECK (amount > 0),
		created timestamptz NOT NULL DEFAULT now()
	)`)
	return err
}

func handler(pool *pgxpool.Pool, backend *postgres.Transactional, written func()) http.Handler {
	once := idempotency.New(backend, idempotency.WithRequired(), idempotency.WithLease(lease))
	mux := http.NewServeMux()
	mux.Handle("POST /payments", once(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { pay(w, r, written) })))
	mux.HandleFunc("GET /payments", func(w http.ResponseWriter, r *http.Request) {
		payments, err := list(r.Context(), pool)
		if err != nil {
			fail(w, err)
			return
		}
		writeJSON(w, http.StatusOK, payments)
	})
	return mux
}

type payment struct {
	ID      int64     `json:"id"`
	Amount  int64     `json:"amount"`
	Created time.Time `json:"created"`
}

// pay writes a payment in the transaction that commits with its answer.
func pay(w http.ResponseWriter, r *http.Request, written func()) {
	var order struct{ Amount int64 }
	if err := json.NewDecoder(r.Body).Decode(&order); err != nil || order.Amount < 1 {
		writeJSON(w, http.StatusBadRequest, map[string]string{"error": `send {"amount": 100}`})
		return
	}
	tx, err := postgres.Tx(r.Context())
	if err != nil {
		fail(w, err)
		return
	}
	p := payment{Amount: order.Amount}
	const insert = "INSERT INTO payments_example (amount) VALUES ($1) RETURNING id, created"
	if err := tx.QueryRow(r.Context(), insert, order.Amount).Scan(&p.ID, &p.Created); err != nil {
		fail(w, err)
		return
	}
	written()
	writeJSON(w, http.StatusCreated, p)
}

func list(ctx context.Context, pool *pgxpool.Pool) ([]payment, error) {
	rows, err := pool.Query(ctx, "SELECT id, amount, created FROM payments_example ORDER BY id")
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[payment])
}

// fail answers with 500, for which the transaction is undone.
func fail(w http.ResponseWriter, err error) {
	slog.Warn("not paid", "error", err)
	writeJSON(w, http.StatusInternalServerError, map[string]string{"error": "not paid; send it again with the same key"})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // The client may have left.
}

// intro is what a reader pastes into another terminal.
const intro = `Payments at URL. Ctrl-C stops. To try:

# Pay, twice: 201 and one payment; the second answer is replayed.
for i in 1 2; do curl -i URL/payments -H 'Idempotency-Key: order-NUM-1' --json '{"amount": 1250}'; done

# Every payment.
curl -i URL/payments

# Start it with -crash, and the process dies in the middle of this payment: nothing of it is left. Start it again without
# -crash, and send the same line again: 409 until the lease of 3 s is over, then 201, and one payment.
curl -i URL/payments -H 'Idempotency-Key: order-NUM-2' --json '{"amount": 900}'
`
