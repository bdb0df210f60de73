package integration

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"
	"github.com/stretchr/testify/require"
)

// documentedAlerts returns the alerts of docs/OBSERVING.md, read as Prometheus reads them.
func documentedAlerts(t *testing.T) []rulefmt.Rule {
	t.Helper()
	page, err := os.ReadFile(filepath.Join(root, "docs", "OBSERVING.md"))
	require.NoError(t, err)
	var alerts []rulefmt.Rule
	for _, block := range fence.FindAllStringSubmatch(string(page), -1) {
		if block[1] != "yaml" {
			continue
		}
		rules, errs := rulefmt.Parse([]byte(block[2]), false, model.UTF8Validation, parser.NewParser(parser.Options{}), slog.New(slog.DiscardHandler))
		require.Empty(t, errs)
		for _, group := range rules.Groups {
			alerts = append(alerts, group.Rules...)
		}
	}
	require.Len(t, alerts, 5)
	return alerts
}

// monitor plays a Prometheus that scrapes the instances of a service, and evaluates
// queries with Prometheus' own engine. Its time goes on from scrape to scrape.
type monitor struct {
	*testing.T
	now       time.Time
	instances []*httptest.Server
	series    map[uint64]*promql.Series
}

const scrapeInterval = 30 * time.Second

func newMonitor(t *testing.T, instances ...*prometheus.Registry) *monitor {
	m := &monitor{T: t, now: time.Unix(1_800_000_000, 0), series: map[uint64]*promql.Series{}}
	for _, reg := range instances {
		s := httptest.NewServer(promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
		t.Cleanup(s.Close)
		m.instances = append(m.instances, s)
	}
	return m
}

// scrapeFor scrapes every instance at intervals, for some time.
func (m *monitor) scrapeFor(d time.Duration) {
	m.Helper()
	for end := m.now.Add(d); m.now.Before(end); {
		m.now = m.now.Add(scrapeInterval)
		for i, s := range m.instances {
			m.scrape(s, fmt.Sprint(i))
		}
	}
}

func (m *monitor) scrape(s *httptest.Server, instance string) {
	m.Helper()
	resp, err := s.Client().Get(s.URL)
	require.NoError(m, err)
	defer resp.Body.Close()
	require.Equal(m, http.StatusOK, resp.StatusCode)
	text := expfmt.NewTextParser(model.UTF8Validation)
	families, err := text.TextToMetricFamilies(resp.Body)
	require.NoError(m, err)
	for _, family := range families {
		samples, err := expfmt.ExtractSamples(&expfmt.DecodeOptions{Timestamp: model.Now()}, family)
		require.NoError(m, err)
		for _, sample := range samples {
			b := labels.NewBuilder(labels.FromStrings("job", "payments", "instance", instance))
			for name, value := range sample.Metric {
				b.Set(string(name), string(value))
			}
			metric := b.Labels()
			if m.series[metric.Hash()] == nil {
				m.series[metric.Hash()] = &promql.Series{Metric: metric}
			}
			of := m.series[metric.Hash()]
			of.Floats = append(of.Floats, promql.FPoint{T: m.now.UnixMilli(), F: float64(sample.Value)})
		}
	}
}

// Querier gives the engine what was scraped.
func (m *monitor) Querier(int64, int64) (storage.Querier, error) {
	return &storage.MockQuerier{SelectMockFunction: func(_ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
		var found seriesSet
		for _, series := range m.series {
			if !slices.ContainsFunc(matchers, func(by *labels.Matcher) bool { return !by.Matches(series.Metric.Get(by.Name)) }) {
				found.all = append(found.all, promql.NewStorageSeries(*series))
			}
		}
		return &found
	}}, nil
}

type seriesSet struct {
	all  []storage.Series
	next int
}

func (s *seriesSet) Next() bool                        { s.next++; return s.next <= len(s.all) }
func (s *seriesSet) At() storage.Series                { return s.all[s.next-1] }
func (s *seriesSet) Err() error                        { return nil }
func (s *seriesSet) Warnings() annotations.Annotations { return nil }

// firing returns the alerts that fire now, with their labels.
func (m *monitor) firing(alerts []rulefmt.Rule) (all []string) {
	m.Helper()
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 1e6, Timeout: patience, Parser: parser.NewParser(parser.Options{})})
	defer engine.Close()
	for _, alert := range alerts {
		query, err := engine.NewInstantQuery(m.Context(), m, nil, alert.Expr, m.now)
		require.NoError(m, err, alert.Alert)
		result := query.Exec(m.Context())
		require.NoError(m, result.Err, alert.Alert)
		require.Empty(m, result.Warnings, alert.Alert)
		vector, err := result.Vector()
		require.NoError(m, err, alert.Alert)
		for _, sample := range vector {
			all = append(all, strings.TrimSuffix(alert.Alert+sample.Metric.String(), "{}"))
		}
		query.Close()
	}
	return all
}

// service is an instance that serves under the options of a recipe.
type service struct {
	*testing.T
	opts []idempotency.Option
}

// send sends a request to a handler with the middleware around it, and expects a status.
func (s *service) send(h http.Handler, key, path string, status int) {
	s.Helper()
	require.Equal(s, status, sendKeyed(h, key, path).Code, "%s %s", key, path)
}

// paying returns a handler with the middleware around it.
func (s *service) paying(backend idempotency.Backend, opts ...idempotency.Option) http.Handler {
	return idempotency.New(backend, append(slices.Clip(s.opts), opts...)...)(&wirePayments{})
}

// ordinary sends what happens every day: requests and retries, what clients do wrong,
// what the service does not want to be stored, and a recovery that comes to its answer.
func (s *service) ordinary() {
	s.Helper()
	h := s.paying(idempotency.NewMemory())
	for i := range 100 {
		s.send(h, fmt.Sprint(i), "/", http.StatusCreated)
		s.send(h, fmt.Sprint(i), "/", http.StatusCreated)
	}
	s.send(h, "0", "/other", http.StatusUnprocessableEntity)
	s.send(h, `"no end`, "/", http.StatusUnprocessableEntity)
	held := newHeldWirePayments(s.T)
	slow, done := idempotency.New(idempotency.NewMemory(), s.opts...)(held), make(chan struct{})
	go func() {
		defer close(done)
		sendKeyed(slow, "k", "/")
	}()
	await(s.T, held.running, "the request to be held")
	require.Equal(s, http.StatusConflict, sendKeyed(slow, "k", "/").Code)
	close(held.finish)
	await(s.T, done, "the answer")
	for _, u := range everyUnstored {
		if u.asked {
			sendKeyed(u.handler(s.opts...), "k", "/")
		}
	}
	recovered := recovering([]string{"{}"}, s.opts...)
	s.send(recovered, "k", "/", http.StatusOK) // It has panicked, and net/http would send nothing.
	s.send(recovered, "k", "/", http.StatusOK)
}

// TestAlerts evaluates the documented alerts over scrapes of the documented metrics. Each
// fires when its condition holds, and neither before, nor after, nor for another.
func TestAlerts(t *testing.T) {
	type happening struct {
		name    string
		happens func(s *service)
		fires   []string
	}
	failing := func(backend func(idempotency.Backend) idempotency.Backend, status int) func(*service) {
		return func(s *service) { s.send(s.paying(backend(idempotency.NewMemory())), "k", "/", status) }
	}
	lost := func(b idempotency.Backend) idempotency.Backend { return notCompleting{b, idempotency.ErrClaimLost} }
	all := []happening{
		{"nothing else", func(*service) {}, nil},
		{"a retry of an interrupted run", func(s *service) {
			u := unstored{header: "Content-Type: text/plain", opts: []idempotency.Option{idempotency.WithAtMostOnce(), idempotency.WithContentTypes("application/json")}}
			h := u.handler(s.opts...)
			sendKeyed(h, "k", "/")
			require.Equal(s, http.StatusConflict, sendKeyed(h, "k", "/").Code)
		}, []string{"IdempotencyKeyInterrupted", `IdempotencyResponseNotStored{reason="content_type"}`}},
		{"a recovery that panics", func(s *service) {
			h := recovering([]string{""}, s.opts...)
			s.send(h, "k", "/", http.StatusOK)
			s.send(h, "k", "/", http.StatusOK)
		}, []string{"IdempotencyRecoveryWithoutAnswer"}},
		{"a recovery that is not stored", func(s *service) {
			h := recovering([]string{"not JSON"}, s.opts...)
			s.send(h, "k", "/", http.StatusOK)
			s.send(h, "k", "/", http.StatusOK)
		}, []string{"IdempotencyRecoveryWithoutAnswer", `IdempotencyResponseNotStored{reason="content_type"}`}},
		{"a claim is lost", failing(lost, http.StatusCreated),
			[]string{"IdempotencyClaimLost", `IdempotencyResponseNotStored{reason="store_failed"}`}},
		{"a claim is lost in a transaction", failing(func(b idempotency.Backend) idempotency.Backend { return transactional{lost(b)} }, http.StatusConflict),
			[]string{"IdempotencyClaimLost"}},
		{"the store fails once", func(s *service) {
			s.send(s.paying(backendDown{}), "k", "/", http.StatusServiceUnavailable)
		}, nil},
		{"the store fails", func(s *service) {
			for range 5 {
				s.send(s.paying(backendDown{}), "k", "/", http.StatusServiceUnavailable)
			}
		}, []string{"IdempotencyStoreFailing"}},
		{"the store fails, and is not waited for", func(s *service) {
			for range 5 {
				s.send(s.paying(backendDown{}, idempotency.WithFailOpen()), "k", "/", http.StatusCreated)
			}
		}, []string{"IdempotencyStoreFailing"}},
	}
	for _, u := range everyUnstored {
		h := happening{string(u.reason), func(s *service) { sendKeyed(u.handler(s.opts...), "k", "/") }, nil}
		if !u.asked {
			h.fires = []string{fmt.Sprintf("IdempotencyResponseNotStored{reason=%q}", u.reason)}
		}
		all = append(all, h)
	}

	alerts := documentedAlerts(t)
	fired := map[string]bool{}
	for _, h := range all {
		for _, alert := range h.fires {
			name, _, _ := strings.Cut(alert, "{")
			fired[name] = true
		}
		t.Run(h.name, func(t *testing.T) {
			busy, idle := prometheus.NewRegistry(), prometheus.NewRegistry()
			s := &service{t, []idempotency.Option{idempotency.WithLogger(slog.New(slog.DiscardHandler)), withMetrics(busy)}}
			withMetrics(idle)
			m := newMonitor(t, busy, idle)
			m.scrapeFor(scrapeInterval)
			s.ordinary()
			m.scrapeFor(2 * time.Minute)
			require.Empty(t, m.firing(alerts), "what happens every day")
			h.happens(s)
			m.scrapeFor(scrapeInterval)
			require.ElementsMatch(t, h.fires, m.firing(alerts))
			m.scrapeFor(11 * time.Minute)
			require.Empty(t, m.firing(alerts), "it is over")
		})
	}
	for _, alert := range alerts {
		require.True(t, fired[alert.Alert], "%s is to be seen firing", alert.Alert)
	}
}
