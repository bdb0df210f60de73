package integration

import (
	"context"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/integration/payments"
	"github.com/stretchr/testify/require"
)

// oapiService is a service of a server that oapi-codegen has made.
type oapiService struct{ runs atomic.Int64 }

func (s *oapiService) Pay(ctx context.Context, r payments.PayRequestObject) (payments.PayResponseObject, error) {
	key, _ := idempotency.KeyFromContext(ctx) // Unquoted, which r.Params.IdempotencyKey may not be.
	return payments.Pay201JSONResponse{Key: key, Payment: int(s.runs.Add(1))}, nil
}

// newOAPI puts the middleware around each operation.
func newOAPI(service payments.StrictServerInterface, once, authenticate layer) http.Handler {
	return payments.HandlerWithOptions(payments.NewStrictHandler(service, nil), payments.StdHTTPServerOptions{
		Middlewares: []payments.MiddlewareFunc{once, authenticate}, // The last is the outermost.
	})
}

// TestOAPICodegen calls a service whose server was made of a description in OpenAPI.
func TestOAPICodegen(t *testing.T) {
	o := newOrderTest(t, idempotency.WithScope(func(r *http.Request) string { return r.Context().Value(accountKey{}).(string) }))
	service := &oapiService{}
	s := o.serve(newOAPI(service, o.once, authenticate))
	const path = "/accounts/7/payments"
	pay := func(key, order string) orderAnswer {
		return s.send(http.MethodPost, path, key, order, "Authorization", "alice", "Content-Type", "application/json")
	}
	first := pay(`"k"`, `{"amount":100}`)
	require.Equal(t, http.StatusCreated, first.status)
	require.JSONEq(t, `{"key":"k","payment":1}`, first.body)
	e := o.event()
	require.Equal(t, idempotency.Stored, e.Outcome)
	require.Equal(t, "POST /accounts/{account}/payments", e.Request.Pattern)

	retry := pay("k", `{"amount":100}`)
	require.True(t, retry.replayed)
	require.Equal(t, first.body, retry.body)
	require.Equal(t, http.StatusUnprocessableEntity, pay("k", `{"amount":999}`).status)
	require.Equal(t, http.StatusUnauthorized, s.send(http.MethodPost, path, "k", `{"amount":100}`).status)
	require.Equal(t, http.StatusBadRequest, pay("", `{"amount":100}`).status, "the header is required")

	// A body that does not fit is refused inside, as text: the key is free for a better one.
	require.Equal(t, http.StatusBadRequest, pay("l", `{"amount":"many"}`).status)
	require.Equal(t, http.StatusCreated, pay("l", `{"amount":1}`).status)
	require.EqualValues(t, 2, service.runs.Load())
}
