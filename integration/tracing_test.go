package integration

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
)

// withSpans tells the server's span, which otelhttp outside has begun, what
// became of the request. A key is a credential of a sort, and no attribute.
func withSpans() idempotency.Option {
	return idempotency.WithObserver(func(ctx context.Context, e idempotency.Event) {
		span := trace.SpanFromContext(ctx)
		span.SetAttributes(attribute.String("idempotency.outcome", string(e.Outcome)),
			attribute.String("idempotency.reason", string(e.Reason)),
			// Recovered: the handler of WithRecovery ran, whatever the outcome.
			attribute.Bool("idempotency.recovered", e.Recovered),
			attribute.Bool("idempotency.replayed", e.Outcome == idempotency.Replayed))
		span.RecordError(e.Err) // Of nil it records nothing.
	})
}

// tracing keeps the spans that end.
type tracing struct {
	*tracetest.SpanRecorder
	provider trace.TracerProvider
}

func newTracing() *tracing {
	recorder := tracetest.NewSpanRecorder()
	return &tracing{recorder, sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))}
}

// outside goes around a server's handler.
func (tr *tracing) outside(h http.Handler) http.Handler {
	return otelhttp.NewHandler(h, "server", otelhttp.WithTracerProvider(tr.provider))
}

// last returns the server's span that ended last.
func (tr *tracing) last(t *testing.T) sdktrace.ReadOnlySpan {
	t.Helper()
	spans := tr.Ended()
	for i := len(spans) - 1; i >= 0; i-- {
		if spans[i].SpanKind() == trace.SpanKindServer {
			return spans[i]
		}
	}
	require.FailNow(t, "there is no server span")
	return nil
}

// attributesOf returns the values of a span's attributes.
func attributesOf(span sdktrace.ReadOnlySpan) map[string]any {
	values := map[string]any{}
	for _, a := range span.Attributes() {
		values[string(a.Key)] = a.Value.AsInterface()
	}
	return values
}

// exceptionsOf returns what went wrong, as a span has it.
func exceptionsOf(span sdktrace.ReadOnlySpan) (messages []string) {
	for _, e := range span.Events() {
		for _, a := range e.Attributes {
			if e.Name == "exception" && a.Key == "exception.message" {
				messages = append(messages, a.Value.AsString())
			}
		}
	}
	return messages
}

func TestTracing(t *testing.T) {
	tr := newTracing()
	var recording, observed atomic.Int32
	stillRecording := idempotency.WithObserver(func(ctx context.Context, _ idempotency.Event) {
		observed.Add(1)
		if trace.SpanFromContext(ctx).IsRecording() {
			recording.Add(1)
		}
	})
	quiet := idempotency.WithLogger(slog.New(slog.DiscardHandler))
	s := newWatched(t, tr.outside, quiet, withSpans(), stillRecording)
	release := s.hold(t, "secret-held", "secret")
	for _, c := range []struct {
		path, key, body string
		outcome         idempotency.Outcome
		status          int
		err             string
	}{
		{"/payments", "secret", "secret", idempotency.Stored, http.StatusCreated, ""},
		{"/payments", "secret", "secret", idempotency.Replayed, http.StatusCreated, ""},
		{"/payments", "secret", "another secret", idempotency.Reused, http.StatusUnprocessableEntity, idempotency.ErrKeyReused.Error()},
		{"/held", "secret-held", "secret", idempotency.Outstanding, http.StatusConflict, idempotency.ErrOutstanding.Error()},
		{"/payments", `"secret-no-end`, "secret", idempotency.Rejected, http.StatusUnprocessableEntity, idempotency.ErrKeyInvalid.Error()},
		{"/text", "secret", "more secret", idempotency.Reused, http.StatusUnprocessableEntity, idempotency.ErrKeyReused.Error()},
		{"/text", "secret-text", "secret", idempotency.NotStored, http.StatusOK, ""},
		{"/down", "secret", "secret", idempotency.Failed, http.StatusServiceUnavailable, "connection refused"},
		{"/open", "secret", "secret", idempotency.Unprotected, http.StatusCreated, "connection refused"},
		{"/panics", "secret-panic", "secret", idempotency.Panicked, 0, http.ErrAbortHandler.Error()}, // The SDK records it.
	} {
		require.Equal(t, c.status, s.send(t, c.path, c.key, c.body), c.path)
		span := tr.last(t)
		values := attributesOf(span)
		require.Equal(t, string(c.outcome), values["idempotency.outcome"], c.path)
		require.Equal(t, c.outcome == idempotency.Replayed, values["idempotency.replayed"], c.path)
		require.Equal(t, c.outcome == idempotency.NotStored, values["idempotency.reason"] == "content_type", c.path)
		if c.status != 0 {
			require.EqualValues(t, c.status, values["http.response.status_code"], c.path)
			require.Equal(t, "POST "+c.path, span.Name(), "the mux inside names the span")
		}
		if c.err == "" {
			require.Empty(t, exceptionsOf(span), c.path)
		} else {
			require.Len(t, exceptionsOf(span), 1, c.path)
			require.Contains(t, exceptionsOf(span)[0], c.err)
		}
	}
	release()
	require.EqualValues(t, 11, observed.Load())
	require.Equal(t, observed.Load(), recording.Load(), "an observer's span is to be recording")
	for _, span := range tr.Ended() {
		require.NotContains(t, fmt.Sprint(span.Name(), span.Attributes(), span.Events()), "secret")
	}
}

// TestTraceOutlivesClient has a handler that begins a span after its client went
// away: the trace and the parent are those of its request all the same.
func TestTraceOutlivesClient(t *testing.T) {
	for _, p := range wireProtocols {
		t.Run(p.name, func(t *testing.T) {
			tr := newTracing()
			tracer := tr.provider.Tracer("payments")
			payments := newHeldWirePayments(t)
			charge := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				payments.ServeHTTP(w, r)
				_, span := tracer.Start(r.Context(), "charge")
				span.End()
			})
			w := p.start(t, tr.outside(idempotency.New(idempotency.NewMemory(), withSpans())(charge)))
			ctx, hangUp := context.WithCancel(wireContext(t))
			r := w.request(t, "k", strings.NewReader("amount=100")).WithContext(ctx)
			const caller = "0af7651916cd43dd8448eb211c80319c"
			r.Header.Set("Traceparent", "00-"+caller+"-b7ad6b7169203331-01")
			go func() { _, _ = w.send(r) }()
			outside := await(t, w.begun, "the request")
			inside := await(t, payments.running, "its handler")
			hangUp()
			await(t, outside.Done(), "the server to see that the client is gone")
			require.True(t, trace.SpanFromContext(inside).IsRecording(), "the server's span goes on with its handler")
			close(payments.finish)
			await(t, w.over, "the handler to be done")

			ended := tr.Ended()
			require.Len(t, ended, 2)
			child, server := ended[0], ended[1]
			require.Equal(t, "charge", child.Name())
			require.Equal(t, trace.SpanKindServer, server.SpanKind())
			require.Equal(t, server.SpanContext().SpanID(), child.Parent().SpanID())
			require.Equal(t, server.SpanContext().TraceID(), child.SpanContext().TraceID())
			require.Equal(t, "stored", attributesOf(server)["idempotency.outcome"])

			// The retry is a request of its own, and charges nothing.
			again := w.post(t, "k", "amount=100")
			require.True(t, again.replayed())
			await(t, w.over, "the retry to be over")
			require.Len(t, tr.Ended(), 3)
			retry := tr.last(t)
			require.NotEqual(t, server.SpanContext().TraceID(), retry.SpanContext().TraceID())
			require.Equal(t, true, attributesOf(retry)["idempotency.replayed"])
		})
	}
}

// TestTracingKeepsWhatHandlersDo has otelhttp outside of a handler that streams.
func TestTracingKeepsWhatHandlersDo(t *testing.T) {
	tr := newTracing()
	read := make(chan struct{})
	h := idempotency.New(idempotency.NewMemory(), withSpans())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Set("Content-Type", "text/event-stream")
		w.WriteHeader(http.StatusAccepted)
		io.WriteString(w, "data: 1\n\n")
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
		select {
		case <-read:
		case <-t.Context().Done():
		}
	}))
	w := wireProtocols[0].start(t, tr.outside(h))
	resp, err := w.client.Do(w.request(t, "k", nil))
	require.NoError(t, err)
	defer resp.Body.Close()
	event := make([]byte, len("data: 1\n\n"))
	_, err = io.ReadFull(resp.Body, event)
	require.NoError(t, err)
	close(read)
	await(t, w.over, "the request to be over")
	require.Equal(t, http.StatusAccepted, resp.StatusCode)
	values := attributesOf(tr.last(t))
	require.EqualValues(t, http.StatusAccepted, values["http.response.status_code"])
	require.Equal(t, "not_stored", values["idempotency.outcome"])
}
