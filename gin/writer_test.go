package idempotencygin_test

import (
	"bufio"
	"io"
	"net/http"
	"sync"
	"testing"

	"github.com/gin-gonic/gin"
	"github.com/idempotency-go/idempotency"
	idempotencygin "github.com/idempotency-go/idempotency/gin"
	"github.com/stretchr/testify/require"
)

// The handler's writer tells of its answer, although that is held back, and the writer outside
// of what was sent.
func TestWriterTells(t *testing.T) {
	type view struct {
		status, size int
		written      bool
	}
	look := func(c *gin.Context) view { return view{c.Writer.Status(), c.Writer.Size(), c.Writer.Written()} }
	views := make(chan view, 8)
	var outer gin.ResponseWriter
	s := newService(t)
	s.POST("/", func(c *gin.Context) {
		outer = c.Writer
		c.Next()
		views <- look(c)
	}, idempotencygin.Middleware(s.once), func(c *gin.Context) {
		views <- look(c)
		c.Status(http.StatusAccepted)
		views <- look(c)
		c.JSON(http.StatusCreated, "paid")
		views <- look(c)
		c.Status(http.StatusTeapot)
		_, _ = c.Writer.WriteString(" \n")
		c.Writer.Flush() // What is held back stays so.
		views <- look(c)
		views <- view{outer.Status(), outer.Size(), outer.Written()}
	})
	a := s.post("/", "k")
	require.Equal(t, http.StatusCreated, a.status)
	require.Equal(t, "\"paid\" \n", a.body)
	for _, want := range []view{
		{200, -1, false}, {202, -1, false}, {201, 6, true}, {201, 8, true},
		{200, -1, false}, // Nothing was sent yet.
		{201, 8, true},
	} {
		require.Equal(t, want, await(t, views))
	}
}

// A status without a body is an answer too.
func TestStatusAlone(t *testing.T) {
	s := newService(t, idempotency.WithContentTypes("*"))
	s.POST("/", idempotencygin.Middleware(s.once), func(c *gin.Context) { c.Status(http.StatusAccepted) })
	first, retry := s.twice("/", idempotency.Stored, idempotency.Replayed)
	require.Equal(t, http.StatusAccepted, first.status)
	require.Equal(t, http.StatusAccepted, retry.status)
}

// For what it does not know Gin answers after all handlers: that is recorded too, and an answer
// of a handler is left as it is.
func TestNoRoute(t *testing.T) {
	abort := func(c *gin.Context) { c.AbortWithStatus(http.StatusNotFound) }
	accept := func(c *gin.Context) { c.Status(http.StatusAccepted) }
	every := idempotency.WithContentTypes("*")
	for name, test := range map[string]struct {
		opts           []idempotency.Option
		path           string
		handler        gin.HandlerFunc
		first, retried idempotency.Outcome
		status         int
		body           string
	}{
		"path":                     {nil, "/nowhere", nil, idempotency.NotStored, idempotency.NotStored, 404, "404 page not found"},
		"path, every type":         {[]idempotency.Option{every}, "/nowhere", nil, idempotency.Stored, idempotency.Replayed, 404, "404 page not found"},
		"method, every type":       {[]idempotency.Option{every}, "/get", nil, idempotency.Stored, idempotency.Replayed, 405, "405 method not allowed"},
		"without a body":           {nil, "/nowhere", abort, idempotency.NotStored, idempotency.NotStored, 404, ""},
		"without a body, stored":   {[]idempotency.Option{every}, "/nowhere", abort, idempotency.Stored, idempotency.Replayed, 404, ""},
		"a status, every type":     {[]idempotency.Option{every}, "/nowhere", accept, idempotency.Stored, idempotency.Replayed, 202, ""},
		"a status that is not 404": {nil, "/nowhere", accept, idempotency.NotStored, idempotency.NotStored, 202, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newService(t, test.opts...)
			s.HandleMethodNotAllowed = true
			s.Use(idempotencygin.Middleware(s.once))
			s.GET("/get", func(*gin.Context) {})
			if test.handler != nil {
				s.NoRoute(test.handler)
			}
			first, retry := s.twice(test.path, test.first, test.retried)
			for _, a := range []answer{first, retry, s.post(test.path, "")} {
				require.Equal(t, test.status, a.status)
				require.Equal(t, test.body, a.body)
				if test.body != "" {
					require.Equal(t, "text/plain", a.header.Get("Content-Type"))
				}
			}
		})
	}
}

// Gin's own streaming flushes, and asks its writer for an http.CloseNotifier.
func TestStream(t *testing.T) {
	received := make(chan struct{})
	s := newService(t)
	release := sync.OnceFunc(func() { close(received) })
	t.Cleanup(release)
	s.POST("/", idempotencygin.Middleware(s.once), func(c *gin.Context) {
		first := true
		c.Stream(func(io.Writer) bool {
			if !first {
				<-received
				c.SSEvent("message", "two")
				return false
			}
			c.SSEvent("message", "one")
			first = false
			return true
		})
	})
	resp := s.open("/", "k")
	defer resp.Body.Close()
	body := bufio.NewReader(resp.Body)
	line, err := body.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "event:message\n", line)
	release()
	rest, err := io.ReadAll(body)
	require.NoError(t, err)
	require.Contains(t, string(rest), "data:two")
	s.requireOutcome(idempotency.NotStored)
}

// A flush writes the header, and a client that leaves ends Gin's streaming.
func TestCloseNotify(t *testing.T) {
	s := newService(t)
	left := make(chan bool, 1)
	s.POST("/", idempotencygin.Middleware(s.once), func(c *gin.Context) {
		c.Header("Content-Type", "text/event-stream")
		c.Status(http.StatusAccepted)
		c.Writer.Flush()
		left <- <-c.Writer.CloseNotify()
	})
	resp := s.open("/", "k")
	require.Equal(t, http.StatusAccepted, resp.StatusCode)
	require.NoError(t, resp.Body.Close())
	require.True(t, await(t, left))
}

// A handler that takes the connection answers by itself.
func TestHijack(t *testing.T) {
	s := newService(t)
	s.POST("/", idempotencygin.Middleware(s.once), func(c *gin.Context) {
		conn, _, err := c.Writer.Hijack()
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 299 Mine\r\nContent-Length: 0\r\nWritten: "+map[bool]string{true: "yes"}[c.Writer.Written()]+"\r\n\r\n")
	})
	a := s.post("/", "k")
	require.Equal(t, 299, a.status)
	require.Equal(t, "yes", a.header.Get("Written"))
	require.Equal(t, idempotency.ReasonHijacked, s.requireOutcome(idempotency.NotStored).Reason)
}

// http.ResponseController finds its way to the connection.
func TestResponseController(t *testing.T) {
	s := newService(t)
	s.POST("/", idempotencygin.Middleware(s.once), func(c *gin.Context) {
		if err := http.NewResponseController(c.Writer).EnableFullDuplex(); err != nil {
			panic(err)
		}
		c.JSON(http.StatusCreated, gin.H{})
	})
	require.Equal(t, http.StatusCreated, s.post("/", "k").status)
}
