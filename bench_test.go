package idempotency_test

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/idempotency-go/idempotency"
)

// sink is a ResponseWriter that costs nothing.
type sink struct{ header http.Header }

func (s *sink) Header() http.Header         { return s.header }
func (s *sink) WriteHeader(int)             {}
func (s *sink) Write(p []byte) (int, error) { return len(p), nil }

// BenchmarkMemory measures what the middleware adds to a handler that reads a
// body of 150 bytes and answers with 200 bytes of JSON. "bare" is that handler.
func BenchmarkMemory(b *testing.B) {
	body := strings.Repeat("x", 150)
	answer := []byte(`{"note":"` + strings.Repeat("y", 189) + `"}`)
	bare := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Location", "/payments/1")
		w.WriteHeader(http.StatusCreated)
		_, _ = w.Write(answer)
	})
	run := func(name string, h http.Handler, key func(n int) string, body func(n int) string) {
		b.Run(name, func(b *testing.B) {
			w, r := &sink{make(http.Header)}, request("", "")
			reader := strings.NewReader("")
			r.Body, r.ContentLength = io.NopCloser(reader), 150
			value := []string{""}
			b.ReportAllocs()
			for n := 0; b.Loop(); n++ {
				if key != nil {
					value[0] = key(n)
					r.Header["Idempotency-Key"] = value
				}
				reader.Reset(body(n))
				clear(w.header)
				h.ServeHTTP(w, r)
			}
		})
	}
	same := func(int) string { return body }
	h := idempotency.New(idempotency.NewMemory())(bare)
	run("bare", bare, nil, same)
	run("no key", h, nil, same)
	run("first", h, func(n int) string { return "first-" + strconv.Itoa(n) }, same)
	run("replay", h, func(int) string { return "replay" }, same)
	other := strings.Repeat("z", 150)
	run("reused", h, func(int) string { return "reused" }, func(n int) string {
		if n == 0 {
			return body
		}
		return other
	})
}
