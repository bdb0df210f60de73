package idempotencyecho_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"

	"github.com/idempotency-go/idempotency"
	idempotencyecho "github.com/idempotency-go/idempotency/echo"
	"github.com/labstack/echo/v5"
	"github.com/stretchr/testify/require"
)

// The handler's response tells of its answer, although that is held back, and the response
// outside of what was sent. What a handler adds just before the header is stored.
func TestResponseTells(t *testing.T) {
	type view struct {
		status    int
		size      int64
		committed bool
	}
	views := make(chan view, 8)
	look := func(w http.ResponseWriter) {
		response, err := echo.UnwrapResponse(w)
		if err != nil {
			panic(err)
		}
		views <- view{response.Status, response.Size, response.Committed}
	}
	var outer http.ResponseWriter
	s := newService(t)
	s.POST("/", func(c *echo.Context) error {
		inner, _ := echo.UnwrapResponse(c.Response())
		inner.Before(func() { c.Response().Header().Set("X-Payment", "1") })
		look(c.Response())
		err := c.JSONBlob(http.StatusCreated, []byte(`"paid"`))
		look(c.Response())
		look(outer)
		return err
	}, func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c *echo.Context) error {
			outer = c.Response()
			err := next(c)
			look(c.Response())
			return err
		}
	}, idempotencyecho.Middleware(s.once))
	require.Equal(t, "1", s.post("/", "k").header.Get("X-Payment"))
	for _, want := range []view{
		{0, 0, false}, {201, 6, true},
		{200, 0, false}, // Nothing was sent yet.
		{201, 6, true},
	} {
		require.Equal(t, want, await(t, views))
	}
	retry := s.post("/", "k")
	require.True(t, retry.replayed)
	require.Equal(t, "1", retry.header.Get("X-Payment"))
}

// A status without a body is an answer too.
func TestStatusAlone(t *testing.T) {
	s := newService(t, idempotency.WithContentTypes("*"))
	s.POST("/", func(c *echo.Context) error { return c.NoContent(http.StatusAccepted) }, idempotencyecho.Middleware(s.once))
	first, retry := s.twice("/", idempotency.Stored, idempotency.Replayed)
	require.Equal(t, http.StatusAccepted, first.status)
	require.Equal(t, http.StatusAccepted, retry.status)
}

// What is flushed of a response that is not stored reaches the client at once.
func TestFlush(t *testing.T) {
	received := make(chan struct{})
	s := newService(t)
	release := sync.OnceFunc(func() { close(received) })
	t.Cleanup(release)
	s.POST("/", func(c *echo.Context) error {
		c.Response().Header().Set("Content-Type", "text/event-stream")
		for _, data := range []string{"one", "two"} {
			_, _ = fmt.Fprintf(c.Response(), "data: %s\n\n", data)
			c.Response().(http.Flusher).Flush()
			<-received
		}
		return nil
	}, idempotencyecho.Middleware(s.once))
	resp := s.open("/", "k")
	defer resp.Body.Close()
	body := bufio.NewReader(resp.Body)
	line, err := body.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "data: one\n", line)
	release()
	rest, err := io.ReadAll(body)
	require.NoError(t, err)
	require.Contains(t, string(rest), "data: two")
	s.requireOutcome(idempotency.NotStored)
}

// A handler that takes the connection answers by itself.
func TestHijack(t *testing.T) {
	s := newService(t)
	s.POST("/", func(c *echo.Context) error {
		conn, _, err := c.Response().(http.Hijacker).Hijack()
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = io.WriteString(conn, "HTTP/1.1 299 Mine\r\nContent-Length: 0\r\n\r\n")
		return err
	}, idempotencyecho.Middleware(s.once))
	require.Equal(t, 299, s.post("/", "k").status)
	require.Equal(t, idempotency.ReasonHijacked, s.requireOutcome(idempotency.NotStored).Reason)
}

// http.ResponseController finds its way to the connection.
func TestResponseController(t *testing.T) {
	s := newService(t)
	s.POST("/", func(c *echo.Context) error {
		if err := http.NewResponseController(c.Response()).EnableFullDuplex(); err != nil {
			return err
		}
		return paid(c)
	}, idempotencyecho.Middleware(s.once))
	require.Equal(t, http.StatusCreated, s.post("/", "k").status)
}
