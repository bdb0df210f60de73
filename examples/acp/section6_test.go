package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/internal/pgtest"
	"github.com/idempotency-go/idempotency/postgres"
)

// TestSection6 has each sentence of the RFC's section 6 that says MUST, SHOULD or RECOMMENDED, in
// its order and its words without their mark-up, and the test of what it asks. In brackets stands
// what follows there as a block or a table. What is asked of clients is tested by what the service
// does with clients that keep to it, and with others.
func TestSection6(t *testing.T) {
	for _, c := range []struct {
		name, section, sentence string
		test                    func(t *testing.T)
	}{
		{"every POST", "6.1", "Clients MUST include an Idempotency-Key header on every POST request (create, update, complete, cancel).", everyPost},
		{"opaque keys", "6.1", "The key is an opaque string, max 255 characters; UUID v4 is RECOMMENDED.", opaqueKeys},
		{"scope", "6.1", "Servers MUST scope keys to the authenticated identity + endpoint path; the same key on different endpoints is treated independently.", scopedKeys},
		{"no key", "6.1", "A POST request without an Idempotency-Key header MUST be rejected with: [idempotency_key_required] HTTP status: 400 Bad Request.", noKey},
		{"equivalence", "6.2", "Servers MUST treat the following as equivalent: [the table]", equivalence},
		{"amounts", "6.2", "Monetary values SHOULD use string or integer-cent representations to avoid floating-point ambiguity.", amounts},
		{"replay", "6.3", "Same key + identical body → server MUST return the original response with the same HTTP status code.", replay},
		{"replay marked", "6.3", "The replayed response SHOULD include the header Idempotent-Replayed: true.", replayMarked},
		{"no second effect", "6.3", "Servers MUST NOT re-execute side effects (e.g., payment capture, inventory reservation) on replay.", noSecondEffect},
		{"errors", "6.4", `All idempotency errors use type: "invalid_request" and the following codes: [the table]`, refusals},
		{"in flight", "6.4", "Servers SHOULD include a Retry-After header (in seconds).", inFlight},
		{"5xx not cached", "6.5", "Responses with HTTP 5xx status codes MUST NOT be cached against the idempotency key.", notCached},
		{"fresh after 5xx", "6.5", "A retry with the same key after a 5xx MUST be processed as a fresh request.", freshRequest},
		{"retention", "6.6", "Servers MUST retain idempotency key → response mappings for at least 24 hours.", retention},
		{"extension fields", "6.7", "When an ACP extension is active, extension-defined fields in the request body MUST participate in body comparison (§6.2).", extensionFields},
		{"in front of the handlers", "6.8", "Idempotency logic is RECOMMENDED to live in a middleware layer in front of business logic, so all endpoints gain consistent behavior.", middlewareLayer},
		{"one transaction", "6.8", "The idempotency key record and the business operation SHOULD be committed in the same ACID transaction to prevent ghost keys (key stored, operation failed) or lost keys (operation succeeded, key not stored).", oneTransaction},
		{"recovery points", "6.8", "When an operation triggers foreign state mutations (e.g., PSP authorization), servers SHOULD implement recovery-point semantics — record intermediate state so that retries can resume rather than restart.", recoveryPoints},
		{"null is kept", "6.8", "Because null and absent are semantically distinct (§6.2), SDK authors SHOULD ensure their serializers preserve the distinction.", nullAndAbsent},
		{"null clears", "6.8", "Clients MUST only include null when they intend to clear a field, and MUST omit the key when they intend to leave the field unchanged.", nullAndAbsent},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Logf("%s: %s", c.section, c.sentence)
			c.test(t)
		})
	}
}

const (
	oneItem = `{"items": [{"id": "item_123", "quantity": 1}], "fulfillment_details": {"name": "John"}}`
	payment = `{"payment_data": {"instrument": {"credential": {"token": "spt_123"}}}}`
)

// service is the API, with a processor and sessions that a test can let fail.
type service struct {
	*api
	h       http.Handler
	calls   atomic.Int32 // of the processor
	cents   atomic.Int64 // that it was asked for last
	decline error        // what the processor answers
	written error        // how a change ends once it is made
	block   chan struct{}
	blocked chan struct{}
}

func newService() *service {
	return newServiceOn(idempotency.NewMemory(), &memory{all: make(map[string]session)})
}

func newServiceOn(backend idempotency.Backend, where sessions) *service {
	s := &service{}
	s.api = &api{failing{where, s}, s, map[string]string{"demo": "agent_1", "other": "agent_2"}}
	s.h = s.handler(backend)
	return s
}

func (s *service) authorize(_ context.Context, _, _ string, cents int64) ([]byte, error) {
	s.calls.Add(1)
	s.cents.Store(cents)
	if s.block != nil {
		close(s.blocked)
		<-s.block
	}
	return []byte("auth_1"), s.decline
}

// failing are sessions whose changes can fail after they are made.
type failing struct {
	sessions
	*service
}

func (f failing) change(ctx context.Context, id string, change func(*session) error) (session, error) {
	return f.sessions.change(ctx, id, func(s *session) error { return errors.Join(change(s), f.written) })
}

// answered is what a client sees.
type answered struct {
	Status int
	Header http.Header
	Body   string
}

func (a answered) replayed() bool { return a.Header.Get("Idempotent-Replayed") == "true" }

func (a answered) session(t *testing.T) (s session) {
	t.Helper()
	require.NoError(t, json.Unmarshal([]byte(a.Body), &s), a.Body)
	return s
}

// post sends a POST; more are further headers and their values.
func (s *service) post(path, key, body string, more ...string) answered {
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer demo")
	r.Header.Set("API-Version", apiVersion)
	r.Header.Set("Content-Type", "application/json")
	if key != "" {
		r.Header.Set("Idempotency-Key", key)
	}
	for i := 0; i < len(more); i += 2 {
		r.Header.Set(more[i], more[i+1])
	}
	w := httptest.NewRecorder()
	s.h.ServeHTTP(w, r)
	return answered{w.Code, w.Header(), w.Body.String()}
}

// open makes a session that is ready for payment, and returns its path.
func (s *service) open(t *testing.T) string {
	t.Helper()
	a := s.post("/checkout_sessions", "open "+t.Name(), oneItem)
	require.Equal(t, http.StatusCreated, a.Status, a.Body)
	got := a.session(t)
	require.Equal(t, "ready_for_payment", got.Status)
	return "/checkout_sessions/" + got.ID
}

// requireReplay checks that an answer is another one's replay.
func requireReplay(t *testing.T, first, again answered) {
	t.Helper()
	require.False(t, first.replayed())
	require.True(t, again.replayed(), "%d %s", again.Status, again.Body)
	require.Equal(t, first.Status, again.Status)
	require.Equal(t, first.Body, again.Body)
}

// requireError checks an answer in the form of an error.
func requireError(t *testing.T, a answered, status int, code string) {
	t.Helper()
	require.Equal(t, status, a.Status, a.Body)
	require.Equal(t, "application/json", a.Header.Get("Content-Type"))
	var e struct{ Type, Code, Message string }
	require.NoError(t, json.Unmarshal([]byte(a.Body), &e))
	require.Equal(t, "invalid_request", e.Type)
	require.Equal(t, code, e.Code)
	require.NotEmpty(t, e.Message)
}

// posts are the four POSTs: what comes after the session's path, a body, and the status.
var posts = []struct {
	name, after, body string
	status            int
}{
	{"create", "", oneItem, http.StatusCreated},
	{"update", "/ID", oneItem, http.StatusOK},
	{"complete", "/ID/complete", payment, http.StatusOK},
	{"cancel", "/ID/cancel", "", http.StatusOK},
}

// eachPost tests the four POSTs, each on a session of its own.
func eachPost(t *testing.T, test func(t *testing.T, s *service, path, body string, status int)) {
	for _, p := range posts {
		t.Run(p.name, func(t *testing.T) {
			s := newService()
			id := strings.TrimPrefix(s.open(t), "/checkout_sessions/")
			test(t, s, "/checkout_sessions"+strings.Replace(p.after, "ID", id, 1), p.body, p.status)
		})
	}
}

func everyPost(t *testing.T) {
	eachPost(t, func(t *testing.T, s *service, path, body string, status int) {
		requireError(t, s.post(path, "", body), http.StatusBadRequest, "idempotency_key_required")
		require.Equal(t, status, s.post(path, "key", body).Status)
	})
}

func opaqueKeys(t *testing.T) {
	s := newService()
	for _, key := range []string{"k", "8e03978e-40d5-43e8-bc93-6894a57f9324", "?/ {}%", strings.Repeat("k", 255)} {
		first := s.post("/checkout_sessions", key, oneItem)
		require.Equal(t, http.StatusCreated, first.Status, key)
		require.Equal(t, key, first.Header.Get("Idempotency-Key"), "the key is echoed (3.1)")
		requireReplay(t, first, s.post("/checkout_sessions", key, oneItem))
	}
	requireError(t, s.post("/checkout_sessions", strings.Repeat("k", 256), oneItem), http.StatusBadRequest, "idempotency_key_invalid")
}

func scopedKeys(t *testing.T) {
	s := newService()
	create := s.post("/checkout_sessions", "key", oneItem)
	other := s.post("/checkout_sessions", "key", oneItem, "Authorization", "Bearer other")
	require.Equal(t, http.StatusCreated, other.Status)
	require.False(t, other.replayed(), "another identity")
	require.NotEqual(t, create.session(t).ID, other.session(t).ID)

	one, two := s.open(t), "/checkout_sessions/"+create.session(t).ID
	for _, path := range []string{one, two, one + "/complete", two + "/cancel"} {
		a := s.post(path, "key", payment)
		require.Equal(t, http.StatusOK, a.Status, a.Body)
		require.False(t, a.replayed(), "another endpoint: %s", path)
		requireReplay(t, a, s.post(path, "key", payment))
	}
}

func noKey(t *testing.T) {
	a := newService().post("/checkout_sessions", "", oneItem)
	require.Equal(t, http.StatusBadRequest, a.Status)
	require.JSONEq(t, `{
		"type": "invalid_request",
		"code": "idempotency_key_required",
		"message": "Idempotency-Key header is required on all POST requests"
	}`, a.Body)
}

func equivalence(t *testing.T) {
	for _, c := range []struct {
		variation, body, retry string
		equivalent             bool
	}{
		{"key ordering", `{"items": [{"id": "item_123", "quantity": 1}], "buyer": {}}`, `{"buyer":{},"items":[{"quantity":1,"id":"item_123"}]}`, true},
		{"null vs absent", `{"items": [{"id": "item_123", "quantity": 1}], "fulfillment_details": null}`, `{"items": [{"id": "item_123", "quantity": 1}]}`, false},
		{"trailing zeros", `{"items": [{"id": "item_123", "quantity": 1}]}`, `{"items": [{"id": "item_123", "quantity": 1.0}]}`, true},
		{"array ordering", `{"items": [{"id": "item_123", "quantity": 1}, {"id": "item_456", "quantity": 1}]}`,
			`{"items": [{"id": "item_456", "quantity": 1}, {"id": "item_123", "quantity": 1}]}`, false},
	} {
		t.Run(c.variation, func(t *testing.T) {
			s := newService()
			first := s.post("/checkout_sessions", "key", c.body)
			require.Equal(t, http.StatusCreated, first.Status, first.Body)
			// Headers are excluded.
			again := s.post("/checkout_sessions", "key", c.retry, "Accept-Language", "fr", "Request-Id", "r2", "Content-Type", "application/json; charset=utf-8")
			if c.equivalent {
				requireReplay(t, first, again)
			} else {
				requireError(t, again, http.StatusUnprocessableEntity, "idempotency_conflict")
			}
		})
	}
}

func amounts(t *testing.T) {
	s := newService()
	var got struct {
		Currency  string
		LineItems []map[string]json.RawMessage `json:"line_items"`
		Totals    []struct{ Amount json.RawMessage }
	}
	body := s.post("/checkout_sessions", "key", `{"items": [{"id": "item_456", "quantity": 3}]}`).Body
	require.NoError(t, json.Unmarshal([]byte(body), &got))
	require.Equal(t, "usd", got.Currency)
	for _, name := range []string{"base_amount", "discount", "subtotal", "tax", "total"} {
		require.Regexp(t, `^\d+$`, string(got.LineItems[0][name]), name)
	}
	require.Equal(t, "3750", string(got.LineItems[0]["total"]))
	require.Equal(t, "3750", string(got.Totals[0].Amount))
}

func replay(t *testing.T) {
	eachPost(t, func(t *testing.T, s *service, path, body string, status int) {
		first := s.post(path, "key", body, "Request-Id", "r1")
		require.Equal(t, status, first.Status, first.Body)
		again := s.post(path, "key", body, "Request-Id", "r2")
		requireReplay(t, first, again)
		require.Equal(t, "r2", again.Header.Get("Request-Id"), "each request's own (3.1)")
	})
	t.Run("a refusal by the handler", func(t *testing.T) {
		s := newService()
		path := s.open(t)
		require.Equal(t, http.StatusOK, s.post(path+"/cancel", "first", "").Status)
		first := s.post(path+"/cancel", "second", "")
		require.Equal(t, http.StatusMethodNotAllowed, first.Status)
		requireReplay(t, first, s.post(path+"/cancel", "second", ""))
	})
}

func replayMarked(t *testing.T) {
	eachPost(t, func(t *testing.T, s *service, path, body string, _ int) {
		require.NotContains(t, s.post(path, "key", body).Header, "Idempotent-Replayed")
		require.Equal(t, []string{"true"}, s.post(path, "key", body).Header["Idempotent-Replayed"])
	})
}

func noSecondEffect(t *testing.T) {
	s := newService()
	path := s.open(t)
	first := s.post(path+"/complete", "key", payment)
	require.Equal(t, "completed", first.session(t).Status)
	for range 3 {
		requireReplay(t, first, s.post(path+"/complete", "key", payment))
	}
	require.EqualValues(t, 1, s.calls.Load(), "one authorization")
}

// refusals has the first two rows of 6.4's table, inFlight the third.
func refusals(t *testing.T) {
	eachPost(t, func(t *testing.T, s *service, path, body string, status int) {
		missing := s.post(path, "", body)
		requireError(t, missing, http.StatusBadRequest, "idempotency_key_required")
		require.Equal(t, status, s.post(path, "key", body).Status, "retryable with the header")
		conflict := s.post(path, "key", `{"another": "body"}`)
		requireError(t, conflict, http.StatusUnprocessableEntity, "idempotency_conflict")
		require.Contains(t, conflict.Body, `"message":"Idempotency-Key has already been used with a different request body"`)
		require.Empty(t, conflict.Header.Get("Retry-After"))
		require.Equal(t, conflict, s.post(path, "key", `{"another": "body"}`), "permanent")
	})
}

func inFlight(t *testing.T) {
	s := newService()
	path := s.open(t)
	s.block, s.blocked = make(chan struct{}), make(chan struct{})
	first := make(chan answered, 1)
	go func() { first <- s.post(path+"/complete", "key", payment) }()
	<-s.blocked
	a := s.post(path+"/complete", "key", payment)
	requireError(t, a, http.StatusConflict, "idempotency_in_flight")
	require.Contains(t, a.Body, `"message":"A request with this Idempotency-Key is currently being processed"`)
	require.Equal(t, "1", a.Header.Get("Retry-After"))
	requireError(t, s.post(path+"/complete", "key", `{}`), http.StatusUnprocessableEntity, "idempotency_conflict")
	close(s.block)
	requireReplay(t, <-first, s.post(path+"/complete", "key", payment))
	require.EqualValues(t, 1, s.calls.Load())
}

func notCached(t *testing.T) {
	s := newService()
	path := s.open(t)
	s.decline = errors.New("the processor is down")
	for n := range int32(3) {
		a := s.post(path+"/complete", "key", payment)
		require.Equal(t, http.StatusInternalServerError, a.Status)
		require.False(t, a.replayed())
		require.Equal(t, n+1, s.calls.Load())
	}
}

func freshRequest(t *testing.T) {
	s := newService()
	path := s.open(t)
	s.decline = errors.New("the processor is down")
	require.Equal(t, http.StatusInternalServerError, s.post(path+"/complete", "key", payment).Status)
	s.decline = nil
	fresh := s.post(path+"/complete", "key", payment)
	require.Equal(t, "completed", fresh.session(t).Status)
	require.False(t, fresh.replayed())
	requireReplay(t, fresh, s.post(path+"/complete", "key", payment))
}

func retention(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newService()
		first := s.post("/checkout_sessions", "key", oneItem)
		time.Sleep(24*time.Hour - time.Second)
		requireReplay(t, first, s.post("/checkout_sessions", "key", oneItem))
		time.Sleep(2 * time.Second)
		// "After expiry, a reused key is treated as a new request (no error)."
		again := s.post("/checkout_sessions", "key", `{"items": []}`)
		require.Equal(t, http.StatusCreated, again.Status)
		require.False(t, again.replayed())
	})
}

func extensionFields(t *testing.T) {
	s := newService()
	with := `{"items": [{"id": "item_123", "quantity": 1}], "discounts": {"codes": ["TEN"]}}`
	first := s.post("/checkout_sessions", "key", with)
	require.Equal(t, http.StatusCreated, first.Status)
	requireReplay(t, first, s.post("/checkout_sessions", "key", with))
	for _, body := range []string{strings.Replace(with, "TEN", "TWENTY", 1), `{"items": [{"id": "item_123", "quantity": 1}]}`} {
		requireError(t, s.post("/checkout_sessions", "key", body), http.StatusUnprocessableEntity, "idempotency_conflict")
	}
}

func middlewareLayer(t *testing.T) {
	eachPost(t, func(t *testing.T, s *service, path, body string, _ int) {
		s.post(path, "key", body)
		// A handler would panic: what is replayed and refused does not get to it.
		s.sessions, s.processor = nil, nil
		require.True(t, s.post(path, "key", body).replayed())
		requireError(t, s.post(path, "key", `[]`), http.StatusUnprocessableEntity, "idempotency_conflict")
		requireError(t, s.post(path, "", body), http.StatusBadRequest, "idempotency_key_required")
	})
}

func oneTransaction(t *testing.T) {
	pool, err := pgxpool.New(t.Context(), pgtest.Start(t).URL())
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	backend, where := postgres.NewTransactional(pool), database{pool}
	require.NoError(t, errors.Join(backend.Migrate(t.Context()), where.migrate(t.Context())))
	s := newServiceOn(backend, where)
	path := s.open(t)
	id := strings.TrimPrefix(path, "/checkout_sessions/")
	requireBoth := func(status string, state idempotency.State) {
		t.Helper()
		got, err := where.get(t.Context(), id)
		require.NoError(t, err)
		require.Equal(t, status, got.Status)
		rec, _, ok, err := backend.Lookup(t.Context(), idempotency.NewKey("agent_1 "+path+"/complete", "key"))
		require.NoError(t, err)
		require.True(t, ok)
		require.Equal(t, state, rec.State)
	}

	// The operation fails once it is written: neither the session nor the key has it.
	s.written = errors.New("the disk is full")
	require.Equal(t, http.StatusInternalServerError, s.post(path+"/complete", "key", payment).Status)
	requireBoth("ready_for_payment", idempotency.StateInterrupted)
	// It succeeds: both have it.
	s.written = nil
	first := s.post(path+"/complete", "key", payment)
	require.Equal(t, "completed", first.session(t).Status)
	requireBoth("completed", idempotency.StateCompleted)
	requireReplay(t, first, s.post(path+"/complete", "key", payment))
	require.EqualValues(t, 1, s.calls.Load())
}

func recoveryPoints(t *testing.T) {
	s := newService()
	path := s.open(t)
	s.written = errors.New("the disk is full") // It is authorized, and the order is not kept.
	require.Equal(t, http.StatusInternalServerError, s.post(path+"/complete", "key", payment).Status)
	require.EqualValues(t, 1, s.calls.Load())
	s.written, s.decline = nil, errors.New("must not be asked again")
	resumed := s.post(path+"/complete", "key", payment)
	require.Equal(t, "completed", resumed.session(t).Status)
	require.EqualValues(t, 1, s.calls.Load(), "it goes on after the authorization")
}

// An authorization is of one amount: it is not used for a session that was updated between the tries.
func TestUpdatedBetweenTheTries(t *testing.T) {
	s := newService()
	path := s.open(t)
	s.written = errors.New("the disk is full")
	require.Equal(t, http.StatusInternalServerError, s.post(path+"/complete", "key", payment).Status)
	require.EqualValues(t, 300, s.cents.Load())
	s.written = nil
	require.Equal(t, http.StatusOK, s.post(path, "update", `{"items": [{"id": "item_123", "quantity": 3}]}`).Status)
	require.Equal(t, "completed", s.post(path+"/complete", "key", payment).session(t).Status)
	require.EqualValues(t, 900, s.cents.Load())
}

func nullAndAbsent(t *testing.T) {
	s := newService()
	path := s.open(t)
	absent := s.post(path, "absent", `{}`)
	require.JSONEq(t, `{"name": "John"}`, string(absent.session(t).FulfillmentDetails))
	requireError(t, s.post(path, "absent", `{"fulfillment_details": null}`), http.StatusUnprocessableEntity, "idempotency_conflict")
	null := s.post(path, "null", `{"fulfillment_details": null}`)
	require.Nil(t, null.session(t).FulfillmentDetails)
	require.Equal(t, "not_ready_for_payment", null.session(t).Status)
}
