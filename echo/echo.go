// Package idempotencyecho puts the middleware of idempotency.New into Echo, version 5.
//
//	once := idempotency.New(backend)
//	e := echo.New()
//	e.Use(middleware.RequestLogger(), middleware.Recover(), authenticate) // They see each request.
//	e.POST("/payments", pay, idempotencyecho.Middleware(once))
//
// # Order
//
// Middleware before [Middleware] sees every request, replays and refusals too. Middleware after
// it runs only if the handler does, and what it writes is stored. Put before it:
//
//   - middleware.Recover. Echo answers a panic in JSON: after Middleware that 500 is stored, and
//     each retry gets it.
//   - Authentication, with idempotency.WithScope by the account: see [Context]. After Middleware
//     nobody would be asked for a password before a replay, and a 401 is stored.
//   - Loggers, CORS, request ids, body limits and compression.
//   - Rate limits, if a retry counts as a request.
//
// Put after it what belongs to one run, such as a time-out of the handler, and what makes one
// error of another: an error is answered inside of Middleware.
package idempotencyecho

import (
	"context"
	"net/http"

	"github.com/labstack/echo/v5"
)

// Middleware makes the middleware of idempotency.New into middleware for Echo: for Pre, Use, a
// group or a route. It calls m once for each handler that it wraps, and panics if m is nil. It is
// safe for concurrent use.
//
// What stands after it runs inside of m. While it runs, c.Request() is the request that m gives
// it: idempotency.KeyFromContext, NoStore, Step and the others take c.Request().Context().
// c.Response() is what m records; its status and size are of the answer, also while that is
// held back. Afterwards c.Request() and c.Response() are as they were.
//
// An error that the handler returns is answered inside of m, by Echo's HTTPErrorHandler: so
// the client gets what is stored. Then Middleware returns it, for loggers and traces before it;
// Echo gives it to the HTTPErrorHandler once more, which does nothing if the response is
// committed, as Echo asks of every such handler.
//
// If m answers by itself, with a replay or a refusal, nothing after Middleware runs. A request
// without a key passes through m as it is.
func Middleware(m func(http.Handler) http.Handler) echo.MiddlewareFunc {
	if m == nil {
		panic("idempotencyecho: Middleware: nil middleware")
	}
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		recorded := m(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			x := callOf(r)
			x.err = x.run(next, w, r)
		}))
		return func(c *echo.Context) error {
			x := &call{c: c}
			x.request = c.Request().WithContext(context.WithValue(c.Request().Context(), callKey{}, x))
			for _, p := range c.PathValues() {
				x.request.SetPathValue(p.Name, p.Value)
			}
			recorded.ServeHTTP(c.Response(), x.request)
			return x.err
		}
	}
}

// Context returns Echo's context of a request that came through [Middleware], or nil. It is for
// functions that are given as options, which get a request:
//
//	idempotency.WithScope(func(r *http.Request) string {
//		return idempotencyecho.Context(r).Get("account").(string)
//	})
//
// Such a function answers, if at all, by the http.ResponseWriter that it is given. The context
// must not be used after the request has ended.
func Context(r *http.Request) *echo.Context {
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
	c       *echo.Context
	request *http.Request // that m was given
	err     error         // that the handler has returned
}

// run runs what stands after Middleware, and answers its error if m records.
func (x *call) run(next echo.HandlerFunc, w http.ResponseWriter, r *http.Request) error {
	c, request, response := x.c, x.c.Request(), x.c.Response()
	defer func() {
		c.SetRequest(request)
		c.SetResponse(response)
	}()
	if r == x.request { // m has passed it on, and does not record.
		c.SetResponse(w)
		return next(c)
	}
	c.SetRequest(r)
	c.SetResponse(echo.NewResponse(w, c.Logger()))
	err := next(c)
	if err != nil {
		c.Echo().HTTPErrorHandler(c, err)
	}
	return err
}
