package integration

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/idempotency-go/idempotency"
	idempotencyecho "github.com/idempotency-go/idempotency/echo"
	"github.com/labstack/echo/v5"
	"github.com/labstack/echo/v5/middleware"
	"github.com/stretchr/testify/require"
)

// echoErrors does a part of what the adapter does, right inside of echo.WrapMiddleware.
func echoErrors(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c *echo.Context) error {
		if err := next(c); err != nil {
			c.Echo().HTTPErrorHandler(c, err)
		}
		return nil
	}
}

// newEcho returns an Echo that logs nothing.
func newEcho() *echo.Echo {
	e := echo.New()
	e.Logger = slog.New(slog.DiscardHandler)
	return e
}

// echoPayment answers with what Echo has found in the path.
func echoPayment(runs *atomic.Int64) echo.HandlerFunc {
	return func(c *echo.Context) error {
		body, err := io.ReadAll(c.Request().Body)
		if err != nil {
			return err
		}
		return c.JSON(http.StatusCreated, map[string]any{"run": runs.Add(1), "account": c.Param("account"), "body": string(body)})
	}
}

// TestEchoRouting puts the middleware where the adapter does not stand.
func TestEchoRouting(t *testing.T) {
	const path = "/v1/accounts/:account"
	for name, build := range map[string]func(once layer, h echo.HandlerFunc) http.Handler{
		"around Echo": func(once layer, h echo.HandlerFunc) http.Handler {
			e := newEcho()
			e.POST(path, h)
			return once(e)
		},
		"WrapMiddleware": func(once layer, h echo.HandlerFunc) http.Handler {
			e := newEcho()
			e.Use(echo.WrapMiddleware(once), echoErrors)
			e.POST(path, h)
			return e
		},
	} {
		t.Run(name, func(t *testing.T) {
			requireRunsOnce(t, func(once layer, runs *atomic.Int64) http.Handler { return build(once, echoPayment(runs)) }, "application/json")
		})
	}
}

// TestEchoReturnedError has a handler return an error, as Echo's do. Its answer
// is stored only where it is written inside of the middleware.
func TestEchoReturnedError(t *testing.T) {
	every := idempotency.WithContentTypes("*")
	const sold = `{"message":"sold out"}` + "\n"
	for _, test := range []struct {
		name    string
		build   func(once layer, h echo.HandlerFunc) http.Handler
		opts    []idempotency.Option
		outcome idempotency.Outcome
		seen    int // by observers
		retried idempotency.Outcome
		status  int // of both answers
		body    string
		runs    int64
	}{
		{
			"around Echo: its answer is inside", echoAround, nil,
			idempotency.Stored, http.StatusConflict, idempotency.Replayed, http.StatusConflict, sold, 1,
		}, {
			"WrapMiddleware with echoErrors inside", echoMended, nil,
			idempotency.Stored, http.StatusConflict, idempotency.Replayed, http.StatusConflict, sold, 1,
		}, {
			"WrapMiddleware alone: the answer comes too late to be stored, and observers are told 200", echoBare, nil,
			idempotency.NotStored, http.StatusOK, idempotency.NotStored, http.StatusConflict, sold, 2,
		}, {
			"WrapMiddleware alone, every type: the client is told that all is well, from now on", echoBare, []idempotency.Option{every},
			idempotency.Stored, http.StatusOK, idempotency.Replayed, http.StatusOK, "", 1,
		}, {
			"WrapMiddleware with echoErrors outside: as without", func(once layer, h echo.HandlerFunc) http.Handler {
				e := newEcho()
				e.Use(echoErrors, echo.WrapMiddleware(once))
				e.POST("/", h)
				return e
			}, nil,
			idempotency.NotStored, http.StatusOK, idempotency.NotStored, http.StatusConflict, sold, 2,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			var runs atomic.Int64
			o := newOrderTest(t, test.opts...)
			s := o.serve(test.build(o.once, func(*echo.Context) error {
				runs.Add(1)
				return echo.NewHTTPError(http.StatusConflict, "sold out")
			}))
			first := s.post("/", "k")
			e := o.event()
			require.Equal(t, test.outcome, e.Outcome)
			require.Equal(t, test.seen, e.Status)
			retry := s.post("/", "k")
			require.Equal(t, test.retried, o.event().Outcome)
			for _, answer := range []orderAnswer{first, retry} {
				require.Equal(t, test.status, answer.status)
				require.Equal(t, test.body, answer.body)
			}
			require.Equal(t, test.runs, runs.Load())
		})
	}
}

func echoAround(once layer, h echo.HandlerFunc) http.Handler {
	e := newEcho()
	e.POST("/", h)
	return once(e)
}

func echoBare(once layer, h echo.HandlerFunc) http.Handler {
	e := newEcho()
	e.Use(echo.WrapMiddleware(once))
	e.POST("/", h)
	return e
}

func echoMended(once layer, h echo.HandlerFunc) http.Handler {
	e := newEcho()
	e.Use(echo.WrapMiddleware(once), echoErrors)
	e.POST("/", h)
	return e
}

// echoStack puts a middleware of Echo outside or inside of the one under test.
func echoStack(order string, once layer, m echo.MiddlewareFunc, h echo.HandlerFunc) http.Handler {
	e := newEcho()
	if order == outside {
		e.Use(m, idempotencyecho.Middleware(once))
	} else {
		e.Use(idempotencyecho.Middleware(once), m)
	}
	e.POST("/", h)
	return e
}

// TestEchoRecoverOutside has a handler panic before and after it has written.
// After echo.WrapMiddleware, Echo's recoverer has the handler's writer: where
// that was written to it believes that the client has an answer, which is then
// an empty 200.
func TestEchoRecoverOutside(t *testing.T) {
	for _, test := range []struct {
		name   string
		m      func(layer) echo.MiddlewareFunc
		writes bool
		status int
	}{
		{"WrapMiddleware", echo.WrapMiddleware, false, http.StatusInternalServerError},
		{"WrapMiddleware, after an answer", echo.WrapMiddleware, true, http.StatusOK},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := newOrderTest(t)
			e := newEcho()
			e.Use(middleware.Recover(), test.m(o.once))
			e.POST("/", func(c *echo.Context) error {
				if test.writes {
					if err := c.JSON(http.StatusCreated, map[string]any{"payment": 1}); err != nil {
						return err
					}
				}
				panic("no such account")
			})
			s := o.serve(e)
			first, _ := s.twice("/", idempotency.Panicked, idempotency.Panicked)
			require.Equal(t, test.status, first.status)
			require.NotContains(t, first.body, "payment")
			require.Equal(t, test.status != http.StatusOK, first.body != "")
			o.requireNothingStored()
		})
	}
}

// TestEchoBasicAuth has a client mend its password. Echo refuses in JSON: inside
// of the middleware a 401 is stored, and so it is around Echo, where all of
// Echo's middleware is inside.
func TestEchoBasicAuth(t *testing.T) {
	auth := middleware.BasicAuth(func(_ *echo.Context, user, password string) (bool, error) {
		return user == "alice" && password == "a", nil
	})
	for name, build := range map[string]func(once layer, h echo.HandlerFunc) http.Handler{
		outside: func(once layer, h echo.HandlerFunc) http.Handler { return echoStack(outside, once, auth, h) },
		inside:  func(once layer, h echo.HandlerFunc) http.Handler { return echoStack(inside, once, auth, h) },
		"around Echo": func(once layer, h echo.HandlerFunc) http.Handler {
			e := newEcho()
			e.Use(auth)
			e.POST("/", h)
			return once(e)
		},
	} {
		t.Run(name, func(t *testing.T) {
			var runs atomic.Int64
			o := newOrderTest(t)
			s := o.serve(build(o.once, echoPayment(&runs)))
			require.Equal(t, http.StatusUnauthorized, s.post("/", "k").status)
			mended := s.post("/", "k", "Authorization", "Basic YWxpY2U6YQ==")
			if name == outside {
				require.Equal(t, http.StatusCreated, mended.status)
				require.Equal(t, http.StatusUnauthorized, s.post("/", "k").status)
				return
			}
			require.Equal(t, http.StatusUnauthorized, mended.status)
			require.True(t, mended.replayed)
			require.Zero(t, runs.Load())
		})
	}
}

// TestEchoLogger counts what a logger sees: outside each request, inside only
// the runs.
func TestEchoLogger(t *testing.T) {
	for _, order := range orders {
		t.Run(order, func(t *testing.T) {
			statuses := make(chan int, 8)
			logger := middleware.RequestLoggerWithConfig(middleware.RequestLoggerConfig{
				LogStatus:     true,
				HandleError:   true,
				LogValuesFunc: func(_ *echo.Context, v middleware.RequestLoggerValues) error { statuses <- v.Status; return nil },
			})
			o := newOrderTest(t)
			s := o.serve(echoStack(order, o.once, logger, func(*echo.Context) error {
				return echo.NewHTTPError(http.StatusConflict, "sold out")
			}))
			s.twice("/", idempotency.Stored, idempotency.Replayed)
			s.Server.Close() // Then all is logged.
			require.Equal(t, http.StatusConflict, await(t, statuses, "line"))
			if order == outside {
				require.Equal(t, http.StatusConflict, await(t, statuses, "line"), "the replay")
			}
			require.Empty(t, statuses)
		})
	}
}

// TestEchoContextTimeout has Echo's time-out answer in JSON for a handler that
// returns its context's error: inside it is stored, outside it is not reached.
func TestEchoContextTimeout(t *testing.T) {
	for _, order := range orders {
		t.Run(order, func(t *testing.T) {
			var runs atomic.Int64
			o := newOrderTest(t)
			s := o.serve(echoStack(order, o.once, middleware.ContextTimeout(100*time.Millisecond), func(c *echo.Context) error {
				runs.Add(1)
				<-c.Request().Context().Done()
				return c.Request().Context().Err()
			}))
			first, retry := s.twice("/", idempotency.Stored, idempotency.Replayed)
			require.Equal(t, first.status, retry.status)
			require.EqualValues(t, 1, runs.Load())
			if order == outside {
				// The error was answered before the time-out sees it.
				require.Equal(t, http.StatusInternalServerError, first.status)
			} else {
				require.Equal(t, http.StatusServiceUnavailable, first.status)
			}
		})
	}
}

// TestEchoTimeoutWithoutRecord shows what to do about a handler that gave up
// before it did anything: it lets go of the key.
func TestEchoTimeoutWithoutRecord(t *testing.T) {
	giveUp := func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c *echo.Context) error {
			err := next(c)
			if errors.Is(err, context.DeadlineExceeded) {
				idempotency.NoStore(c.Request().Context())
			}
			return err
		}
	}
	var runs atomic.Int64
	o := newOrderTest(t)
	e := newEcho()
	e.Use(idempotencyecho.Middleware(o.once), middleware.ContextTimeout(100*time.Millisecond), giveUp)
	e.POST("/", func(c *echo.Context) error {
		runs.Add(1)
		<-c.Request().Context().Done()
		return c.Request().Context().Err()
	})
	s := o.serve(e)
	first, _ := s.twice("/", idempotency.NotStored, idempotency.NotStored)
	require.Equal(t, http.StatusServiceUnavailable, first.status)
	require.EqualValues(t, 2, runs.Load())
}

// TestEchoGzip compresses with Echo's own around the adapter: one plain record
// for all. Inside it does nothing.
func TestEchoGzip(t *testing.T) {
	for _, order := range orders {
		t.Run(order, func(t *testing.T) {
			var runs atomic.Int64
			o := newOrderTest(t)
			s := o.serve(echoStack(order, o.once, middleware.Gzip(), echo.WrapHandler(statement(&runs))))
			if order == inside {
				_, retry := s.twice("/", idempotency.Stored, idempotency.Replayed, "Accept-Encoding", "gzip")
				require.Empty(t, retry.header.Values("Content-Encoding"), "what is inside is asked for no encoding")
				require.Equal(t, statementOf(1), retry.body)
				return
			}
			_, retry := s.twice("/", idempotency.Stored, idempotency.Replayed, "Accept-Encoding", "gzip")
			require.Equal(t, "gzip", retry.header.Get("Content-Encoding"))
			require.Equal(t, statementOf(1), retry.body)
			require.Equal(t, statementOf(1), s.post("/", "k").body)
			o.requireStored(http.StatusCreated, statementOf(1), "Content-Type", "application/json")
		})
	}
}

// TestEchoRequestID shows that a replay carries the id of its own request where
// the id is set outside.
func TestEchoRequestID(t *testing.T) {
	for order, want := range map[string]string{outside: "two", inside: "one"} {
		t.Run(order, func(t *testing.T) {
			var runs atomic.Int64
			o := newOrderTest(t)
			s := o.serve(echoStack(order, o.once, middleware.RequestID(), echoPayment(&runs)))
			s.post("/", "k", "X-Request-Id", "one")
			retry := s.post("/", "k", "X-Request-Id", "two")
			require.True(t, retry.replayed)
			require.Equal(t, []string{want}, retry.header.Values("X-Request-Id"))
		})
	}
}

// TestEchoBodyLimit refuses a large body: outside before anything is claimed, by
// its declared length.
func TestEchoBodyLimit(t *testing.T) {
	for _, order := range orders {
		t.Run(order, func(t *testing.T) {
			var runs atomic.Int64
			o := newOrderTest(t)
			s := o.serve(echoStack(order, o.once, middleware.BodyLimit(10), echoPayment(&runs)))
			large := string(bytes.Repeat([]byte("x"), 100))
			require.Equal(t, http.StatusRequestEntityTooLarge, s.send(http.MethodPost, "/", "k", large).status)
			require.Zero(t, runs.Load())
			if order == outside {
				require.Empty(t, o.events)
				require.Equal(t, http.StatusCreated, s.post("/", "k").status)
				return
			}
			require.Equal(t, idempotency.Stored, o.event().Outcome, "the refusal is JSON")
			require.Equal(t, http.StatusUnprocessableEntity, s.post("/", "k").status, "and has used up the key")
		})
	}
}
