// Package idempotencygin puts the middleware of idempotency.New into Gin.
//
//	once := idempotency.New(backend)
//	r := gin.New()
//	r.Use(gin.Logger(), gin.Recovery(), authenticate) // They see each request.
//	r.POST("/payments", idempotencygin.Middleware(once), pay)
//
// # Order
//
// Handlers before [Middleware] see every request, replays and refusals too. Handlers after it
// run only if the last one does, and what they write is stored. Put before it:
//
//   - [gin.Recovery]. After a panic the key is free again, and the 500 is not stored.
//   - Authentication, with idempotency.WithScope by the account: see [Context]. After Middleware
//     nobody would be asked for a password before a replay.
//   - Loggers, CORS, request ids and compression.
//   - Rate limits, if a retry counts as a request.
//
// Put after it what belongs to one run, such as a time-out of the handler.
package idempotencygin

import (
	"context"
	"net/http"

	"github.com/gin-gonic/gin"
)

// Middleware makes the middleware of idempotency.New into middleware for Gin: for an engine, a
// group or a route. It calls m once, and panics if m is nil. It is safe for concurrent use.
//
// The handlers after it run inside of m. While they run, c.Request is the request that m gives
// them: idempotency.KeyFromContext, NoStore, Step and the others take c.Request.Context().
// c.Writer is what m records; its status and size are of the answer, also while that is held
// back. Afterwards c.Request and c.Writer are as they were.
//
// If m answers by itself, with a replay or a refusal, no handler after Middleware runs, and c is
// aborted. After a panic c is aborted too: if a handler before Middleware recovers, nothing
// runs that m could not record.
//
// A request without a key passes through m as it is, and keeps its c.Request and c.Writer.
func Middleware(m func(http.Handler) http.Handler) gin.HandlerFunc {
	if m == nil {
		panic("idempotencygin: Middleware: nil middleware")
	}
	recorded := m(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { callOf(r).next(w, r) }))
	return func(c *gin.Context) {
		x := &call{c: c}
		x.request = c.Request.WithContext(context.WithValue(c.Request.Context(), callKey{}, x))
		x.request.Pattern = c.FullPath() // For observers, and for warnings.
		for _, p := range c.Params {
			x.request.SetPathValue(p.Key, p.Value)
		}
		defer func() {
			if !x.returned {
				c.Abort() // Otherwise Gin goes on to the handlers by itself.
			}
		}()
		recorded.ServeHTTP(c.Writer, x.request)
		if !x.passed {
			c.Writer.WriteHeaderNow() // For a path that it does not know, Gin would add a body to an answer without one.
		}
	}
}

// Context returns Gin's context of a request that came through [Middleware], or nil. It is for
// functions that are given as options, which get a request:
//
//	idempotency.WithScope(func(r *http.Request) string {
//		return idempotencygin.Context(r).GetString(gin.AuthUserKey)
//	})
//
// Such a function answers, if at all, by the http.ResponseWriter that it is given. The context
// must not be used after the request has ended.
func Context(r *http.Request) *gin.Context {
	if x := callOf(r); x != nil {
		return x.c
	}
	return nil
}

// callKey is where a request's context has its call.
type callKey struct{}

func callOf(r *http.Request) *call {
	x, _ := r.Context().Value(callKey{}).(*call)
	return x
}

// call is a request on its way through Middleware.
type call struct {
	c        *gin.Context
	request  *http.Request // that m was given
	passed   bool          // The handlers write to Gin's own writer: m does not record.
	returned bool          // The handlers have returned.
}

// next runs the handlers after Middleware.
func (x *call) next(w http.ResponseWriter, r *http.Request) {
	c, request, outer := x.c, x.c.Request, x.c.Writer
	defer func() { c.Request, c.Writer = request, outer }()
	if r != x.request {
		c.Request = r // Else it is only a copy of c.Request.
	}
	if w, ok := w.(gin.ResponseWriter); ok {
		x.passed = true
		c.Writer = w
		c.Next()
		x.returned = true
		return
	}
	inner := &responseWriter{ResponseWriter: outer, w: w, status: outer.Status(), size: notWritten}
	c.Writer = inner
	c.Next()
	x.returned = true
	if c.FullPath() == "" && !inner.Written() && inner.status == outer.Status() {
		inner.writeDefault()
	}
	inner.WriteHeaderNow() // c.Status alone leaves that to Gin.
}
