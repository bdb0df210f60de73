package integration

import (
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/gin-gonic/gin"
	"github.com/idempotency-go/idempotency"
	idempotencygin "github.com/idempotency-go/idempotency/gin"
	"github.com/klauspost/compress/gzhttp"
	"github.com/stretchr/testify/require"
)

func init() { gin.SetMode(gin.ReleaseMode) }

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

// TestGinAround puts the middleware around the engine: all of Gin is inside.
func TestGinAround(t *testing.T) {
	requireRunsOnce(t, func(once layer, runs *atomic.Int64) http.Handler {
		e := gin.New()
		e.POST("/v1/accounts/:account", ginPayment(runs))
		return once(e)
	}, "application/json; charset=utf-8")
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
		e.Use(m, idempotencygin.Middleware(once))
	} else {
		e.Use(idempotencygin.Middleware(once), m)
	}
	e.POST("/", h)
	return e
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
	e.Use(idempotencygin.Middleware(o.once))
	e.POST("/", gin.WrapH(statement(&runs)))
	s := o.serve(gzhttp.GzipHandler(e))
	first, retry := s.twice("/", idempotency.Stored, idempotency.Replayed, "Accept-Encoding", "gzip")
	for _, answer := range []orderAnswer{first, retry} {
		require.Equal(t, "gzip", answer.header.Get("Content-Encoding"))
		require.Equal(t, statementOf(1), answer.body)
	}
}

// TestGinStreamAround uses Gin's own streaming, which asks its writer for an
// http.CloseNotifier and does not take no for an answer: around the engine it has none.
func TestGinStreamAround(t *testing.T) {
	o := newOrderTest(t)
	e := gin.New()
	e.POST("/", func(c *gin.Context) { c.Stream(func(io.Writer) bool { return false }) })
	s := o.serve(o.once(e))
	_, err := s.open(http.MethodPost, "/", "k", "")
	require.Error(t, err)
	require.Equal(t, idempotency.Panicked, o.event().Outcome)
}
