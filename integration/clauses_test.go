package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

// The tests of this file are named on docs/PROTOCOLS.md, each beside the clause that it shows.

const (
	someV4 = "8e03978e-40d5-43e8-bc93-6894a57f9324"
	someV7 = "017F22E2-79B0-7CC3-98C4-DC0C0C07398F"
)

// protocol makes the middleware with the options that a protocol asks for.
type protocol func(idempotency.Backend) func(http.Handler) http.Handler

// clauseAPI is an API with a protocol's options, and what a test wants of its handler.
type clauseAPI struct {
	h       http.Handler
	runs    atomic.Int32
	status  int    // that the handler answers with; 0 is 201
	body    string // that it answers with; "" tells the run
	noStore bool   // It answers with NoStore.
	running chan struct{}
	finish  chan struct{} // If it is not nil, the handler waits for it.
}

// newClauseAPI serves /payments and /refunds, behind a protocol's middleware.
func newClauseAPI(with protocol) *clauseAPI {
	return newClauseAPIOn(idempotency.NewMemory(), with)
}

func newClauseAPIOn(backend idempotency.Backend, with protocol) *clauseAPI {
	a := &clauseAPI{running: make(chan struct{}, 1)}
	once, mux := with(backend), http.NewServeMux()
	mux.Handle("/payments", once(a))
	mux.Handle("/refunds", once(a))
	a.h = authenticate(mux)
	return a
}

func (a *clauseAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	run := a.runs.Add(1)
	if a.finish != nil {
		a.running <- struct{}{}
		<-a.finish
	}
	if a.noStore {
		idempotency.NoStore(r.Context())
	}
	status, body := a.status, a.body
	if status == 0 {
		status = http.StatusCreated
	}
	if body == "" {
		body = fmt.Sprintf(`{"run":%d}`, run)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if status != http.StatusNoContent {
		_, _ = w.Write([]byte(body))
	}
}

// send sends a request; more are further headers and their values.
func (a *clauseAPI) send(method, path, key, body string, more ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header.Set("Authorization", "alice")
	if key != "" {
		r.Header.Set("Idempotency-Key", key)
	}
	for i := 0; i < len(more); i += 2 {
		r.Header.Set(more[i], more[i+1])
	}
	w := httptest.NewRecorder()
	a.h.ServeHTTP(w, r)
	return w
}

func (a *clauseAPI) post(key, body string, more ...string) *httptest.ResponseRecorder {
	return a.send(http.MethodPost, "/payments", key, body, more...)
}

// requireRan checks that an answer is the handler's, of its nth run.
func requireRan(t *testing.T, w *httptest.ResponseRecorder, n int) {
	t.Helper()
	require.Contains(t, w.Body.String(), fmt.Sprintf(`{"run":%d}`, n), "%d", w.Code)
	require.Empty(t, w.Header().Get("Idempotent-Replayed"))
}

// requireReplayed checks that an answer is the stored one of the nth run.
func requireReplayed(t *testing.T, w *httptest.ResponseRecorder, n int) {
	t.Helper()
	require.Contains(t, w.Body.String(), fmt.Sprintf(`{"run":%d}`, n), "%d", w.Code)
	require.Equal(t, "true", w.Header().Get("Idempotent-Replayed"))
}

// requireHeld checks a request that comes while the first with its key still runs, and
// returns its answer and the first one's.
func requireHeld(t *testing.T, a *clauseAPI, send func() *httptest.ResponseRecorder) (held, first *httptest.ResponseRecorder) {
	t.Helper()
	a.finish = make(chan struct{})
	done := make(chan *httptest.ResponseRecorder, 1)
	go func() { done <- send() }()
	await(t, a.running, "the handler")
	held = send()
	close(a.finish)
	first = await(t, done, "the first answer")
	require.EqualValues(t, 1, a.runs.Load())
	return held, first
}

// requireKept checks that a response is stored for a time, and not for longer.
func requireKept(t *testing.T, with protocol, d time.Duration, send func(a *clauseAPI) *httptest.ResponseRecorder) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		a := newClauseAPI(with)
		send(a)
		time.Sleep(d - time.Second)
		send(a)
		require.EqualValues(t, 1, a.runs.Load())
		time.Sleep(2 * time.Second)
		requireRan(t, send(a), 2)
	})
}

func TestIETF(t *testing.T) {
	const quoted = `"` + someV4 + `"`
	problem := func(t *testing.T, w *httptest.ResponseRecorder, status int, kind string) {
		t.Helper()
		require.Equal(t, status, w.Code, w.Body)
		require.Equal(t, "application/problem+json", w.Header().Get("Content-Type"))
		require.Equal(t, `<https://developer.example.com/idempotency>; rel="describedby"`, w.Header().Get("Link"))
		require.Contains(t, w.Body.String(), `"type":"https://developer.example.com/idempotency#`+kind+`"`)
	}
	t.Run("syntax", func(t *testing.T) {
		a := newClauseAPI(withIETF)
		requireRan(t, a.post(quoted, "{}"), 1)
		requireReplayed(t, a.post(quoted, "{}"), 1)
		requireReplayed(t, a.post(someV4, "{}"), 1) // Bare is taken too.
		problem(t, a.post(`"`+someV4, "{}"), http.StatusUnprocessableEntity, "key-invalid")
	})
	t.Run("retry", func(t *testing.T) {
		for _, status := range []int{http.StatusCreated, http.StatusBadRequest, http.StatusInternalServerError} {
			a := newClauseAPI(withIETF)
			a.status = status
			first, again := a.post(quoted, "{}"), a.post(quoted, "{}")
			requireRan(t, first, 1)
			requireReplayed(t, again, 1)
			require.Equal(t, status, first.Code)
			require.Equal(t, status, again.Code)
		}
	})
	t.Run("concurrent", func(t *testing.T) {
		a := newClauseAPI(withIETF)
		held, _ := requireHeld(t, a, func() *httptest.ResponseRecorder { return a.post(quoted, "{}") })
		problem(t, held, http.StatusConflict, "outstanding")
	})
	t.Run("missing", func(t *testing.T) {
		a := newClauseAPI(withIETF)
		problem(t, a.post("", "{}"), http.StatusBadRequest, "key-missing")
		require.Zero(t, a.runs.Load())
	})
	t.Run("reused", func(t *testing.T) {
		a := newClauseAPI(withIETF)
		a.post(quoted, "{}")
		for range 2 {
			problem(t, a.post(quoted, "[]"), http.StatusUnprocessableEntity, "key-reused")
		}
		require.EqualValues(t, 1, a.runs.Load())
	})
	t.Run("expiry", func(t *testing.T) {
		requireKept(t, withIETF, 24*time.Hour, func(a *clauseAPI) *httptest.ResponseRecorder { return a.post(quoted, "{}") })
	})
	t.Run("validated", func(t *testing.T) {
		a := newClauseAPI(withIETF)
		problem(t, a.post(`"retry-001"`, "{}"), http.StatusUnprocessableEntity, "key-invalid")
		require.Zero(t, a.runs.Load())
	})
	t.Run("composite", func(t *testing.T) {
		a := newClauseAPI(withIETF)
		requireRan(t, a.post(quoted, "{}"), 1)
		requireRan(t, a.post(quoted, "{}", "Authorization", "mallory"), 2)
	})
}

func TestStripe(t *testing.T) {
	t.Run("saved", func(t *testing.T) {
		a := newClauseAPI(withStripe)
		a.status = http.StatusInternalServerError
		requireRan(t, a.post("k", "amount=100"), 1)
		w := a.post("k", "amount=100")
		requireReplayed(t, w, 1)
		require.Equal(t, http.StatusInternalServerError, w.Code)
	})
	t.Run("every body", func(t *testing.T) {
		a := newClauseAPI(withStripe)
		a.body = "%PDF-1.7"
		first, again := a.post("k", ""), a.post("k", "")
		require.Equal(t, "true", again.Header().Get("Idempotent-Replayed"))
		require.Equal(t, first.Body, again.Body)
	})
	t.Run("scope", func(t *testing.T) {
		a := newClauseAPI(withStripe)
		requireRan(t, a.post("k", ""), 1)
		requireRan(t, a.post("k", "", "Authorization", "mallory"), 2)
	})
	t.Run("length", func(t *testing.T) {
		a := newClauseAPI(withStripe)
		require.Equal(t, http.StatusCreated, a.post(strings.Repeat("k", 255), "").Code)
		require.Equal(t, http.StatusUnprocessableEntity, a.post(strings.Repeat("k", 256), "").Code)
	})
	t.Run("parameters", func(t *testing.T) {
		a := newClauseAPI(withStripe)
		a.post("k", "amount=100")
		require.Equal(t, http.StatusUnprocessableEntity, a.post("k", "amount=999").Code)
	})
	t.Run("pruned", func(t *testing.T) {
		requireKept(t, withStripe, 24*time.Hour, func(a *clauseAPI) *httptest.ResponseRecorder { return a.post("k", "") })
	})
	t.Run("concurrent", func(t *testing.T) {
		a := newClauseAPI(withStripe)
		held, _ := requireHeld(t, a, func() *httptest.ResponseRecorder { return a.post("k", "") })
		require.Equal(t, http.StatusConflict, held.Code)
		require.Equal(t, "true", held.Header().Get("X-Should-Retry"))
		requireReplayed(t, a.post("k", ""), 1)
	})
	t.Run("validation", func(t *testing.T) {
		a := newClauseAPI(withStripe)
		a.status, a.noStore = http.StatusBadRequest, true
		requireRan(t, a.post("k", "amount=no"), 1)
		a.status, a.noStore = 0, false
		requireRan(t, a.post("k", "amount=100"), 2)
	})
	t.Run("methods", func(t *testing.T) {
		a := newClauseAPI(withStripe)
		for n, method := range []string{"GET", "GET", "DELETE", "DELETE", "PATCH", "PATCH"} {
			requireRan(t, a.send(method, "/payments", "k", ""), n+1)
		}
		requireRan(t, a.post("k", ""), 7)
		requireReplayed(t, a.post("k", ""), 7)
	})
}

func TestAdCP(t *testing.T) {
	secret := []byte("0123456789abcdef0123456789abcdef")
	with := func(backend idempotency.Backend) func(http.Handler) http.Handler { return withAdCP(backend, secret) }
	const request = `{"idempotency_key":"` + someV4 + `","budget":1000,"context":{"trace":"a"}}`
	post := func(a *clauseAPI, body string, more ...string) *httptest.ResponseRecorder {
		return a.post("", body, more...)
	}
	refused := func(t *testing.T, w *httptest.ResponseRecorder, code string) {
		t.Helper()
		var got struct{ Errors []map[string]any }
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &got), w.Body)
		require.Len(t, got.Errors, 1)
		require.Equal(t, code, got.Errors[0]["code"])
	}
	t.Run("malformed", func(t *testing.T) {
		a := newClauseAPIOn(backendDown{idempotency.NewMemory()}, with) // The store is not asked.
		for _, body := range []string{`{`, `[]`, `{}`, `{"idempotency_key":7}`, `{"idempotency_key":"retry-001"}`,
			`{"idempotency_key":"` + strings.Repeat("k", 256) + `"}`, `{"idempotency_key":"no spaces in a key"}`} {
			refused(t, post(a, body), "INVALID_REQUEST")
		}
		refused(t, post(a, request), "SERVICE_UNAVAILABLE")
		require.Zero(t, a.runs.Load())
	})
	t.Run("replay", func(t *testing.T) {
		a := newClauseAPI(with)
		var first, again struct {
			Status   string
			Replayed bool
			Payload  json.RawMessage
		}
		require.NoError(t, json.Unmarshal(post(a, request).Body.Bytes(), &first))
		w := post(a, request)
		require.Empty(t, w.Header().Get("Content-Length"), "that of the payload is not the envelope's")
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &again))
		require.False(t, first.Replayed)
		require.True(t, again.Replayed)
		require.Equal(t, "completed", again.Status)
		require.Equal(t, `{"run":1}`, string(first.Payload))
		require.Equal(t, first.Payload, again.Payload)
		require.EqualValues(t, 1, a.runs.Load())
	})
	t.Run("scope", func(t *testing.T) {
		a := newClauseAPI(with)
		requireRan(t, post(a, request), 1)
		requireRan(t, post(a, request, "Authorization", "mallory"), 2)
	})
	t.Run("success only", func(t *testing.T) {
		a := newClauseAPI(with)
		for n, status := range []int{http.StatusBadRequest, http.StatusForbidden, http.StatusInternalServerError} {
			a.status = status
			requireRan(t, post(a, request), n+1)
		}
		a.status = 0
		requireRan(t, post(a, request), 4)
		requireReplayed(t, post(a, request), 4)
	})
	t.Run("conflict", func(t *testing.T) {
		a := newClauseAPI(with)
		post(a, request)
		w := post(a, strings.Replace(request, "1000", "2000", 1))
		refused(t, w, "IDEMPOTENCY_CONFLICT")
		require.JSONEq(t, `{"errors":[{"code":"IDEMPOTENCY_CONFLICT","message":"Conflict","recovery":"correctable"}]}`, w.Body.String())
		refused(t, a.send(http.MethodPost, "/refunds", "", request), "IDEMPOTENCY_CONFLICT") // Another tool.
		require.EqualValues(t, 1, a.runs.Load())
	})
	t.Run("window", func(t *testing.T) {
		requireKept(t, with, replayTTL+time.Minute, func(a *clauseAPI) *httptest.ResponseRecorder { return post(a, request) })
	})
	t.Run("in flight", func(t *testing.T) {
		a := newClauseAPI(with)
		held, _ := requireHeld(t, a, func() *httptest.ResponseRecorder { return post(a, request) })
		refused(t, held, "IDEMPOTENCY_IN_FLIGHT")
		require.Contains(t, held.Body.String(), `"retry_after":1`)
	})
	t.Run("conflict in flight", func(t *testing.T) {
		a := newClauseAPI(with)
		a.finish = make(chan struct{})
		done := make(chan struct{})
		go func() { post(a, request); close(done) }()
		await(t, a.running, "the handler")
		refused(t, post(a, strings.Replace(request, "1000", "2000", 1)), "IDEMPOTENCY_CONFLICT")
		close(a.finish)
		<-done
	})
	t.Run("equivalence", func(t *testing.T) {
		a := newClauseAPI(with)
		requireRan(t, post(a, request), 1)
		for _, same := range []string{
			`{"context":{"trace":"b"},"budget":1e3,"idempotency_key":"` + someV4 + `"}`,
			`{"budget": 1000.0, "idempotency_key": "` + someV4 + `", "governance_context": "token"}`,
			`{"budget":1000,"idempotency_key":"\u0038` + someV4[1:] + `"}`,
		} {
			requireReplayed(t, post(a, same), 1)
		}
		for _, other := range []string{
			`{"idempotency_key":"` + someV4 + `","budget":1000,"ext":{"sent":1}}`,
			`{"idempotency_key":"` + someV4 + `","budget":1000,"brand":null}`,
		} {
			refused(t, post(a, other), "IDEMPOTENCY_CONFLICT")
		}
	})
	t.Run("credentials", func(t *testing.T) {
		a := newClauseAPI(with)
		body := `{"idempotency_key":"` + someV4 + `","push_notification_config":` +
			`{"url":"https://a.example","authentication":{"credentials":"one"}}}`
		requireRan(t, post(a, body), 1)
		requireReplayed(t, post(a, strings.Replace(body, `"one"`, `"two"`, 1)), 1)
		refused(t, post(a, strings.Replace(body, "a.example", "b.example", 1)), "IDEMPOTENCY_CONFLICT")
	})
	t.Run("encrypted", func(t *testing.T) {
		backend := idempotency.NewMemory()
		a := newClauseAPIOn(backend, with)
		a.body = `{"account_name":"Acme"}`
		post(a, request)
		rec, _, ok, err := backend.Lookup(t.Context(), idempotency.NewKey("alice", someV4))
		require.NoError(t, err)
		require.True(t, ok)
		require.NotContains(t, string(rec.Response), "Acme")
		require.NotContains(t, string(rec.Response), someV4)
		opened, err := rec.Open("alice", someV4, secret)
		require.NoError(t, err)
		require.Equal(t, a.body, string(opened.Body))
	})
	t.Run("optional", func(t *testing.T) {
		// A task that only reads has the same options without WithRequired.
		a := newClauseAPI(func(backend idempotency.Backend) func(http.Handler) http.Handler {
			return idempotency.New(backend, idempotency.WithKeyFunc(keyField("idempotency_key")))
		})
		requireRan(t, post(a, `{}`), 1)
		requireRan(t, post(a, `{}`), 2)
		requireRan(t, post(a, request), 3)
		requireReplayed(t, post(a, request), 3)
	})
}

func TestUCP(t *testing.T) {
	const other = "0e8bf5a1-3d4e-4a8f-9a5e-6f1a5f5d9f10"
	refused := func(t *testing.T, w *httptest.ResponseRecorder, status int, code string) {
		t.Helper()
		require.Equal(t, status, w.Code)
		require.JSONEq(t, fmt.Sprintf(`{"code":%q,"content":%q}`, code, http.StatusText(status)), w.Body.String())
	}
	t.Run("stored", func(t *testing.T) {
		requireKept(t, withUCP, 48*time.Hour, func(a *clauseAPI) *httptest.ResponseRecorder { return a.post(someV4, "{}") })
	})
	t.Run("matching", func(t *testing.T) {
		a := newClauseAPI(withUCP)
		requireRan(t, a.post(someV4, "{}"), 1)
		requireReplayed(t, a.post(someV4, "{}", "Signature", "sig1=:other:"), 1)
	})
	t.Run("mismatched", func(t *testing.T) {
		a := newClauseAPI(withUCP)
		requireRan(t, a.post(someV4, "{}"), 1)
		refused(t, a.post(someV4, "{ }"), http.StatusConflict, "idempotency_key_reused") // Raw bytes count.
		require.EqualValues(t, 1, a.runs.Load())
	})
	t.Run("entropy", func(t *testing.T) {
		a := newClauseAPI(withUCP)
		requireRan(t, a.post(someV4, "{}"), 1)
		requireRan(t, a.post(someV7, "{}"), 2)
		refused(t, a.post("order-1", "{}"), http.StatusBadRequest, "invalid_request")
		refused(t, a.post("", "{}"), http.StatusBadRequest, "invalid_request")
	})
	t.Run("scope", func(t *testing.T) {
		a := newClauseAPI(withUCP)
		requireRan(t, a.post(someV4, "{}"), 1)
		requireRan(t, a.post(someV4, "{}", "Authorization", "mallory"), 2)
		requireRan(t, a.send(http.MethodPost, "/refunds", someV4, "{}"), 3)
	})
	t.Run("closed", func(t *testing.T) {
		a := newClauseAPIOn(backendDown{idempotency.NewMemory()}, withUCP)
		w := a.post(other, "{}")
		refused(t, w, http.StatusServiceUnavailable, "service_unavailable")
		require.Equal(t, "1", w.Header().Get("Retry-After"))
		require.Zero(t, a.runs.Load())
	})
	t.Run("outstanding", func(t *testing.T) {
		a := newClauseAPI(withUCP)
		held, first := requireHeld(t, a, func() *httptest.ResponseRecorder { return a.post(someV4, "{}") })
		refused(t, held, http.StatusServiceUnavailable, "service_unavailable")
		require.Equal(t, "1", held.Header().Get("Retry-After"))
		requireRan(t, first, 1)
	})
}

func TestIceberg(t *testing.T) {
	post := func(a *clauseAPI) *httptest.ResponseRecorder { return a.post(someV7, "{}") }
	t.Run("no second effect", func(t *testing.T) {
		a := newClauseAPI(withIceberg)
		requireRan(t, post(a), 1)
		requireReplayed(t, post(a), 1)
		requireRan(t, a.send(http.MethodDelete, "/payments", "017f22e2-79b0-7cc3-98c4-dc0c0c073990", ""), 2)
		requireReplayed(t, a.send(http.MethodDelete, "/payments", "017f22e2-79b0-7cc3-98c4-dc0c0c073990", ""), 2)
	})
	t.Run("finalized", func(t *testing.T) {
		for _, status := range []int{200, 201, 204, 400, 404, 409} {
			a := newClauseAPI(withIceberg)
			a.status = status
			first, again := post(a), post(a)
			require.Equal(t, status, again.Code)
			require.Equal(t, first.Body, again.Body)
			require.Equal(t, "true", again.Header().Get("Idempotent-Replayed"))
			require.EqualValues(t, 1, a.runs.Load())
		}
	})
	t.Run("not finalized", func(t *testing.T) {
		for _, status := range []int{401, 403, 408, 419, 429, 500, 503, 504} {
			a := newClauseAPI(withIceberg)
			a.status = status
			requireRan(t, post(a), 1)
			requireRan(t, post(a), 2)
		}
	})
	t.Run("format", func(t *testing.T) {
		a := newClauseAPI(withIceberg)
		for _, key := range []string{someV4, strings.ReplaceAll(someV7, "-", ""), "commit-1"} {
			w := a.post(key, "{}")
			require.Equal(t, http.StatusBadRequest, w.Code)
			require.JSONEq(t, `{"error":{"message":"Bad Request","type":"BadRequestException","code":400}}`, w.Body.String())
		}
		requireRan(t, post(a), 1)
		requireRan(t, a.post("", "{}"), 2) // The key is optional.
	})
	t.Run("unique", func(t *testing.T) {
		a := newClauseAPI(withIceberg)
		requireRan(t, post(a), 1)
		require.Equal(t, http.StatusUnprocessableEntity, a.send(http.MethodPost, "/refunds", someV7, "{}").Code)
		require.Equal(t, http.StatusUnprocessableEntity, a.send(http.MethodDelete, "/payments", someV7, "{}").Code)
		require.EqualValues(t, 1, a.runs.Load())
	})
	t.Run("scope", func(t *testing.T) {
		a := newClauseAPI(withIceberg)
		requireRan(t, post(a), 1)
		requireRan(t, a.post(someV7, "{}", "Authorization", "mallory"), 2)
	})
	t.Run("lifetime", func(t *testing.T) {
		requireKept(t, withIceberg, keyLifetime+5*time.Minute, post)
	})
	t.Run("outstanding", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := newClauseAPI(withIceberg)
			a.finish = make(chan struct{})
			go post(a)
			<-a.running
			start := time.Now()
			held := post(a)
			require.Equal(t, 10*time.Second, time.Since(start), "it waits")
			require.Equal(t, http.StatusServiceUnavailable, held.Code)
			require.Equal(t, "1", held.Header().Get("Retry-After"))
			close(a.finish)
			synctest.Wait()
			requireReplayed(t, post(a), 1)
		})
	})
}

func TestSquare(t *testing.T) {
	const request = `{"idempotency_key":"` + someV4 + `","amount_money":{"amount":1000,"currency":"USD"}}`
	t.Run("duplicate", func(t *testing.T) {
		a := newClauseAPI(withSquare)
		requireRan(t, a.post("", request), 1)
		requireReplayed(t, a.post("", request), 1)
		respelled := strings.NewReplacer(":", ": ", "1000", "1e3").Replace(request)
		requireReplayed(t, a.post("", respelled), 1)
	})
	t.Run("changed", func(t *testing.T) {
		a := newClauseAPI(withSquare)
		requireRan(t, a.post("", request), 1)
		w := a.post("", strings.Replace(request, "1000", "2000", 1))
		require.Equal(t, http.StatusBadRequest, w.Code)
		require.Contains(t, w.Body.String(), `"code":"IDEMPOTENCY_KEY_REUSED"`)
		require.EqualValues(t, 1, a.runs.Load())
	})
	t.Run("each endpoint", func(t *testing.T) {
		a := newClauseAPI(withSquare)
		requireRan(t, a.post("", request), 1)
		requireRan(t, a.send(http.MethodPost, "/refunds", "", request), 2)
		requireRan(t, a.post("", request, "Authorization", "mallory"), 3)
	})
	t.Run("length", func(t *testing.T) {
		a := newClauseAPI(withSquare)
		keyOf := func(n int) string { return `{"idempotency_key":"` + strings.Repeat("k", n) + `"}` }
		requireRan(t, a.post("", keyOf(1)), 1)
		requireRan(t, a.post("", keyOf(45)), 2)
		require.Equal(t, http.StatusUnprocessableEntity, a.post("", keyOf(46)).Code)
		require.Equal(t, http.StatusBadRequest, a.post("", keyOf(0)).Code, "it is required")
	})
}

func TestAIP155(t *testing.T) {
	const request = `{"book_id":"b1","request_id":"` + someV4 + `"}`
	t.Run("duplicate", func(t *testing.T) {
		a := newClauseAPI(withAIP155)
		requireRan(t, a.post("", request), 1)
		requireReplayed(t, a.post("", request), 1)
	})
	t.Run("scope", func(t *testing.T) {
		a := newClauseAPI(withAIP155)
		requireRan(t, a.post("", request), 1)
		requireRan(t, a.post("", request, "Authorization", "mallory"), 2)
	})
	t.Run("successful", func(t *testing.T) {
		a := newClauseAPI(withAIP155)
		a.status = http.StatusNotFound
		requireRan(t, a.post("", request), 1)
		a.status = 0
		requireRan(t, a.post("", request), 2)
	})
	t.Run("optional", func(t *testing.T) {
		a := newClauseAPI(withAIP155)
		requireRan(t, a.post("", `{"book_id":"b1"}`), 1)
		requireRan(t, a.post("", `{"book_id":"b1"}`), 2)
	})
	t.Run("format", func(t *testing.T) {
		a := newClauseAPI(withAIP155)
		require.Equal(t, http.StatusUnprocessableEntity, a.post("", `{"request_id":"r1"}`).Code)
		require.Zero(t, a.runs.Load())
	})
}

// Each row of a table of clauses on docs/PROTOCOLS.md names a test that there is, or says what is
// not met.
func TestClauses(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(root, "docs", "PROTOCOLS.md"))
	require.NoError(t, err)
	tests := make(map[string]string) // the text of each test's file
	for path, text := range files(t, ".go") {
		if !strings.HasSuffix(path, "_test.go") {
			continue
		}
		for _, found := range regexp.MustCompile(`(?m)^func (Test\w+)\(t \*testing\.T\)`).FindAllStringSubmatch(text, -1) {
			tests[found[1]] += text
		}
	}
	named := regexp.MustCompile("`(Test\\w+)(?:/([^`]+))?`")
	rows, missing := 0, 0
	for line := range bytes.Lines(page) {
		cells := strings.Split(strings.TrimSpace(string(line)), " | ")
		if len(cells) != 4 || !strings.HasPrefix(cells[0], "| ") || strings.HasPrefix(cells[0], "| clause") || cells[0] == "| ---" {
			continue
		}
		rows++
		last := strings.TrimSuffix(cells[3], " |")
		if last == "—" {
			missing++
			require.Regexp(t, `^(\*\*Not met|Yours)`, cells[2], string(line))
			continue
		}
		found := named.FindAllStringSubmatch(last, -1)
		require.NotEmpty(t, found, string(line))
		for _, name := range found {
			require.Contains(t, tests, name[1], string(line))
			if name[2] != "" {
				require.Contains(t, tests[name[1]], `"`+name[2]+`"`, string(line))
			}
		}
	}
	require.GreaterOrEqual(t, rows, 60)
	require.GreaterOrEqual(t, missing, 5)
}
