package idempotency_test

import (
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

func TestStreamsWhatIsNotStored(t *testing.T) {
	tests := map[string]struct {
		opts        []idempotency.Option
		contentType string
		before      string // what is held, flushes notwithstanding, until next
		next        string // makes it known
		header      http.Header
	}{
		"by its Content-Type":                 {contentType: "text/event-stream", next: "data: 1\n\n"},
		"by its first byte, without a type":   {before: " \n", next: "<p>"},
		"by its first byte, although JSON":    {contentType: "application/json", before: "\t", next: "x"},
		"by its first byte, JSON not listed":  {opts: []idempotency.Option{idempotency.WithContentTypes("text/html")}, next: "{}"},
		"by its length":                       {opts: []idempotency.Option{idempotency.WithBufferLimit(4)}, contentType: "application/json", before: "1234", next: "5"},
		"by a declared length":                {contentType: "application/json", before: "12", next: "3", header: http.Header{"Content-Length": {"2"}}},
		"by a declared length over the limit": {opts: with(limit(4)), contentType: "application/json", next: "1", header: http.Header{"Content-Length": {"5"}}},
		"by that, before any byte of it":      {opts: with(limit(4)), contentType: "application/json", header: http.Header{"Content-Length": {"5"}}},
		"by its Content-Encoding":             {contentType: "application/json", next: "1", header: http.Header{"Content-Encoding": {"gzip"}}},
		"by a trailer":                        {contentType: "application/json", next: "1", header: http.Header{"Trailer": {"X-Sum"}}},
		"by a trailer that is not declared":   {contentType: "application/json", next: "1", header: http.Header{http.TrailerPrefix + "X-Sum": {"1"}}},
		"by WithStoreIf":                      {opts: []idempotency.Option{idempotency.WithStoreIf(func(int, http.Header) bool { return false })}, contentType: "application/json", next: "1"},
		"by NoStore, with the next write":     {contentType: "application/json", before: "12", next: "NoStore"},
		"by NoStore, with a flush":            {contentType: "application/json", before: "12", next: "NoStore and flush"},
		"by its type, before any byte of it":  {contentType: "text/plain"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := httptest.NewRecorder()
			h := idempotency.New(idempotency.NewMemory(), tt.opts...)(http.HandlerFunc(func(rec http.ResponseWriter, r *http.Request) {
				if tt.contentType != "" {
					rec.Header().Set("Content-Type", tt.contentType)
				}
				maps.Copy(rec.Header(), tt.header)
				control := http.NewResponseController(rec)
				if tt.before != "" {
					io.WriteString(rec, tt.before)
					require.NoError(t, control.Flush())
					rec.(http.Flusher).Flush()
					require.False(t, w.Flushed)
					require.Zero(t, w.Body.Len())
				}
				switch tt.next {
				case "NoStore":
					idempotency.NoStore(r.Context())
					io.WriteString(rec, "3")
					require.Equal(t, "123", w.Body.String())
				case "NoStore and flush":
					idempotency.NoStore(r.Context())
				default:
					io.WriteString(rec, tt.next)
					require.Equal(t, tt.before+tt.next, w.Body.String())
				}
				require.NoError(t, control.Flush())
				require.True(t, w.Flushed)
				for range 3 {
					was := w.Body.Len()
					io.WriteString(rec, "more")
					require.Equal(t, was+4, w.Body.Len())
				}
			}))
			h.ServeHTTP(w, request("k", "b"))
		})
	}
}

// TestFlushKeepsItsPlace has handlers that flush what is held and is not stored
// in the end: net/http takes the type from what was written before the flush.
func TestFlushKeepsItsPlace(t *testing.T) {
	tests := map[string]script{
		"before the body":            {flush, says(`{"a":`)},
		"within the body":            {says(`{"b":1}`), flush, says("\x1f\x8b\x00")},
		"without a body":             {flush},
		"before the body, and after": {flush, says(`{"a":`), flush},
		"twice":                      {says(`{`), flush, says(`"b"`), flush},
	}
	for name, handler := range tests {
		t.Run(name, func(t *testing.T) {
			forEachProtocol(t, func(t *testing.T, serve func(http.Handler) func(string) answer) {
				require.Equal(t, serve(handler)(""), serve(idempotency.New(idempotency.NewMemory())(handler))("k"))
			})
		})
	}
}

func TestFlushWritesTheHeader(t *testing.T) {
	// As net/http has it: after a flush a status comes too late.
	h := idempotency.New(idempotency.NewMemory())(script{asJSON, flush, code(http.StatusTeapot), says("{}")})
	require.Equal(t, http.StatusOK, send(h, request("k", "b")).Code)
}

func TestFlushThatIsNotSupported(t *testing.T) {
	h := idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		require.ErrorIs(t, http.NewResponseController(w).Flush(), http.ErrNotSupported)
	}))
	h.ServeHTTP(struct{ http.ResponseWriter }{httptest.NewRecorder()}, request("k", "b"))
}

func TestResponseController(t *testing.T) {
	forEachProtocol(t, func(t *testing.T, serve func(http.Handler) func(string) answer) {
		post := serve(idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			control := http.NewResponseController(w)
			require.NoError(t, control.SetReadDeadline(time.Now().Add(time.Minute)))
			require.NoError(t, control.SetWriteDeadline(time.Now().Add(time.Minute)))
			require.NoError(t, control.EnableFullDuplex())
			require.NoError(t, control.Flush())
			_, flusher := w.(http.Flusher)
			require.True(t, flusher)
			require.Implements(t, (*interface{ Unwrap() http.ResponseWriter })(nil), w)
			jsonHeader(w)
			io.WriteString(w, "{}")
		})))
		require.Equal(t, "{}", post("k").Body)
		require.Equal(t, "true", post("k").Header.Get("Idempotent-Replayed"))
	})
}
