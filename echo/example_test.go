package idempotencyecho_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/idempotency-go/idempotency"
	idempotencyecho "github.com/idempotency-go/idempotency/echo"
	"github.com/labstack/echo/v5"
	"github.com/labstack/echo/v5/middleware"
)

// authenticate stands for what finds out whose request it is.
func authenticate(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c *echo.Context) error {
		c.Set("account", "alice")
		return next(c)
	}
}

func ExampleMiddleware() {
	attempts := 0
	pay := func(c *echo.Context) error {
		attempts++
		return echo.NewHTTPError(http.StatusPaymentRequired, fmt.Sprintf("attempt %d: the card was declined", attempts))
	}
	backend := idempotency.NewMemory()

	once := idempotency.New(backend, idempotency.WithScope(func(r *http.Request) string {
		return idempotencyecho.Context(r).Get("account").(string)
	}))
	e := echo.New()
	e.Use(middleware.Recover(), authenticate)
	e.POST("/payments", pay, idempotencyecho.Middleware(once))

	for range 2 {
		request := httptest.NewRequest(http.MethodPost, "/payments", strings.NewReader("amount=100"))
		request.Header.Set("Idempotency-Key", "8e03978e")
		w := httptest.NewRecorder()
		e.ServeHTTP(w, request)
		fmt.Printf("%d %s replayed: %q\n", w.Code, strings.TrimSpace(w.Body.String()), w.Header().Get("Idempotent-Replayed"))
	}
	// Output:
	// 402 {"message":"attempt 1: the card was declined"} replayed: ""
	// 402 {"message":"attempt 1: the card was declined"} replayed: "true"
}
