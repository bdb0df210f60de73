package idempotencygin_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/gin-gonic/gin"
	"github.com/idempotency-go/idempotency"
	idempotencygin "github.com/idempotency-go/idempotency/gin"
)

func ExampleMiddleware() {
	payments := 0
	pay := func(c *gin.Context) {
		payments++
		key, _ := idempotency.KeyFromContext(c.Request.Context())
		c.JSON(http.StatusCreated, gin.H{"payment": payments, "key": key})
	}
	accounts := gin.Accounts{"alice": "secret"}
	backend := idempotency.NewMemory()

	once := idempotency.New(backend, idempotency.WithScope(func(r *http.Request) string {
		return idempotencygin.Context(r).GetString(gin.AuthUserKey)
	}))
	r := gin.New()
	r.Use(gin.Recovery(), gin.BasicAuth(accounts))
	r.POST("/payments", idempotencygin.Middleware(once), pay)

	for range 2 {
		request := httptest.NewRequest(http.MethodPost, "/payments", strings.NewReader("amount=100"))
		request.SetBasicAuth("alice", "secret")
		request.Header.Set("Idempotency-Key", "8e03978e")
		w := httptest.NewRecorder()
		r.ServeHTTP(w, request)
		fmt.Printf("%d %s replayed: %q\n", w.Code, w.Body, w.Header().Get("Idempotent-Replayed"))
	}
	// Output:
	// 201 {"key":"8e03978e","payment":1} replayed: ""
	// 201 {"key":"8e03978e","payment":1} replayed: "true"
}
