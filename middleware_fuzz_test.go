package idempotency_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/idempotency-go/idempotency"
)

// FuzzMiddleware feeds the middleware with arbitrary requests, each sent twice
// and once more with another body. Nothing panics, the handler reads what was
// sent, a replay is the first answer again, and where every response is stored
// no key runs twice.
func FuzzMiddleware(f *testing.F) {
	f.Add("POST", "/payments", "currency=EUR", "8e03978e", "amount=1", "application/json", `{"a":1}`, 201, false, false)
	f.Add("PATCH", "/", "", `"quoted \"key\""`, "", "", ` [1,2]`, 200, true, false)
	f.Add("POST", "/%2F", "a=b", "\xff", "x", "text/html", "<p>", 500, true, true)
	f.Add("GET", "", "", "", "", "", "", 204, false, true)
	f.Add("POST", "/", "", `"`, strings.Repeat("x", 100), "application/json; charset=utf-8", "{", 404, false, false)
	f.Fuzz(func(t *testing.T, method, path, query, key, body, contentType, answer string, status int, flush, every bool) {
		if status < 200 || status > 999 {
			return // net/http panics for these, or they are not final.
		}
		opts := []idempotency.Option{idempotency.WithBufferLimit(64)}
		if every {
			opts = []idempotency.Option{idempotency.WithContentTypes("*")}
		}
		runs := 0
		h := idempotency.New(idempotency.NewMemory(), opts...)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			runs++
			got, err := io.ReadAll(r.Body)
			if err != nil || string(got) != body && string(got) != body+"!" {
				t.Errorf("the handler read %q, %v of %q", got, err, body)
			}
			if contentType != "" {
				w.Header().Set("Content-Type", contentType)
			}
			w.WriteHeader(status)
			for _, part := range strings.SplitAfter(answer, " ") {
				io.WriteString(w, part)
				if flush {
					w.(http.Flusher).Flush()
				}
			}
		}))
		send := func(body string) *httptest.ResponseRecorder {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, &http.Request{
				Method: method, URL: &url.URL{Path: path, RawQuery: query}, Header: http.Header{"Idempotency-Key": {key}},
				Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)),
			})
			return w
		}

		first, retry, other := send(body), send(body), send(body+"!")
		if retry.Header().Get("Idempotent-Replayed") == "true" {
			if runs != 1 || retry.Code != first.Code || retry.Body.String() != first.Body.String() {
				t.Errorf("the replay of %d %q is %d %q, with %d runs", first.Code, first.Body, retry.Code, retry.Body, runs)
			}
			if other.Code != http.StatusUnprocessableEntity {
				t.Errorf("another request was answered with %d %q", other.Code, other.Body)
			}
		}
		served := (method == http.MethodPost || method == http.MethodPatch) && strings.Trim(key, " \t\r\n") != ""
		if every && served && runs > 1 {
			t.Errorf("%d runs", runs)
		}
	})
}
