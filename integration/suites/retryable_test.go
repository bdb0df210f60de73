package suites

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-retryablehttp"
	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

// newOperation returns a request for one operation. Its key is made here, once:
// go-retryablehttp and net/http send the request's header again with each try.
func newOperation(ctx context.Context, url, body string) (*retryablehttp.Request, error) {
	req, err := retryablehttp.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
	if err == nil {
		req.Header.Set("Idempotency-Key", rand.Text())
	}
	return req, err
}

// retryAsTold is a CheckRetry: the default policy gives up at a 409 also if the first
// request still runs, and sends again what can get no other answer.
func retryAsTold(ctx context.Context, resp *http.Response, err error) (bool, error) {
	if err == nil && ctx.Err() == nil && resp.Header.Get("X-Should-Retry") != "" {
		return resp.Header.Get("X-Should-Retry") == "true", nil
	}
	return retryablehttp.DefaultRetryPolicy(ctx, resp, err)
}

// waitAsTold is a Backoff: the default one heeds Retry-After for 429 and 503
// only.
func waitAsTold(least, most time.Duration, attempt int, resp *http.Response) time.Duration {
	if resp != nil && resp.StatusCode == http.StatusConflict {
		if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil {
			return max(least, min(most, time.Duration(seconds)*time.Second))
		}
	}
	return retryablehttp.DefaultBackoff(least, most, attempt, resp)
}

// clientServer serves a handler, with what breaks around it, and keeps what came
// to it.
type clientServer struct {
	*httptest.Server
	mu   sync.Mutex
	keys []string
}

// tries returns the keys of the requests that came, in their order.
func (s *clientServer) tries() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.keys)
}

func newClientServer(t *testing.T, h http.Handler) *clientServer {
	s := &clientServer{}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.keys = append(s.keys, r.Header.Get("Idempotency-Key")+r.Header.Get("X-Idempotency-Key")+r.Header.Get("Payment-Key"))
		s.mu.Unlock()
		h.ServeHTTP(w, r)
	}))
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	s.Start()
	t.Cleanup(s.Close)
	return s
}

// newRetrying returns a go-retryablehttp client as it comes, but silent, and with
// pauses that are told to the test and not waited for.
func newRetrying(t *testing.T) (client *retryablehttp.Client, pauses *[]time.Duration) {
	client, pauses = retryablehttp.NewClient(), new([]time.Duration)
	client.Logger = nil
	client.Backoff = noPauses(retryablehttp.DefaultBackoff, pauses)
	t.Cleanup(client.HTTPClient.CloseIdleConnections)
	return client, pauses
}

func noPauses(backoff retryablehttp.Backoff, pauses *[]time.Duration) retryablehttp.Backoff {
	return func(least, most time.Duration, attempt int, resp *http.Response) time.Duration {
		*pauses = append(*pauses, backoff(least, most, attempt, resp))
		return 0
	}
}

// requirePayment checks that a request was answered with the first payment.
func requirePayment(t *testing.T, resp *http.Response, err error, replayed bool) {
	t.Helper()
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusCreated, resp.StatusCode)
	require.Equal(t, `{"payment":1}`, string(body))
	require.Equal(t, replayed, resp.Header.Get("Idempotent-Replayed") == "true")
}

// requireOneKey checks that there were n tries, each with the same key.
func requireOneKey(t *testing.T, s *clientServer, n int) {
	t.Helper()
	keys := s.tries()
	require.Len(t, keys, n)
	require.NotEmpty(t, keys[0])
	require.Len(t, slices.Compact(keys), 1, "each try is to have the same key")
}

// answerLost lets a handler run for the requests that lost says, and breaks
// their connections in place of the answer.
func answerLost(h http.Handler, lost func(r *http.Request) bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !lost(r) {
			h.ServeHTTP(w, r)
			return
		}
		h.ServeHTTP(httptest.NewRecorder(), r)
		conn, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			conn.Close()
		}
	})
}

// firstOnly returns a function that is true once.
func firstOnly() func(*http.Request) bool {
	var calls atomic.Int32
	return func(*http.Request) bool { return calls.Add(1) == 1 }
}

func TestRetryAfterAnswerWasLost(t *testing.T) {
	payments := &till{}
	s := newClientServer(t, answerLost(idempotency.New(idempotency.NewMemory())(payments), firstOnly()))
	client, _ := newRetrying(t)
	op, err := newOperation(patientContext(t), s.URL, "amount=100")
	require.NoError(t, err)
	resp, err := client.Do(op)
	requirePayment(t, resp, err, true)
	requireOneKey(t, s, 2)
	require.EqualValues(t, 1, payments.runs.Load())
}

func TestRetryAfterHandlerAborted(t *testing.T) {
	payments, aborted := &till{}, firstOnly()
	var runs atomic.Int32
	s := newClientServer(t, idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		runs.Add(1)
		if aborted(r) {
			panic(http.ErrAbortHandler)
		}
		payments.ServeHTTP(w, r)
	})))
	client, _ := newRetrying(t)
	op, err := newOperation(patientContext(t), s.URL, "amount=100")
	require.NoError(t, err)
	resp, err := client.Do(op)
	requirePayment(t, resp, err, false)
	requireOneKey(t, s, 2)
	require.EqualValues(t, 2, runs.Load(), "what was aborted has no answer to replay")
}

// failingClaims is a backend whose first claims fail.
type failingClaims struct {
	idempotency.Backend
	left atomic.Int32
}

func (b *failingClaims) Claim(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
	if b.left.Add(-1) >= 0 {
		return idempotency.Record{}, false, errors.New("connection refused")
	}
	return b.Backend.Claim(ctx, key, claim, terms)
}

func TestRetryAfterBackendFailed(t *testing.T) {
	payments, backend := &till{}, &failingClaims{Backend: idempotency.NewMemory()}
	backend.left.Store(2)
	s := newClientServer(t, idempotency.New(backend, quiet)(payments))
	client, pauses := newRetrying(t)
	op, err := newOperation(patientContext(t), s.URL, "amount=100")
	require.NoError(t, err)
	resp, err := client.Do(op)
	requirePayment(t, resp, err, false)
	requireOneKey(t, s, 3)
	require.Equal(t, []time.Duration{time.Second, time.Second}, *pauses, "the 503's Retry-After is heeded")
	require.EqualValues(t, 1, payments.runs.Load())
}

// heldOperation sends an operation whose handler is held half-way. done is what
// became of it.
func heldOperation(t *testing.T, url string, payments *till) (op *retryablehttp.Request, done chan error) {
	t.Helper()
	op, err := newOperation(patientContext(t), url, "amount=100")
	require.NoError(t, err)
	done = make(chan error, 1)
	first := op.Clone(op.Context())
	first.Body, err = op.GetBody()
	require.NoError(t, err)
	go func() {
		resp, err := http.DefaultClient.Do(first)
		if err == nil {
			err = resp.Body.Close()
		}
		done <- err
	}()
	await(t, payments.running, "the first request's handler")
	return op, done
}

func TestDefaultPolicyGivesUpAtOutstanding(t *testing.T) {
	payments := newHeldTill(t)
	s := newClientServer(t, idempotency.New(idempotency.NewMemory())(payments))
	op, done := heldOperation(t, s.URL, payments)
	client, pauses := newRetrying(t)
	resp, err := client.Do(op)
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Equal(t, http.StatusConflict, resp.StatusCode)
	require.Empty(t, *pauses)
	require.Equal(t, 400*time.Millisecond, retryablehttp.DefaultBackoff(100*time.Millisecond, time.Minute, 2, resp),
		"the default backoff does not heed a 409's Retry-After")
	close(payments.finish)
	require.NoError(t, await(t, done, "the first request"))
	requireOneKey(t, s, 2)
}

func TestRetryOfOutstanding(t *testing.T) {
	payments := newHeldTill(t)
	s := newClientServer(t, idempotency.New(idempotency.NewMemory())(payments))
	op, done := heldOperation(t, s.URL, payments)
	client, _ := newRetrying(t)
	client.CheckRetry = retryAsTold
	var pauses []time.Duration
	asTold := noPauses(waitAsTold, &pauses)
	client.Backoff = func(least, most time.Duration, attempt int, resp *http.Response) time.Duration {
		if attempt == 1 { // The first request goes on after the second 409.
			close(payments.finish)
			require.NoError(t, await(t, done, "the first request"))
		}
		return asTold(least, most, attempt, resp)
	}
	resp, err := client.Do(op)
	requirePayment(t, resp, err, true)
	require.Equal(t, []time.Duration{time.Second, time.Second}, pauses)
	requireOneKey(t, s, 4)
	require.EqualValues(t, 1, payments.runs.Load())
}

func TestRetryLeavesOtherConflictsAlone(t *testing.T) {
	s := newClientServer(t, idempotency.New(idempotency.NewMemory(), idempotency.WithAtMostOnce())(
		http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })))
	client, pauses := newRetrying(t)
	client.CheckRetry = retryAsTold
	op, err := newOperation(patientContext(t), s.URL, "amount=100")
	require.NoError(t, err)
	resp, err := client.Do(op)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusConflict, resp.StatusCode)
	require.Contains(t, string(body), "#interrupted")
	require.Len(t, *pauses, 1, "the abort is retried, the 409 without Retry-After is not")
	requireOneKey(t, s, 2)
}

// toldClaims is a backend that tells of each claim once it was tried.
type toldClaims struct {
	idempotency.Backend
	tried chan bool
}

func (b *toldClaims) Claim(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
	held, claimed, err := b.Backend.Claim(ctx, key, claim, terms)
	b.tried <- claimed
	return held, claimed, err
}

// TestServerWaitsForOutstanding needs nothing of the client: with WithWait the
// server answers the duplicate when it can.
func TestServerWaitsForOutstanding(t *testing.T) {
	payments := newHeldTill(t)
	backend := &toldClaims{idempotency.NewMemory(), make(chan bool, 10_000)}
	s := newClientServer(t, idempotency.New(backend, idempotency.WithWait(time.Minute))(payments))
	op, done := heldOperation(t, s.URL, payments)
	require.True(t, await(t, backend.tried, "the first claim"))
	go func() {
		<-backend.tried // The duplicate has found the key taken.
		close(payments.finish)
	}()
	client, pauses := newRetrying(t)
	resp, err := client.Do(op)
	requirePayment(t, resp, err, true)
	require.Empty(t, *pauses)
	require.NoError(t, await(t, done, "the first request"))
	requireOneKey(t, s, 2)
	require.EqualValues(t, 1, payments.runs.Load())
}

// newWarmClient returns a client with a connection that it has used: one that was
// never used before would not be tried again.
func newWarmClient(t *testing.T, url string) *http.Client {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(client.CloseIdleConnections)
	warm, err := client.Get(url)
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, warm.Body)
	require.NoError(t, err)
	require.NoError(t, warm.Body.Close())
	return client
}

// TestTransportSendsAgain has net/http send a request again by itself: over a
// connection that it has used before and that breaks before an answer, a request
// that it takes for repeatable (see http.Transport). A POST is that by its
// Idempotency-Key or X-Idempotency-Key, if its body can be had again.
func TestTransportSendsAgain(t *testing.T) {
	for _, c := range []struct {
		name, header string
		oneBody      bool
		tries        int
	}{
		{name: "Idempotency-Key", header: "Idempotency-Key", tries: 2},
		{name: "X-Idempotency-Key", header: "X-Idempotency-Key", tries: 2},
		{name: "another header", header: "Payment-Key", tries: 1},
		{name: "a body without GetBody", header: "Idempotency-Key", oneBody: true, tries: 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			payments, first := &till{}, firstOnly()
			h := idempotency.New(idempotency.NewMemory(), idempotency.WithHeader(c.header))(payments)
			mux := http.NewServeMux()
			mux.Handle("POST /", answerLost(h, first))
			mux.HandleFunc("GET /", func(http.ResponseWriter, *http.Request) {})
			s := newClientServer(t, mux)
			client := newWarmClient(t, s.URL)

			req, err := http.NewRequestWithContext(patientContext(t), http.MethodPost, s.URL, strings.NewReader("amount=100"))
			require.NoError(t, err)
			req.Header.Set(c.header, rand.Text())
			if c.oneBody {
				req.GetBody = nil
			}
			resp, err := client.Do(req)
			if c.tries == 2 {
				requirePayment(t, resp, err, true)
			} else {
				require.Error(t, err)
			}
			require.Len(t, s.tries(), 1+c.tries)
			require.EqualValues(t, 1, payments.runs.Load())
			// A client that gets no second try from net/http makes it.
			again, err := http.NewRequestWithContext(patientContext(t), http.MethodPost, s.URL, strings.NewReader("amount=100"))
			require.NoError(t, err)
			again.Header = req.Header
			resp, err = client.Do(again)
			requirePayment(t, resp, err, true)
			require.EqualValues(t, 1, payments.runs.Load())
		})
	}
}

// TestTransportSendsAgainAtOnce has the connection break while the handler runs:
// net/http does not wait before it sends again, so that its caller gets the 409
// of a request that it sent once. WithWait spares it that.
func TestTransportSendsAgainAtOnce(t *testing.T) {
	for _, wait := range []time.Duration{0, time.Minute} {
		t.Run(wait.String(), func(t *testing.T) {
			payments, first := newHeldTill(t), firstOnly()
			backend := &toldClaims{idempotency.NewMemory(), make(chan bool, 1000)}
			h := idempotency.New(backend, idempotency.WithWait(wait))(payments)
			over := make(chan struct{})
			mux := http.NewServeMux()
			mux.HandleFunc("GET /", func(http.ResponseWriter, *http.Request) {})
			mux.HandleFunc("POST /", func(w http.ResponseWriter, r *http.Request) {
				if !first(r) {
					h.ServeHTTP(w, r)
					return
				}
				defer close(over)
				body, _ := io.ReadAll(r.Body)
				r.Body = io.NopCloser(bytes.NewReader(body))
				conn, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				go func() {
					<-payments.running
					conn.Close()
				}()
				h.ServeHTTP(httptest.NewRecorder(), r)
			})
			s := newClientServer(t, mux)
			client := newWarmClient(t, s.URL)
			go func() {
				<-backend.tried
				<-backend.tried // The second request has found the key taken.
				if wait > 0 {
					close(payments.finish)
				}
			}()
			req, err := http.NewRequestWithContext(patientContext(t), http.MethodPost, s.URL, strings.NewReader("amount=100"))
			require.NoError(t, err)
			req.Header.Set("Idempotency-Key", rand.Text())
			resp, err := client.Do(req)
			if wait > 0 {
				requirePayment(t, resp, err, true)
			} else {
				require.NoError(t, err)
				require.NoError(t, resp.Body.Close())
				require.Equal(t, http.StatusConflict, resp.StatusCode)
				close(payments.finish)
			}
			await(t, over, "the first request to be over")
			require.EqualValues(t, 1, payments.runs.Load())
			require.Len(t, s.tries(), 3)
		})
	}
}
