package idempotencygin_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/gin-gonic/gin"
	"github.com/idempotency-go/idempotency"
	idempotencygin "github.com/idempotency-go/idempotency/gin"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// payment answers with what a handler finds: the parameter of its path, the body, the key.
func payment(runs *atomic.Int64) gin.HandlerFunc {
	return func(c *gin.Context) {
		body, err := c.GetRawData()
		if err != nil {
			panic(err)
		}
		key, _ := idempotency.KeyFromContext(c.Request.Context())
		c.JSON(http.StatusCreated, gin.H{"run": runs.Add(1), "account": c.Param("account"), "body": string(body), "key": key})
	}
}

// The middleware may stand in every place that Gin has for one.
func TestRouting(t *testing.T) {
	const path = "/v1/accounts/:account"
	for name, build := range map[string]func(e *gin.Engine, m gin.HandlerFunc, h gin.HandlerFunc){
		"engine":           func(e *gin.Engine, m, h gin.HandlerFunc) { e.Use(m); e.POST(path, h) },
		"group":            func(e *gin.Engine, m, h gin.HandlerFunc) { e.Group("/v1", m).POST("/accounts/:account", h) },
		"route":            func(e *gin.Engine, m, h gin.HandlerFunc) { e.POST(path, m, h) },
		"engine and route": func(e *gin.Engine, m, h gin.HandlerFunc) { e.Use(m); e.POST(path, m, h) },
		"no route":         func(e *gin.Engine, m, h gin.HandlerFunc) { e.Use(account); e.NoRoute(m, h) },
	} {
		t.Run(name, func(t *testing.T) {
			var runs atomic.Int64
			s := newService(t)
			build(s.Engine, idempotencygin.Middleware(s.once), payment(&runs))
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

// account sets the parameter where no route does.
func account(c *gin.Context) { c.AddParam("account", "7") }

// A replay and a refusal run nothing that stands after the middleware, and tell Gin so.
func TestAbort(t *testing.T) {
	type view struct {
		status  int
		aborted bool
	}
	views, begun, end := make(chan view, 1), make(chan bool, 1), make(chan bool)
	var between, runs atomic.Int64
	s := newService(t)
	release := sync.OnceFunc(func() { close(end) })
	t.Cleanup(release)
	s.POST("/", func(c *gin.Context) {
		defer func() { views <- view{c.Writer.Status(), c.IsAborted()} }()
		c.Next()
	}, idempotencygin.Middleware(s.once), func(*gin.Context) { between.Add(1) }, func(c *gin.Context) {
		runs.Add(1)
		begun <- true
		<-end
		c.JSON(http.StatusCreated, gin.H{})
	})
	first := make(chan answer, 1)
	go func() { first <- s.post("/", "k") }()
	await(t, begun)
	outstanding := s.post("/", "k")
	require.Equal(t, http.StatusConflict, outstanding.status)
	require.Equal(t, "1", outstanding.header.Get("Retry-After"))
	require.Equal(t, view{http.StatusConflict, true}, await(t, views))
	release()
	require.Equal(t, http.StatusCreated, await(t, first).status)
	require.Equal(t, view{http.StatusCreated, false}, await(t, views))
	require.True(t, s.post("/", "k").replayed)
	require.Equal(t, view{http.StatusCreated, true}, await(t, views))
	require.Equal(t, http.StatusUnprocessableEntity, s.post("/?other", "k").status)
	require.Equal(t, view{http.StatusUnprocessableEntity, true}, await(t, views))
	require.Equal(t, http.StatusUnprocessableEntity, s.post("/", "\x80").status)
	require.Equal(t, view{http.StatusUnprocessableEntity, true}, await(t, views))
	require.EqualValues(t, 1, between.Load())
	require.EqualValues(t, 1, runs.Load())
}

// Before the middleware, gin.Recovery answers a panic. After it, what it writes is an answer
// like any other; it has no body, and is not stored.
func TestRecovery(t *testing.T) {
	for _, test := range []struct {
		name    string
		value   any
		after   bool
		writes  bool
		outcome idempotency.Outcome
		status  int
	}{
		{"before", "no such account", false, false, idempotency.Panicked, http.StatusInternalServerError},
		{"before, after an answer", "no such account", false, true, idempotency.Panicked, http.StatusInternalServerError},
		{"before, aborted", http.ErrAbortHandler, false, false, idempotency.Panicked, http.StatusOK}, // Gin's own answer.
		{"after", "no such account", true, false, idempotency.NotStored, http.StatusInternalServerError},
		{"after, aborted", http.ErrAbortHandler, true, false, idempotency.NotStored, http.StatusOK},
	} {
		t.Run(test.name, func(t *testing.T) {
			runs := 0
			s := newService(t)
			chain := []gin.HandlerFunc{gin.RecoveryWithWriter(io.Discard), idempotencygin.Middleware(s.once)}
			if test.after {
				chain[0], chain[1] = chain[1], chain[0]
			}
			s.POST("/", append(chain, func(c *gin.Context) {
				runs++
				if test.writes {
					c.JSON(http.StatusCreated, gin.H{"payment": 1})
				}
				panic(test.value)
			})...)
			first, retry := s.twice("/", test.outcome, test.outcome)
			require.Equal(t, test.status, first.status)
			require.Empty(t, first.body)
			require.Equal(t, test.status, retry.status)
			require.Equal(t, 2, runs)
		})
	}
}

// A recoverer that does not abort would let Gin go on to the handler, outside of the middleware.
func TestPanicAborts(t *testing.T) {
	for name, panics := range map[string]struct {
		key     string
		handler gin.HandlerFunc
	}{
		"of a handler":                    {"k", func(*gin.Context) { panic("no such account") }},
		"of the middleware":               {"\x80", func(*gin.Context) {}},
		"of a handler, without a key":     {"", func(*gin.Context) { panic("no such account") }},
		"of a handler of a stored answer": {"k", func(c *gin.Context) { c.JSON(http.StatusOK, 1); panic("no such account") }},
	} {
		t.Run(name, func(t *testing.T) {
			runs := 0
			s := newService(t, idempotency.WithErrorHandler(func(http.ResponseWriter, *http.Request, error) { panic("no words") }))
			s.Use(gin.CustomRecoveryWithWriter(nil, func(c *gin.Context, _ any) { c.Status(http.StatusTeapot) }))
			s.POST("/", idempotencygin.Middleware(s.once), panics.handler, func(*gin.Context) { runs++ })
			require.Equal(t, http.StatusTeapot, s.post("/", panics.key).status)
			require.Zero(t, runs)
		})
	}
}

// The functions that a handler calls by its context reach the middleware.
func TestHandlerCalls(t *testing.T) {
	resume := func(next http.Handler) http.Handler { return next }
	s := newService(t, idempotency.WithRecovery(resume))
	charges, runs := 0, 0
	s.POST("/step", idempotencygin.Middleware(s.once), func(c *gin.Context) {
		runs++
		charge, err := idempotency.Step(c.Request.Context(), "charge", func(context.Context) ([]byte, error) {
			charges++
			return []byte("ch_" + strconv.Itoa(charges)), nil
		})
		if err != nil || runs == 1 {
			_ = c.AbortWithError(http.StatusBadGateway, errors.New("the bank is gone")) // Not stored: it has no body.
			return
		}
		c.JSON(http.StatusCreated, gin.H{"charge": string(charge)})
	})
	first, retry := s.twice("/step", idempotency.NotStored, idempotency.Stored)
	require.Equal(t, http.StatusBadGateway, first.status)
	require.JSONEq(t, `{"charge":"ch_1"}`, retry.body)
	require.Equal(t, 1, charges)

	s.POST("/nostore", idempotencygin.Middleware(s.once), func(c *gin.Context) {
		idempotency.NoStore(c.Request.Context())
		c.JSON(http.StatusServiceUnavailable, gin.H{})
	})
	require.Equal(t, http.StatusServiceUnavailable, s.post("/nostore", "another").status)
	require.Equal(t, idempotency.ReasonNoStore, s.requireOutcome(idempotency.NotStored).Reason)
}

// A recovery that answers by itself runs no handler.
func TestRecoveryAnswers(t *testing.T) {
	asked := 0
	s := newService(t, idempotency.WithRecovery(func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked++
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"charge":"found"}`)
		})
	}))
	runs := 0
	s.POST("/", idempotencygin.Middleware(s.once), func(c *gin.Context) {
		runs++
		c.Status(http.StatusBadGateway)
	})
	_, retry := s.twice("/", idempotency.NotStored, idempotency.Stored)
	require.JSONEq(t, `{"charge":"found"}`, retry.body)
	require.Equal(t, 1, asked)
	require.Equal(t, 1, runs)
}

// What stands outside finds c as it was, and a request without a key is left alone.
func TestContextAsItWas(t *testing.T) {
	type seen struct {
		request *http.Request
		writer  gin.ResponseWriter
		ended   error
	}
	look := func(c *gin.Context) seen { return seen{c.Request, c.Writer, c.Request.Context().Err()} }
	views := make(chan seen, 3)
	s := newService(t)
	s.POST("/", func(c *gin.Context) {
		views <- look(c)
		c.Next()
		views <- look(c)
	}, idempotencygin.Middleware(s.once), func(c *gin.Context) {
		views <- look(c)
		c.JSON(http.StatusCreated, gin.H{})
	})
	same := func(a, b seen) bool { return a.request == b.request && a.writer == b.writer }

	s.post("/", "")
	before, within, after := await(t, views), await(t, views), await(t, views)
	require.True(t, same(before, within), "without a key")
	require.True(t, same(before, after))

	s.post("/", "k")
	before, within, after = await(t, views), await(t, views), await(t, views)
	require.NotSame(t, before.request, within.request)
	require.NotSame(t, before.writer, within.writer)
	require.True(t, same(before, after))
	require.NoError(t, after.ended)

	require.True(t, s.post("/", "k").replayed)
	before, after = await(t, views), await(t, views)
	require.True(t, same(before, after))
}

// A scope reads what a handler before the middleware has found out.
func TestScope(t *testing.T) {
	s := newService(t, idempotency.WithScope(func(r *http.Request) string {
		return idempotencygin.Context(r).GetString(gin.AuthUserKey)
	}))
	var runs atomic.Int64
	s.POST("/", gin.BasicAuth(gin.Accounts{"alice": "a", "bob": "b"}), idempotencygin.Middleware(s.once), payment(&runs))
	for _, test := range []struct {
		auth     string
		status   int
		replayed bool
		runs     int64
	}{
		{"Basic YWxpY2U6YQ==", http.StatusCreated, false, 1},
		{"Basic YWxpY2U6YQ==", http.StatusCreated, true, 1},
		{"Basic Ym9iOmI=", http.StatusCreated, false, 2},
		{"", http.StatusUnauthorized, false, 2},
	} {
		a := s.post("/", "k", "Authorization", test.auth)
		require.Equal(t, test.status, a.status)
		require.Equal(t, test.replayed, a.replayed)
		require.Equal(t, test.runs, runs.Load())
	}
}

// Every function that is given as an option gets Gin's context, and the route.
func TestContextOfOptions(t *testing.T) {
	var own *gin.Context
	asked := make(chan string, 8)
	is := func(what string, r *http.Request) {
		assert.Same(t, own, idempotencygin.Context(r), what)
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
	s.POST("/accounts/:account", func(c *gin.Context) { own = c }, idempotencygin.Middleware(s.once), func(c *gin.Context) {
		is("handler", c.Request)
		c.JSON(http.StatusOK, gin.H{})
	})
	require.Equal(t, http.StatusOK, s.post("/accounts/7", "k").status)
	for _, what := range []string{"scope", "fingerprint", "handler", "observer"} {
		require.Equal(t, what, await(t, asked))
	}
	require.Equal(t, http.StatusTeapot, s.post("/accounts/7", "\x80").status)
	for _, what := range []string{"error handler", "observer"} {
		require.Equal(t, what, await(t, asked))
	}

	r, err := http.NewRequest(http.MethodPost, "/", nil)
	require.NoError(t, err)
	require.Nil(t, idempotencygin.Context(r), "it came another way")
}

// The middleware wraps its handler once, not once for each request: what is wrong with it
// is known at once.
func TestWrapsOnce(t *testing.T) {
	wrapped := 0
	s := newService(t)
	s.POST("/", idempotencygin.Middleware(func(next http.Handler) http.Handler {
		wrapped++
		return s.once(next)
	}), func(c *gin.Context) { c.JSON(http.StatusOK, gin.H{}) })
	s.twice("/", idempotency.Stored, idempotency.Replayed)
	require.Equal(t, 1, wrapped)
	require.PanicsWithValue(t, "idempotencygin: Middleware: nil middleware", func() { idempotencygin.Middleware(nil) })
}
