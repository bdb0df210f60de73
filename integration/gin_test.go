package integration

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/gin-gonic/gin"
	"github.com/idempotency-go/idempotency"
	"github.com/klauspost/compress/gzhttp"
	"github.com/stretchr/testify/require"
)

func init() { gin.SetMode(gin.ReleaseMode) }

// ginMiddleware makes middleware for net/http into middleware for Gin, which has
// no such adapter itself. The handlers inside write to what m gives them, and
// what is outside finds the context as it was: its writer, and its request,
// whose context does not end with the handlers.
func ginMiddleware(m func(http.Handler) http.Handler) gin.HandlerFunc {
	return func(c *gin.Context) {
		request, writer, ran := c.Request, c.Writer, false
		m(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ran = true
			inner := &ginWriter{ResponseWriter: writer, w: w, status: writer.Status(), size: -1}
			c.Request, c.Writer = r, inner
			defer func() { c.Request, c.Writer = request, writer }()
			c.Next()
			inner.WriteHeaderNow() // c.Status alone leaves that to Gin.
		})).ServeHTTP(writer, request)
		if !ran {
			c.Abort() // Otherwise Gin goes on to the handlers by itself.
		}
	}
}

// ginWriter is a gin.ResponseWriter that writes to w.
type ginWriter struct {
	gin.ResponseWriter
	w            http.ResponseWriter
	status, size int // size is -1 until the header is written
}

func (g *ginWriter) Unwrap() http.ResponseWriter { return g.w }
func (g *ginWriter) Header() http.Header         { return g.w.Header() }
func (g *ginWriter) Status() int                 { return g.status }
func (g *ginWriter) Size() int                   { return g.size }
func (g *ginWriter) Written() bool               { return g.size >= 0 }

func (g *ginWriter) WriteHeader(status int) {
	if status > 0 && !g.Written() {
		g.status = status
	}
}

func (g *ginWriter) WriteHeaderNow() {
	if !g.Written() {
		g.size = 0
		g.w.WriteHeader(g.status)
	}
}

func (g *ginWriter) Write(p []byte) (int, error) {
	g.WriteHeaderNow()
	n, err := g.w.Write(p)
	g.size += n
	return n, err
}

func (g *ginWriter) WriteString(s string) (int, error) { return g.Write([]byte(s)) }

func (g *ginWriter) Flush() {
	g.WriteHeaderNow()
	_ = http.NewResponseController(g.w).Flush()
}

func (g *ginWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	g.size = max(g.size, 0)
	return http.NewResponseController(g.w).Hijack()
}

// ginPayment answers with what Gin has found in the path.
func ginPayment(runs *atomic.Int64) gin.HandlerFunc {
	return func(c *gin.Context) {
		body, err := c.GetRawData()
		if err != nil {
			panic(err)
		}
		c.JSON(http.StatusCreated, gin.H{"run": runs.Add(1), "account": c.Param("account"), "body": string(body)})
	}
}

// TestGinRouting puts the middleware wherever Gin has a place for it.
func TestGinRouting(t *testing.T) {
	const path = "/v1/accounts/:account"
	for name, build := range map[string]func(once layer, h gin.HandlerFunc) http.Handler{
		"around the engine": func(once layer, h gin.HandlerFunc) http.Handler {
			e := gin.New()
			e.POST(path, h)
			return once(e)
		},
		"Use": func(once layer, h gin.HandlerFunc) http.Handler {
			e := gin.New()
			e.Use(ginMiddleware(once))
			e.POST(path, h)
			return e
		},
		"Group": func(once layer, h gin.HandlerFunc) http.Handler {
			e := gin.New()
			e.Group("/v1", ginMiddleware(once)).POST("/accounts/:account", h)
			return e
		},
		"on the route": func(once layer, h gin.HandlerFunc) http.Handler {
			e := gin.New()
			e.POST(path, ginMiddleware(once), h)
			return e
		},
		"Use and on the route": func(once layer, h gin.HandlerFunc) http.Handler {
			e := gin.New()
			e.Use(ginMiddleware(once))
			e.POST(path, ginMiddleware(once), h)
			return e
		},
	} {
		t.Run(name, func(t *testing.T) {
			requireRunsOnce(t, func(once layer, runs *atomic.Int64) http.Handler { return build(once, ginPayment(runs)) }, "application/json; charset=utf-8")
		})
	}
}

// TestGinWrapH serves a handler of net/http, middleware and all, on a route.
func TestGinWrapH(t *testing.T) {
	o, till := newOrderTest(t), &paymentTill{}
	e := gin.New()
	e.POST("/pay", gin.WrapH(o.once(till)))
	s := o.serve(e)
	_, retry := s.twice("/pay", idempotency.Stored, idempotency.Replayed)
	require.Equal(t, http.StatusCreated, retry.status)
	require.Equal(t, `{"payment":1}`, retry.body)
}

// TestGinStatusAlone has a handler that sets a status and writes nothing.
func TestGinStatusAlone(t *testing.T) {
	o := newOrderTest(t, idempotency.WithContentTypes("*"))
	e := gin.New()
	e.Use(ginMiddleware(o.once))
	e.POST("/pay", func(c *gin.Context) { c.Status(http.StatusAccepted) })
	s := o.serve(e)
	first, retry := s.twice("/pay", idempotency.Stored, idempotency.Replayed)
	require.Equal(t, http.StatusAccepted, first.status)
	require.Equal(t, http.StatusAccepted, retry.status)
	o.requireStored(http.StatusAccepted, "")
}

// TestGinNotFound has Gin answer for a path that it does not know: it runs the
// middleware first, and answers after it.
func TestGinNotFound(t *testing.T) {
	o := newOrderTest(t)
	e := gin.New()
	e.Use(ginMiddleware(o.once))
	s := o.serve(e)
	first, retry := s.twice("/nowhere", idempotency.NotStored, idempotency.NotStored)
	for _, answer := range []orderAnswer{first, retry} {
		require.Equal(t, http.StatusNotFound, answer.status)
		require.Equal(t, "404 page not found", answer.body)
	}
}

// TestGinContextAfterwards has middleware outside look at Gin's context when the
// rest is done.
func TestGinContextAfterwards(t *testing.T) {
	o := newOrderTest(t)
	type view struct {
		ended, same bool
		status      int
		aborted     bool
	}
	views := make(chan view, 2)
	e := gin.New()
	e.Use(func(c *gin.Context) {
		request, writer := c.Request, c.Writer
		c.Next()
		views <- view{c.Request.Context().Err() != nil, c.Request == request && c.Writer == writer, c.Writer.Status(), c.IsAborted()}
	}, ginMiddleware(o.once))
	var runs atomic.Int64
	e.POST("/", ginPayment(&runs))
	s := o.serve(e)
	s.twice("/", idempotency.Stored, idempotency.Replayed)
	require.Equal(t, view{false, true, http.StatusCreated, false}, await(t, views, "view"))
	require.Equal(t, view{false, true, http.StatusCreated, true}, await(t, views, "view"))
}

// naiveGin is what comes to mind first: it hands on the request, but leaves Gin
// its writer, and its list of handlers.
func naiveGin(m layer) gin.HandlerFunc {
	return func(c *gin.Context) {
		m(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			c.Request = r
			c.Next()
		})).ServeHTTP(c.Writer, c.Request)
	}
}

// TestGinNaiveAdapter shows what that does: nothing is ever stored, and a
// refused request pays all the same.
func TestGinNaiveAdapter(t *testing.T) {
	var runs atomic.Int64
	o := newOrderTest(t)
	e := gin.New()
	e.Use(naiveGin(o.once))
	e.POST("/", ginPayment(&runs))
	s := o.serve(e)
	_, retry := s.twice("/", idempotency.NotStored, idempotency.NotStored)
	require.False(t, retry.replayed)
	require.EqualValues(t, 2, runs.Load())

	refused := s.post("/", strings.Repeat("k", 300))
	require.Equal(t, http.StatusUnprocessableEntity, refused.status)
	require.EqualValues(t, 3, runs.Load(), "refused, and run")
}

// ginStack puts a middleware of Gin outside or inside of the one under test.
func ginStack(order string, once layer, m gin.HandlerFunc, h gin.HandlerFunc) http.Handler {
	e := gin.New()
	if order == outside {
		e.Use(m, ginMiddleware(once))
	} else {
		e.Use(ginMiddleware(once), m)
	}
	e.POST("/", h)
	return e
}

// TestGinRecovery shows that outside of a recoverer a panic is a response like
// any other. Gin's makes an empty 200 of http.ErrAbortHandler.
func TestGinRecovery(t *testing.T) {
	for _, test := range []struct {
		value  any
		status int
	}{{"no such account", http.StatusInternalServerError}, {http.ErrAbortHandler, http.StatusOK}} {
		for order, outcome := range map[string]idempotency.Outcome{outside: idempotency.Panicked, inside: idempotency.NotStored} {
			t.Run(fmt.Sprint(test.value, ", ", order), func(t *testing.T) {
				runs := 0
				o := newOrderTest(t)
				s := o.serve(ginStack(order, o.once, gin.RecoveryWithWriter(io.Discard), func(*gin.Context) {
					runs++
					panic(test.value)
				}))
				first, retry := s.twice("/", outcome, outcome)
				require.Equal(t, test.status, first.status)
				require.Equal(t, test.status, retry.status)
				require.Equal(t, 2, runs)
				o.requireNothingStored()
			})
		}
	}
}

// TestGinLogger counts what a logger sees: outside each request, inside only the
// runs.
func TestGinLogger(t *testing.T) {
	for _, order := range orders {
		t.Run(order, func(t *testing.T) {
			var runs atomic.Int64
			out := newLines()
			o := newOrderTest(t)
			s := o.serve(ginStack(order, o.once, gin.LoggerWithWriter(out), ginPayment(&runs)))
			s.twice("/", idempotency.Stored, idempotency.Replayed)
			s.Server.Close() // Then every line is written.
			require.Contains(t, out.next(t), "| 201 |")
			if order == outside {
				require.Contains(t, out.next(t), "| 201 |", "the replay")
			}
			require.Empty(t, out)
		})
	}
}

// TestGinBasicAuth repeats a request with its key and without its password.
// Inside, the answer is handed to anyone who has the key.
func TestGinBasicAuth(t *testing.T) {
	for order, status := range map[string]int{outside: http.StatusUnauthorized, inside: http.StatusCreated} {
		t.Run(order, func(t *testing.T) {
			var runs atomic.Int64
			o := newOrderTest(t)
			s := o.serve(ginStack(order, o.once, gin.BasicAuth(gin.Accounts{"alice": "a"}), ginPayment(&runs)))
			require.Equal(t, http.StatusUnauthorized, s.post("/", "k").status)
			require.Equal(t, http.StatusCreated, s.post("/", "k", "Authorization", "Basic YWxpY2U6YQ==").status)
			require.Equal(t, status, s.post("/", "k").status)
			require.EqualValues(t, 1, runs.Load())
		})
	}
}

// TestGinCompression compresses around the engine, as for any other router.
func TestGinCompression(t *testing.T) {
	var runs atomic.Int64
	o := newOrderTest(t)
	e := gin.New()
	e.Use(ginMiddleware(o.once))
	e.POST("/", gin.WrapH(statement(&runs)))
	s := o.serve(gzhttp.GzipHandler(e))
	first, retry := s.twice("/", idempotency.Stored, idempotency.Replayed, "Accept-Encoding", "gzip")
	for _, answer := range []orderAnswer{first, retry} {
		require.Equal(t, "gzip", answer.header.Get("Content-Encoding"))
		require.Equal(t, statementOf(1), answer.body)
	}
}

// TestGinStream uses Gin's own streaming, which asks its writer for an
// http.CloseNotifier and does not take no for an answer.
func TestGinStream(t *testing.T) {
	for name, build := range map[string]func(once layer, h gin.HandlerFunc) http.Handler{
		"Use": func(once layer, h gin.HandlerFunc) http.Handler {
			e := gin.New()
			e.POST("/", ginMiddleware(once), h)
			return e
		},
		"around the engine": func(once layer, h gin.HandlerFunc) http.Handler {
			e := gin.New()
			e.POST("/", h)
			return once(e)
		},
	} {
		t.Run(name, func(t *testing.T) {
			received := make(chan struct{})
			o := newOrderTest(t)
			s := o.serve(build(o.once, func(c *gin.Context) {
				first := true
				c.Stream(func(w io.Writer) bool {
					if first {
						c.SSEvent("message", "one")
						first = false
						return true
					}
					hold(received)
					c.SSEvent("message", "two")
					return false
				})
			}))
			resp, err := s.open(http.MethodPost, "/", "k", "")
			if name == "around the engine" {
				require.Error(t, err)
				require.Equal(t, idempotency.Panicked, o.event().Outcome)
				return
			}
			require.NoError(t, err)
			defer resp.Body.Close()
			body := bufio.NewReader(resp.Body)
			line, err := body.ReadString('\n')
			require.NoError(t, err)
			require.Equal(t, "event:message\n", line)
			close(received)
			rest, err := io.ReadAll(body)
			require.NoError(t, err)
			require.Contains(t, string(rest), "data:two")
			require.Equal(t, idempotency.NotStored, o.event().Outcome)
		})
	}
}
