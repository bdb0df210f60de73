package idempotency_test

import (
	"fmt"
	"math"
	"net/http"
	"strings"
	"testing"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

var every = idempotency.WithContentTypes("*")

func types(types ...string) []idempotency.Option { return with(idempotency.WithContentTypes(types...)) }

func limit(n int) idempotency.Option { return idempotency.WithBufferLimit(n) }

// asType sets the Content-Type.
func asType(contentType string) step { return set("Content-Type", contentType) }

// TestStoredResponses has a row for each kind of response that is stored: the
// first answer and the replay are the same, and as without the middleware.
func TestStoredResponses(t *testing.T) {
	long := `"` + strings.Repeat("x", 100_000) + `"`
	tests := []struct {
		name    string
		opts    []idempotency.Option
		handler script
	}{
		{"JSON", nil, script{asJSON, says(`{"a":1}`)}},
		{"JSON with a status", nil, script{asJSON, code(402), says(`null`)}},
		{"a server's error", nil, script{asJSON, code(599), says(`0`)}},
		{"JSON with a charset", nil, script{asType("Application/JSON ; charset=utf-8"), says(`[]`)}},
		{"JSON without a type", nil, script{says(` {"a":1}`)}},
		{"white space first", nil, script{says(" \n"), says("\t\r"), says(`-1`)}},
		{"JSON in many pieces", nil, script{asJSON, says(`{`), says(`"a`), says(`":[`), says(`1,2`), says(`]`), says(`}`)}},
		{"long JSON", nil, script{asJSON, set("Content-Length", fmt.Sprint(len(long))), says(long)}},
		{"a declared length", nil, script{set("Content-Length", "2"), says(`{}`)}},
		{"flushed", nil, script{asJSON, set("Content-Length", "2"), says(`{`), flush, says(`}`)}},
		{"many values of one", nil, script{setMany("Link", "</a>; rel=a,</b>; rel=b"), set("Location", "/1"), says(`{}`)}},
		{"listed type", types("application/problem+JSON"), script{asType("application/problem+json"), says(`{}`)}},
		{"listed type, not JSON", types("application/json", "text/csv"), script{asType("text/csv; header=absent"), says("a,b")}},
		{"listed type, empty", types("text/csv"), script{asType("text/csv")}},
		{"listed type, sniffed", types("text/html"), script{says("<html>"), says("hello")}},
		{"*, HTML", with(every), script{says("<p>")}},
		{"*, broken JSON", with(every), script{asJSON, says(`{"a"`)}},
		{"*, nothing written", with(every), script{}},
		{"*, 204", with(every), script{code(204)}},
		{"*, 304", with(every), script{set("ETag", `"v1"`), code(304)}},
		{"*, 204 with a body", with(every), script{code(204), refusedToSay("x")}},
		{"*, an empty write", with(every), script{says(""), set("X-Late", "1")}},
		{"*, binary", with(every), script{says("\x00\x01\xff\r\n")}},
		{"*, type suppressed", with(every), script{suppress("Content-Type"), says("<p>")}},
		{"exactly at the limit", with(limit(4)), script{says("12"), says("34")}},
		{"limit 0, no body", with(every, limit(0)), script{set("Location", "/"), code(303)}},
		{"header set too late", nil, script{asJSON, set("X-A", "1"), code(201), set("X-A", "2"), set("X-Late", "1"), drop("Content-Type"), says(`{}`)}},
		{"second header ignored", nil, script{asJSON, code(201), code(500), code(103), says(`{}`)}},
		{"outer header changed", nil, script{add("Vary", "Accept"), set("Cache-Control", "no-store"), says(`{}`)}},
		{"outer header taken", nil, script{drop("X-Powered-By"), says(`{}`)}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			forEachProtocol(t, func(t *testing.T, serve func(http.Handler) func(string) answer) {
				forEachBackend(t, func(t *testing.T, newBackend func(*testing.T) idempotency.Backend) {
					runs := 0
					h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { runs++; tt.handler.ServeHTTP(w, r) })
					want := serve(outside(h))("")
					if want.Body != "" || want.Header.Get("Content-Length") != "" {
						want.Header.Set("Content-Length", fmt.Sprint(len(want.Body))) // Else it may be chunked.
					}

					post := serve(outside(idempotency.New(newBackend(t), tt.opts...)(h)))
					require.Equal(t, want, post("k"))
					for n := 2; n <= 3; n++ {
						want.Header.Set("Idempotent-Replayed", "true")
						if want.Status >= 500 {
							want.Header.Set("X-Should-Retry", "false")
						}
						want.Header.Set("X-Request-Id", fmt.Sprint("request-", n)) // The one of its own request.
						require.Equal(t, want, post("k"))
					}
					require.Equal(t, 2, runs)
				})
			})
		})
	}
}

// reasons has a row for each kind of response that is not stored, with why. asked
// is what the user has asked for, which is not warned of.
var reasons = []struct {
	name    string
	opts    []idempotency.Option
	handler script
	reason  idempotency.Reason
	asked   bool
}{
	{"HTML", nil, script{asType("text/html"), says(`{}`)}, idempotency.ReasonContentType, false},
	{"HTML without a type", nil, script{says("  "), says("<html>"), says("</html>")}, idempotency.ReasonContentType, false},
	{"problem+json", nil, script{asType("application/problem+json"), says(`{}`)}, idempotency.ReasonContentType, false},
	{"jsonp", nil, script{asType("application/jsonp"), says(`{}`)}, idempotency.ReasonContentType, false},
	{"JSON is not listed", types("text/html"), script{says(`{}`)}, idempotency.ReasonContentType, false},
	{"nothing", nil, script{}, idempotency.ReasonContentType, false},
	{"204", nil, script{code(204)}, idempotency.ReasonContentType, false},
	{"sniffed type, nothing", types("text/plain"), script{}, idempotency.ReasonContentType, false},
	{"streamed, then more", nil, script{asType("text/event-stream"), says("data: 1\n\n"), flush, says("data: 2\n\n")}, idempotency.ReasonContentType, false},
	{"invalid status", nil, script{recovers, code(1000)}, idempotency.ReasonContentType, false},
	{"broken JSON", nil, script{asJSON, code(201), says(`{"a":`)}, idempotency.ReasonInvalidJSON, false},
	{"broken JSON, header set too late", nil, script{asJSON, set("X-A", "1"), code(201), set("X-A", "2"), set("X-Late", "1"), says(`{`)}, idempotency.ReasonInvalidJSON, false},
	{"broken JSON without a type", nil, script{says(`{"a":`)}, idempotency.ReasonContentType, false},
	{"two JSON texts", nil, script{asJSON, says("{}\n"), says("{}\n")}, idempotency.ReasonInvalidJSON, false},
	{"not JSON from the first", nil, script{asJSON, says("<p>")}, idempotency.ReasonInvalidJSON, false},
	{"empty JSON", nil, script{asJSON}, idempotency.ReasonInvalidJSON, false},
	{"listed, broken problem", types("application/problem+json"), script{asType("application/problem+json"), says(`{`)}, idempotency.ReasonInvalidJSON, false},
	{"encoded", nil, script{asJSON, set("Content-Encoding", "br"), says(`{}`)}, idempotency.ReasonEncoded, false},
	{"over the limit", with(every, limit(4)), script{code(201), says("123"), says("45"), says("67")}, idempotency.ReasonTooLarge, false},
	{"over the limit at once", with(limit(4)), script{says(strings.Repeat("1", 5000))}, idempotency.ReasonTooLarge, false},
	{"declared over the limit", with(every, limit(4)), script{asJSON, set("Content-Length", "5"), code(201), says(`"ab`), flush, says(`c"`)}, idempotency.ReasonTooLarge, false},
	{"declared over the limit, with less", with(every, limit(4)), script{set("Content-Length", "5"), says("12")}, idempotency.ReasonTooLarge, false},
	{"declared over the limit, too late", with(limit(4)), script{asJSON, code(201), set("Content-Length", "5"), says("{")}, idempotency.ReasonInvalidJSON, false},
	{"limit 0", with(every, limit(0)), script{says("1")}, idempotency.ReasonTooLarge, false},
	{"shorter than declared", with(every), script{set("Content-Length", "5"), says("1234")}, idempotency.ReasonLength, false},
	{"longer than declared", with(every), script{set("Content-Length", "5"), says("1234"), tooLong("567")}, idempotency.ReasonLength, false},
	{"malformed length", with(every), script{set("Content-Length", "2.0"), says("{}")}, idempotency.ReasonLength, false},
	{"declared trailer", with(every), script{asJSON, set("Trailer", "X-Sum"), says(`{}`), set("X-Sum", "1")}, idempotency.ReasonTrailers, false},
	{"trailer, not declared", nil, script{asJSON, code(201), says(`"` + strings.Repeat("x", 5000) + `"`), set(http.TrailerPrefix+"X-Sum", "1")}, idempotency.ReasonTrailers, false},
	{"trailer set before", nil, script{asJSON, set(http.TrailerPrefix+"X-Sum", "1"), says(`{}`)}, idempotency.ReasonTrailers, false},
	{"declared, set before", with(every), script{set("Trailer", "X-Sum"), set("X-Sum", "1"), code(200)}, idempotency.ReasonTrailers, false},
	{"NoStore", nil, script{asJSON, says(`{`), noStore, says(`}`)}, idempotency.ReasonNoStore, true},
	{"NoStore, at last", nil, script{asJSON, says(`{}`), noStore}, idempotency.ReasonNoStore, true},
	{"NoStore, flushed", nil, script{asJSON, says(`{`), noStore, flush, says(`}`)}, idempotency.ReasonNoStore, true},
	{"WithStoreIf", with(idempotency.WithStoreIf(below(400))), script{asJSON, code(404), says(`{}`)}, idempotency.ReasonStoreIf, true},
}

// TestNotStoredResponses has every answer as without the middleware.
func TestNotStoredResponses(t *testing.T) {
	for _, tt := range reasons {
		t.Run(tt.name, func(t *testing.T) {
			forEachProtocol(t, func(t *testing.T, serve func(http.Handler) func(string) answer) {
				runs := 0
				h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { runs++; tt.handler.ServeHTTP(w, r) })
				want := serve(outside(h))("")
				es := &events{}
				post := serve(outside(idempotency.New(idempotency.NewMemory(), append(tt.opts, es.option(), quiet)...)(h)))
				for n := 1; n <= 3; n++ {
					want.Header.Set("X-Request-Id", fmt.Sprint("request-", n))
					require.Equal(t, want, post("k"))
					require.Equal(t, n+1, runs)
				}
				for _, e := range es.seen() {
					require.Equal(t, idempotency.NotStored, e.Outcome)
					require.Equal(t, tt.reason, e.Reason)
					require.Equal(t, want.Status, e.Status)
				}
			})
		})
	}
}

// A Content-Encoding without a value is none.
func TestEmptyContentEncodingIsStored(t *testing.T) {
	for _, outside := range []string{"", "gzip"} {
		inner := idempotency.New(idempotency.NewMemory())(script{suppress("Content-Encoding"), says("{}")})
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if outside != "" {
				w.Header().Set("Content-Encoding", outside)
			}
			inner.ServeHTTP(w, r)
		})
		send(h, request("k", "b"))
		requireReplayed(t, send(h, request("k", "b")), "{}")
	}
}

// A Trailer that is declared after the header was written declares nothing.
func TestLateTrailerIsNone(t *testing.T) {
	h := idempotency.New(idempotency.NewMemory())(script{asJSON, says("{}"), set("Trailer", "X-Sum"), set("X-Sum", "1")})
	send(h, request("k", "b"))
	requireReplayed(t, send(h, request("k", "b")), "{}")
}

// A declared length takes no memory, and breaks nothing, before its bytes have come.
func TestDeclaredLengthIsNotTakenOnItsWord(t *testing.T) {
	for _, length := range []string{"abc", "9223372036854775807", "9000000000000"} {
		h := idempotency.New(idempotency.NewMemory(), limit(math.MaxInt), quiet)(script{asJSON, set("Content-Length", length), says("{}")})
		require.Equal(t, "{}", send(h, request("k", "b")).Body.String(), length)
	}
}

// A trailer that middleware outside declares is not the handler's.
func TestTrailerDeclaredOutside(t *testing.T) {
	p := &payments{}
	inside := idempotency.New(idempotency.NewMemory(), quiet)(p)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "Server-Timing")
		inside.ServeHTTP(w, r)
	})
	for range 2 {
		require.Equal(t, http.StatusCreated, send(h, request("k", "b")).Code)
	}
	require.EqualValues(t, 1, p.runs.Load())
}
