package integration

import (
	"bufio"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

// layer is middleware for net/http, ours or another's.
type layer = func(http.Handler) http.Handler

// stack puts layers around a handler, the first one outermost.
func stack(h http.Handler, layers ...layer) http.Handler {
	for _, l := range slices.Backward(layers) {
		h = l(h)
	}
	return h
}

// The two orders that a layer and the middleware under test can have.
const (
	outside = "outside"
	inside  = "inside"
)

// orders are both, for tables.
var orders = []string{outside, inside}

// orderStack puts a layer outside or inside of the middleware.
func orderStack(order string, h http.Handler, once, l layer) http.Handler {
	if order == outside {
		return stack(h, l, once)
	}
	return stack(h, once, l)
}

// orderTest is one middleware under test: what it stores and what it tells.
type orderTest struct {
	*testing.T
	once   layer
	events chan idempotency.Event
	*orderBackend
}

// orderBackend is a Memory that keeps for the test what was stored.
type orderBackend struct {
	*idempotency.Memory
	mu      sync.Mutex
	records []idempotency.Response
}

func (b *orderBackend) Complete(ctx context.Context, key idempotency.Key, claim idempotency.Claim, response []byte, expiry time.Duration) error {
	var record idempotency.Response
	if err := record.UnmarshalBinary(response); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.records = append(b.records, record)
	return b.Memory.Complete(ctx, key, claim, response, expiry)
}

func newOrderTest(t *testing.T, opts ...idempotency.Option) *orderTest {
	o := &orderTest{
		T:            t,
		events:       make(chan idempotency.Event, 64),
		orderBackend: &orderBackend{Memory: idempotency.NewMemory()},
	}
	observe := func(_ context.Context, e idempotency.Event) { o.events <- e }
	o.once = idempotency.New(o.orderBackend, append([]idempotency.Option{
		idempotency.WithObserver(observe),
		idempotency.WithLogger(slog.New(slog.DiscardHandler)),
	}, opts...)...)
	return o
}

// event waits for the next event.
func (o *orderTest) event() idempotency.Event {
	o.Helper()
	return await(o.T, o.events, "an event")
}

// stored returns the only response that was stored.
func (o *orderTest) stored() idempotency.Response {
	o.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	require.Len(o, o.records, 1)
	return o.records[0]
}

// requireStored requires that one response was stored, with exactly these
// headers: names and values in turn.
func (o *orderTest) requireStored(status int, body string, header ...string) {
	o.Helper()
	r := o.stored()
	require.Equal(o, status, r.Status)
	require.Equal(o, body, string(r.Body))
	require.Equal(o, headerOf(header...), r.Header)
}

// requireNothingStored requires that no response was stored.
func (o *orderTest) requireNothingStored() {
	o.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	require.Empty(o, o.records)
}

// patience is how long a test waits for what must come.
const patience = 30 * time.Second

// hold is await for handlers: it keeps one from ending until the test lets it,
// or has failed.
func hold(until <-chan struct{}) {
	select {
	case <-until:
	case <-time.After(patience):
	}
}

// await waits for a value.
func await[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		require.FailNow(t, "no "+what)
		panic("unreachable")
	}
}

func headerOf(pairs ...string) http.Header {
	h := http.Header{}
	for pair := range slices.Chunk(pairs, 2) {
		h.Add(pair[0], pair[1])
	}
	return h
}

// paymentTill is a handler that counts its runs and answers with their number.
type paymentTill struct{ runs atomic.Int64 }

func (p *paymentTill) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_, _ = fmt.Fprintf(w, `{"payment":%d}`, p.runs.Add(1))
}

// orderServer is a handler behind a real server, with a real client that takes
// answers as they are sent. Each request has a connection of its own, so that
// the client never repeats one by itself.
type orderServer struct {
	*orderTest
	*httptest.Server
	client http.Client
}

func (o *orderTest) serve(h http.Handler) *orderServer {
	server := httptest.NewUnstartedServer(h)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.Start()
	o.Cleanup(server.Close)
	return &orderServer{o, server, http.Client{
		Transport: &http.Transport{DisableCompression: true, DisableKeepAlives: true},
		Timeout:   patience,
	}}
}

// orderAnswer is what a client gets.
type orderAnswer struct {
	status   int
	header   http.Header
	body     string // decompressed, if need be
	replayed bool
}

// open sends a request and returns the answer with its body unread. header has
// names and values in turn.
func (s *orderServer) open(method, path, key, body string, header ...string) (*http.Response, error) {
	r, err := http.NewRequestWithContext(s.Context(), method, s.URL+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header = headerOf(header...)
	if key != "" {
		r.Header.Set("Idempotency-Key", key)
	}
	return s.client.Do(r)
}

// try sends a request and returns the whole answer.
func (s *orderServer) try(method, path, key, body string, header ...string) (orderAnswer, error) {
	resp, err := s.open(method, path, key, body, header...)
	if err != nil {
		return orderAnswer{}, err
	}
	defer resp.Body.Close()
	plain, err := plainBody(resp)
	if err != nil {
		return orderAnswer{}, err
	}
	got, err := io.ReadAll(plain)
	return orderAnswer{resp.StatusCode, resp.Header, string(got), resp.Header.Get("Idempotent-Replayed") == "true"}, err
}

// plainBody returns what to read an answer's body from.
func plainBody(resp *http.Response) (io.Reader, error) {
	body := bufio.NewReader(resp.Body)
	if resp.Header.Get("Content-Encoding") != "gzip" {
		return body, nil
	}
	if _, err := body.Peek(1); err == io.EOF {
		return body, nil
	}
	return gzip.NewReader(body)
}

// send is try for a request that must be answered.
func (s *orderServer) send(method, path, key, body string, header ...string) orderAnswer {
	s.Helper()
	answer, err := s.try(method, path, key, body, header...)
	require.NoError(s, err)
	return answer
}

// start sends a payment and does not wait for its answer.
func (s *orderServer) start(path, key string, header ...string) <-chan orderAnswer {
	answers := make(chan orderAnswer, 1)
	go func() {
		answer, err := s.try(http.MethodPost, path, key, "amount=100", header...)
		if err != nil {
			answer.body = err.Error()
		}
		answers <- answer
	}()
	return answers
}

// post sends the request of a payment.
func (s *orderServer) post(path, key string, header ...string) orderAnswer {
	s.Helper()
	return s.send(http.MethodPost, path, key, "amount=100", header...)
}

// twice sends a payment and, once the middleware has done with it, its retry. It
// requires the two outcomes.
func (s *orderServer) twice(path string, one, two idempotency.Outcome, header ...string) (first, retry orderAnswer) {
	s.Helper()
	first = s.post(path, "k", header...)
	require.Equal(s, one, s.event().Outcome)
	retry = s.post(path, "k", header...)
	require.Equal(s, two, s.event().Outcome)
	return first, retry
}

// requireRunsOnce requires of a router, made around once, that its handler of
// /v1/accounts/7 runs once for a key, and is stored with a Content-Type.
func requireRunsOnce(t *testing.T, build func(once layer, runs *atomic.Int64) http.Handler, contentType string) {
	t.Helper()
	var runs atomic.Int64
	o := newOrderTest(t)
	s := o.serve(build(o.once, &runs))
	first, retry := s.twice("/v1/accounts/7", idempotency.Stored, idempotency.Replayed)
	require.Equal(t, http.StatusCreated, first.status)
	require.JSONEq(t, `{"run":1,"account":"7","body":"amount=100"}`, first.body)
	require.True(t, retry.replayed)
	require.Equal(t, http.StatusCreated, retry.status)
	require.Equal(t, first.body, retry.body)
	o.requireStored(http.StatusCreated, first.body, "Content-Type", contentType)

	reused := s.post("/v1/accounts/8", "k")
	require.Equal(t, http.StatusUnprocessableEntity, reused.status)
	require.Equal(t, idempotency.Reused, o.event().Outcome)
	require.EqualValues(t, 1, runs.Load())
	require.JSONEq(t, `{"run":2,"account":"7","body":"amount=100"}`, s.post("/v1/accounts/7", "").body, "without a key it stands aside")
	require.Empty(t, o.events)
}

// lines is where a logger writes to: a line for each write.
type lines chan string

func newLines() lines { return make(lines, 64) }

// next waits for a line.
func (l lines) next(t *testing.T) string {
	t.Helper()
	return await(t, l, "line")
}

func (l lines) Write(p []byte) (int, error) {
	l <- string(p)
	return len(p), nil
}

// panicOf returns a handler that counts its runs and panics.
func panicOf(runs *atomic.Int64, value any) http.Handler {
	return http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		runs.Add(1)
		panic(value)
	})
}
