package integration

import (
	"context"
	"encoding/json"
	"net/http"
	"testing"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

// humaOptions store the errors of huma's handlers too, but for those of what was checked before
// they run: a client may mend such a request, and send it with the same key.
func humaOptions() []idempotency.Option {
	return []idempotency.Option{
		idempotency.WithContentTypes("application/json", "application/problem+json"),
		idempotency.WithStoreIf(func(status int, _ http.Header) bool {
			return status != http.StatusBadRequest && status != http.StatusUnprocessableEntity
		}),
	}
}

// humaOrder is what an operation of huma's gets. The header is named for the description.
type humaOrder struct {
	Key  string `header:"Idempotency-Key" required:"true" maxLength:"255"`
	Body struct {
		Amount int `json:"amount" minimum:"1"`
	}
}

type humaPayment struct {
	Body struct {
		Payment int    `json:"payment"`
		Key     string `json:"key"`
	}
}

// newHuma puts the middleware around huma's mux.
func newHuma(once layer, pay func(context.Context, *humaOrder) (*humaPayment, error)) (http.Handler, huma.API) {
	mux := http.NewServeMux()
	api := humago.New(mux, huma.DefaultConfig("Payments", "1"))
	huma.Post(api, "/payments", pay)
	return once(mux), api
}

// TestHuma calls a service of huma's, whose errors are problems as ours are.
func TestHuma(t *testing.T) {
	o := newOrderTest(t, humaOptions()...)
	runs := 0
	h, api := newHuma(o.once, func(ctx context.Context, order *humaOrder) (*humaPayment, error) {
		runs++
		if order.Body.Amount > 100 {
			return nil, huma.NewError(http.StatusPaymentRequired, "the card was declined")
		}
		payment := &humaPayment{}
		payment.Body.Payment = runs
		payment.Body.Key, _ = idempotency.KeyFromContext(ctx)
		return payment, nil
	})
	s := o.serve(h)
	pay := func(key, order string) orderAnswer {
		return s.send(http.MethodPost, "/payments", key, order, "Content-Type", "application/json")
	}

	first, retry := pay("k", `{"amount":100}`), pay("k", `{"amount":100}`)
	require.Equal(t, http.StatusOK, first.status)
	require.Contains(t, first.body, `"payment":1,"key":"k"`)
	require.True(t, retry.replayed)
	require.Equal(t, first.body, retry.body)
	require.Equal(t, first.header.Get("Link"), retry.header.Get("Link"))

	// What our middleware refuses is read as huma's own errors are.
	reused := pay("k", `{"amount":1}`)
	require.Equal(t, http.StatusUnprocessableEntity, reused.status)
	problem := requireHumaError(t, reused)
	require.Equal(t, http.StatusUnprocessableEntity, problem.Status)
	require.Equal(t, "Idempotency key reused", problem.Title)
	require.Contains(t, problem.Type, "#key-reused")
	require.NotEmpty(t, problem.Detail)

	declined, again := pay("l", `{"amount":101}`), pay("l", `{"amount":101}`)
	require.Equal(t, http.StatusPaymentRequired, declined.status)
	require.Equal(t, "the card was declined", requireHumaError(t, declined).Detail)
	require.True(t, again.replayed)
	require.Equal(t, declined.body, again.body)
	require.Equal(t, 2, runs)

	require.Equal(t, http.StatusUnprocessableEntity, pay("m", `{"amount":0}`).status)
	require.Equal(t, http.StatusOK, pay("m", `{"amount":1}`).status, "the request was mended")
	require.Equal(t, http.StatusUnprocessableEntity, pay("", `{"amount":1}`).status, "the header is required")

	parameters := api.OpenAPI().Paths["/payments"].Post.Parameters
	require.Len(t, parameters, 1)
	require.Equal(t, "Idempotency-Key", parameters[0].Name)
	require.True(t, parameters[0].Required)
}

// requireHumaError requires a problem, and returns it as huma's clients read it.
func requireHumaError(t *testing.T, a orderAnswer) (e huma.ErrorModel) {
	t.Helper()
	require.Equal(t, "application/problem+json", a.header.Get("Content-Type"))
	require.NoError(t, json.Unmarshal([]byte(a.body), &e))
	return e
}
