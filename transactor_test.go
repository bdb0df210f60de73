package idempotency_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
)

// ledger is a Transactor: what handlers write into it takes effect with Complete.
type ledger struct {
	*counted
	mu      sync.Mutex
	written []string
}

// newLedger returns a ledger whose verbs ask fail first; see newCounted.
func newLedger(fail func(verb string, before int) error) *ledger {
	return &ledger{counted: newCounted(fail)}
}

// draft is a transaction of a ledger.
type draft struct {
	claim idempotency.Claim
	lines []string
}

type draftKey struct{}

func (l *ledger) Begin(ctx context.Context, _ string, claim idempotency.Claim) context.Context {
	return context.WithValue(ctx, draftKey{}, &draft{claim: claim})
}

// write writes a line in the transaction of a handler.
func write(r *http.Request, line string) {
	d := r.Context().Value(draftKey{}).(*draft)
	d.lines = append(d.lines, line)
}

// draftOf returns the transaction of a claim.
func draftOf(ctx context.Context, claim idempotency.Claim) *draft {
	d := ctx.Value(draftKey{}).(*draft)
	if d.claim != claim {
		panic("the transaction of another claim")
	}
	return d
}

func (l *ledger) Complete(ctx context.Context, key string, claim idempotency.Claim, resp *idempotency.Response, expiry time.Duration) error {
	err := l.counted.Complete(ctx, key, claim, resp, expiry)
	if d := draftOf(ctx, claim); err == nil && resp.Status != 0 {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.written = append(l.written, d.lines...)
		d.lines = nil
	}
	return err
}

func (l *ledger) Release(ctx context.Context, key string, claim idempotency.Claim) error {
	draftOf(ctx, claim).lines = nil
	return l.counted.Release(ctx, key, claim)
}

// attempt is a handler that writes the number of its run and then answers.
type attempt struct {
	runs   int
	answer http.HandlerFunc
}

func (a *attempt) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.runs++
	write(r, fmt.Sprintf("run %d", a.runs))
	a.answer(w, r)
}

// status answers with a status, a Content-Type ("" is none) and a body.
func status(code int, contentType, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if contentType != "" {
			w.Header().Set("Content-Type", contentType)
		}
		w.WriteHeader(code)
		fmt.Fprint(w, body)
	}
}

func TestTransactorCommitsWithTheResponse(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"JSON":         status(201, "application/json", `{"payment":1}`),
		"a refusal":    status(402, "application/json", `{"error":"declined"}`),
		"any type":     status(200, "text/html", "<p>paid"),
		"plain text":   func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "declined", 400) },
		"invalid JSON": status(200, "application/json", "paid"),
		"no body":      status(204, "", ""),
		"a redirect":   func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/payments/1", http.StatusSeeOther) },
		"nothing":      func(http.ResponseWriter, *http.Request) {},
	} {
		t.Run(name, func(t *testing.T) {
			l, a, es := newLedger(never), &attempt{answer: answer}, &events{}
			h := idempotency.New(l, quiet, es.option())(a)
			first, retry := send(h, request("k", "b")), send(h, request("k", "b"))
			require.Equal(t, []string{"run 1"}, l.written)
			require.Equal(t, 1, a.runs)
			require.Equal(t, first.Code, retry.Code)
			require.Equal(t, first.Body, retry.Body)
			require.Equal(t, "true", retry.Header().Get("Idempotent-Replayed"))
			require.Zero(t, l.releases.Load())
			require.Equal(t, idempotency.Stored, es.all[0].Outcome)
		})
	}
}

// What is not stored is undone, and a retry is processed afresh.
func TestTransactorUndoes(t *testing.T) {
	long := strings.Repeat("x", 2000)
	onlyJSON := idempotency.WithContentTypes("application/json")
	for name, test := range map[string]struct {
		answer http.HandlerFunc
		opts   []idempotency.Option
		sent   int // the status; 500 with unsent is the middleware's own
		unsent bool
	}{
		"500":              {answer: status(500, "application/json", `{}`), sent: 500},
		"503, streamed":    {answer: status(503, "text/plain", long), sent: 503},
		"NoStore":          {answer: noStoreThen(status(200, "application/json", `{}`)), sent: 200},
		"NoStore, long":    {answer: noStoreThen(status(200, "application/json", long)), sent: 200},
		"NoStore at last":  {answer: thenNoStore(status(200, "application/json", `{}`)), sent: 200},
		"a long refusal":   {answer: status(409, "text/plain", long), sent: 409},
		"too long":         {answer: status(200, "text/plain", long), sent: 500, unsent: true},
		"too long, in two": {answer: func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "x"); fmt.Fprint(w, long) }, sent: 500, unsent: true},
		"too late NoStore": {answer: thenNoStore(status(200, "text/plain", long)), sent: 500, unsent: true},
		"encoded": {answer: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			fmt.Fprint(w, "x")
		}, sent: 500, unsent: true},
		"cut": {answer: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "9")
			fmt.Fprint(w, "x")
		}, sent: 500, unsent: true},
		"trailers": {answer: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", "X-Sum")
			fmt.Fprint(w, "x")
		}, sent: 500, unsent: true},
		"late trailers": {answer: func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, "x")
			w.Header().Set(http.TrailerPrefix+"X-Sum", "1")
		}, sent: 500, unsent: true},
		"101":                    {answer: status(101, "", ""), sent: 500, unsent: true},
		"an unlisted type":       {answer: status(200, "text/html", "<p>"), opts: []idempotency.Option{onlyJSON}, sent: 500, unsent: true},
		"invalid JSON":           {answer: status(200, "application/json", "{"), opts: []idempotency.Option{onlyJSON}, sent: 500, unsent: true},
		"no body":                {answer: status(204, "", ""), opts: []idempotency.Option{onlyJSON}, sent: 500, unsent: true},
		"an unlisted refusal":    {answer: status(404, "text/plain", "no"), opts: []idempotency.Option{onlyJSON}, sent: 404},
		"WithStoreIf":            {answer: status(201, "application/json", `{}`), opts: []idempotency.Option{idempotency.WithStoreIf(below(200))}, sent: 500, unsent: true},
		"WithStoreIf, a refusal": {answer: status(404, "application/json", `{}`), opts: []idempotency.Option{idempotency.WithStoreIf(below(400))}, sent: 404},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			l, es := newLedger(never), &events{}
			a := &attempt{answer: func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("X-Payment", "1")
				test.answer(w, r)
			}}
			h := idempotency.New(l, append(test.opts, es.option(), idempotency.WithBufferLimit(1000),
				idempotency.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))...)(a)
			for run := range 2 {
				w := send(h, request("k", "b"))
				require.Equal(t, test.sent, w.Code, w.Body)
				require.Equal(t, run+1, a.runs)
				event, _ := es.last(t)
				require.Equal(t, idempotency.NotStored, event.Outcome)
				require.Equal(t, test.sent, event.Status)
				if test.unsent {
					require.Equal(t, "application/problem+json", w.Header().Get("Content-Type"))
					require.Empty(t, w.Header().Get("X-Payment"), "no header of the handler's is left")
					require.NotContains(t, w.Body.String(), "x")
					require.ErrorContains(t, event.Err, "cannot be stored")
					require.Contains(t, log.String(), "cannot be stored")
				} else {
					require.Equal(t, "1", w.Header().Get("X-Payment"))
					require.NoError(t, event.Err)
					require.Empty(t, log.String())
				}
			}
			require.Empty(t, l.written)
			require.EqualValues(t, 2, l.releases.Load())
			require.Zero(t, l.completes.Load())
		})
	}
}

func noStoreThen(answer http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		idempotency.NoStore(r.Context())
		answer(w, r)
	}
}

func thenNoStore(answer http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		answer(w, r)
		idempotency.NoStore(r.Context())
	}
}

func below(limit int) func(int, http.Header) bool {
	return func(status int, _ http.Header) bool { return status < limit }
}

func TestTransactorUndoesAPanic(t *testing.T) {
	l, es := newLedger(never), &events{}
	var written http.ResponseWriter
	a := &attempt{answer: func(w http.ResponseWriter, r *http.Request) {
		written = w
		fmt.Fprint(w, strings.Repeat("x", 2000)) // It is withheld.
		panic("boom")
	}}
	w := httptest.NewRecorder()
	h := idempotency.New(l, es.option(), idempotency.WithBufferLimit(1000))(a)
	require.PanicsWithValue(t, "boom", func() { h.ServeHTTP(w, request("k", "b")) })
	event, _ := es.last(t)
	require.Equal(t, idempotency.Panicked, event.Outcome)
	require.Zero(t, event.Status)
	require.Empty(t, l.written)
	require.EqualValues(t, 1, l.releases.Load())

	http.Error(written, "it broke", http.StatusInternalServerError) // By a recoverer outside.
	require.Equal(t, http.StatusInternalServerError, w.Code)
	require.Equal(t, "it broke\n", w.Body.String())
}

// A handler whose response cannot be sent learns of it, and cannot get around it.
func TestTransactorWithholds(t *testing.T) {
	l := newLedger(never)
	a := &attempt{answer: func(w http.ResponseWriter, r *http.Request) {
		controller := http.NewResponseController(w)
		_, _, err := controller.Hijack()
		require.ErrorIs(t, err, http.ErrNotSupported)
		w.Header().Set("Content-Encoding", "gzip")
		_, err = fmt.Fprint(w, "x")
		require.ErrorContains(t, err, "cannot be stored")
		w.WriteHeader(http.StatusOK)
		require.ErrorIs(t, controller.Flush(), http.ErrNotSupported)
		_, _, err = controller.Hijack()
		require.ErrorIs(t, err, http.ErrNotSupported)
	}}
	w := send(idempotency.New(l, quiet)(a), request("k", "b"))
	require.Equal(t, http.StatusInternalServerError, w.Code)
	require.False(t, w.Flushed)
	require.Empty(t, w.Header().Get("Content-Encoding"))
	require.Empty(t, l.written)
}

// What Complete could not commit is not sent, and the key is free at once.
func TestTransactorDoesNotCommit(t *testing.T) {
	notCommitted := fmt.Errorf("the connection broke: %w", idempotency.ErrNotCommitted)
	for name, test := range map[string]struct {
		err      error
		status   int
		sentinel string
		tries    int32 // 0 is several
	}{
		"undone":       {notCommitted, 503, "ErrNotCommitted", 1},
		"lost":         {idempotency.ErrClaimLost, 409, "ErrClaimLost", 1},
		"full":         {idempotency.ErrFull, 503, "ErrNotCommitted", 1},
		"out of reach": {errDown, 503, "ErrNotCommitted", 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var l *ledger
				es := &events{}
				l = newLedger(func(verb string, _ int) error {
					if verb == "complete" && l.releases.Load() == 0 {
						return test.err
					}
					return nil
				})
				a := &attempt{answer: func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Set-Cookie", "paid=1")
					status(201, "application/json", `{"payment":1}`)(w, r)
				}}
				outside := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("X-Request-Id", "7")
					idempotency.New(l, quiet, es.option())(a).ServeHTTP(w, r)
				})
				w := send(outside, request("k", "b"))
				requireProblem(t, w, test.status, test.sentinel)
				require.Equal(t, "1", w.Header().Get("Retry-After"))
				require.Equal(t, "7", w.Header().Get("X-Request-Id"))
				require.Empty(t, w.Header().Get("Set-Cookie"))
				require.Empty(t, l.written)
				event, _ := es.last(t)
				require.Equal(t, idempotency.Failed, event.Outcome)
				require.Equal(t, test.status, event.Status)
				require.ErrorIs(t, event.Err, test.err)
				require.ErrorIs(t, event.Err, idempotency.ErrNotCommitted)
				if test.tries > 0 {
					require.Equal(t, test.tries, l.completes.Load())
				} else {
					require.Greater(t, l.completes.Load(), int32(3))
				}
				require.EqualValues(t, 1, l.releases.Load())

				retry := send(outside, request("k", "b"))
				require.Equal(t, http.StatusCreated, retry.Code)
				require.Equal(t, []string{"run 2"}, l.written)
			})
		})
	}
}

// A commit whose outcome was not known at first is sent once it is known.
func TestTransactorLooksUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLedger(func(verb string, before int) error {
			if verb == "complete" && before < 3 {
				return errDown
			}
			return nil
		})
		a := &attempt{answer: status(201, "application/json", `{}`)}
		h := idempotency.New(l, quiet)(a)
		require.Equal(t, 201, send(h, request("k", "b")).Code)
		require.Equal(t, []string{"run 1"}, l.written)
		require.EqualValues(t, 4, l.completes.Load())
		require.Zero(t, l.releases.Load())
	})
}

func TestTransactorAtMostOnce(t *testing.T) {
	l, a := newLedger(never), &attempt{answer: status(500, "text/plain", "no")}
	h := idempotency.New(l, quiet, idempotency.WithAtMostOnce())(a)
	require.Equal(t, 500, send(h, request("k", "b")).Code)
	requireProblem(t, send(h, request("k", "b")), http.StatusConflict, "ErrNotReplayable")
	require.Empty(t, l.written)
	require.Equal(t, 1, a.runs)
}

// Without a claim there is no transaction.
func TestTransactorUnprotected(t *testing.T) {
	h := idempotency.New(newLedger(always("claim")), quiet, idempotency.WithFailOpen())(http.HandlerFunc(
		func(w http.ResponseWriter, r *http.Request) {
			require.Nil(t, r.Context().Value(draftKey{}))
			status(200, "text/html", "<p>")(w, r)
		}))
	w := send(h, request("k", "b"))
	require.Equal(t, 200, w.Code)
	require.Equal(t, "<p>", w.Body.String())
}

// A refusal within the handler keeps its response from being stored. The client
// is not told of success for that: nobody called NoStore.
func TestTransactorRefusalWithin(t *testing.T) {
	inner := idempotency.New(idempotency.NewMemory(), quiet)(status(201, "application/json", `{}`))
	l := newLedger(never)
	a := &attempt{answer: func(w http.ResponseWriter, r *http.Request) {
		require.Equal(t, 422, send(inner, request("\x00", "item").WithContext(r.Context())).Code)
		status(http.StatusMultiStatus, "application/json", `[422]`)(w, r)
	}}
	require.Equal(t, 500, send(idempotency.New(l, quiet)(a), request("k", "b")).Code)
	require.Empty(t, l.written)
}
