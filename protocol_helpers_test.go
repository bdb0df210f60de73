package idempotency_test

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// answer is what a client sees of a response.
type answer struct {
	Status  int
	Header  http.Header
	Body    string
	Err     string // where the body broke off
	Trailer http.Header
}

// forEachProtocol runs a subtest on a real connection for HTTP/1.1 and HTTP/2.
// serve starts a server around a handler and returns what sends it a POST with
// a key ("" is none).
func forEachProtocol(t *testing.T, test func(t *testing.T, serve func(h http.Handler) func(key string) answer)) {
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(protocol, func(t *testing.T) {
			test(t, func(h http.Handler) func(string) answer {
				server := httptest.NewUnstartedServer(h)
				server.EnableHTTP2 = protocol == "HTTP/2.0"
				server.Config.ErrorLog = log.New(io.Discard, "", 0)
				server.StartTLS()
				t.Cleanup(server.Close)
				return func(key string) answer {
					r, err := http.NewRequest(http.MethodPost, server.URL, strings.NewReader("b"))
					require.NoError(t, err)
					if key != "" {
						r.Header.Set("Idempotency-Key", key)
					}
					client := server.Client()
					client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
					resp, err := client.Do(r)
					require.NoError(t, err)
					defer resp.Body.Close()
					require.Equal(t, protocol, resp.Proto)
					a := answer{Status: resp.StatusCode, Header: resp.Header}
					body, err := io.ReadAll(resp.Body)
					if err != nil {
						a.Err = err.Error()
					}
					a.Body, a.Trailer = string(body), resp.Trailer
					a.Header.Del("Date")
					return a
				}
			})
		})
	}
}

// outside sets the headers that middleware around this one would.
func outside(next http.Handler) http.Handler {
	n := 0
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n++
		w.Header().Set("X-Request-Id", fmt.Sprint("request-", n))
		w.Header().Set("Vary", "Origin")
		w.Header().Set("Cache-Control", "no-cache")
		w.Header().Set("X-Powered-By", "net/http")
		next.ServeHTTP(w, r)
	})
}

func jsonHeader(w http.ResponseWriter) { w.Header().Set("Content-Type", "application/json") }
