package postgres_test

import (
	"context"
	"database/sql/driver"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/postgres"
)

func ExampleTx() {
	var pool *pgxpool.Pool // Of the service's own database.

	once := idempotency.New(postgres.NewTransactional(pool), idempotency.WithRequired())
	http.Handle("POST /payments", once(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tx, err := postgres.Tx(r.Context())
		if err == nil {
			_, err = tx.Exec(r.Context(), "INSERT INTO payments (amount) VALUES ($1)", 100)
		}
		if err != nil {
			http.Error(w, "not paid", http.StatusInternalServerError) // Undoes what was written.
			return
		}
		fmt.Fprint(w, `{"paid":100}`)
	})))
}

// service is a handler that writes payments in its transaction.
type service struct {
	pool    *pgxpool.Pool
	backend *postgres.Transactional
	opts    []idempotency.Option
	runs    int
	events  []idempotency.Event
}

func newService(t *testing.T, configure ...func(*pgxpool.Config)) *service {
	schema := schemaName()
	pool := newPool(t, append(configure, inSchema(t, schema))...)
	s := &service{pool: pool}
	s.backend = postgres.NewTransactional(pool)
	t.Cleanup(s.backend.Close)
	require.NoError(t, s.backend.Migrate(t.Context()))
	_, err := pool.Exec(t.Context(), "CREATE TABLE payments (id bigserial, amount integer CHECK (amount > 0))")
	require.NoError(t, err)
	s.opts = []idempotency.Option{
		idempotency.WithLogger(slog.New(slog.DiscardHandler)),
		idempotency.WithObserver(func(_ context.Context, e idempotency.Event) { s.events = append(s.events, e) }),
	}
	return s
}

// handle returns a handler behind the middleware that writes a payment, and then
// does the rest.
func (s *service) handle(t *testing.T, rest func(w http.ResponseWriter, r *http.Request, tx pgx.Tx), opts ...idempotency.Option) http.Handler {
	return idempotency.New(s.backend, append(s.opts, opts...)...)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.runs++
		tx, err := postgres.Tx(r.Context())
		require.NoError(t, err)
		pay(t, r, tx)
		rest(w, r, tx)
	}))
}

func pay(t *testing.T, r *http.Request, tx pgx.Tx) {
	_, err := tx.Exec(r.Context(), "INSERT INTO payments (amount) VALUES (100)")
	require.NoError(t, err)
}

func created(w http.ResponseWriter, _ *http.Request, _ pgx.Tx) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	fmt.Fprint(w, `{"paid":100}`)
}

func (s *service) payments(t *testing.T) (n int) {
	t.Helper()
	require.NoError(t, s.pool.QueryRow(t.Context(), "SELECT count(*) FROM payments").Scan(&n))
	return n
}

func (s *service) requireIdle(t *testing.T) {
	t.Helper()
	requireIdle(t, s.pool)
}

func send(h http.Handler, key string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, "/payments", strings.NewReader("amount=100"))
	r.Header.Set("Idempotency-Key", key)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestCommitsTogether(t *testing.T) {
	s := newService(t)
	h := s.handle(t, func(w http.ResponseWriter, r *http.Request, tx pgx.Tx) {
		again, err := postgres.Tx(r.Context())
		require.NoError(t, err)
		require.Equal(t, tx, again)
		require.Zero(t, s.payments(t), "nobody else sees it yet")
		created(w, r, tx)
	})
	first, retry := send(h, "k"), send(h, "k")
	require.Equal(t, 201, first.Code, first.Body)
	require.Equal(t, 201, retry.Code)
	require.Equal(t, first.Body, retry.Body)
	require.Equal(t, "true", retry.Header().Get("Idempotent-Replayed"))
	require.Equal(t, 1, s.runs)
	require.Equal(t, 1, s.payments(t))
	s.requireIdle(t)
}

// A handler that asks for no transaction needs none.
func TestNothingToCommit(t *testing.T) {
	s := newService(t)
	h := idempotency.New(s.backend, s.opts...)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.runs++
		require.Zero(t, s.pool.Stat().AcquiredConns())
		created(w, r, nil)
	}))
	require.Equal(t, 201, send(h, "k").Code)
	require.Equal(t, 201, send(h, "k").Code)
	require.Equal(t, 1, s.runs)
}

// Whatever is not stored leaves nothing, and a retry is processed afresh.
func TestUndone(t *testing.T) {
	deferred := `CREATE TABLE orders (id integer PRIMARY KEY);
		ALTER TABLE payments ADD order_id integer REFERENCES orders DEFERRABLE INITIALLY DEFERRED`
	for name, test := range map[string]struct {
		rest   func(http.ResponseWriter, *http.Request, pgx.Tx)
		opts   []idempotency.Option
		status int
		before string // is run first
	}{
		"500": {rest: func(w http.ResponseWriter, _ *http.Request, _ pgx.Tx) { http.Error(w, "failed", 500) }, status: 500},
		"NoStore": {rest: func(w http.ResponseWriter, r *http.Request, tx pgx.Tx) {
			idempotency.NoStore(r.Context())
			created(w, r, tx)
		}, status: 201},
		"WithStoreIf": {rest: func(w http.ResponseWriter, _ *http.Request, _ pgx.Tx) { w.WriteHeader(404) }, status: 404,
			opts: []idempotency.Option{idempotency.WithStoreIf(func(status int, _ http.Header) bool { return status < 400 })}},
		"too large": {rest: func(w http.ResponseWriter, _ *http.Request, _ pgx.Tx) { fmt.Fprint(w, strings.Repeat("x", 100)) }, status: 500,
			opts: []idempotency.Option{idempotency.WithBufferLimit(50)}},
		"a failed statement": {rest: func(w http.ResponseWriter, r *http.Request, tx pgx.Tx) {
			_, err := tx.Exec(r.Context(), "INSERT INTO payments (amount) VALUES (-1)")
			require.Error(t, err)
			created(w, r, tx)
		}, status: 503},
		"a connection that is gone": {rest: func(w http.ResponseWriter, r *http.Request, tx pgx.Tx) {
			_, err := tx.Exec(r.Context(), "SELECT pg_terminate_backend(pg_backend_pid())")
			require.Error(t, err)
			created(w, r, tx)
		}, status: 503},
		"a COMMIT that fails": {before: deferred, rest: func(w http.ResponseWriter, r *http.Request, tx pgx.Tx) {
			_, err := tx.Exec(r.Context(), "UPDATE payments SET order_id = 7")
			require.NoError(t, err)
			created(w, r, tx)
		}, status: 503},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			_, err := s.pool.Exec(t.Context(), test.before)
			require.NoError(t, err)
			h := s.handle(t, test.rest, test.opts...)
			for run := range 2 {
				w := send(h, "k")
				require.Equal(t, test.status, w.Code, w.Body)
				require.Equal(t, run+1, s.runs)
				if test.status == 503 {
					require.ErrorIs(t, s.events[run].Err, idempotency.ErrNotCommitted)
					require.Equal(t, idempotency.Failed, s.events[run].Outcome)
				}
			}
			require.Zero(t, s.payments(t))
			s.requireIdle(t)
			require.Equal(t, 201, send(s.handle(t, created), "k").Code, "the key is free")
			require.Equal(t, 1, s.payments(t))
		})
	}
}

func TestPanicUndoes(t *testing.T) {
	for name, end := range map[string]func(){"panic": func() { panic("boom") }, "Goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newService(t)
			h := s.handle(t, func(http.ResponseWriter, *http.Request, pgx.Tx) { end() })
			ended := make(chan any)
			go func() {
				defer func() { ended <- recover() }()
				send(h, "k")
			}()
			<-ended
			require.Zero(t, s.payments(t))
			s.requireIdle(t)
			require.Equal(t, 201, send(s.handle(t, created), "k").Code)
		})
	}
}

// At most once, a run that is undone leaves the key interrupted.
func TestUndoneAtMostOnce(t *testing.T) {
	s := newService(t)
	h := s.handle(t, func(w http.ResponseWriter, _ *http.Request, _ pgx.Tx) { w.WriteHeader(500) }, idempotency.WithAtMostOnce())
	require.Equal(t, 500, send(h, "k").Code)
	w := send(h, "k")
	require.Equal(t, 409, w.Code)
	require.Empty(t, w.Header().Get("Retry-After"))
	require.Equal(t, 1, s.runs)
	require.Zero(t, s.payments(t))
	s.requireIdle(t)
}

// A handler that ends the transaction itself is told of, and no retry runs again,
// whatever it answers.
func TestHandlerEnds(t *testing.T) {
	for _, status := range []int{201, 500} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			s := newService(t)
			h := s.handle(t, func(w http.ResponseWriter, r *http.Request, tx pgx.Tx) {
				_, err := tx.Exec(r.Context(), "COMMIT AND CHAIN")
				require.NoError(t, err)
				w.WriteHeader(status)
			})
			begin := time.Now()
			w := send(h, "k")
			require.Less(t, time.Since(begin), 4*time.Second, "it is not tried again")
			require.NotEqual(t, 201, w.Code, w.Body)
			for range 2 {
				w := send(h, "k")
				require.Equal(t, 409, w.Code)
				require.Empty(t, w.Header().Get("Retry-After"))
				require.ErrorIs(t, s.events[len(s.events)-1].Err, idempotency.ErrInterrupted)
			}
			require.Equal(t, 1, s.runs)
			require.Equal(t, 1, s.payments(t))
			s.requireIdle(t)
		})
	}
}

// The middleware ends the transaction, not the handler; savepoints are its own.
func TestHandlerCannotEnd(t *testing.T) {
	s := newService(t)
	var kept pgx.Tx
	var ctx context.Context
	h := s.handle(t, func(w http.ResponseWriter, r *http.Request, tx pgx.Tx) {
		kept, ctx = tx, r.Context()
		require.ErrorContains(t, tx.Commit(ctx), "the middleware ends this transaction")
		require.ErrorContains(t, tx.Rollback(ctx), "the middleware ends this transaction")
		savepoint, err := tx.Begin(ctx)
		require.NoError(t, err)
		pay(t, r, savepoint)
		_, err = savepoint.Exec(ctx, "INSERT INTO payments (amount) VALUES (-1)")
		require.Error(t, err)
		require.NoError(t, savepoint.Rollback(ctx))
		savepoint, err = tx.Begin(ctx)
		require.NoError(t, err)
		pay(t, r, savepoint)
		require.NoError(t, savepoint.Commit(ctx))
		created(w, r, tx)
	})
	require.Equal(t, 201, send(h, "k").Code)
	require.Equal(t, 2, s.payments(t))

	_, err := kept.Exec(t.Context(), "SELECT")
	require.ErrorIs(t, err, pgx.ErrTxClosed)
	_, err = postgres.Tx(ctx)
	require.ErrorIs(t, err, postgres.ErrNoTx)
}

func TestNoTx(t *testing.T) {
	s := newService(t)
	asks := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := postgres.Tx(r.Context())
		require.ErrorIs(t, err, postgres.ErrNoTx)
		s.runs++
	})
	send(idempotency.New(s.backend, s.opts...)(asks), "")
	send(idempotency.New(s.backend.Backend, s.opts...)(asks), "k")
	missing := postgres.NewTransactional(s.pool, postgres.WithTable("there_is_no_such_table"))
	send(idempotency.New(missing, append(s.opts, idempotency.WithFailOpen())...)(asks), "k")
	require.Equal(t, 3, s.runs)
}

// A transaction that cannot begin is the handler's to answer.
func TestTxCannotBegin(t *testing.T) {
	s := newService(t)
	h := idempotency.New(s.backend, s.opts...)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		cancel()
		_, err := postgres.Tx(ctx)
		require.ErrorIs(t, err, context.Canceled)
		tx, err := postgres.Tx(r.Context())
		require.NoError(t, err, "it may be tried again")
		pay(t, r, tx)
	}))
	require.Equal(t, 200, send(h, "k").Code)
	require.Equal(t, 1, s.payments(t))
}

// A transaction whose claim was taken over does not commit.
func TestLostClaimUndoes(t *testing.T) {
	s := newService(t)
	h := s.handle(t, func(w http.ResponseWriter, r *http.Request, tx pgx.Tx) {
		// As after a pause of the process, longer than the lease.
		_, err := s.pool.Exec(r.Context(), "UPDATE idempotency_records SET ends = now() - interval '1 second'")
		require.NoError(t, err)
		require.Equal(t, 201, send(s.handle(t, created), "k").Code, "another process takes over")
		created(w, r, tx)
	})
	w := send(h, "k")
	require.Equal(t, 409, w.Code, w.Body)
	require.Equal(t, "1", w.Header().Get("Retry-After"))
	require.Equal(t, 1, s.payments(t))
	require.Equal(t, "true", send(h, "k").Header().Get("Idempotent-Replayed"))
}

// Nor does one whose claim is gone: another request may have had the key, and its
// response, meanwhile.
func TestSweptClaimUndoes(t *testing.T) {
	s := newService(t)
	h := s.handle(t, func(w http.ResponseWriter, r *http.Request, tx pgx.Tx) {
		_, err := s.pool.Exec(r.Context(), "DELETE FROM idempotency_records")
		require.NoError(t, err)
		created(w, r, tx)
	})
	require.Equal(t, 409, send(h, "k").Code)
	require.Zero(t, s.payments(t))
	require.Equal(t, 201, send(s.handle(t, created), "k").Code)
	require.Equal(t, 1, s.payments(t))
}

// A claim that is settled within another one's handler leaves that one's
// transaction alone.
func TestOtherClaimsTransaction(t *testing.T) {
	s := newService(t)
	h := s.handle(t, func(w http.ResponseWriter, r *http.Request, tx pgx.Tx) {
		key, claim := newClaim()
		require.NoError(t, s.backend.Release(r.Context(), key, claim, 0))
		require.NoError(t, s.backend.Complete(r.Context(), key, claim, []byte("{}"), time.Hour))
		require.Zero(t, s.payments(t))
		created(w, r, tx)
	})
	require.Equal(t, 201, send(h, "k").Code)
	require.Equal(t, 1, s.payments(t))
}

// A transaction that gets its connection when the handler has returned does not
// begin.
func TestTxComesTooLate(t *testing.T) {
	type late struct{}
	waits, goOn, got := make(chan struct{}), make(chan struct{}), make(chan error)
	s := newService(t, func(c *pgxpool.Config) {
		c.PrepareConn = func(ctx context.Context, _ *pgx.Conn) (bool, error) {
			if ctx.Value(late{}) != nil {
				close(waits)
				<-goOn
			}
			return true, nil
		}
	})
	h := idempotency.New(s.backend, s.opts...)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := context.WithValue(context.WithoutCancel(r.Context()), late{}, true)
		go func() {
			_, err := postgres.Tx(ctx)
			got <- err
		}()
		<-waits
	}))
	require.Equal(t, 200, send(h, "k").Code)
	close(goOn)
	require.ErrorIs(t, <-got, postgres.ErrNoTx)
	s.requireIdle(t)
}

// A handler that changes to a schema which has such a table too does not commit
// into that one: its own claim would be left outstanding.
func TestSearchPathChanged(t *testing.T) {
	s := newService(t)
	other := schemaName()
	tenant := newPool(t, inSchema(t, other))
	require.NoError(t, postgres.New(tenant).Migrate(t.Context()))
	h := s.handle(t, func(w http.ResponseWriter, r *http.Request, tx pgx.Tx) {
		_, err := tx.Exec(r.Context(), "SET LOCAL search_path TO "+other)
		require.NoError(t, err)
		created(w, r, tx)
	})
	require.Equal(t, 409, send(h, "k").Code)
	require.ErrorContains(t, s.events[0].Err, "search path")
	require.Zero(t, s.payments(t))
	require.Equal(t, 201, send(s.handle(t, created), "k").Code)
}

// Duplicates hold no connection while the first request runs.
func TestDuplicatesHoldNoConnection(t *testing.T) {
	s := newService(t, func(c *pgxpool.Config) { c.MaxConns = 2 })
	s.opts = nil
	begun, goOn, first := make(chan struct{}), make(chan struct{}), make(chan int)
	rest := func(w http.ResponseWriter, r *http.Request, tx pgx.Tx) {
		close(begun)
		<-goOn
		created(w, r, tx)
	}
	refuses, waits := s.handle(t, rest), s.handle(t, rest, idempotency.WithWait(time.Minute))
	go func() { first <- send(refuses, "k").Code }()
	<-begun
	for range 20 {
		require.Equal(t, 409, send(refuses, "k").Code)
	}
	waiting := make(chan int)
	for range 20 {
		go func() { waiting <- send(waits, "k").Code }()
	}
	other := idempotency.New(s.backend)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { created(w, r, nil) }))
	require.Equal(t, 201, send(other, "another").Code, "there is a connection left for others")
	close(goOn)
	require.Equal(t, 201, <-first)
	for range 20 {
		require.Equal(t, 201, <-waiting)
	}
	require.Equal(t, 1, s.payments(t))
}

// With a strict isolation a renewal keeps the transaction from committing, and
// nothing is left of it.
func TestIsolation(t *testing.T) {
	for name, test := range map[string]struct {
		level   pgx.TxIsoLevel
		renewed bool
		status  int
	}{
		"read committed, renewed": {pgx.ReadCommitted, true, 201},
		"serializable":            {pgx.Serializable, false, 201},
		"serializable, renewed":   {pgx.Serializable, true, 503},
	} {
		t.Run(name, func(t *testing.T) {
			s := newService(t)
			s.backend = postgres.NewTransactional(s.pool, postgres.WithTxOptions(pgx.TxOptions{IsoLevel: test.level}))
			h := s.handle(t, func(w http.ResponseWriter, r *http.Request, tx pgx.Tx) {
				var level string
				require.NoError(t, tx.QueryRow(r.Context(), "SHOW transaction_isolation").Scan(&level))
				require.Equal(t, string(test.level), level)
				if test.renewed {
					_, err := s.pool.Exec(r.Context(), "UPDATE idempotency_records SET ends = now() + interval '1 minute'")
					require.NoError(t, err)
				}
				created(w, r, tx)
			})
			require.Equal(t, test.status, send(h, "k").Code)
			require.Equal(t, test.status == 201, s.payments(t) == 1)
		})
	}
}

// A COMMIT without an answer is looked up: this one did not happen.
func TestCommitIsLookedUp(t *testing.T) {
	cut := false
	s := newService(t, func(c *pgxpool.Config) {
		c.ConnConfig.Tracer = onCommit(func(conn *pgx.Conn) {
			if cut {
				_ = conn.PgConn().Conn().Close()
			}
		})
	})
	cut = true
	w := send(s.handle(t, created), "k")
	require.Equal(t, 503, w.Code)
	require.ErrorIs(t, s.events[0].Err, idempotency.ErrNotCommitted)
	require.NotContains(t, s.events[0].Err.Error(), "not known")
	require.Zero(t, s.payments(t))
	cut = false
	require.Equal(t, 201, send(s.handle(t, created), "k").Code)
	require.Equal(t, 1, s.payments(t))
}

// slowArgument takes time to encode, such as one that is encrypted first.
type slowArgument struct{ begun, goOn chan struct{} }

func (a slowArgument) Value() (driver.Value, error) {
	close(a.begun)
	<-a.goOn
	return int64(1), nil
}

// What a goroutine of the handler's still does when that returns has no effect: it
// is neither committed by itself nor by the request that has the connection next.
func TestLeftStatementHasNoEffect(t *testing.T) {
	for _, status := range []int{201, 500} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			s := newService(t)
			left := make(chan error)
			argument := slowArgument{make(chan struct{}), make(chan struct{})}
			h := s.handle(t, func(w http.ResponseWriter, r *http.Request, tx pgx.Tx) {
				ctx := context.WithoutCancel(r.Context())
				go func() {
					_, err := tx.Exec(ctx, "INSERT INTO payments (amount) VALUES ($1)", argument)
					left <- err
				}()
				<-argument.begun
				// It is in use by now.
				_, err := tx.Exec(ctx, "SELECT")
				require.ErrorIs(t, err, postgres.ErrInUse)
				_, err = tx.Query(ctx, "SELECT")
				require.ErrorIs(t, err, postgres.ErrInUse)
				require.ErrorIs(t, tx.QueryRow(ctx, "SELECT").Scan(), postgres.ErrInUse)
				require.ErrorIs(t, tx.SendBatch(ctx, new(pgx.Batch)).Close(), postgres.ErrInUse)
				_, err = postgres.Tx(ctx)
				require.ErrorIs(t, err, postgres.ErrInUse)
				time.AfterFunc(10*time.Millisecond, func() { close(argument.goOn) })
				w.WriteHeader(status)
			})
			w := send(h, "k")
			require.Equal(t, max(status, 500), w.Code/100*100)
			require.Error(t, <-left)
			require.Zero(t, s.payments(t))
			s.requireIdle(t)
		})
	}
}

// So are BEGIN, the record and COMMIT one round trip each, beside what the handler
// sends itself.
func TestRoundTripsOfATransaction(t *testing.T) {
	var wire traffic
	s := newService(t, wire.counting)
	h := s.handle(t, created)
	for _, key := range []string{"warm", "k"} {
		before := wire.trips.Load()
		require.Equal(t, 201, send(h, key).Code)
		if key != "warm" {
			require.EqualValues(t, 5, wire.trips.Load()-before)
		}
	}
}
