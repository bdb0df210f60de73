package integration

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/trace"
)

// withLog logs a line for each request: what is not in levels is Info. A
// hash tells one key from another, and does not give away one that is random.
func withLog(logger *slog.Logger) idempotency.Option {
	levels := map[idempotency.Outcome]slog.Level{idempotency.Interrupted: slog.LevelWarn, idempotency.Reused: slog.LevelWarn,
		idempotency.Unprotected: slog.LevelWarn, idempotency.Failed: slog.LevelError, idempotency.Panicked: slog.LevelError}
	return idempotency.WithObserver(func(ctx context.Context, e idempotency.Event) {
		// Recovered: the handler of WithRecovery ran, whatever the outcome.
		logger.Log(ctx, levels[e.Outcome], "idempotency", "outcome", e.Outcome, "reason", e.Reason, "recovered", e.Recovered,
			"status", e.Status, "duration", e.Duration, "storage_key", e.StorageKey.String(), "error", e.Err)
	})
}

// traceHandler adds the trace's id to each line that is logged with a context:
// to the library's own too, which have the request's.
type traceHandler struct{ slog.Handler }

func (h traceHandler) Handle(ctx context.Context, r slog.Record) error {
	if sc := trace.SpanContextFromContext(ctx); sc.IsValid() {
		r.AddAttrs(slog.String("trace_id", sc.TraceID().String()))
	}
	return h.Handler.Handle(ctx, r)
}

func (h traceHandler) WithAttrs(as []slog.Attr) slog.Handler {
	return traceHandler{h.Handler.WithAttrs(as)}
}

func (h traceHandler) WithGroup(name string) slog.Handler {
	return traceHandler{h.Handler.WithGroup(name)}
}

// logLines is what was logged. A server logs from many goroutines.
type logLines struct {
	mu sync.Mutex
	bytes.Buffer
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.Write(p)
}

// take returns what was logged since it was last called.
func (l *logLines) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.Reset()
	return l.String()
}

func TestLog(t *testing.T) {
	for _, c := range []struct {
		name    string
		handler func(*logLines) slog.Handler
		line    string // how an outcome's line has it
	}{
		{"text", func(l *logLines) slog.Handler { return slog.NewTextHandler(l, nil) }, `msg=idempotency outcome=%s `},
		{"JSON", func(l *logLines) slog.Handler { return slog.NewJSONHandler(l, nil) }, `"msg":"idempotency","outcome":"%s",`},
	} {
		t.Run(c.name, func(t *testing.T) {
			lines := &logLines{}
			logger := slog.New(c.handler(lines))
			counts := driveOutcomes(t, newWatched(t, unwrapped, withLog(logger), idempotency.WithLogger(logger)))
			all := lines.take()
			require.NotContains(t, all, "secret", "neither a key nor a body is logged")
			for outcome, n := range counts {
				require.Equal(t, n, strings.Count(all, fmt.Sprintf(c.line, outcome)), outcome)
			}
		})
	}
}

// logLine is a line of the observer's or of a fault's.
type logLine struct {
	Level, Msg, Outcome, Reason, Error string
	Status                             int
	Duration                           int64
	TraceID                            string `json:"trace_id"`
	StorageKey                         string `json:"storage_key"`
}

func readLog(t *testing.T, text string) (lines []logLine) {
	t.Helper()
	for line := range strings.Lines(text) {
		var l logLine
		require.NoError(t, json.Unmarshal([]byte(line), &l))
		lines = append(lines, l)
	}
	return lines
}

func TestLogLines(t *testing.T) {
	lines, tr := &logLines{}, newTracing()
	logger := slog.New(traceHandler{slog.NewJSONHandler(lines, nil)}).With("service", "payments")
	s := newWatched(t, tr.outside, withLog(logger), idempotency.WithLogger(logger))
	for _, c := range []struct {
		path, body string
		level      slog.Level
		outcome    idempotency.Outcome
		status     int
		err        string
		fault      bool // the library logs one itself
	}{
		{"/payments", "", slog.LevelInfo, idempotency.Stored, http.StatusCreated, "", false},
		{"/payments", "", slog.LevelInfo, idempotency.Replayed, http.StatusCreated, "", false},
		{"/payments", "x", slog.LevelWarn, idempotency.Reused, http.StatusUnprocessableEntity, "different request", false},
		{"/open", "", slog.LevelWarn, idempotency.Unprotected, http.StatusCreated, "connection refused", true},
		{"/down", "", slog.LevelError, idempotency.Failed, http.StatusServiceUnavailable, "connection refused", true},
	} {
		s.send(t, c.path, "secret", c.body)
		got := readLog(t, lines.take())
		for _, l := range got {
			require.Equal(t, tr.last(t).SpanContext().TraceID().String(), l.TraceID, c.path)
		}
		line := got[len(got)-1]
		require.Equal(t, "idempotency", line.Msg)
		require.Equal(t, c.level.String(), line.Level, c.path)
		require.Equal(t, string(c.outcome), line.Outcome)
		require.Equal(t, c.status, line.Status)
		require.Contains(t, line.Error, c.err)
		require.Equal(t, c.err == "", line.Error == "")
		require.Positive(t, line.Duration)
		if !c.fault {
			require.Len(t, got, 1)
			continue
		}
		require.Len(t, got, 2)
		require.Equal(t, slog.LevelError.String(), got[0].Level)
		require.Equal(t, idempotency.NewKey("", "secret").String(), line.StorageKey)
		require.Equal(t, line.StorageKey, got[0].StorageKey, "a fault and its request are to be found together")
		require.Contains(t, got[0].Error, c.err)
	}

	s.send(t, "/once", "secret-once", "")
	lines.take()
	s.send(t, "/once", "secret-once", "")
	got := readLog(t, lines.take())
	require.Len(t, got, 1)
	require.Equal(t, string(idempotency.Interrupted), got[0].Outcome)
	require.Equal(t, slog.LevelWarn.String(), got[0].Level, "somebody must look it up")
}

// TestLogWarns shows that a route whose responses are never stored is told of once.
func TestLogWarns(t *testing.T) {
	lines := &logLines{}
	logger := slog.New(slog.NewJSONHandler(lines, nil))
	s := newWatched(t, unwrapped, idempotency.WithLogger(logger))
	for range 3 {
		s.send(t, "/text", "secret", "secret")
		s.send(t, "/once", rand.Text(), "secret")
	}
	all := lines.take()
	require.Equal(t, 2, strings.Count(all, "\n"), all)
	for _, route := range []string{"POST /text", "POST /once"} {
		require.Contains(t, all, fmt.Sprintf(`"level":"WARN","msg":"idempotency: response not stored, a retry is not replayed",`+
			`"reason":"content_type","pattern":%q`, route))
	}
}
