// Postgres is a small payments API that processes each request exactly once: its
// handler writes in a PostgreSQL transaction that commits together with the
// stored response, or not at all. Before, it charges a card, which no rollback
// undoes: after a crash the retry asks the card processor what it did.
//
//	go run . -postgres postgres://user:password@127.0.0.1:5432/database
//
// It makes three tables, payments_example and two that begin with it, and prints
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
	crash := flags.Bool("crash", false, "let the process die when it has charged and written a payment, before that commits")
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
	a := &api{pool, processor{pool}, written}
	if err := errors.Join(backend.Migrate(ctx), a.migrate(ctx), a.cards.migrate(ctx)); err != nil {
		return err
	}
	go backend.SweepEvery(ctx, sweepEvery, func(err error) { slog.Error("old keys not swept", "error", err) })

	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: a.handler(backend), ReadHeaderTimeout: 5 * time.Second}
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

type api struct {
	pool    *pgxpool.Pool
	cards   processor
	written func() // called when a payment is written and not yet committed
}

// migrate makes the service's own table.
func (a *api) migrate(ctx context.Context) error {
	_, err := a.pool.Exec(ctx, `CREATE TABLE IF NOT EXISTS payments_example (
		id      bigserial PRIMARY KEY,
		amount  bigint NOT NULL CHECK (amount > 0),
		created timestamptz NOT NULL DEFAULT now()
	)`)
	return err
}

func (a *api) handler(backend *postgres.Transactional) http.Handler {
	once := idempotency.New(backend, idempotency.WithRequired(), idempotency.WithLease(lease), idempotency.WithRecovery(a.recovery))
	mux := http.NewServeMux()
	mux.Handle("POST /payments", once(http.HandlerFunc(a.pay)))
	mux.HandleFunc("GET /payments", func(w http.ResponseWriter, r *http.Request) {
		list[payment](w, r, a.pool, "SELECT id, amount, created FROM payments_example ORDER BY id")
	})
	mux.HandleFunc("GET /charges", func(w http.ResponseWriter, r *http.Request) {
		list[charge](w, r, a.pool, "SELECT key, amount, created FROM payments_example_charges ORDER BY created")
	})
	return mux
}

type payment struct {
	ID      int64     `json:"id"`
	Amount  int64     `json:"amount"`
	Created time.Time `json:"created"`
}

// pay charges a card and records the payment. The charge has a key that is the same on
// every attempt.
func (a *api) pay(w http.ResponseWriter, r *http.Request) {
	var order struct{ Amount int64 }
	if err := json.NewDecoder(r.Body).Decode(&order); err != nil || order.Amount < 1 {
		writeJSON(w, http.StatusBadRequest, map[string]string{"error": `send {"amount": 100}`})
		return
	}
	if err := a.cards.charge(r.Context(), idempotency.DeriveKey(r.Context(), "charge"), order.Amount); err != nil {
		fail(w, err)
		return
	}
	a.record(w, r, order.Amount)
}

// recovery answers the retry of a payment that was interrupted, such as by a crash:
// what was written is undone, but the card may be charged. The processor is asked by
// the same key. If it has charged, the payment is recorded; if not, the handler runs
// again.
func (a *api) recovery(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		amount, ok, err := a.cards.find(r.Context(), idempotency.DeriveKey(r.Context(), "charge"))
		switch {
		case err != nil:
			fail(w, err)
		case !ok:
			next.ServeHTTP(w, r)
		default:
			w.Header().Set("Charge-Found", "true")
			a.record(w, r, amount)
		}
	})
}

// record writes a payment in the transaction that commits with its answer.
func (a *api) record(w http.ResponseWriter, r *http.Request, amount int64) {
	tx, err := postgres.Tx(r.Context())
	if err != nil {
		fail(w, err)
		return
	}
	p := payment{Amount: amount}
	const insert = "INSERT INTO payments_example (amount) VALUES ($1) RETURNING id, created"
	if err := tx.QueryRow(r.Context(), insert, amount).Scan(&p.ID, &p.Created); err != nil {
		fail(w, err)
		return
	}
	a.written()
	writeJSON(w, http.StatusCreated, p)
}

// list answers with the rows of a query.
func list[T any](w http.ResponseWriter, r *http.Request, pool *pgxpool.Pool, query string) {
	rows, err := pool.Query(r.Context(), query)
	if err != nil {
		fail(w, err)
		return
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[T])
	if err != nil {
		fail(w, err)
		return
	}
	writeJSON(w, http.StatusOK, all)
}

// fail answers with 500, for which the transaction is undone.
func fail(w http.ResponseWriter, err error) {
	slog.Warn("not finished", "error", err)
	writeJSON(w, http.StatusInternalServerError, map[string]string{"error": "not finished; send it again with the same key"})
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

# Every payment, and every charge of the card processor.
curl -i URL/payments URL/charges

# Start it with -crash, and the process dies in the middle of this payment: the card is charged, and there is no payment.
# Start it again without -crash, and send the same line again: 409 until the lease of 3 s is over. Then the charge is
# found: 201, one payment and one charge.
curl -i URL/payments -H 'Idempotency-Key: order-NUM-2' --json '{"amount": 900}'
`
