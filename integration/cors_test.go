package integration

import (
	"net/http"
	"strings"
	"testing"

	"github.com/gorilla/handlers"
	"github.com/idempotency-go/idempotency"
	"github.com/rs/cors"
	"github.com/stretchr/testify/require"
)

const shop, office = "https://shop.example", "https://office.example"

// corses are middlewares that let two origins in. A browser sends a key only
// where its header is allowed, and shows a script the mark of a replay only
// where that is exposed.
var corses = []struct {
	name  string
	layer layer
}{
	{"rs/cors", cors.New(cors.Options{
		AllowedOrigins: []string{shop, office},
		AllowedMethods: []string{http.MethodPost, http.MethodPatch},
		AllowedHeaders: []string{"Content-Type", "Idempotency-Key"},
		ExposedHeaders: []string{"Idempotent-Replayed", "Retry-After"},
	}).Handler},
	{"gorilla CORS", handlers.CORS(
		handlers.AllowedOrigins([]string{shop, office}),
		handlers.AllowedMethods([]string{http.MethodPost, http.MethodPatch}),
		handlers.AllowedHeaders([]string{"Content-Type", "Idempotency-Key"}),
		handlers.ExposedHeaders([]string{"Idempotent-Replayed", "Retry-After"}),
	)},
}

// TestCORS has a replay go to another origin than the first answer. Outside, it
// names its own; inside, the first one's, and its browser withholds it.
func TestCORS(t *testing.T) {
	for _, c := range corses {
		for _, order := range orders {
			t.Run(c.name+" "+order, func(t *testing.T) {
				o, till := newOrderTest(t), &paymentTill{}
				s := o.serve(orderStack(order, till, o.once, c.layer))
				first := s.post("/", "k", "Origin", shop)
				require.Equal(t, []string{shop}, first.header.Values("Access-Control-Allow-Origin"))
				o.event()
				retry := s.post("/", "k", "Origin", office)
				require.True(t, retry.replayed)
				require.Len(t, retry.header.Values("Access-Control-Expose-Headers"), 1)
				require.Contains(t, retry.header.Get("Access-Control-Expose-Headers"), "Idempotent-Replayed")
				o.event()
				reused := s.send(http.MethodPost, "/", "k", "another", "Origin", shop)
				require.Equal(t, http.StatusUnprocessableEntity, reused.status)
				if order == outside {
					require.Equal(t, []string{office}, retry.header.Values("Access-Control-Allow-Origin"))
					require.Equal(t, shop, reused.header.Get("Access-Control-Allow-Origin"))
					o.requireStored(http.StatusCreated, `{"payment":1}`, "Content-Type", "application/json")
				} else {
					require.Equal(t, []string{shop}, retry.header.Values("Access-Control-Allow-Origin"))
					require.Empty(t, reused.header.Get("Access-Control-Allow-Origin"), "a script cannot read why it was refused")
				}

				foreign := s.post("/", "k", "Origin", "https://evil.example")
				require.True(t, foreign.replayed, "CORS keeps answers from scripts, not from being given")
				if order == outside {
					require.Empty(t, foreign.header.Values("Access-Control-Allow-Origin"))
				} else {
					require.Equal(t, shop, foreign.header.Get("Access-Control-Allow-Origin"))
				}
				require.EqualValues(t, 1, till.runs.Load())
			})
		}
	}
}

// TestCORSPreflight has the question before the request pass untouched.
func TestCORSPreflight(t *testing.T) {
	for _, c := range corses {
		for _, order := range orders {
			t.Run(c.name+" "+order, func(t *testing.T) {
				o, till := newOrderTest(t, idempotency.WithRequired()), &paymentTill{}
				s := o.serve(orderStack(order, till, o.once, c.layer))
				preflight := s.send(http.MethodOptions, "/", "", "", "Origin", shop,
					"Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "content-type,idempotency-key")
				require.Less(t, preflight.status, 300)
				require.Equal(t, shop, preflight.header.Get("Access-Control-Allow-Origin"))
				require.Contains(t, strings.ToLower(preflight.header.Get("Access-Control-Allow-Headers")), "idempotency-key")
				require.Zero(t, till.runs.Load())
				require.Empty(t, o.events)

				missing := s.post("/", "", "Origin", shop)
				require.Equal(t, http.StatusBadRequest, missing.status)
				require.Equal(t, idempotency.Rejected, o.event().Outcome)
			})
		}
	}
}
