package integration

import (
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

// chiPayment answers with what chi has found in the path.
func chiPayment(runs *atomic.Int64) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		_ = json.NewEncoder(w).Encode(map[string]any{
			"run": runs.Add(1), "account": chi.URLParam(r, "account"), "path": r.PathValue("account"),
		})
	}
}

// TestChiRouting puts the middleware wherever chi has a place for it. It shows
// too where a route's pattern is known for a replay: only where chi had found
// the route before the middleware answered.
func TestChiRouting(t *testing.T) {
	const pattern = "/v1/accounts/{account}/payments"
	for _, test := range []struct {
		name     string
		build    func(once layer, h http.HandlerFunc) http.Handler
		run      string // the event's pattern
		replayed string
	}{
		{"around the router", func(once layer, h http.HandlerFunc) http.Handler {
			r := chi.NewRouter()
			r.Post(pattern, h)
			return once(r)
		}, "", ""}, // chi tells it to the request that it makes itself

		{"Use", func(once layer, h http.HandlerFunc) http.Handler {
			r := chi.NewRouter()
			r.Use(once)
			r.Post(pattern, h)
			return r
		}, pattern, ""},
		{"With", func(once layer, h http.HandlerFunc) http.Handler {
			r := chi.NewRouter()
			r.With(once).Post(pattern, h)
			return r
		}, pattern, pattern},
		{"Group", func(once layer, h http.HandlerFunc) http.Handler {
			r := chi.NewRouter()
			r.Group(func(r chi.Router) {
				r.Use(once)
				r.Post(pattern, h)
			})
			return r
		}, pattern, pattern},
		{"Route", func(once layer, h http.HandlerFunc) http.Handler {
			r := chi.NewRouter()
			r.Route("/v1", func(r chi.Router) {
				r.Use(once)
				r.Post("/accounts/{account}/payments", h)
			})
			return r
		}, pattern, "/v1/*"},
		{"Mount", func(once layer, h http.HandlerFunc) http.Handler {
			sub := chi.NewRouter()
			sub.Use(once)
			sub.Post("/accounts/{account}/payments", h)
			r := chi.NewRouter()
			r.Mount("/v1", sub)
			return r
		}, pattern, "/v1/*"},
		{"on the router and on the route", func(once layer, h http.HandlerFunc) http.Handler {
			r := chi.NewRouter()
			r.Use(once)
			r.With(once).Post(pattern, h)
			return r
		}, pattern, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			var runs atomic.Int64
			o := newOrderTest(t)
			s := o.serve(test.build(o.once, chiPayment(&runs)))

			first := s.post("/v1/accounts/7/payments", "k")
			require.Equal(t, http.StatusCreated, first.status)
			require.JSONEq(t, `{"run":1,"account":"7","path":"7"}`, first.body)
			e := o.event()
			require.Equal(t, idempotency.Stored, e.Outcome)
			require.Equal(t, test.run, e.Request.Pattern)

			retry := s.post("/v1/accounts/7/payments", "k")
			require.True(t, retry.replayed)
			require.Equal(t, first.body, retry.body)
			e = o.event()
			require.Equal(t, idempotency.Replayed, e.Outcome)
			require.Equal(t, test.replayed, e.Request.Pattern)

			other := s.post("/v1/accounts/8/payments", "k")
			require.Equal(t, http.StatusUnprocessableEntity, other.status, "the path counts whole, however it was mounted")
			require.EqualValues(t, 1, runs.Load())
			require.Equal(t, idempotency.Reused, o.event().Outcome)
			require.Empty(t, o.events, "twice in a chain it serves once")
		})
	}
}

// TestChiRoutePattern has a layer outside read chi's route when the request is
// done. The middleware copies the request, but not chi's context.
func TestChiRoutePattern(t *testing.T) {
	patterns := make(chan string, 2)
	read := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(w, r)
			patterns <- chi.RouteContext(r.Context()).RoutePattern()
		})
	}
	for _, test := range []struct {
		name          string
		build         func(r *chi.Mux, once layer, h http.HandlerFunc)
		run, replayed string
	}{
		{"Use", func(r *chi.Mux, once layer, h http.HandlerFunc) {
			r.Use(read, once)
			r.Post("/accounts/{account}", h)
		}, "/accounts/{account}", ""},
		{"Route", func(r *chi.Mux, once layer, h http.HandlerFunc) {
			r.Use(read)
			r.Route("/accounts", func(r chi.Router) {
				r.Use(once)
				r.Post("/{account}", h)
			})
		}, "/accounts/{account}", "/accounts/*"},
		{"With", func(r *chi.Mux, once layer, h http.HandlerFunc) {
			r.Use(read)
			r.With(once).Post("/accounts/{account}", h)
		}, "/accounts/{account}", "/accounts/{account}"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var runs atomic.Int64
			o := newOrderTest(t)
			r := chi.NewRouter()
			test.build(r, o.once, chiPayment(&runs))
			s := o.serve(r)
			s.twice("/accounts/7", idempotency.Stored, idempotency.Replayed)
			require.Equal(t, test.run, await(t, patterns, "pattern"))
			require.Equal(t, test.replayed, await(t, patterns, "pattern"))
		})
	}
}

// TestChiRequestID shows that a replay carries the id of its own request where
// the id is set outside, and a stranger's where it is set inside.
func TestChiRequestID(t *testing.T) {
	tell := func(next http.Handler) http.Handler {
		return middleware.RequestID(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Request-Id", middleware.GetReqID(r.Context()))
			next.ServeHTTP(w, r)
		}))
	}
	for _, order := range orders {
		t.Run(order, func(t *testing.T) {
			o, till := newOrderTest(t), &paymentTill{}
			s := o.serve(orderStack(order, till, o.once, tell))
			first := s.post("/", "k", "X-Request-Id", "one")
			retry := s.post("/", "k", "X-Request-Id", "two")
			require.True(t, retry.replayed)
			require.Equal(t, "one", first.header.Get("X-Request-Id"))
			if order == outside {
				require.Equal(t, []string{"two"}, retry.header.Values("X-Request-Id"))
				o.requireStored(http.StatusCreated, `{"payment":1}`, "Content-Type", "application/json")
			} else {
				require.Equal(t, []string{"one"}, retry.header.Values("X-Request-Id"))
				o.requireStored(http.StatusCreated, `{"payment":1}`, "Content-Type", "application/json", "X-Request-Id", "one")
			}
		})
	}
}

// TestChiClientAddress scopes keys by the client's address. Inside, the address
// comes too late: the scope is then the connection's, and a retry on another
// connection is another request.
func TestChiClientAddress(t *testing.T) {
	byRemoteAddr := func(r *http.Request) string { return r.RemoteAddr }
	byClientIP := func(r *http.Request) string { return middleware.GetClientIP(r.Context()) }
	for _, test := range []struct {
		name  string
		layer layer
		scope func(*http.Request) string
		shift bool // the scope inside is another one for each connection
	}{
		//lint:ignore SA1019 It is deprecated for the trust that it puts in a header, and in wide use.
		{"RealIP", middleware.RealIP, byRemoteAddr, true},
		{"ClientIPFromHeader", middleware.ClientIPFromHeader("X-Real-IP"), byClientIP, false},
	} {
		for _, order := range orders {
			t.Run(test.name+" "+order, func(t *testing.T) {
				o, till := newOrderTest(t, idempotency.WithScope(test.scope)), &paymentTill{}
				s := o.serve(orderStack(order, till, o.once, test.layer))
				alice, bob := []string{"X-Real-IP", "192.0.2.1"}, []string{"X-Real-IP", "192.0.2.2"}
				s.post("/", "k", alice...)
				retry, other := s.post("/", "k", alice...), s.post("/", "k", bob...)
				switch {
				case order == outside:
					require.True(t, retry.replayed)
					require.Equal(t, `{"payment":2}`, other.body, "another client's key is another key")
				case test.shift:
					require.Equal(t, `{"payment":2}`, retry.body, "a retry from another port is not known")
					require.Equal(t, `{"payment":3}`, other.body)
				default:
					require.True(t, retry.replayed)
					require.True(t, other.replayed, "without an address all clients share their keys")
				}
			})
		}
	}
}

// TestChiLogger counts what a logger sees: outside each request, inside only the
// runs.
func TestChiLogger(t *testing.T) {
	for _, order := range orders {
		t.Run(order, func(t *testing.T) {
			out := newLines()
			logger := middleware.RequestLogger(&middleware.DefaultLogFormatter{Logger: log.New(out, "", 0), NoColor: true})
			o, till := newOrderTest(t), &paymentTill{}
			s := o.serve(orderStack(order, till, o.once, logger))
			_, retry := s.twice("/", idempotency.Stored, idempotency.Replayed)
			require.True(t, retry.replayed)
			reused := s.send(http.MethodPost, "/", "k", "amount=999")
			require.Equal(t, http.StatusUnprocessableEntity, reused.status)
			s.Server.Close() // Then every line is written.

			require.Contains(t, out.next(t), "201 13B")
			if order == inside {
				require.Empty(t, out)
				return
			}
			require.Contains(t, out.next(t), "201 13B", "the replay")
			require.Contains(t, out.next(t), "422")
			require.Empty(t, out)
		})
	}
}

// TestChiRecoverer shows that outside of a recoverer a panic is a response like
// any other.
func TestChiRecoverer(t *testing.T) {
	for _, test := range []struct {
		order   string
		opts    []idempotency.Option
		outcome idempotency.Outcome
		again   idempotency.Outcome
		runs    int64
	}{
		{outside, nil, idempotency.Panicked, idempotency.Panicked, 2},
		{outside, []idempotency.Option{idempotency.WithContentTypes("*")}, idempotency.Panicked, idempotency.Panicked, 2},
		{outside, []idempotency.Option{idempotency.WithAtMostOnce()}, idempotency.Panicked, idempotency.Interrupted, 1},
		{inside, nil, idempotency.NotStored, idempotency.NotStored, 2},
		{inside, []idempotency.Option{idempotency.WithContentTypes("*")}, idempotency.Stored, idempotency.Replayed, 1},
	} {
		t.Run(fmt.Sprint(test.order, " ", test.outcome, " ", test.again), func(t *testing.T) {
			var runs atomic.Int64
			o := newOrderTest(t, test.opts...)
			s := o.serve(orderStack(test.order, panicOf(&runs, "no such account"), o.once, quietRecoverer))
			first, retry := s.twice("/", test.outcome, test.again)
			require.Equal(t, http.StatusInternalServerError, first.status)
			require.Empty(t, first.body)
			require.Equal(t, test.runs, runs.Load())
			require.Equal(t, test.again == idempotency.Replayed, retry.replayed)
		})
	}
}

// quietRecoverer is chi's Recoverer, which prints the stack to stderr where the
// request has no log entry.
func quietRecoverer(next http.Handler) http.Handler {
	recoverer := middleware.Recoverer(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		recoverer.ServeHTTP(w, middleware.WithLogEntry(r, silentEntry{}))
	})
}

type silentEntry struct{}

func (silentEntry) Write(int, int, http.Header, time.Duration, any) {}
func (silentEntry) Panic(any, []byte)                               {}

// TestJSONRecovererInside shows the worst place of a recoverer: its JSON is
// stored, and one panic is the answer for as long as the record lasts.
func TestJSONRecovererInside(t *testing.T) {
	recoverer := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer func() {
				if recover() != nil {
					w.Header().Set("Content-Type", "application/json")
					w.WriteHeader(http.StatusInternalServerError)
					_, _ = w.Write([]byte(`{"error":"internal"}`))
				}
			}()
			next.ServeHTTP(w, r)
		})
	}
	for _, order := range orders {
		t.Run(order, func(t *testing.T) {
			var runs atomic.Int64
			o := newOrderTest(t)
			s := o.serve(orderStack(order, panicOf(&runs, "no such account"), o.once, recoverer))
			if order == outside {
				first, retry := s.twice("/", idempotency.Panicked, idempotency.Panicked)
				require.Equal(t, `{"error":"internal"}`, first.body)
				require.False(t, retry.replayed)
				require.EqualValues(t, 2, runs.Load())
				o.requireNothingStored()
				return
			}
			_, retry := s.twice("/", idempotency.Stored, idempotency.Replayed)
			require.Equal(t, http.StatusInternalServerError, retry.status)
			require.EqualValues(t, 1, runs.Load())
			o.requireStored(http.StatusInternalServerError, `{"error":"internal"}`, "Content-Type", "application/json")
		})
	}
}

// TestChiTimeout has a handler that gives up when its context ends. chi's 504 is
// never stored, in either order; what the handler itself says is.
func TestChiTimeout(t *testing.T) {
	for _, order := range orders {
		for _, says := range []string{"nothing", "JSON", "JSON with NoStore"} {
			t.Run(order+", the handler says "+says, func(t *testing.T) {
				var runs atomic.Int64
				h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					runs.Add(1)
					<-r.Context().Done()
					if says == "JSON with NoStore" {
						idempotency.NoStore(r.Context())
					}
					if says != "nothing" {
						w.Header().Set("Content-Type", "application/json")
						w.WriteHeader(http.StatusGatewayTimeout)
						_, _ = w.Write([]byte(`{"error":"too slow"}`))
					}
				})
				o := newOrderTest(t)
				s := o.serve(orderStack(order, h, o.once, middleware.Timeout(100*time.Millisecond)))
				outcome, again := idempotency.NotStored, idempotency.NotStored
				if says == "JSON" {
					outcome, again = idempotency.Stored, idempotency.Replayed
				}
				first, retry := s.twice("/", outcome, again)
				require.Equal(t, http.StatusGatewayTimeout, first.status)
				require.Equal(t, http.StatusGatewayTimeout, retry.status)
				require.Equal(t, first.body, retry.body)
				if says == "JSON" {
					require.EqualValues(t, 1, runs.Load())
					return
				}
				require.EqualValues(t, 2, runs.Load())
				o.requireNothingStored()
			})
		}
	}
}

// TestChiTimeoutIgnored has a handler that pays no heed to its context: its late
// answer is stored and sent.
func TestChiTimeoutIgnored(t *testing.T) {
	for _, order := range orders {
		t.Run(order, func(t *testing.T) {
			till := &paymentTill{}
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				<-r.Context().Done()
				till.ServeHTTP(w, r)
			})
			o := newOrderTest(t)
			s := o.serve(orderStack(order, h, o.once, middleware.Timeout(100*time.Millisecond)))
			first, retry := s.twice("/", idempotency.Stored, idempotency.Replayed)
			require.Equal(t, http.StatusCreated, first.status)
			require.Equal(t, http.StatusCreated, retry.status)
			require.EqualValues(t, 1, till.runs.Load())
		})
	}
}

// TestChiThrottle fills a throttle with one request. Outside, it turns away
// replays and duplicates too; inside, its refusal is the handler's answer to the
// key.
func TestChiThrottle(t *testing.T) {
	for _, test := range []struct {
		name  string
		order string
		opts  []idempotency.Option
	}{
		{"outside", outside, nil},
		{"inside", inside, nil},
		{"inside, and every type is stored", inside, []idempotency.Option{idempotency.WithContentTypes("*")}},
	} {
		t.Run(test.name, func(t *testing.T) {
			till, running, finish := &paymentTill{}, make(chan struct{}, 1), make(chan struct{})
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Slow") != "" {
					running <- struct{}{}
					hold(finish)
				}
				till.ServeHTTP(w, r)
			})
			o := newOrderTest(t, test.opts...)
			s := o.serve(orderStack(test.order, h, o.once, middleware.Throttle(1)))
			s.post("/", "done")
			require.Equal(t, idempotency.Stored, o.event().Outcome)
			slow := s.start("/", "slow", "Slow", "yes")
			await(t, running, "slow request")

			replay, duplicate, fresh := s.post("/", "done"), s.post("/", "slow", "Slow", "yes"), s.post("/", "new")
			close(finish)
			require.Equal(t, `{"payment":2}`, await(t, slow, "answer").body)
			require.Equal(t, http.StatusTooManyRequests, fresh.status)
			again := s.post("/", "new")
			switch {
			case test.order == outside:
				require.Equal(t, http.StatusTooManyRequests, replay.status, "a replay takes a place too")
				require.Equal(t, http.StatusTooManyRequests, duplicate.status, "and is not told that its first one runs")
				require.Equal(t, `{"payment":3}`, again.body)
			case test.opts == nil:
				require.Equal(t, `{"payment":1}`, replay.body)
				require.Equal(t, http.StatusConflict, duplicate.status)
				require.Equal(t, `{"payment":3}`, again.body, "the 429 is text, and is not stored")
			default:
				require.Equal(t, http.StatusTooManyRequests, again.status, "the refusal is the answer from now on")
				require.True(t, again.replayed)
				require.EqualValues(t, 2, till.runs.Load())
			}
		})
	}
}

// TestChiNotFound has chi answer for a path that it does not know: nothing that
// the middleware around it would store.
func TestChiNotFound(t *testing.T) {
	o := newOrderTest(t)
	r := chi.NewRouter()
	r.Use(o.once)
	r.Post("/payments", (&paymentTill{}).ServeHTTP)
	s := o.serve(r)
	first, _ := s.twice("/nowhere", idempotency.NotStored, idempotency.NotStored)
	require.Equal(t, http.StatusNotFound, first.status)
	require.Equal(t, http.StatusMethodNotAllowed, s.send(http.MethodPatch, "/payments", "p", "").status)
	o.requireNothingStored()
}
