package idempotencyecho_test

import (
	"context"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/labstack/echo/v5"
	"github.com/stretchr/testify/require"
)

// patience is how long a test waits for what must come.
const patience = 30 * time.Second

// await waits for a value.
func await[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		require.FailNow(t, "nothing came")
		panic("unreachable")
	}
}

// service is an Echo behind a server, with the middleware of one backend.
type service struct {
	*testing.T
	*echo.Echo
	once   func(http.Handler) http.Handler
	events chan idempotency.Event
	url    string
}

func newService(t *testing.T, opts ...idempotency.Option) *service {
	s := &service{T: t, Echo: echo.New(), events: make(chan idempotency.Event, 16)}
	observe := func(_ context.Context, e idempotency.Event) { s.events <- e }
	s.once = idempotency.New(idempotency.NewMemory(), append([]idempotency.Option{
		idempotency.WithObserver(observe),
		idempotency.WithLogger(slog.New(slog.DiscardHandler)),
	}, opts...)...)
	server := httptest.NewUnstartedServer(s.Echo)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.Start()
	t.Cleanup(server.Close)
	s.url = server.URL
	return s
}

// answer is what a client gets.
type answer struct {
	status   int
	header   http.Header
	body     string
	replayed bool
}

var client = http.Client{Transport: &http.Transport{DisableCompression: true, DisableKeepAlives: true}, Timeout: patience}

// open sends a payment and returns the answer with its body unread.
func (s *service) open(path, key string, header ...string) *http.Response {
	s.Helper()
	r, err := http.NewRequest(http.MethodPost, s.url+path, strings.NewReader("amount=100"))
	require.NoError(s, err)
	if key != "" {
		r.Header.Set("Idempotency-Key", key)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := client.Do(r)
	require.NoError(s, err)
	return resp
}

// post sends a payment and returns the whole answer.
func (s *service) post(path, key string, header ...string) answer {
	s.Helper()
	resp := s.open(path, key, header...)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(s, err)
	return answer{resp.StatusCode, resp.Header, string(body), resp.Header.Get("Idempotent-Replayed") == "true"}
}

// requireOutcome waits for the next event and requires its outcome.
func (s *service) requireOutcome(want idempotency.Outcome) idempotency.Event {
	s.Helper()
	e := await(s.T, s.events)
	require.Equal(s, want, e.Outcome)
	return e
}

// twice sends a payment and then its retry, and requires their outcomes.
func (s *service) twice(path string, one, two idempotency.Outcome) (first, retry answer) {
	s.Helper()
	first = s.post(path, "k")
	s.requireOutcome(one)
	retry = s.post(path, "k")
	s.requireOutcome(two)
	return first, retry
}
