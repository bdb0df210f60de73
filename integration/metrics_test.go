package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/stretchr/testify/require"
)

// withMetrics counts requests by outcome, by why a response was not stored and by whether it
// was recovered, and takes their time. It counts the claims that were lost to another request.
func withMetrics(reg prometheus.Registerer) idempotency.Option {
	metrics := promauto.With(reg)
	requests := metrics.NewCounterVec(prometheus.CounterOpts{Name: "idempotency_requests_total"}, []string{"outcome", "reason", "recovered"})
	lost := metrics.NewCounter(prometheus.CounterOpts{Name: "idempotency_claims_lost_total"})
	seconds := metrics.NewHistogramVec(prometheus.HistogramOpts{Name: "idempotency_request_duration_seconds",
		Buckets: prometheus.ExponentialBuckets(1e-6, 4, 13)}, []string{"outcome"}) // from 1 µs to 17 s

	// Each series is there before its first event: one that begins at 1 has no increase.
	for outcome, reasons := range outcomes {
		seconds.WithLabelValues(string(outcome))
		for _, reason := range reasons {
			requests.WithLabelValues(string(outcome), string(reason), "false")
			requests.WithLabelValues(string(outcome), string(reason), "true")
		}
	}
	return idempotency.WithObserver(func(_ context.Context, e idempotency.Event) {
		// Recovered: the handler of WithRecovery ran, whatever the outcome.
		requests.WithLabelValues(string(e.Outcome), string(e.Reason), strconv.FormatBool(e.Recovered)).Inc()
		seconds.WithLabelValues(string(e.Outcome)).Observe(e.Duration.Seconds())
		if errors.Is(e.Err, idempotency.ErrClaimLost) {
			lost.Inc()
		}
	})
}

// outcomes has every outcome, with its reasons.
var outcomes = map[idempotency.Outcome][]idempotency.Reason{
	idempotency.Stored: {""}, idempotency.Panicked: {""}, idempotency.Replayed: {""}, idempotency.Outstanding: {""},
	idempotency.Interrupted: {""}, idempotency.Reused: {""}, idempotency.Rejected: {""}, idempotency.Failed: {""},
	idempotency.Unprotected: {""},
	idempotency.NotStored: {idempotency.ReasonNoStore, idempotency.ReasonStoreIf, idempotency.ReasonContentType,
		idempotency.ReasonInvalidJSON, idempotency.ReasonEncoded, idempotency.ReasonTooLarge, idempotency.ReasonLength,
		idempotency.ReasonTrailers, idempotency.ReasonHijacked, idempotency.ReasonRequestBody,
		idempotency.ReasonServerError, idempotency.ReasonStoreFailed},
}

// withRouteMetrics counts by route too. A Pattern is one of few, as a label must
// be; a key, a path or an error's text would make a series for each request. The
// middleware must then stand around each route: around the mux it answers
// replays and refusals before the mux has found one.
func withRouteMetrics(reg prometheus.Registerer) idempotency.Option {
	opts, labels := prometheus.CounterOpts{Name: "idempotency_route_requests_total"}, []string{"route", "outcome"}
	requests := promauto.With(reg).NewCounterVec(opts, labels)
	return idempotency.WithObserver(func(_ context.Context, e idempotency.Event) {
		requests.WithLabelValues(e.Request.Pattern, string(e.Outcome)).Inc()
	})
}

// backendDown is a backend out of reach.
type backendDown struct{ idempotency.Backend }

func (backendDown) Claim(context.Context, idempotency.Key, idempotency.Claim, idempotency.Terms) (idempotency.Record, bool, error) {
	return idempotency.Record{}, false, errors.New("connection refused")
}

// watched is a server with a route for each thing that can become of a request,
// all of them under the same options.
type watched struct {
	*httptest.Server
	over chan struct{} // one for each request, once all around it is done with it
	held *wirePayments // at /held
}

// newWatched starts a server. outside goes around the whole of it.
func newWatched(t *testing.T, outside func(http.Handler) http.Handler, opts ...idempotency.Option) *watched {
	s := &watched{over: make(chan struct{}, 100), held: newHeldWirePayments(t)}
	opts = append(slices.Clip(opts), idempotency.WithBufferLimit(1<<10))
	memory := idempotency.NewMemory()
	with := func(backend idempotency.Backend, more ...idempotency.Option) func(http.Handler) http.Handler {
		return idempotency.New(backend, append(slices.Clip(opts), more...)...)
	}
	panics := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	text := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		io.WriteString(w, "paid")
	})
	mux := http.NewServeMux()
	mux.Handle("POST /payments", with(memory)(&wirePayments{}))
	mux.Handle("POST /held", with(memory)(s.held))
	mux.Handle("POST /text", with(memory)(text))
	mux.Handle("POST /panics", with(memory)(panics))
	mux.Handle("POST /once", with(memory, idempotency.WithAtMostOnce())(text))
	mux.Handle("POST /down", with(backendDown{memory})(&wirePayments{}))
	mux.Handle("POST /open", with(backendDown{memory}, idempotency.WithFailOpen())(&wirePayments{}))
	inside := outside(mux)
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() { s.over <- struct{}{} }()
		inside.ServeHTTP(w, r)
	}))
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	s.Start()
	t.Cleanup(s.Close)
	return s
}

// send sends a request, and returns once it was answered (0 is no answer) and
// observed.
func (s *watched) send(t *testing.T, path, key, body string) (status int) {
	t.Helper()
	r, err := http.NewRequestWithContext(wireContext(t), http.MethodPost, s.URL+path, strings.NewReader(body))
	require.NoError(t, err)
	r.Header.Set("Idempotency-Key", key)
	resp, err := s.Client().Do(r)
	await(t, s.over, "the request to be over")
	if err != nil {
		return 0
	}
	require.NoError(t, resp.Body.Close())
	return resp.StatusCode
}

// hold sends a request that goes on until release is called.
func (s *watched) hold(t *testing.T, key, body string) (release func()) {
	t.Helper()
	done := make(chan error, 1)
	r, err := http.NewRequestWithContext(wireContext(t), http.MethodPost, s.URL+"/held", strings.NewReader(body))
	require.NoError(t, err)
	r.Header.Set("Idempotency-Key", key)
	go func() {
		resp, err := s.Client().Do(r)
		if err == nil {
			err = resp.Body.Close()
		}
		done <- err
	}()
	await(t, s.held.running, "the request to be held")
	return func() {
		close(s.held.finish)
		require.NoError(t, await(t, done, "the answer"))
		await(t, s.over, "the request to be over")
	}
}

// driveOutcomes makes each outcome happen another number of times, and returns
// how often. The key and the body of each request have "secret" in them.
func driveOutcomes(t *testing.T, s *watched) map[idempotency.Outcome]int {
	t.Helper()
	counts := map[idempotency.Outcome]int{}
	send := func(times int, outcome idempotency.Outcome, status int, path, key, body string) {
		t.Helper()
		for range times {
			require.Equal(t, status, s.send(t, path, key, body), "%s %s", path, outcome)
			counts[outcome]++
		}
	}
	release := s.hold(t, "secret-held", "secret")
	send(9, idempotency.Outstanding, http.StatusConflict, "/held", "secret-held", "secret")
	release()
	counts[idempotency.Stored]++
	send(1, idempotency.Stored, http.StatusCreated, "/payments", "secret-paid", "secret")
	send(1, idempotency.NotStored, http.StatusOK, "/once", "secret-once", "secret")
	send(2, idempotency.NotStored, http.StatusOK, "/text", "secret-text", "secret")
	send(4, idempotency.Panicked, 0, "/panics", "secret-panic", "secret")
	send(5, idempotency.Replayed, http.StatusCreated, "/payments", "secret-paid", "secret")
	send(6, idempotency.Interrupted, http.StatusConflict, "/once", "secret-once", "secret")
	send(7, idempotency.Reused, http.StatusUnprocessableEntity, "/payments", "secret-paid", "another secret")
	send(8, idempotency.Rejected, http.StatusUnprocessableEntity, "/payments", `"secret-no-end`, "secret")
	send(10, idempotency.Failed, http.StatusServiceUnavailable, "/down", "secret-down", "secret")
	send(11, idempotency.Unprotected, http.StatusCreated, "/open", "secret-open", "secret")
	require.Len(t, counts, 10, "each outcome is to be driven")
	return counts
}

// scrape returns the series of a metric, as Prometheus gets them.
func scrape(t *testing.T, reg *prometheus.Registry, metric string) (series []string, all string) {
	t.Helper()
	s := httptest.NewServer(promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	defer s.Close()
	resp, err := s.Client().Get(s.URL)
	require.NoError(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode, string(text))
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, metric+"{") {
			series = append(series, strings.TrimSuffix(line, "\n"))
		}
	}
	slices.Sort(series)
	return series, string(text)
}

func unwrapped(h http.Handler) http.Handler { return h }

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	quiet := idempotency.WithLogger(slog.New(slog.DiscardHandler))
	s := newWatched(t, unwrapped, quiet, withMetrics(reg))
	before, _ := scrape(t, reg, "idempotency_requests_total")
	require.Len(t, before, 2*(9+12), "every series is there before its first event")
	for _, series := range before {
		require.True(t, strings.HasSuffix(series, " 0"), series)
	}

	counts := driveOutcomes(t, s)
	reasons := map[idempotency.Outcome]idempotency.Reason{idempotency.NotStored: idempotency.ReasonContentType}
	var requests, durations []string
	for _, outcome := range slices.Sorted(maps.Keys(counts)) {
		requests = append(requests, fmt.Sprintf("idempotency_requests_total{outcome=%q,reason=%q,recovered=\"false\"} %d", outcome, reasons[outcome], counts[outcome]))
		durations = append(durations, fmt.Sprintf("idempotency_request_duration_seconds_count{outcome=%q} %d", outcome, counts[outcome]))
	}
	got, text := scrape(t, reg, "idempotency_requests_total")
	require.Len(t, got, len(before), "no series begins later")
	got = slices.DeleteFunc(got, func(series string) bool { return strings.HasSuffix(series, " 0") })
	require.Equal(t, requests, got)
	require.NotContains(t, text, "secret")
	got, _ = scrape(t, reg, "idempotency_request_duration_seconds_count")
	require.Equal(t, durations, got)
	sums, _ := scrape(t, reg, "idempotency_request_duration_seconds_sum")
	require.Len(t, sums, len(counts))
	for _, sum := range sums {
		require.False(t, strings.HasSuffix(sum, " 0"), sum)
	}
}

// A replay takes about 2 µs on memory and 100 µs on Redis, and a handler seconds: the
// buckets tell them apart.
func TestMetricsBuckets(t *testing.T) {
	reg := prometheus.NewRegistry()
	took := []time.Duration{2 * time.Microsecond, 10 * time.Microsecond, 100 * time.Microsecond, 500 * time.Microsecond,
		2 * time.Millisecond, 10 * time.Millisecond, 50 * time.Millisecond, 200 * time.Millisecond, time.Second, 3 * time.Second, 10 * time.Second}
	synctest.Test(t, func(t *testing.T) {
		h := idempotency.New(idempotency.NewMemory(), withMetrics(reg))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			i, err := strconv.Atoi(r.Header.Get("Idempotency-Key"))
			require.NoError(t, err)
			time.Sleep(took[i])
			io.WriteString(w, "{}")
		}))
		for i := range took {
			sendKeyed(h, strconv.Itoa(i), "/")
		}
	})
	_, text := scrape(t, reg, "idempotency_request_duration_seconds_bucket")
	counts := regexp.MustCompile(`_bucket\{outcome="stored",le="[^"]+"\} (\d+)`).FindAllStringSubmatch(text, -1)
	var got []string
	for _, count := range counts {
		got = append(got, count[1])
	}
	require.Equal(t, "0 1 2 2 3 4 5 6 7 8 9 10 11 11", strings.Join(got, " "), "each in a bucket of its own; the last is +Inf")
}

func TestMetricsByRoute(t *testing.T) {
	reg := prometheus.NewRegistry()
	quiet := idempotency.WithLogger(slog.New(slog.DiscardHandler))
	s := newWatched(t, unwrapped, quiet, withRouteMetrics(reg))
	s.send(t, "/payments", "secret", "secret")
	s.send(t, "/payments", "secret", "secret")
	s.send(t, "/payments", "secret", "another secret")
	s.send(t, "/text", "secret-text", "secret")
	series, text := scrape(t, reg, "idempotency_route_requests_total")
	require.Equal(t, []string{
		`idempotency_route_requests_total{outcome="not_stored",route="POST /text"} 1`,
		`idempotency_route_requests_total{outcome="replayed",route="POST /payments"} 1`,
		`idempotency_route_requests_total{outcome="reused",route="POST /payments"} 1`,
		`idempotency_route_requests_total{outcome="stored",route="POST /payments"} 1`,
	}, series)
	require.NotContains(t, text, "secret")
}

// TestMetricsByRouteAroundMux has the middleware around the mux, where only a
// request that gets as far as the mux has a route.
func TestMetricsByRouteAroundMux(t *testing.T) {
	reg := prometheus.NewRegistry()
	mux := http.NewServeMux()
	mux.Handle("POST /payments", &wirePayments{})
	h := idempotency.New(idempotency.NewMemory(), withRouteMetrics(reg))(mux)
	for range 2 {
		r := httptest.NewRequest(http.MethodPost, "/payments", nil)
		r.Header.Set("Idempotency-Key", "k")
		h.ServeHTTP(httptest.NewRecorder(), r)
	}
	series, _ := scrape(t, reg, "idempotency_route_requests_total")
	require.Equal(t, []string{
		`idempotency_route_requests_total{outcome="replayed",route=""} 1`,
		`idempotency_route_requests_total{outcome="stored",route="POST /payments"} 1`,
	}, series)
}
