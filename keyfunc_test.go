package idempotency_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

// keyField takes the key from a field of a JSON body.
func keyField(_ *http.Request, body []byte) (string, error) {
	var fields struct {
		Key string `json:"idempotency_key"`
	}
	if err := json.Unmarshal(body, &fields); err != nil {
		return "", errors.New("the body is not JSON")
	}
	return fields.Key, nil
}

// bodyTeller answers with the key and the body that it got.
var bodyTeller = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	key, _ := idempotency.KeyFromContext(r.Context())
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode([]any{key, string(body), err == nil})
})

func told(key, body string) string {
	text, _ := json.Marshal([]any{key, body, true})
	return string(text) + "\n"
}

func TestKeyFunc(t *testing.T) {
	es := &events{}
	h := idempotency.New(idempotency.NewMemory(), es.option(), idempotency.WithKeyFunc(keyField), idempotency.WithBufferLimit(200),
		idempotency.WithKeyValidator(func(key string) error {
			if key == "refused" {
				return errors.New("refused")
			}
			return nil
		}))(bodyTeller)
	post := func(body string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
		r.Header.Set("Idempotency-Key", "of the header")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w
	}
	const body = `{"idempotency_key":"k","amount":1}`
	require.Equal(t, told("k", body), post(body).Body.String())
	requireReplayed(t, post(body), told("k", body))
	event, _ := es.last(t)
	require.Equal(t, "k", event.Key)
	require.Equal(t, idempotency.NewKey("", "k"), event.StorageKey)
	requireProblem(t, post(`{"idempotency_key":"k","amount":2}`), 422, "ErrKeyReused")

	const quoted = `{"idempotency_key":"\"k\""}`
	require.Equal(t, told(`"k"`, quoted), post(quoted).Body.String(), "it is not unquoted")

	_, n := es.last(t)
	for range 2 {
		require.Equal(t, told("", `{"amount":1}`), post(`{"amount":1}`).Body.String(), "it has no key")
	}
	_, after := es.last(t)
	require.Equal(t, n, after, "it is not observed")

	for text, detail := range map[string]string{
		`{`:                             "the body is not JSON",
		``:                              "the body is not JSON",
		`{"idempotency_key":"refused"}`: "refused",
		`{"idempotency_key":"\u0001"}`:  "printable ASCII",
		`{"idempotency_key":"` + long(256) + `"}`: "1 to 255",
	} {
		if len(text) > 200 {
			require.Contains(t, requireProblem(t, post(text), 413, "ErrBodyUnreadable"), "larger")
			continue
		}
		require.Contains(t, requireProblem(t, post(text), 422, "ErrKeyInvalid"), detail)
		event, _ = es.last(t)
		require.Equal(t, idempotency.Rejected, event.Outcome)
	}
}

func long(n int) string { return strings.Repeat("k", n) }

// The function is not called for a body that is over the limit or breaks off.
func TestKeyFuncNeedsTheWholeBody(t *testing.T) {
	never := func(*http.Request, []byte) (string, error) { panic("it is called") }
	h := idempotency.New(idempotency.NewMemory(), idempotency.WithKeyFunc(never), idempotency.WithBufferLimit(3))(bodyTeller)
	requireProblem(t, send(h, httptest.NewRequest("POST", "/", strings.NewReader("1234"))), 413, "ErrBodyUnreadable")
	r := httptest.NewRequest("POST", "/", io.MultiReader(strings.NewReader("12"), brokenReader{}))
	requireProblem(t, send(h, r), 400, "ErrBodyUnreadable")
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// What the function parses of the body is there for the handler too, whole.
func TestKeyFuncParsesAForm(t *testing.T) {
	h := idempotency.New(idempotency.NewMemory(), idempotency.WithRequired(), idempotency.WithKeyFunc(func(r *http.Request, _ []byte) (string, error) {
		return r.PostFormValue("id"), nil
	}))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, `%q`, r.PostFormValue("amount"))
	}))
	post := func(form string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(form))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		return send(h, r)
	}
	require.Equal(t, `"7"`, post("id=a&amount=7").Body.String())
	requireReplayed(t, post("id=a&amount=7"), `"7"`)
	requireProblem(t, post("id=a&amount=8"), 422, "ErrKeyReused")
	requireProblem(t, post("amount=8"), 400, "ErrKeyMissing")
}

// Two instances of one chain that take the key from the body are one for the same key.
func TestKeyFuncNested(t *testing.T) {
	backend := newCounted(never)
	one := idempotency.New(backend, idempotency.WithKeyFunc(keyField))
	h := one(one(bodyTeller))
	const body = `{"idempotency_key":"k"}`
	require.Equal(t, told("k", body), send(h, httptest.NewRequest("POST", "/", strings.NewReader(body))).Body.String())
	require.EqualValues(t, 1, backend.claims.Load())
}

func TestSetExpiry(t *testing.T) {
	for name, test := range map[string]struct {
		opts []idempotency.Option
		set  []time.Duration
		want time.Duration
	}{
		"not set":                {nil, nil, 24 * time.Hour},
		"longer":                 {nil, []time.Duration{48 * time.Hour}, 48 * time.Hour},
		"shorter":                {nil, []time.Duration{time.Minute}, time.Minute},
		"for ever":               {nil, []time.Duration{0}, idempotency.Forever},
		"the last":               {nil, []time.Duration{0, time.Hour}, time.Hour},
		"at most once, longer":   {with(idempotency.WithAtMostOnce()), []time.Duration{48 * time.Hour}, 48 * time.Hour},
		"at most once, shorter":  {with(idempotency.WithAtMostOnce()), []time.Duration{time.Minute}, 24 * time.Hour},
		"at most once, for ever": {with(idempotency.WithAtMostOnce()), []time.Duration{0}, idempotency.Forever},
		"of ever, shorter":       {with(idempotency.WithExpiry(0)), []time.Duration{time.Minute}, time.Minute},
		"recovery, shorter":      {with(idempotency.WithRecovery(func(next http.Handler) http.Handler { return next })), []time.Duration{time.Minute}, time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			backend := newCounted(never)
			got := time.Duration(-1)
			complete := backend.complete
			backend.complete = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, response []byte, expiry time.Duration) error {
				got = expiry
				return complete(ctx, key, claim, response, expiry)
			}
			h := idempotency.New(backend, test.opts...)
			inner := idempotency.New(idempotency.NewMemory(), idempotency.WithHeader("Inner-Key"))
			send(h(inner(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				for _, d := range test.set {
					idempotency.SetExpiry(r.Context(), d)
				}
				_, _ = io.WriteString(w, "{}")
			}))), request("k", "b"))
			require.Equal(t, test.want, got)
		})
	}
	require.NotPanics(t, func() { idempotency.SetExpiry(t.Context(), 0) })
	require.PanicsWithValue(t, "idempotency: SetExpiry: negative duration", func() { idempotency.SetExpiry(t.Context(), -1) })
}
