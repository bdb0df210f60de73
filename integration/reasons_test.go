package integration

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
)

// transactional is a Transactor without a transaction.
type transactional struct{ idempotency.Backend }

func (transactional) Begin(ctx context.Context, _ idempotency.Key, _ idempotency.Claim, _ time.Duration) context.Context {
	return ctx
}

// notCompleting is a backend that stores no response, and says why.
type notCompleting struct {
	idempotency.Backend
	err error
}

func (b notCompleting) Complete(context.Context, idempotency.Key, idempotency.Claim, []byte, time.Duration) error {
	return b.err
}

// unstored is a handler whose response is not stored.
type unstored struct {
	reason  idempotency.Reason
	header  string // of the response: its name and value
	status  int
	body    string
	does    func(r *http.Request)
	breaks  bool // The request's body breaks off, over the limit.
	opts    []idempotency.Option
	backend func(idempotency.Backend) idempotency.Backend
	asked   bool // The user wants it so: no warning, and no alarm.
}

// everyUnstored has one for each reason.
var everyUnstored = []unstored{
	{reason: idempotency.ReasonNoStore, asked: true, does: func(r *http.Request) { idempotency.NoStore(r.Context()) }},
	{reason: idempotency.ReasonStoreIf, asked: true, opts: []idempotency.Option{idempotency.WithStoreIf(func(int, http.Header) bool { return false })}},
	{reason: idempotency.ReasonServerError, asked: true, status: http.StatusInternalServerError,
		backend: func(b idempotency.Backend) idempotency.Backend { return transactional{b} }},
	{reason: idempotency.ReasonContentType, header: "Content-Type: text/plain"},
	{reason: idempotency.ReasonInvalidJSON, body: "{"},
	{reason: idempotency.ReasonEncoded, header: "Content-Encoding: br"},
	{reason: idempotency.ReasonTooLarge, body: `"` + strings.Repeat("x", 1<<10) + `"`},
	{reason: idempotency.ReasonLength, header: "Content-Length: 100"},
	{reason: idempotency.ReasonTrailers, header: "Trailer: Checksum"},
	{reason: idempotency.ReasonHijacked, status: http.StatusSwitchingProtocols},
	{reason: idempotency.ReasonRequestBody, breaks: true, does: func(r *http.Request) { io.ReadAll(r.Body) }},
	{reason: idempotency.ReasonStoreFailed, backend: func(b idempotency.Backend) idempotency.Backend { return notCompleting{b, idempotency.ErrFull} }},
}

// handler returns the handler with the middleware around it.
func (u unstored) handler(opts ...idempotency.Option) http.Handler {
	var backend idempotency.Backend = idempotency.NewMemory()
	if u.backend != nil {
		backend = u.backend(backend)
	}
	opts = append(slices.Clip(opts), idempotency.WithBufferLimit(1<<10))
	h := idempotency.New(backend, append(opts, u.opts...)...)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if name, value, ok := strings.Cut(u.header, ": "); ok {
			w.Header().Set(name, value)
		}
		if u.does != nil {
			u.does(r)
		}
		if u.status != 0 {
			w.WriteHeader(u.status)
		}
		if u.status != http.StatusSwitchingProtocols {
			io.WriteString(w, cmp.Or(u.body, "{}"))
		}
	}))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u.breaks {
			r.Body = io.NopCloser(io.MultiReader(strings.NewReader(strings.Repeat("x", 1<<10+1)), iotest.ErrReader(errors.New("reset"))))
			r.ContentLength = -1
		}
		h.ServeHTTP(w, r)
	})
}

// sendKeyed sends a request with a key.
func sendKeyed(h http.Handler, key, path string) *httptest.ResponseRecorder {
	r, w := httptest.NewRequest(http.MethodPost, path, nil), httptest.NewRecorder()
	r.Header.Set("Idempotency-Key", key)
	h.ServeHTTP(w, r)
	return w
}

// Every reason gets to the metrics, the spans and the log, and is warned of once.
func TestReasons(t *testing.T) {
	require.Len(t, everyUnstored, len(outcomes[idempotency.NotStored]))
	for _, u := range everyUnstored {
		t.Run(string(u.reason), func(t *testing.T) {
			reg, tr, lines := prometheus.NewRegistry(), newTracing(), &logLines{}
			logger := slog.New(traceHandler{slog.NewJSONHandler(lines, nil)})
			h := tr.outside(u.handler(withMetrics(reg), withSpans(), withLog(logger), idempotency.WithLogger(logger)))
			var traces []string
			for _, key := range []string{"secret-1", "secret-2"} {
				sendKeyed(h, key, "/")
				span := tr.last(t)
				require.Equal(t, string(u.reason), attributesOf(span)["idempotency.reason"])
				require.Equal(t, false, attributesOf(span)["idempotency.recovered"])
				traces = append(traces, span.SpanContext().TraceID().String())
			}

			series, _ := scrape(t, reg, "idempotency_requests_total")
			require.Contains(t, series, fmt.Sprintf(`idempotency_requests_total{outcome="not_stored",reason=%q,recovered="false"} 2`, u.reason))
			var told, warned []string
			for _, line := range readLog(t, lines.take()) {
				require.Contains(t, traces, line.TraceID)
				switch line.Msg {
				case "idempotency":
					told = append(told, line.Reason)
				case "idempotency: response not stored, a retry is not replayed":
					require.Equal(t, slog.LevelWarn.String(), line.Level)
					require.Equal(t, traces[0], line.TraceID, "the first one is warned of")
					warned = append(warned, line.Reason)
				default:
					require.Equal(t, "idempotency: response not stored", line.Msg)
					require.Equal(t, idempotency.ReasonStoreFailed, u.reason, "a fault of the store")
				}
			}
			require.Equal(t, []string{string(u.reason), string(u.reason)}, told)
			if u.asked {
				require.Empty(t, warned)
			} else {
				require.Equal(t, []string{string(u.reason)}, warned)
			}
		})
	}
}

// recovering has a handler that panics, and a recovery that answers what is left of
// answers, one for each retry.
func recovering(answers []string, opts ...idempotency.Option) http.Handler {
	recovery := func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			answer := answers[0]
			answers = answers[1:]
			if answer == "" {
				panic(http.ErrAbortHandler)
			}
			io.WriteString(w, answer)
		})
	}
	h := idempotency.New(idempotency.NewMemory(), append(opts, idempotency.WithRecovery(recovery))...)(
		http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() { _ = recover() }() // As net/http does.
		h.ServeHTTP(w, r)
	})
}

// A recovery gets to the metrics, the spans and the log, whatever comes of it.
func TestRecovered(t *testing.T) {
	reg, tr, lines := prometheus.NewRegistry(), newTracing(), &logLines{}
	quiet := idempotency.WithLogger(slog.New(slog.DiscardHandler))
	h := tr.outside(recovering([]string{"", "not JSON", "{}"}, withMetrics(reg), withSpans(), withLog(slog.New(slog.NewJSONHandler(lines, nil))), quiet))
	for _, c := range []struct {
		outcome   idempotency.Outcome
		reason    idempotency.Reason
		recovered bool
	}{
		{idempotency.Panicked, "", false},
		{idempotency.Panicked, "", true},
		{idempotency.NotStored, idempotency.ReasonContentType, true},
		{idempotency.Stored, "", true},
		{idempotency.Replayed, "", false},
	} {
		sendKeyed(h, "secret", "/")
		values := attributesOf(tr.last(t))
		require.Equal(t, []any{string(c.outcome), string(c.reason), c.recovered},
			[]any{values["idempotency.outcome"], values["idempotency.reason"], values["idempotency.recovered"]})
		series, _ := scrape(t, reg, "idempotency_requests_total")
		require.Contains(t, series, fmt.Sprintf(`idempotency_requests_total{outcome=%q,reason=%q,recovered="%t"} 1`, c.outcome, c.reason, c.recovered))
		line := lines.take()
		require.True(t, bytes.Contains([]byte(line), fmt.Appendf(nil, `"outcome":%q,"reason":%q,"recovered":%t,`, c.outcome, c.reason, c.recovered)), line)
	}
}

// A lost claim is counted, whatever became of its request.
func TestClaimsLost(t *testing.T) {
	reg := prometheus.NewRegistry()
	quiet := idempotency.WithLogger(slog.New(slog.DiscardHandler))
	for name, err := range map[string]error{"lost": idempotency.ErrClaimLost, "full": idempotency.ErrFull} {
		u := unstored{backend: func(b idempotency.Backend) idempotency.Backend { return notCompleting{b, err} }}
		one := prometheus.WrapRegistererWith(prometheus.Labels{"store": name}, reg)
		require.Equal(t, http.StatusOK, sendKeyed(u.handler(quiet, withMetrics(one)), "k", "/").Code)
	}
	series, _ := scrape(t, reg, "idempotency_claims_lost_total")
	require.Equal(t, []string{`idempotency_claims_lost_total{store="full"} 0`, `idempotency_claims_lost_total{store="lost"} 1`}, series)
}
