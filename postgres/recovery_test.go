package postgres_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/postgres"
)

// recovery returns the option for a recovery that writes a payment of 1 in its
// transaction, and then does the rest.
func (s *service) recovery(t *testing.T, recoveries *int, rest func(w http.ResponseWriter, r *http.Request, next http.Handler)) idempotency.Option {
	return idempotency.WithRecovery(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			*recoveries++
			tx, err := postgres.Tx(r.Context())
			require.NoError(t, err)
			_, err = tx.Exec(r.Context(), "INSERT INTO payments (amount) VALUES (1)")
			require.NoError(t, err)
			rest(w, r, next)
		})
	})
}

// sum returns the sum of all payments.
func (s *service) sum(t *testing.T) (sum int) {
	t.Helper()
	require.NoError(t, s.pool.QueryRow(t.Context(), "SELECT coalesce(sum(amount), 0) FROM payments").Scan(&sum))
	return sum
}

// What a recovery writes commits with its answer. A run and a recovery without an answer
// are undone, and recovered.
func TestRecovery(t *testing.T) {
	dies := func(w http.ResponseWriter, r *http.Request, _ pgx.Tx) { panic("died") }
	tests := map[string]struct {
		rest   func(w http.ResponseWriter, r *http.Request, tx pgx.Tx)
		panics bool
	}{
		"panic":        {dies, true},
		"500":          {func(w http.ResponseWriter, _ *http.Request, _ pgx.Tx) { w.WriteHeader(500) }, false},
		"failed there": {func(w http.ResponseWriter, r *http.Request, tx pgx.Tx) { tx.Exec(r.Context(), "SELECT 1/0") }, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s, recoveries := newService(t), 0
			run := func(rest func(http.ResponseWriter, *http.Request, pgx.Tx), recovers func(http.ResponseWriter, *http.Request, http.Handler), panics bool) idempotency.Event {
				h := s.handle(t, rest, s.recovery(t, &recoveries, recovers))
				if panics {
					require.Panics(t, func() { send(h, "k") })
				} else {
					send(h, "k")
				}
				s.requireIdle(t)
				return s.events[len(s.events)-1]
			}
			callsNext := func(w http.ResponseWriter, r *http.Request, next http.Handler) { next.ServeHTTP(w, r) }
			require.False(t, run(tt.rest, callsNext, tt.panics).Recovered)
			state, _ := stateOf(t, s.backend, idempotency.NewKey("", "k"))
			require.Equal(t, idempotency.StateInterrupted, state)
			require.True(t, run(tt.rest, callsNext, tt.panics).Recovered, "its next did the same")
			require.True(t, run(created, func(http.ResponseWriter, *http.Request, http.Handler) { panic("died") }, true).Recovered)
			noStore := func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				idempotency.NoStore(r.Context())
				next.ServeHTTP(w, r)
			}
			require.Equal(t, idempotency.ReasonNoStore, run(created, noStore, false).Reason)
			require.Zero(t, s.payments(t))

			e := run(created, callsNext, false)
			require.Equal(t, idempotency.Stored, e.Outcome)
			require.True(t, e.Recovered)
			require.Equal(t, 101, s.sum(t))
			require.Equal(t, idempotency.Replayed, run(created, callsNext, false).Outcome)
			require.Equal(t, 4, recoveries)
			require.Equal(t, 4, s.runs)
		})
	}
}

// NoStore of a run that took nothing over undoes its writes and frees the key.
func TestRecoveryNoStoreFirst(t *testing.T) {
	s, recoveries := newService(t), 0
	h := s.handle(t, func(w http.ResponseWriter, r *http.Request, tx pgx.Tx) {
		if s.runs == 1 {
			idempotency.NoStore(r.Context())
		}
		created(w, r, tx)
	}, s.recovery(t, &recoveries, nil))
	require.Equal(t, 201, send(h, "k").Code)
	require.Zero(t, s.payments(t))
	require.Equal(t, 201, send(h, "k").Code)
	require.Equal(t, 1, s.payments(t))
	require.Zero(t, recoveries)
}

// cutOff is a Transactional whose renewals do not reach the database.
type cutOff struct{ *postgres.Transactional }

func (cutOff) Renew(context.Context, idempotency.Key, idempotency.Claim, idempotency.Terms, []byte) error {
	return errors.New("no route to host")
}

// A run that lost its lease is recovered. If its process comes back, it can commit
// nothing, whether the recovery still runs or has answered.
func TestRecoveryBesideALateOwner(t *testing.T) {
	for _, back := range []string{"while the recovery runs", "afterwards"} {
		t.Run(back, func(t *testing.T) {
			s, recoveries := newService(t), 0
			running, goOn, returned := make(chan struct{}), make(chan struct{}), make(chan *httptest.ResponseRecorder, 1)
			comeBack := func() {
				close(goOn)
				require.Equal(t, 409, (<-returned).Code)
			}
			opts := []idempotency.Option{idempotency.WithLease(time.Second), idempotency.WithWait(time.Minute),
				s.recovery(t, &recoveries, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
					if back == "while the recovery runs" {
						comeBack()
					}
					fmt.Fprint(w, `{"recovered":true}`)
				})}
			slow := idempotency.New(cutOff{s.backend}, append(s.opts[:1:1], opts...)...)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				tx, err := postgres.Tx(r.Context())
				require.NoError(t, err)
				pay(t, r, tx)
				close(running)
				<-goOn
				created(w, r, tx)
			}))
			go func() { returned <- send(slow, "k") }()
			<-running
			h := s.handle(t, created, opts...)
			require.Equal(t, `{"recovered":true}`, send(h, "k").Body.String())
			require.True(t, s.events[0].Recovered)
			if back == "afterwards" {
				comeBack()
			}
			require.Equal(t, "true", send(h, "k").Header().Get("Idempotent-Replayed"))
			require.Equal(t, 1, s.sum(t))
			require.Equal(t, 1, recoveries)
			s.requireIdle(t)
		})
	}
}

// A handler that ended the transaction itself leaves the key interrupted. The recovery
// finds what it wrote.
func TestRecoveryOfAnEndedTransaction(t *testing.T) {
	s, recoveries := newService(t), 0
	h := s.handle(t, func(w http.ResponseWriter, r *http.Request, tx pgx.Tx) {
		_, err := tx.Exec(r.Context(), "COMMIT AND CHAIN")
		require.NoError(t, err)
		created(w, r, tx)
	}, s.recovery(t, &recoveries, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		fmt.Fprintf(w, `{"found":%d}`, s.payments(t))
	}))
	require.Equal(t, 503, send(h, "k").Code)
	require.Equal(t, `{"found":1}`, send(h, "k").Body.String())
	require.Equal(t, 101, s.sum(t))
	require.Equal(t, 1, s.runs)
	s.requireIdle(t)
}

// Without transactions, one of many retries at once recovers, and recoveries that die
// are recovered in turn.
func TestRecoveryWithoutTransactions(t *testing.T) {
	const clients = 16
	backend := newBackend(t, newPool(t))
	var recoveries atomic.Int32
	leave := make(chan struct{})
	h := idempotency.New(backend, idempotency.WithLogger(slog.New(slog.DiscardHandler)), idempotency.WithRecovery(func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if recoveries.Add(1) == 1 {
				idempotency.NoStore(r.Context())
				panic("died")
			}
			<-leave
			fmt.Fprint(w, `{"recovered":true}`)
		})
	}))(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("died") }))
	key := rand.Text()
	for range 2 {
		require.PanicsWithValue(t, "died", func() { send(h, key) })
	}
	var refused, all sync.WaitGroup
	refused.Add(clients - 1)
	for range clients {
		all.Go(func() {
			if w := send(h, key); w.Code == 409 && w.Header().Get("Retry-After") == "1" {
				refused.Done()
			} else if w.Code != 200 {
				t.Errorf("answered %d %s", w.Code, w.Body)
			}
		})
	}
	refused.Wait()
	close(leave)
	all.Wait()
	require.EqualValues(t, 2, recoveries.Load())
	require.Equal(t, `{"recovered":true}`, send(h, key).Body.String())
}
