package idempotencygin

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/gin-gonic/gin"
)

// notWritten is the size of an answer whose header is not written yet.
const notWritten = -1

// responseWriter is a [gin.ResponseWriter] that writes to w. What w cannot do, to notify of a
// client that leaves and to push, is left to the writer outside.
type responseWriter struct {
	gin.ResponseWriter
	w            http.ResponseWriter
	status, size int
}

func (g *responseWriter) Unwrap() http.ResponseWriter { return g.w } // for http.ResponseController
func (g *responseWriter) Header() http.Header         { return g.w.Header() }
func (g *responseWriter) Status() int                 { return g.status }
func (g *responseWriter) Size() int                   { return g.size }
func (g *responseWriter) Written() bool               { return g.size != notWritten }

// WriteHeader sets the status, as Gin's does. The first write, or WriteHeaderNow, writes it.
func (g *responseWriter) WriteHeader(status int) {
	if status > 0 && !g.Written() {
		g.status = status
	}
}

func (g *responseWriter) WriteHeaderNow() {
	if !g.Written() {
		g.size = 0
		g.w.WriteHeader(g.status)
	}
}

func (g *responseWriter) Write(p []byte) (int, error) {
	g.WriteHeaderNow()
	n, err := g.w.Write(p)
	g.size += n
	return n, err
}

func (g *responseWriter) WriteString(s string) (int, error) { return g.Write([]byte(s)) }

func (g *responseWriter) Flush() {
	g.WriteHeaderNow()
	_ = http.NewResponseController(g.w).Flush()
}

func (g *responseWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(g.w).Hijack()
	if err == nil {
		g.size = max(g.size, 0)
	}
	return conn, rw, err
}

// writeDefault answers as Gin does, after all handlers, for a path or a method that it does
// not know: then it would be too late to be recorded.
func (g *responseWriter) writeDefault() {
	text := "page not found"
	if g.status != http.StatusNotFound {
		text = strings.ToLower(http.StatusText(g.status))
	}
	g.Header()["Content-Type"] = []string{"text/plain"}
	_, _ = fmt.Fprintf(g, "%d %s", g.status, text) // The client may be gone.
}
