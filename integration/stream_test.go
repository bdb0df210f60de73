package integration

import (
	"bufio"
	"fmt"
	"io"
	"log"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/gorilla/handlers"
	"github.com/gorilla/mux"
	"github.com/idempotency-go/idempotency"
	idempotencyecho "github.com/idempotency-go/idempotency/echo"
	idempotencygin "github.com/idempotency-go/idempotency/gin"
	"github.com/labstack/echo/v5"
	"github.com/stretchr/testify/require"
)

// chain is a handler with the middleware and one layer of another package.
type chain struct {
	name  string
	build func(once layer, h http.Handler) http.Handler
}

// chains has each layer that wraps a ResponseWriter, outside and inside, and the
// routers that do.
func chains() []chain {
	layers := []struct {
		name  string
		layer layer
	}{
		{"chi Logger", middleware.RequestLogger(&middleware.DefaultLogFormatter{Logger: log.New(io.Discard, "", 0)})},
		{"chi Recoverer", quietRecoverer},
		{"chi Timeout", middleware.Timeout(time.Minute)},
		{"chi Throttle", middleware.Throttle(10)},
		{"gorilla LoggingHandler", func(next http.Handler) http.Handler { return handlers.LoggingHandler(io.Discard, next) }},
	}
	layers = append(layers, compressors...)
	layers = append(layers, corses...)
	var all []chain
	for _, l := range layers {
		for _, order := range orders {
			all = append(all, chain{l.name + " " + order, func(once layer, h http.Handler) http.Handler {
				return orderStack(order, h, once, l.layer)
			}})
		}
	}
	return append(all,
		chain{"chi Use", func(once layer, h http.Handler) http.Handler {
			r := chi.NewRouter()
			r.Use(once)
			r.Handle("/*", h)
			return r
		}},
		chain{"gorilla Use", func(once layer, h http.Handler) http.Handler {
			r := mux.NewRouter()
			r.Use(once)
			r.PathPrefix("/").Handler(h)
			return r
		}},
		chain{"Gin Use", func(once layer, h http.Handler) http.Handler {
			e := gin.New()
			e.Use(idempotencygin.Middleware(once))
			e.POST("/", gin.WrapH(h))
			return e
		}},
		chain{"around Gin", func(once layer, h http.Handler) http.Handler {
			e := gin.New()
			e.POST("/", gin.WrapH(h))
			return once(e)
		}},
		chain{"Echo Use", func(once layer, h http.Handler) http.Handler {
			e := newEcho()
			e.Use(idempotencyecho.Middleware(once))
			e.POST("/", echo.WrapHandler(h))
			return e
		}},
		chain{"Echo WrapMiddleware", func(once layer, h http.Handler) http.Handler {
			e := newEcho()
			e.Use(echo.WrapMiddleware(once))
			e.POST("/", echo.WrapHandler(h))
			return e
		}},
		chain{"around Echo", func(once layer, h http.Handler) http.Handler {
			e := newEcho()
			e.POST("/", echo.WrapHandler(h))
			return once(e)
		}},
	)
}

// TestStreaming has a client read the first event of a stream before the handler
// writes the second, plain and compressed, in every chain.
func TestStreaming(t *testing.T) {
	flushes := map[string]func(http.ResponseWriter) error{
		"ResponseController": func(w http.ResponseWriter) error { return http.NewResponseController(w).Flush() },
		"Flusher":            func(w http.ResponseWriter) error { w.(http.Flusher).Flush(); return nil },
	}
	for _, c := range chains() {
		for how, flush := range flushes {
			for _, accept := range []string{"identity", "gzip"} {
				ok := t.Run(fmt.Sprintf("%s, %s, %s", c.name, how, accept), func(t *testing.T) {
					received := make(chan struct{})
					flushed := make(chan error, 1)
					h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						w.Header().Set("Content-Type", "text/event-stream")
						_, _ = io.WriteString(w, "data: 1\n\n")
						flushed <- flush(w)
						hold(received)
						_, _ = io.WriteString(w, "data: 2\n\n")
					})
					o := newOrderTest(t)
					s := o.serve(c.build(o.once, h))
					resp, err := s.open(http.MethodPost, "/", "k", "", "Accept-Encoding", accept)
					require.NoError(t, err)
					defer resp.Body.Close()
					plain, err := plainBody(resp)
					require.NoError(t, err)
					body := bufio.NewReader(plain)
					line, err := body.ReadString('\n')
					require.NoError(t, err)
					require.Equal(t, "data: 1\n", line)
					require.NoError(t, await(t, flushed, "flush"))
					close(received)
					rest, err := io.ReadAll(body)
					require.NoError(t, err)
					require.Equal(t, "\ndata: 2\n\n", string(rest))
					require.Equal(t, idempotency.NotStored, o.event().Outcome)
				})
				if !ok {
					return // The others would wait as long for what is held back.
				}
			}
		}
	}
}

// TestFlushOfStored has a handler flush a response that is stored all the same.
func TestFlushOfStored(t *testing.T) {
	for _, c := range chains() {
		t.Run(c.name, func(t *testing.T) {
			var runs atomic.Int64
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(http.StatusCreated)
				_, _ = io.WriteString(w, `{"run":`)
				_ = http.NewResponseController(w).Flush()
				_, _ = fmt.Fprintf(w, "%d}", runs.Add(1))
			})
			o := newOrderTest(t)
			s := o.serve(c.build(o.once, h))
			for _, answer := range []orderAnswer{s.post("/", "k"), s.post("/", "k")} {
				require.Equal(t, http.StatusCreated, answer.status)
				require.Equal(t, `{"run":1}`, answer.body)
			}
			require.EqualValues(t, 1, runs.Load())
		})
	}
}

// TestHijacking has a handler take over its connection, in every chain.
// It is not stored, not even where every type is.
func TestHijacking(t *testing.T) {
	for _, c := range chains() {
		t.Run(c.name, func(t *testing.T) {
			hijacked := make(chan error, 1)
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				conn, rw, err := http.NewResponseController(w).Hijack()
				hijacked <- err
				if err != nil {
					return
				}
				defer conn.Close()
				_, _ = rw.WriteString("HTTP/1.1 202 Accepted\r\nContent-Length: 4\r\nConnection: close\r\n\r\nmine")
				_ = rw.Flush()
			})
			o := newOrderTest(t, idempotency.WithContentTypes("*"))
			s := o.serve(c.build(o.once, h))
			for range 2 {
				answer := s.post("/", "k")
				require.NoError(t, await(t, hijacked, "hijack"))
				require.Equal(t, http.StatusAccepted, answer.status)
				require.Equal(t, "mine", answer.body)
				require.Equal(t, idempotency.NotStored, o.event().Outcome)
			}
		})
	}
}

// TestAbortHandler has a handler give up its connection, in every chain: the
// client sees it break, and the key is let go of.
func TestAbortHandler(t *testing.T) {
	for _, c := range chains() {
		t.Run(c.name, func(t *testing.T) {
			var runs atomic.Int64
			o := newOrderTest(t)
			s := o.serve(c.build(o.once, panicOf(&runs, http.ErrAbortHandler)))
			for range 2 {
				_, err := s.try(http.MethodPost, "/", "k", "")
				require.ErrorIs(t, err, io.EOF)
				require.Equal(t, idempotency.Panicked, o.event().Outcome)
			}
			require.EqualValues(t, 2, runs.Load())
			o.requireNothingStored()
		})
	}
}

// TestNoFlushThroughTimeoutHandler shows that what http.TimeoutHandler cannot do
// it cannot do around the middleware either, and says so.
func TestNoFlushThroughTimeoutHandler(t *testing.T) {
	for _, order := range orders {
		t.Run(order, func(t *testing.T) {
			errs := make(chan error, 2)
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "text/plain")
				control := http.NewResponseController(w)
				errs <- control.Flush()
				_, _, err := control.Hijack()
				errs <- err
			})
			o := newOrderTest(t)
			s := o.serve(orderStack(order, h, o.once, timeoutOfSlow("too slow")))
			require.Equal(t, http.StatusOK, s.post("/", "k").status)
			require.ErrorIs(t, await(t, errs, "flush"), http.ErrNotSupported)
			require.ErrorIs(t, await(t, errs, "hijack"), http.ErrNotSupported)
		})
	}
}
