package main

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/internal/pgtest"
)

// The lines that the program prints do what it says, in memory and in PostgreSQL.
func TestProgram(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("SKIPPED: there is no curl on the PATH to run the program's lines with.")
	}
	t.Run("memory", func(t *testing.T) { useProgram(t, "") })
	t.Run("postgres", func(t *testing.T) { useProgram(t, pgtest.Start(t).URL()) })
}

func useProgram(t *testing.T, url string) {
	ctx, stop := context.WithCancel(t.Context())
	out, in := io.Pipe()
	served := make(chan error, 1)
	go func() {
		served <- serve(ctx, "127.0.0.1:0", url, in)
		in.Close()
	}()
	var script strings.Builder
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if line := lines.Text(); !strings.HasPrefix(line, "Checkout at") {
			script.WriteString(line + "\n")
		}
		if strings.Count(script.String(), "pay-") == 2 {
			break
		}
	}
	said, err := exec.CommandContext(ctx, "sh", "-c", script.String()).CombinedOutput()
	require.NoError(t, err, string(said))
	var statuses []string
	replays := 0
	for line := range strings.Lines(string(said)) {
		if status, ok := strings.CutPrefix(strings.TrimSpace(line), "HTTP/1.1 "); ok {
			statuses = append(statuses, status[:3])
		}
		if strings.TrimSpace(line) == "Idempotent-Replayed: true" {
			replays++
		}
	}
	require.Equal(t, []string{"201", "201", "422", "400", "200", "200"}, statuses, string(said))
	require.Equal(t, 2, replays, string(said))
	stop()
	require.NoError(t, <-served)
}

// What the middleware is not asked is answered in the RFC's form too.
func TestBeforeSection6(t *testing.T) {
	s := newService()
	for name, c := range map[string]struct {
		header, value string
		status        int
		code          string
	}{
		"no version":      {"API-Version", "", http.StatusBadRequest, "missing_api_version"},
		"another version": {"API-Version", "2020-01-01", http.StatusBadRequest, "unsupported_api_version"},
		"no token":        {"Authorization", "", http.StatusUnauthorized, "unauthorized"},
		"another token":   {"Authorization", "Bearer guess", http.StatusUnauthorized, "unauthorized"},
	} {
		t.Run(name, func(t *testing.T) {
			requireError(t, s.post("/checkout_sessions", "key", oneItem, c.header, c.value), c.status, c.code)
		})
	}
	requireError(t, s.post("/checkout_sessions/cs_none", "key", `{}`), http.StatusNotFound, "not_found")
	requireError(t, s.post("/checkout_sessions", "json", `{`), http.StatusBadRequest, "invalid")
	requireError(t, s.post("/checkout_sessions", "item", `{"items": [{"id": "none", "quantity": 1}]}`), http.StatusBadRequest, "invalid")
	requireError(t, s.post("/checkout_sessions", "large", strings.Repeat(" ", maxBody)+`{}`), http.StatusRequestEntityTooLarge, "too_large")
}

// What else the middleware refuses with is in the RFC's form.
func TestRefuse(t *testing.T) {
	for _, c := range []struct {
		err    error
		status int
		kind   string
	}{
		{idempotency.ErrClaimLost, http.StatusConflict, "invalid_request"},
		{idempotency.ErrBodyUnreadable, http.StatusBadRequest, "invalid_request"},
		{idempotency.ErrUnavailable, http.StatusServiceUnavailable, "service_unavailable"},
		{idempotency.ErrFull, http.StatusServiceUnavailable, "service_unavailable"},
	} {
		w := httptest.NewRecorder()
		refuse(w, nil, c.err)
		require.Equal(t, c.status, w.Code)
		require.Contains(t, w.Body.String(), `{"type":"`+c.kind+`"`)
	}
}
