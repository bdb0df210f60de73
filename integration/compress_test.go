package integration

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/go-chi/chi/v5/middleware"
	"github.com/gorilla/handlers"
	"github.com/idempotency-go/idempotency"
	"github.com/klauspost/compress/gzhttp"
	"github.com/labstack/echo/v5"
	echomiddleware "github.com/labstack/echo/v5/middleware"
	"github.com/stretchr/testify/require"
)

// compressors are middleware that compresses, at their defaults.
var compressors = []struct {
	name  string
	layer layer
}{
	{"chi Compress", middleware.Compress(5)},
	{"gorilla CompressHandler", handlers.CompressHandler},
	{"klauspost gzhttp", func(next http.Handler) http.Handler { return gzhttp.GzipHandler(next) }},
	{"Echo Gzip", func(next http.Handler) http.Handler {
		e := echo.New()
		e.Use(echomiddleware.Gzip())
		e.Any("/*", echo.WrapHandler(next))
		return e
	}},
}

// statement answers with JSON that is long enough for every compressor.
func statement(runs *atomic.Int64) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		_, _ = w.Write([]byte(statementOf(runs.Add(1))))
	})
}

func statementOf(run int64) string {
	return fmt.Sprintf(`{"run":%d,"lines":[%s""]}`, run, strings.Repeat(`"coffee",`, 1000))
}

// TestCompressionOutside shows the good order: one plain record serves the
// clients that ask for gzip, and those that do not.
func TestCompressionOutside(t *testing.T) {
	gzipped := []string{"Accept-Encoding", "gzip"}
	for _, c := range compressors {
		for _, firstGzipped := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, first answer gzipped: %v", c.name, firstGzipped), func(t *testing.T) {
				var runs atomic.Int64
				o := newOrderTest(t)
				s := o.serve(stack(statement(&runs), c.layer, o.once))
				first := []string(nil)
				if firstGzipped {
					first = gzipped
				}
				s.post("/", "k", first...)
				for _, header := range [][]string{gzipped, nil} {
					retry := s.post("/", "k", header...)
					require.True(t, retry.replayed)
					require.Equal(t, http.StatusCreated, retry.status)
					require.Equal(t, statementOf(1), retry.body)
					require.Equal(t, "application/json", retry.header.Get("Content-Type"))
					if header == nil {
						require.Empty(t, retry.header.Values("Content-Encoding"))
						require.Equal(t, fmt.Sprint(len(statementOf(1))), retry.header.Get("Content-Length"))
					} else {
						require.Equal(t, []string{"gzip"}, retry.header.Values("Content-Encoding"))
						require.Equal(t, []string{"Accept-Encoding"}, retry.header.Values("Vary"))
					}
				}
				require.EqualValues(t, 1, runs.Load())
				o.requireStored(http.StatusCreated, statementOf(1), "Content-Type", "application/json")
			})
		}
	}
}

// TestCompressionInside shows the other order: what is inside is asked for no
// encoding, and does nothing. With "*" it is asked as the client asks, and one
// encoding is stored for all.
func TestCompressionInside(t *testing.T) {
	for _, c := range compressors {
		t.Run(c.name, func(t *testing.T) {
			var runs atomic.Int64
			o := newOrderTest(t)
			s := o.serve(stack(statement(&runs), o.once, c.layer))
			first, retry := s.twice("/", idempotency.Stored, idempotency.Replayed, "Accept-Encoding", "gzip")
			for _, answer := range []orderAnswer{first, retry} {
				require.Empty(t, answer.header.Values("Content-Encoding"))
				require.Equal(t, statementOf(1), answer.body)
			}
			require.EqualValues(t, 1, runs.Load())
		})
		t.Run(c.name+", every type is stored", func(t *testing.T) {
			var runs atomic.Int64
			o := newOrderTest(t, idempotency.WithContentTypes("*"))
			s := o.serve(stack(statement(&runs), o.once, c.layer))
			first, retry := s.twice("/", idempotency.Stored, idempotency.Replayed, "Accept-Encoding", "gzip")
			for _, answer := range []orderAnswer{first, retry} {
				require.Equal(t, "gzip", answer.header.Get("Content-Encoding"))
				require.Equal(t, statementOf(1), answer.body)
			}
			require.EqualValues(t, 1, runs.Load())
		})
	}
}

// TestCompressionInsideOfSmallBodies shows that gzhttp, which leaves small
// bodies alone, hides the bad order from tests with small answers.
func TestCompressionInsideOfSmallBodies(t *testing.T) {
	o, till := newOrderTest(t), &paymentTill{}
	s := o.serve(stack(till, o.once, func(next http.Handler) http.Handler { return gzhttp.GzipHandler(next) }))
	_, retry := s.twice("/", idempotency.Stored, idempotency.Replayed, "Accept-Encoding", "gzip")
	require.True(t, retry.replayed)
	require.EqualValues(t, 1, till.runs.Load())
}

// TestCompressionOfRefusals has compression outside treat the middleware's own
// answers like any other.
func TestCompressionOfRefusals(t *testing.T) {
	for _, c := range compressors {
		t.Run(c.name, func(t *testing.T) {
			var runs atomic.Int64
			o := newOrderTest(t)
			s := o.serve(stack(statement(&runs), c.layer, o.once))
			s.post("/", "k", "Accept-Encoding", "gzip")
			reused := s.send(http.MethodPost, "/", "k", "another", "Accept-Encoding", "gzip")
			require.Equal(t, http.StatusUnprocessableEntity, reused.status)
			require.Equal(t, "application/problem+json", reused.header.Get("Content-Type"))
			require.Contains(t, reused.body, "#key-reused")
		})
	}
}
