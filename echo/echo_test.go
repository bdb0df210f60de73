package idempotencyecho_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/idempotency-go/idempotency"
	idempotencyecho "github.com/idempotency-go/idempotency/echo"
	"github.com/labstack/echo/v5"
	"github.com/labstack/echo/v5/middleware"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// payment answers with what a handler finds: the parameter of its path, the body, the key.
func payment(runs *atomic.Int64) echo.HandlerFunc {
	return func(c *echo.Context) error {
		body, err := io.ReadAll(c.Request().Body)
		if err != nil {
			return err
		}
		key, _ := idempotency.KeyFromContext(c.Request().Context())
		return c.JSON(http.StatusCreated, map[string]any{"run": runs.Add(1), "account": c.Param("account"), "body": string(body), "key": key})
	}
}

// soldOut is a handler that returns an error.
func soldOut(*echo.Context) error { return echo.NewHTTPError(http.StatusConflict, "sold out") }

// paid is a handler that returns none.
func paid(c *echo.Context) error { return c.JSON(http.StatusCreated, "paid") }

// The middleware may stand in every place that Echo has for one.
func TestRouting(t *testing.T) {
	const path = "/v1/accounts/:account"
	for name, build := range map[string]func(e *echo.Echo, m echo.MiddlewareFunc, h echo.HandlerFunc){
		"before routing": func(e *echo.Echo, m echo.MiddlewareFunc, h echo.HandlerFunc) { e.Pre(m); e.POST(path, h) },
		"Echo":           func(e *echo.Echo, m echo.MiddlewareFunc, h echo.HandlerFunc) { e.Use(m); e.POST(path, h) },
		"group": func(e *echo.Echo, m echo.MiddlewareFunc, h echo.HandlerFunc) {
			e.Group("/v1", m).POST("/accounts/:account", h)
		},
		"route":          func(e *echo.Echo, m echo.MiddlewareFunc, h echo.HandlerFunc) { e.POST(path, h, m) },
		"Echo and route": func(e *echo.Echo, m echo.MiddlewareFunc, h echo.HandlerFunc) { e.Use(m); e.POST(path, h, m) },
	} {
		t.Run(name, func(t *testing.T) {
			var runs atomic.Int64
			s := newService(t)
			build(s.Echo, idempotencyecho.Middleware(s.once), payment(&runs))
			first, retry := s.twice("/v1/accounts/7", idempotency.Stored, idempotency.Replayed)
			require.Equal(t, http.StatusCreated, first.status)
			require.JSONEq(t, `{"run":1,"account":"7","body":"amount=100","key":"k"}`, first.body)
			require.True(t, retry.replayed)
			require.Equal(t, first.status, retry.status)
			require.Equal(t, first.body, retry.body)
			require.Equal(t, first.header.Get("Content-Type"), retry.header.Get("Content-Type"))

			require.Equal(t, http.StatusUnprocessableEntity, s.post("/v1/accounts/8", "k").status)
			s.requireOutcome(idempotency.Reused)
			require.JSONEq(t, `{"run":2,"account":"7","body":"amount=100","key":""}`, s.post("/v1/accounts/7", "").body)
			require.Empty(t, s.events)
		})
	}
}

// A replay and a refusal run nothing that stands after the middleware.
func TestAnswersByItself(t *testing.T) {
	type view struct {
		status    int
		committed bool
		err       error
	}
	views, begun, end := make(chan view, 1), make(chan bool, 1), make(chan bool)
	var between, runs atomic.Int64
	s := newService(t)
	release := sync.OnceFunc(func() { close(end) })
	t.Cleanup(release)
	s.POST("/", func(c *echo.Context) error {
		runs.Add(1)
		begun <- true
		<-end
		return paid(c)
	}, func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c *echo.Context) error {
			err := next(c)
			response, _ := echo.UnwrapResponse(c.Response())
			views <- view{response.Status, response.Committed, err}
			return err
		}
	}, idempotencyecho.Middleware(s.once), func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c *echo.Context) error {
			between.Add(1)
			return next(c)
		}
	})
	first := make(chan answer, 1)
	go func() { first <- s.post("/", "k") }()
	await(t, begun)
	outstanding := s.post("/", "k")
	require.Equal(t, http.StatusConflict, outstanding.status)
	require.Equal(t, "1", outstanding.header.Get("Retry-After"))
	require.Equal(t, view{http.StatusConflict, true, nil}, await(t, views))
	release()
	require.Equal(t, http.StatusCreated, await(t, first).status)
	require.Equal(t, view{http.StatusCreated, true, nil}, await(t, views))
	require.True(t, s.post("/", "k").replayed)
	require.Equal(t, view{http.StatusCreated, true, nil}, await(t, views))
	require.Equal(t, http.StatusUnprocessableEntity, s.post("/?other", "k").status)
	require.Equal(t, view{http.StatusUnprocessableEntity, true, nil}, await(t, views))
	require.EqualValues(t, 1, between.Load())
	require.EqualValues(t, 1, runs.Load())
}

// What the client gets of an error that a handler returns is what is stored.
func TestReturnedError(t *testing.T) {
	every := idempotency.WithContentTypes("*")
	failed := errors.New("no such account")
	for name, test := range map[string]struct {
		opts    []idempotency.Option
		handler echo.HandlerFunc
		status  int
		body    string
	}{
		"with a status": {nil, soldOut, http.StatusConflict, `{"message":"sold out"}`},
		"every type":    {[]idempotency.Option{every}, soldOut, http.StatusConflict, `{"message":"sold out"}`},
		"any":           {nil, func(*echo.Context) error { return failed }, http.StatusInternalServerError, `{"message":"Internal Server Error"}`},
		"after an answer": {nil, func(c *echo.Context) error { return errors.Join(paid(c), failed) },
			http.StatusCreated, `"paid"`},
	} {
		t.Run(name, func(t *testing.T) {
			returned := make(chan error, 2)
			s := newService(t, test.opts...)
			s.Use(func(next echo.HandlerFunc) echo.HandlerFunc {
				return func(c *echo.Context) error {
					err := next(c)
					returned <- err
					return err
				}
			})
			s.POST("/", test.handler, idempotencyecho.Middleware(s.once))
			first := s.post("/", "k")
			require.Equal(t, test.status, s.requireOutcome(idempotency.Stored).Status)
			require.Error(t, await(t, returned), "for loggers")
			retry := s.post("/", "k")
			s.requireOutcome(idempotency.Replayed)
			require.NoError(t, await(t, returned))
			for _, a := range []answer{first, retry, s.post("/", "")} {
				require.Equal(t, test.status, a.status)
				require.JSONEq(t, test.body, a.body)
			}
			require.Error(t, await(t, returned), "without a key")
		})
	}
}

// An HTTPErrorHandler of the service's own answers once, and what it answers is stored.
func TestErrorHandler(t *testing.T) {
	answers := make(chan error, 4)
	s := newService(t)
	s.HTTPErrorHandler = func(c *echo.Context, err error) {
		if response, _ := echo.UnwrapResponse(c.Response()); response.Committed {
			return
		}
		answers <- err
		_ = c.JSON(http.StatusTeapot, "sorry")
	}
	s.POST("/", soldOut, idempotencyecho.Middleware(s.once))
	first, retry := s.twice("/", idempotency.Stored, idempotency.Replayed)
	for _, a := range []answer{first, retry} {
		require.Equal(t, http.StatusTeapot, a.status)
		require.Equal(t, "\"sorry\"\n", a.body)
	}
	require.Len(t, answers, 1)
	require.Equal(t, http.StatusTeapot, s.post("/", "").status)
	require.Len(t, answers, 2)
}

// Before the middleware, Echo's Recover answers a panic. After it, its 500 in JSON is an
// answer like any other.
func TestRecover(t *testing.T) {
	for _, test := range []struct {
		name          string
		after, writes bool
		one, two      idempotency.Outcome
		runs          int
	}{
		{"before", false, false, idempotency.Panicked, idempotency.Panicked, 2},
		{"before, after an answer", false, true, idempotency.Panicked, idempotency.Panicked, 2},
		{"after", true, false, idempotency.Stored, idempotency.Replayed, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			runs := 0
			s := newService(t)
			chain := []echo.MiddlewareFunc{middleware.Recover(), idempotencyecho.Middleware(s.once)}
			if test.after {
				chain[0], chain[1] = chain[1], chain[0]
			}
			s.POST("/", func(c *echo.Context) error {
				runs++
				if test.writes {
					if err := paid(c); err != nil {
						return err
					}
				}
				panic("no such account")
			}, chain...)
			first, retry := s.twice("/", test.one, test.two)
			for _, a := range []answer{first, retry} {
				require.Equal(t, http.StatusInternalServerError, a.status)
				require.JSONEq(t, `{"message":"Internal Server Error"}`, a.body)
			}
			require.Equal(t, test.runs, runs)
		})
	}
}

// The functions that a handler calls by its context reach the middleware.
func TestHandlerCalls(t *testing.T) {
	resume := func(next http.Handler) http.Handler { return next }
	s := newService(t, idempotency.WithRecovery(resume))
	charges, runs := 0, 0
	s.POST("/step", func(c *echo.Context) error {
		runs++
		charge, err := idempotency.Step(c.Request().Context(), "charge", func(context.Context) ([]byte, error) {
			charges++
			return []byte("ch_" + strconv.Itoa(charges)), nil
		})
		if err != nil || runs == 1 {
			return c.NoContent(http.StatusBadGateway) // Not stored: it has no body.
		}
		return c.JSON(http.StatusCreated, string(charge))
	}, idempotencyecho.Middleware(s.once))
	first, retry := s.twice("/step", idempotency.NotStored, idempotency.Stored)
	require.Equal(t, http.StatusBadGateway, first.status)
	require.JSONEq(t, `"ch_1"`, retry.body)
	require.Equal(t, 1, charges)

	s.POST("/nostore", func(c *echo.Context) error {
		idempotency.NoStore(c.Request().Context())
		return echo.ErrServiceUnavailable
	}, idempotencyecho.Middleware(s.once))
	require.Equal(t, http.StatusServiceUnavailable, s.post("/nostore", "another").status)
	require.Equal(t, idempotency.ReasonNoStore, s.requireOutcome(idempotency.NotStored).Reason)
}

// What stands outside finds c as it was, and a request without a key is left alone.
func TestContextAsItWas(t *testing.T) {
	type seen struct {
		request  *http.Request
		response http.ResponseWriter
		ended    error
	}
	look := func(c *echo.Context) seen { return seen{c.Request(), c.Response(), c.Request().Context().Err()} }
	views := make(chan seen, 3)
	s := newService(t)
	s.POST("/", func(c *echo.Context) error {
		views <- look(c)
		return paid(c)
	}, func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c *echo.Context) error {
			views <- look(c)
			err := next(c)
			views <- look(c)
			return err
		}
	}, idempotencyecho.Middleware(s.once))
	same := func(a, b seen) bool { return a.request == b.request && a.response == b.response }

	s.post("/", "")
	before, within, after := await(t, views), await(t, views), await(t, views)
	require.True(t, same(before, within), "without a key")
	require.True(t, same(before, after))

	s.post("/", "k")
	before, within, after = await(t, views), await(t, views), await(t, views)
	require.NotSame(t, before.request, within.request)
	require.NotSame(t, before.response, within.response)
	require.True(t, same(before, after))
	require.NoError(t, after.ended)

	require.True(t, s.post("/", "k").replayed)
	before, after = await(t, views), await(t, views)
	require.True(t, same(before, after))
}

// Every function that is given as an option gets Echo's context, and the route.
func TestContextOfOptions(t *testing.T) {
	asked := make(chan string, 8)
	is := func(what string, r *http.Request) {
		if c := idempotencyecho.Context(r); assert.NotNil(t, c, what) {
			assert.Equal(t, "alice", c.Get("account"), what)
		}
		assert.Equal(t, "/accounts/:account", r.Pattern, what)
		assert.Equal(t, "7", r.PathValue("account"), what)
		asked <- what
	}
	s := newService(t,
		idempotency.WithScope(func(r *http.Request) string { is("scope", r); return "" }),
		idempotency.WithFingerprint(func(r *http.Request, body []byte) []byte { is("fingerprint", r); return body }),
		idempotency.WithObserver(func(_ context.Context, e idempotency.Event) { is("observer", e.Request) }),
		idempotency.WithErrorHandler(func(w http.ResponseWriter, r *http.Request, err error) {
			is("error handler", r)
			w.WriteHeader(http.StatusTeapot)
		}))
	s.POST("/accounts/:account", func(c *echo.Context) error {
		is("handler", c.Request())
		return paid(c)
	}, func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c *echo.Context) error {
			c.Set("account", "alice")
			return next(c)
		}
	}, idempotencyecho.Middleware(s.once))
	require.Equal(t, http.StatusCreated, s.post("/accounts/7", "k").status)
	for _, what := range []string{"scope", "fingerprint", "handler", "observer"} {
		require.Equal(t, what, await(t, asked))
	}
	require.Equal(t, http.StatusTeapot, s.post("/accounts/7", "\x80").status)
	for _, what := range []string{"error handler", "observer"} {
		require.Equal(t, what, await(t, asked))
	}

	r, err := http.NewRequest(http.MethodPost, "/", nil)
	require.NoError(t, err)
	require.Nil(t, idempotencyecho.Context(r), "it came another way")
}

// The middleware wraps a handler when Echo builds its chain, not for each request: what is
// wrong with it is known at once.
func TestWrapsOnce(t *testing.T) {
	wrapped := 0
	s := newService(t)
	s.POST("/", paid, idempotencyecho.Middleware(func(next http.Handler) http.Handler {
		wrapped++
		return s.once(next)
	}))
	built := wrapped
	s.twice("/", idempotency.Stored, idempotency.Replayed)
	require.Equal(t, built, wrapped)
	require.PanicsWithValue(t, "idempotencyecho: Middleware: nil middleware", func() { idempotencyecho.Middleware(nil) })
}

// A path that Echo does not know is an error too.
func TestNoRoute(t *testing.T) {
	s := newService(t)
	s.Use(idempotencyecho.Middleware(s.once))
	first, retry := s.twice("/nowhere", idempotency.Stored, idempotency.Replayed)
	for _, a := range []answer{first, retry} {
		require.Equal(t, http.StatusNotFound, a.status)
		require.JSONEq(t, `{"message":"Not Found"}`, a.body)
	}
}
