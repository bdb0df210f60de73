package main

import (
	"context"
	"crypto/rand"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/internal/pgtest"
	"github.com/idempotency-go/idempotency/internal/redistest"
	"github.com/idempotency-go/idempotency/postgres"
)

func TestMain(m *testing.M) {
	status := m.Run()
	pgtest.Stop()
	redistest.Stop()
	os.Exit(status)
}

// BenchmarkStores measures one client's requests on PostgreSQL and on Redis, the
// handler's own write included where it is in the transaction. Its baselines are
// the SQL statements that the work cannot do without, as pgx sends them.
func BenchmarkStores(b *testing.B) {
	pool := newPool(b)
	rdb := idempotency.NewRedis(redistest.Client(b), idempotency.WithPrefix(rand.Text()+":"))
	b.Run("redis", func(b *testing.B) { operations(b, rdb, answer) })
	b.Run("postgres", func(b *testing.B) {
		bareStatements(b, pool)
		operations(b, postgres.New(pool), answer)
	})
	b.Run("transaction", func(b *testing.B) {
		bareTransaction(b, pool)
		operations(b, postgres.NewTransactional(pool), func(w http.ResponseWriter, r *http.Request) {
			tx, err := postgres.Tx(r.Context())
			if err == nil {
				_, err = tx.Exec(r.Context(), insertPayment, 1250)
			}
			if err != nil {
				b.Error(err)
			}
			answer(w, r)
		})
	})
}

const insertPayment = "INSERT INTO payments (amount) VALUES ($1)"

var paid = `{"note":"` + strings.Repeat("y", 189) + `"}`

// answer drains a body and answers with 200 bytes of JSON.
func answer(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_, _ = io.WriteString(w, paid)
}

// operations measures a first request, a replay and a 409.
func operations(b *testing.B, backend idempotency.Backend, handle http.HandlerFunc) {
	h := idempotency.New(backend)(handle)
	run := func(name string, status int, key func() string) {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if got := post(h, key()); got != status {
					b.Fatalf("status %d, want %d", got, status)
				}
			}
		})
	}
	run("first", http.StatusCreated, rand.Text)
	stored := rand.Text()
	post(h, stored)
	run("replay", http.StatusCreated, func() string { return stored })
	begun, finish, done, held := make(chan struct{}), make(chan struct{}), make(chan struct{}), rand.Text()
	go func() {
		defer close(done)
		post(idempotency.New(backend)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			close(begun)
			<-finish
		})), held)
	}()
	<-begun
	run("outstanding-409", http.StatusConflict, func() string { return held })
	close(finish)
	<-done
}

var order = strings.Repeat("x", 150)

func post(h http.Handler, key string) (status int) {
	r := httptest.NewRequest(http.MethodPost, "/payments", strings.NewReader(order))
	r.Header.Set("Idempotency-Key", key)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code
}

// newPool returns a pool on a schema of its own, with the tables that are measured.
func newPool(b *testing.B) *pgxpool.Pool {
	b.Helper()
	ctx := context.Background()
	config, err := pgxpool.ParseConfig(pgtest.URL(b))
	if err != nil {
		b.Fatal(err)
	}
	schema := "bench_" + strings.ToLower(rand.Text())
	config.ConnConfig.RuntimeParams["search_path"] = schema
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_, _ = pool.Exec(ctx, "DROP SCHEMA "+schema+" CASCADE")
		pool.Close()
	})
	_, err = pool.Exec(ctx, `CREATE SCHEMA `+schema+`; CREATE TABLE payments (id bigserial PRIMARY KEY, amount integer);
		CREATE TABLE bare (key text PRIMARY KEY, token text, response text, expires timestamptz)`)
	if err != nil {
		b.Fatal(err)
	}
	if err := postgres.New(pool).Migrate(ctx); err != nil {
		b.Fatal(err)
	}
	return pool
}

// The least that claims a key, completes its claim, and reads a response.
const (
	bareClaim    = "INSERT INTO bare (key, token, expires) VALUES ($1, $2, now() + interval '30 seconds') ON CONFLICT DO NOTHING"
	bareComplete = "UPDATE bare SET response = $3, expires = now() + interval '1 day' WHERE key = $1 AND token = $2"
	bareRead     = "SELECT token, response FROM bare WHERE key = $1 AND expires > now()"
)

// execute runs a statement, in a transaction or not.
func execute(b *testing.B, q interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}, sql string, args ...any) {
	if _, err := q.Exec(context.Background(), sql, args...); err != nil {
		b.Fatal(err)
	}
}

func bareStatements(b *testing.B, pool *pgxpool.Pool) {
	b.Run("bare-claim-and-complete", func(b *testing.B) {
		for b.Loop() {
			key := rand.Text()
			execute(b, pool, bareClaim, key, key)
			execute(b, pool, bareComplete, key, key, paid)
		}
	})
	b.Run("bare-read", func(b *testing.B) {
		key := rand.Text()
		execute(b, pool, bareClaim, key, key)
		execute(b, pool, bareComplete, key, key, paid)
		var token, response string
		for b.Loop() {
			if err := pool.QueryRow(context.Background(), bareRead, key).Scan(&token, &response); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func bareTransaction(b *testing.B, pool *pgxpool.Pool) {
	b.Run("bare", func(b *testing.B) {
		for b.Loop() {
			key := rand.Text()
			execute(b, pool, bareClaim, key, key)
			tx, err := pool.Begin(context.Background())
			if err != nil {
				b.Fatal(err)
			}
			execute(b, tx, insertPayment, 1250)
			execute(b, tx, bareComplete, key, key, paid)
			if err := tx.Commit(context.Background()); err != nil {
				b.Fatal(err)
			}
		}
	})
}
