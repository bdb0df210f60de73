package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/gorilla/handlers"
	"github.com/gorilla/mux"
	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

// TestGorillaRouting puts the middleware wherever gorilla/mux has a place for
// it. In Use it runs after the route is found: the route and its variables are
// known to the handler, to a scope and to observers, for a replay too.
func TestGorillaRouting(t *testing.T) {
	const path = "/v1/accounts/{account}/payments"
	for _, test := range []struct {
		name   string
		build  func(once layer, h http.Handler) http.Handler
		routed bool // before the middleware
	}{
		{"around the router", func(once layer, h http.Handler) http.Handler {
			r := mux.NewRouter()
			r.Handle(path, h).Methods(http.MethodPost)
			return once(r)
		}, false},
		{"Use", func(once layer, h http.Handler) http.Handler {
			r := mux.NewRouter()
			r.Use(once)
			r.Handle(path, h).Methods(http.MethodPost)
			return r
		}, true},
		{"Use on a subrouter", func(once layer, h http.Handler) http.Handler {
			r := mux.NewRouter()
			sub := r.PathPrefix("/v1").Subrouter()
			sub.Use(once)
			sub.Handle("/accounts/{account}/payments", h).Methods(http.MethodPost)
			return r
		}, true},
		{"on the route", func(once layer, h http.Handler) http.Handler {
			r := mux.NewRouter()
			r.Handle(path, once(h)).Methods(http.MethodPost)
			return r
		}, true},
		{"on the router and on its subrouter", func(once layer, h http.Handler) http.Handler {
			r := mux.NewRouter()
			r.Use(once)
			sub := r.PathPrefix("/v1").Subrouter()
			sub.Use(once)
			sub.Handle("/accounts/{account}/payments", h).Methods(http.MethodPost)
			return r
		}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			var runs atomic.Int64
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				template, err := mux.CurrentRoute(r).GetPathTemplate()
				if err != nil {
					panic(err)
				}
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(http.StatusCreated)
				_ = json.NewEncoder(w).Encode(map[string]any{
					"run": runs.Add(1), "account": mux.Vars(r)["account"], "template": template,
				})
			})
			byAccount := idempotency.WithScope(func(r *http.Request) string { return mux.Vars(r)["account"] })
			o := newOrderTest(t, byAccount)
			s := o.serve(test.build(o.once, h))
			for _, outcome := range []idempotency.Outcome{idempotency.Stored, idempotency.Replayed} {
				answer := s.post("/v1/accounts/7/payments", "k")
				require.Equal(t, outcome == idempotency.Replayed, answer.replayed)
				require.JSONEq(t, `{"run":1,"account":"7","template":"`+path+`"}`, answer.body)
				e := o.event()
				require.Equal(t, outcome, e.Outcome)
				if !test.routed {
					require.Nil(t, mux.CurrentRoute(e.Request))
					continue
				}
				template, err := mux.CurrentRoute(e.Request).GetPathTemplate()
				require.NoError(t, err)
				require.Equal(t, path, template)
			}

			other := s.post("/v1/accounts/8/payments", "k")
			if test.routed {
				require.Equal(t, http.StatusCreated, other.status, "a variable of the path can be the scope")
			} else {
				require.Equal(t, http.StatusUnprocessableEntity, other.status)
			}
			o.event()
			require.Empty(t, o.events, "twice in a chain it serves once")

			require.Equal(t, http.StatusNotFound, s.post("/nowhere", "n").status)
			if test.routed {
				require.Empty(t, o.events, "for a path that it does not know, mux runs no middleware")
			}
		})
	}
}

// TestGorillaRecoveryHandler shows that outside of a recoverer a panic is a
// response like any other. gorilla's takes http.ErrAbortHandler for a fault too.
func TestGorillaRecoveryHandler(t *testing.T) {
	recovery := handlers.RecoveryHandler(handlers.RecoveryLogger(log.New(io.Discard, "", 0)))
	for _, value := range []any{"no such account", http.ErrAbortHandler} {
		for order, outcome := range map[string]idempotency.Outcome{outside: idempotency.Panicked, inside: idempotency.NotStored} {
			t.Run(fmt.Sprint(value, ", ", order), func(t *testing.T) {
				var runs atomic.Int64
				o := newOrderTest(t)
				s := o.serve(orderStack(order, panicOf(&runs, value), o.once, recovery))
				first, retry := s.twice("/", outcome, outcome)
				require.Equal(t, http.StatusInternalServerError, first.status)
				require.Equal(t, http.StatusInternalServerError, retry.status)
				require.EqualValues(t, 2, runs.Load())
				o.requireNothingStored()
			})
		}
	}
}

// TestGorillaLoggingHandler counts what a logger sees: outside each request,
// inside only the runs.
func TestGorillaLoggingHandler(t *testing.T) {
	for _, order := range orders {
		t.Run(order, func(t *testing.T) {
			out := newLines()
			logging := func(next http.Handler) http.Handler { return handlers.LoggingHandler(out, next) }
			o, till := newOrderTest(t), &paymentTill{}
			s := o.serve(orderStack(order, till, o.once, logging))
			_, retry := s.twice("/pay", idempotency.Stored, idempotency.Replayed)
			require.True(t, retry.replayed)
			s.Server.Close() // Then every line is written.
			require.Contains(t, out.next(t), `"POST /pay HTTP/1.1" 201 13`)
			if order == outside {
				require.Contains(t, out.next(t), `"POST /pay HTTP/1.1" 201 13`)
			}
			require.Empty(t, out)
		})
	}
}

// TestGorillaMethodOverride has the form parsed outside: it counts as the body would,
// and the handler gets it.
func TestGorillaMethodOverride(t *testing.T) {
	const multipart = "--x\r\nContent-Disposition: form-data; name=\"_method\"\r\n\r\nPATCH\r\n" +
		"--x\r\nContent-Disposition: form-data; name=\"amount\"\r\n\r\n%d\r\n--x--\r\n"
	for contentType, body := range map[string]string{
		"application/x-www-form-urlencoded": "_method=PATCH&amount=%d",
		"multipart/form-data; boundary=x":   multipart,
	} {
		t.Run(contentType, func(t *testing.T) {
			o := newOrderTest(t)
			s := o.serve(stack(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				fmt.Fprintf(w, `{"method":%q,"amount":%q}`, r.Method, r.FormValue("amount"))
			}), handlers.HTTPMethodOverrideHandler, o.once))
			send := func(amount int) orderAnswer {
				return s.send(http.MethodPost, "/", "k", fmt.Sprintf(body, amount), "Content-Type", contentType)
			}
			require.Equal(t, `{"method":"PATCH","amount":"10"}`, send(10).body)
			retry := send(10)
			require.True(t, retry.replayed)
			require.Equal(t, `{"method":"PATCH","amount":"10"}`, retry.body)
			require.Equal(t, http.StatusUnprocessableEntity, send(9999).status)
		})
	}
}
