package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/postgres"
)

// resumes runs the handler again after an interruption.
var resumes = idempotency.WithRecovery(func(next http.Handler) http.Handler { return next })

// trip counts the runs of its steps.
type trip struct{ flights, hotels int }

// book takes two steps, and calls between between them.
func (b *trip) book(t *testing.T, ctx context.Context, between func()) string {
	step := func(name string, runs *int) string {
		booked, err := idempotency.Step(ctx, name, func(context.Context) ([]byte, error) {
			*runs++
			return fmt.Append(nil, name, *runs, "\x00\xff"), nil
		})
		require.NoError(t, err)
		return string(booked)
	}
	flight := step("flight", &b.flights)
	between()
	return fmt.Sprintf("%q", flight+step("hotel", &b.hotels))
}

const booked = `"flight1\x00\xffhotel1\x00\xff"`

// A step that was kept does not run again: after a panic, and after a process that died.
func TestStep(t *testing.T) {
	for _, dies := range []string{"panics", "is gone"} {
		t.Run(dies, func(t *testing.T) {
			backend, b := newBackend(t, newPool(t)), &trip{}
			handle := func(backend idempotency.Backend, between func()) http.Handler {
				return idempotency.New(backend, resumes, idempotency.WithLogger(slog.New(slog.DiscardHandler)),
					idempotency.WithContentTypes("*"), idempotency.WithLease(time.Second), idempotency.WithWait(time.Minute),
				)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, b.book(t, r.Context(), between)) }))
			}
			dead := idempotency.Backend(backend)
			if dies == "is gone" {
				dead = noRelease{backend}
			}
			for range 2 {
				require.PanicsWithValue(t, "died", func() { send(handle(dead, func() { panic("died") }), "k") })
			}
			require.Zero(t, b.hotels)
			require.Equal(t, booked, send(handle(backend, func() {}), "k").Body.String())
			require.Equal(t, "true", send(handle(backend, func() {}), "k").Header().Get("Idempotent-Replayed"))
			require.Equal(t, trip{1, 1}, *b)
		})
	}
}

// noRelease is a Backend whose process is gone before it can release its claim.
type noRelease struct{ idempotency.Backend }

func (noRelease) Release(context.Context, idempotency.Key, idempotency.Claim, time.Duration) error {
	return errors.New("gone")
}

// What the handler writes in its transaction is undone, and the results of its steps stay:
// also if the transaction has every connection of the pool.
func TestStepIsNoPartOfTheTransaction(t *testing.T) {
	s, b, status := newService(t, func(c *pgxpool.Config) { c.MaxConns = 1 }), &trip{}, 500
	h := s.handle(t, func(w http.ResponseWriter, r *http.Request, _ pgx.Tx) {
		text := b.book(t, r.Context(), func() {})
		w.WriteHeader(status)
		fmt.Fprint(w, text)
	}, resumes)
	require.Equal(t, 500, send(h, "k").Code)
	require.Zero(t, s.payments(t))
	status = 201
	require.Equal(t, booked, send(h, "k").Body.String())
	require.Equal(t, 1, s.payments(t))
	require.Equal(t, trip{1, 1}, *b)
	s.requireIdle(t)
}

// With a stricter level a step after the first statement keeps the transaction from its
// COMMIT, as a renewal does. The retry has the results, and commits.
func TestStepAndIsolation(t *testing.T) {
	for _, stepsFirst := range []bool{true, false} {
		t.Run(fmt.Sprint("steps first: ", stepsFirst), func(t *testing.T) {
			s, b := newService(t, serializable), &trip{}
			h := idempotency.New(s.backend, append(s.opts, resumes)...)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				tx, err := postgres.Tx(r.Context())
				require.NoError(t, err)
				if stepsFirst {
					b.book(t, r.Context(), func() {})
				}
				pay(t, r, tx)
				fmt.Fprint(w, b.book(t, r.Context(), func() {}))
			}))
			if !stepsFirst {
				require.Equal(t, 503, send(h, "k").Code)
				require.ErrorIs(t, s.events[0].Err, idempotency.ErrNotCommitted)
				require.Zero(t, s.payments(t))
			}
			require.Equal(t, booked, send(h, "k").Body.String())
			require.Equal(t, 1, s.payments(t))
			require.Equal(t, trip{1, 1}, *b)
		})
	}
}

// A run that lost its claim keeps no further step.
func TestStepOfALateOwner(t *testing.T) {
	s := newService(t)
	opts := append(s.opts[:1:1], resumes, idempotency.WithLease(time.Second), idempotency.WithWait(time.Minute))
	running, goOn, returned := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(returned)
		send(idempotency.New(unrenewed{s.backend}, opts...)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, err := idempotency.Step(r.Context(), "s", func(context.Context) ([]byte, error) {
				close(running)
				<-goOn
				return []byte("late, and longer"), nil
			})
			require.ErrorIs(t, err, idempotency.ErrClaimLost)
			require.ErrorIs(t, context.Cause(r.Context()), idempotency.ErrClaimLost)
		})), "k")
	}()
	<-running
	for range 2 {
		h := idempotency.New(s.backend, opts...)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			kept, err := idempotency.Step(r.Context(), "s", func(context.Context) ([]byte, error) { return []byte("kept"), nil })
			require.NoError(t, err)
			require.Equal(t, "kept", string(kept))
			select {
			case <-goOn:
			default:
				close(goOn)
			}
			<-returned
			panic("died")
		}))
		require.PanicsWithValue(t, "died", func() { send(h, "k") })
	}
}

// unrenewed is a Transactional whose renewals without progress do not reach the database.
type unrenewed struct{ *postgres.Transactional }

func (b unrenewed) Renew(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms, progress []byte) error {
	if progress == nil {
		return errors.New("no route to host")
	}
	return b.Transactional.Renew(ctx, key, claim, terms, progress)
}
