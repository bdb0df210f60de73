package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/idempotency-go/idempotency"
)

// maxBody is how many bytes a request's body may have: as many as the middleware compares.
const maxBody = 1 << 20

// prices is the catalogue: an item's price in cents.
var prices = map[string]int64{"item_123": 300, "item_456": 1250}

// api is the merchant's service.
type api struct {
	sessions   sessions
	processor  processor
	identities map[string]string // of each bearer token
}

// handler puts section 6 before the four POSTs, and what is not section 6 before that.
func (a *api) handler(backend idempotency.Backend) http.Handler {
	once := section6(backend)
	mux := http.NewServeMux()
	mux.Handle("POST /checkout_sessions", once(http.HandlerFunc(a.create)))
	mux.Handle("POST /checkout_sessions/{id}", once(http.HandlerFunc(a.update)))
	mux.Handle("POST /checkout_sessions/{id}/complete", once(http.HandlerFunc(a.complete)))
	mux.Handle("POST /checkout_sessions/{id}/cancel", once(http.HandlerFunc(a.cancel)))
	mux.HandleFunc("GET /checkout_sessions/{id}", a.retrieve)
	return a.common(http.MaxBytesHandler(mux, maxBody))
}

// session is a checkout session: the part of the RFC's that this example needs.
type session struct {
	ID                 string          `json:"id"`
	Status             string          `json:"status"`
	Currency           string          `json:"currency"`
	LineItems          []lineItem      `json:"line_items"`
	FulfillmentDetails json.RawMessage `json:"fulfillment_details,omitempty"`
	Totals             []total         `json:"totals"`
	Messages           []string        `json:"messages"` // always empty here
	Links              []string        `json:"links"`    // always empty here
	Order              *order          `json:"order,omitempty"`
}

type item struct {
	ID       string `json:"id"`
	Quantity int64  `json:"quantity"`
}

type lineItem struct {
	ID         string `json:"id"`
	Item       item   `json:"item"`
	BaseAmount int64  `json:"base_amount"` // This amount and all others are in cents.
	Discount   int64  `json:"discount"`
	Subtotal   int64  `json:"subtotal"`
	Tax        int64  `json:"tax"`
	Total      int64  `json:"total"`
}

type total struct {
	Type        string `json:"type"`
	DisplayText string `json:"display_text"`
	Amount      int64  `json:"amount"`
}

type order struct {
	ID                string `json:"id"`
	CheckoutSessionID string `json:"checkout_session_id"`
	PermalinkURL      string `json:"permalink_url"`
}

// cart is the body of a create and of an update. Details that are absent stay as they are, and
// null clears them (6.8).
type cart struct {
	Items              []item          `json:"items"`
	FulfillmentDetails json.RawMessage `json:"fulfillment_details"`
}

// apply changes a session as the body asks.
func (c *cart) apply(s *session) error {
	if c.Items != nil {
		s.LineItems = []lineItem{}
	}
	for i, it := range c.Items {
		price, known := prices[it.ID]
		if !known || it.Quantity < 1 || it.Quantity > 1000 {
			e := invalid(http.StatusBadRequest, "invalid", "There is no such item, or not in this quantity")
			e.Param = fmt.Sprintf("$.items[%d]", i)
			return e
		}
		amount := price * it.Quantity
		line := lineItem{ID: fmt.Sprint("line_", i+1), Item: it, BaseAmount: amount, Subtotal: amount, Total: amount}
		s.LineItems = append(s.LineItems, line)
	}
	switch {
	case string(c.FulfillmentDetails) == "null":
		s.FulfillmentDetails = nil
	case c.FulfillmentDetails != nil:
		s.FulfillmentDetails = c.FulfillmentDetails
	}
	s.Totals = []total{{"total", "Total", s.total()}}
	s.Status = "not_ready_for_payment"
	if len(s.LineItems) > 0 && s.FulfillmentDetails != nil {
		s.Status = "ready_for_payment"
	}
	return nil
}

func (s *session) total() (cents int64) {
	for _, line := range s.LineItems {
		cents += line.Total
	}
	return cents
}

// open refuses a session that is completed or canceled.
func (s *session) open() error {
	if s.Status == "completed" || s.Status == "canceled" {
		return invalid(http.StatusMethodNotAllowed, "invalid", "The session is "+s.Status)
	}
	return nil
}

func (a *api) create(w http.ResponseWriter, r *http.Request) {
	var c cart
	s := session{ID: "cs_" + rand.Text(), Currency: "usd", LineItems: []lineItem{}, Messages: []string{}, Links: []string{}}
	err := decode(r, &c)
	if err == nil {
		err = c.apply(&s)
	}
	if err == nil {
		err = a.sessions.add(r.Context(), s)
	}
	answer(w, http.StatusCreated, s, err)
}

func (a *api) update(w http.ResponseWriter, r *http.Request) {
	var c cart
	a.change(w, r, &c, c.apply)
}

func (a *api) complete(w http.ResponseWriter, r *http.Request) {
	var payment struct {
		Data struct {
			Instrument struct{ Credential struct{ Token string } }
		} `json:"payment_data"`
	}
	a.change(w, r, &payment, func(s *session) error {
		token := payment.Data.Instrument.Credential.Token
		if s.Status != "ready_for_payment" || token == "" {
			return invalid(http.StatusBadRequest, "invalid", "The session is not ready for payment, or there is no credential")
		}
		// A recovery point (6.8): a retry gets the authorization that the first try got. If that died
		// before it was kept, the processor knows it by the key, which is the same on every try. It is
		// of one amount: if the session was updated between the tries, the old one is never captured.
		step := fmt.Sprint("authorize ", s.total())
		_, err := idempotency.Step(r.Context(), step, func(ctx context.Context) ([]byte, error) {
			return a.processor.authorize(ctx, idempotency.DeriveKey(ctx, step), token, s.total())
		})
		if err != nil {
			return err
		}
		s.Status = "completed"
		s.Order = &order{"ord_" + s.ID, s.ID, "https://merchant.example/orders/ord_" + s.ID}
		return nil
	})
}

func (a *api) cancel(w http.ResponseWriter, r *http.Request) {
	a.change(w, r, &struct{}{}, func(s *session) error {
		s.Status = "canceled"
		return nil
	})
}

func (a *api) retrieve(w http.ResponseWriter, r *http.Request) {
	s, err := a.sessions.get(r.Context(), r.PathValue("id"))
	answer(w, http.StatusOK, s, err)
}

// change reads the body, changes an open session and answers with it.
func (a *api) change(w http.ResponseWriter, r *http.Request, body any, f func(s *session) error) {
	err := decode(r, body)
	var s session
	if err == nil {
		s, err = a.sessions.change(r.Context(), r.PathValue("id"), func(s *session) error {
			if err := s.open(); err != nil {
				return err
			}
			return f(s)
		})
	}
	answer(w, http.StatusOK, s, err)
}
