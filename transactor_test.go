package idempotency_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
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

func (l *ledger) Begin(ctx context.Context, _ idempotency.Key, claim idempotency.Claim, _ time.Duration) context.Context {
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

func (l *ledger) Complete(ctx context.Context, key idempotency.Key, claim idempotency.Claim, response []byte, expiry time.Duration) error {
	err := l.counted.Complete(ctx, key, claim, response, expiry)
	if d := draftOf(ctx, claim); err == nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.written = append(l.written, d.lines...)
		d.lines = nil
	}
	return err
}

func (l *ledger) Release(ctx context.Context, key idempotency.Key, claim idempotency.Claim, trace time.Duration) error {
	draftOf(ctx, claim).lines = nil
	return l.counted.Release(ctx, key, claim, trace)
}

// attempt is a handler that writes the number of its run and then answers.
type attempt struct {
	runs   int
	answer http.Handler
}

func (a *attempt) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.runs++
	write(r, fmt.Sprintf("run %d", a.runs))
	a.answer.ServeHTTP(w, r)
}

// answers is a script that answers with a status, a Content-Type ("" is none) and
// a body.
func answers(status int, contentType, body string) script {
	if contentType == "" {
		return script{code(status), says(body)}
	}
	return script{asType(contentType), code(status), says(body)}
}

func TestTransactorCommitsWithTheResponse(t *testing.T) {
	for name, answer := range map[string]script{
		"JSON":         answers(201, "application/json", `{"payment":1}`),
		"a refusal":    answers(402, "application/json", `{"error":"declined"}`),
		"any type":     answers(200, "text/html", "<p>paid"),
		"plain text":   answers(400, "text/plain; charset=utf-8", "declined"),
		"invalid JSON": answers(200, "application/json", "paid"),
		"no body":      answers(204, "", ""),
		"a redirect":   {redirects("/payments/1", http.StatusSeeOther)},
		"nothing":      {},
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
	onlyJSON := types("application/json")
	storeIf := func(limit int) []idempotency.Option { return with(idempotency.WithStoreIf(below(limit))) }
	for name, test := range map[string]struct {
		answer script
		opts   []idempotency.Option
		reason idempotency.Reason
		sent   int // the status; 500 with unsent is the middleware's own
		unsent bool
	}{
		"500":                    {answers(500, "application/json", `{}`), nil, idempotency.ReasonServerError, 500, false},
		"503, streamed":          {answers(503, "text/plain", long), nil, idempotency.ReasonServerError, 503, false},
		"500, before NoStore":    {script{code(500), says("{}"), noStore}, nil, idempotency.ReasonServerError, 500, false},
		"NoStore":                {script{noStore, code(200), says("{}")}, nil, idempotency.ReasonNoStore, 200, false},
		"NoStore, long":          {script{noStore, code(200), says(long)}, nil, idempotency.ReasonNoStore, 200, false},
		"NoStore at last":        {script{code(200), says("{}"), noStore}, nil, idempotency.ReasonNoStore, 200, false},
		"a long refusal":         {answers(409, "text/plain", long), nil, idempotency.ReasonTooLarge, 409, false},
		"too long":               {answers(200, "text/plain", long), nil, idempotency.ReasonTooLarge, 500, true},
		"too long, in two":       {script{says("x"), says(long)}, nil, idempotency.ReasonTooLarge, 500, true},
		"too late NoStore":       {script{code(200), says(long), noStore}, nil, idempotency.ReasonTooLarge, 500, true},
		"encoded":                {script{set("Content-Type", "application/json"), set("Content-Encoding", "gzip"), says("x")}, with(idempotency.WithContentTypes("application/json")), idempotency.ReasonEncoded, 500, true},
		"cut":                    {script{set("Content-Length", "9"), says("x")}, nil, idempotency.ReasonLength, 500, true},
		"trailers":               {script{set("Trailer", "X-Sum"), says("x")}, nil, idempotency.ReasonTrailers, 500, true},
		"late trailers":          {script{says("x"), set(http.TrailerPrefix+"X-Sum", "1")}, nil, idempotency.ReasonTrailers, 500, true},
		"101":                    {script{code(101)}, nil, idempotency.ReasonHijacked, 500, true},
		"an unlisted type":       {answers(200, "text/html", "<p>"), onlyJSON, idempotency.ReasonContentType, 500, true},
		"invalid JSON":           {answers(200, "application/json", "{"), onlyJSON, idempotency.ReasonInvalidJSON, 500, true},
		"no body":                {answers(204, "", ""), onlyJSON, idempotency.ReasonContentType, 500, true},
		"an unlisted 400":        {answers(400, "text/plain", "no"), onlyJSON, idempotency.ReasonContentType, 400, false},
		"an unlisted 399":        {answers(399, "text/plain", "x"), onlyJSON, idempotency.ReasonContentType, 500, true},
		"an unlisted refusal":    {answers(404, "text/plain", "no"), onlyJSON, idempotency.ReasonContentType, 404, false},
		"WithStoreIf":            {answers(201, "application/json", `{}`), storeIf(200), idempotency.ReasonStoreIf, 500, true},
		"WithStoreIf, a refusal": {answers(404, "application/json", `{}`), storeIf(400), idempotency.ReasonStoreIf, 404, false},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			l, es := newLedger(never), &events{}
			a := &attempt{answer: append(script{set("X-Payment", "1")}, test.answer...)}
			h := idempotency.New(l, append(test.opts, es.option(), idempotency.WithBufferLimit(1000),
				logInto(&log))...)(a)
			for run := range 2 {
				w := send(h, request("k", "b"))
				require.Equal(t, test.sent, w.Code, w.Body)
				require.Equal(t, run+1, a.runs)
				event, _ := es.last(t)
				require.Equal(t, idempotency.NotStored, event.Outcome)
				require.Equal(t, test.reason, event.Reason)
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
					require.NotContains(t, log.String(), "cannot be stored")
				}
			}
			require.Empty(t, l.written)
			require.EqualValues(t, 2, l.releases.Load())
			require.Zero(t, l.completes.Load())
		})
	}
}

func below(limit int) func(int, http.Header) bool {
	return func(status int, _ http.Header) bool { return status < limit }
}

func TestTransactorUndoesAPanic(t *testing.T) {
	l, es := newLedger(never), &events{}
	var written http.ResponseWriter
	a := &attempt{answer: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		written = w
		fmt.Fprint(w, strings.Repeat("x", 2000)) // It is withheld.
		panic("boom")
	})}
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
	a := &attempt{answer: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		controller := http.NewResponseController(w)
		_, _, err := controller.Hijack()
		require.ErrorIs(t, err, http.ErrNotSupported)
		w.Header().Set("Trailer", "X-Sum")
		_, err = fmt.Fprint(w, "x")
		require.ErrorContains(t, err, "cannot be stored")
		w.WriteHeader(http.StatusOK)
		require.ErrorIs(t, controller.Flush(), http.ErrNotSupported)
		_, _, err = controller.Hijack()
		require.ErrorIs(t, err, http.ErrNotSupported)
	})}
	w := send(idempotency.New(l, quiet)(a), request("k", "b"))
	require.Equal(t, http.StatusInternalServerError, w.Code)
	require.False(t, w.Flushed)
	require.Empty(t, w.Header().Get("Trailer"))
	require.Empty(t, l.written)
}

// What Complete could not commit is not sent, and the key is free at once.
func TestTransactorDoesNotCommit(t *testing.T) {
	notCommitted := fmt.Errorf("the connection broke: %w", idempotency.ErrNotCommitted)
	for name, test := range map[string]struct {
		err      error
		status   int
		sentinel string
		tries    int32  // 0 is several
		retry    string // Only of what is known to be undone it is promised that a retry may succeed.
	}{
		"undone":       {notCommitted, 503, "ErrNotCommitted", 1, "true"},
		"lost":         {idempotency.ErrClaimLost, 409, "ErrClaimLost", 1, "true"},
		"full":         {idempotency.ErrFull, 503, "ErrNotCommitted", 1, "false"},
		"out of reach": {errDown, 503, "ErrNotCommitted", 0, "false"},
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
				a := &attempt{answer: append(script{set("Set-Cookie", "paid=1")}, answers(201, "application/json", `{"payment":1}`)...)}
				outside := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("X-Request-Id", "7")
					idempotency.New(l, quiet, es.option())(a).ServeHTTP(w, r)
				})
				w := send(outside, request("k", "b"))
				requireProblem(t, w, test.status, test.sentinel)
				require.Equal(t, test.retry, w.Header().Get("X-Should-Retry"))
				require.Equal(t, test.retry == "true", w.Header().Get("Retry-After") == "1")
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
		a := &attempt{answer: answers(201, "application/json", `{}`)}
		h := idempotency.New(l, quiet)(a)
		require.Equal(t, 201, send(h, request("k", "b")).Code)
		require.Equal(t, []string{"run 1"}, l.written)
		require.EqualValues(t, 4, l.completes.Load())
		require.Zero(t, l.releases.Load())
	})
}

func TestTransactorAtMostOnce(t *testing.T) {
	l, a := newLedger(never), &attempt{answer: answers(500, "text/plain", "no")}
	h := idempotency.New(l, quiet, idempotency.WithAtMostOnce())(a)
	require.Equal(t, 500, send(h, request("k", "b")).Code)
	requireProblem(t, send(h, request("k", "b")), http.StatusConflict, "ErrInterrupted")
	require.Empty(t, l.written)
	require.Equal(t, 1, a.runs)
}

// Without a claim there is no transaction.
func TestTransactorUnprotected(t *testing.T) {
	h := idempotency.New(newLedger(always("claim")), quiet, idempotency.WithFailOpen())(http.HandlerFunc(
		func(w http.ResponseWriter, r *http.Request) {
			require.Nil(t, r.Context().Value(draftKey{}))
			answers(200, "text/html", "<p>").ServeHTTP(w, r)
		}))
	w := send(h, request("k", "b"))
	require.Equal(t, 200, w.Code)
	require.Equal(t, "<p>", w.Body.String())
}

// A refusal within the handler keeps its response from being stored. The client
// is not told of success for that: nobody called NoStore.
func TestTransactorRefusalWithin(t *testing.T) {
	inner := idempotency.New(idempotency.NewMemory(), quiet)(answers(201, "application/json", `{}`))
	l := newLedger(never)
	a := &attempt{answer: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		require.Equal(t, 422, send(inner, request("\x00", "item").WithContext(r.Context())).Code)
		answers(http.StatusMultiStatus, "application/json", `[422]`).ServeHTTP(w, r)
	})}
	require.Equal(t, 500, send(idempotency.New(l, quiet)(a), request("k", "b")).Code)
	require.Empty(t, l.written)
}

// A handler that ended the transaction itself leaves the key interrupted: Complete
// says so, and is not called again.
func TestTransactorIsInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		es := &events{}
		l := newLedger(alwaysWith("complete", fmt.Errorf("the handler has committed: %w", idempotency.ErrInterrupted)))
		h := idempotency.New(l, quiet, es.option())(&attempt{answer: answers(201, "application/json", `{}`)})
		start := time.Now()
		w := send(h, request("k", "b"))
		require.Zero(t, time.Since(start))
		requireProblem(t, w, http.StatusConflict, "ErrInterrupted")
		require.Empty(t, w.Header().Get("Retry-After"))
		require.EqualValues(t, 1, l.completes.Load())
		require.EqualValues(t, 1, l.releases.Load())
		e, _ := es.last(t)
		require.Equal(t, idempotency.Failed, e.Outcome)
		require.ErrorIs(t, e.Err, idempotency.ErrInterrupted)
		require.NotErrorIs(t, e.Err, idempotency.ErrNotCommitted)
	})
}

// With recovery its client is told to send the request again: that recovers.
func TestTransactorIsInterruptedAndRecovers(t *testing.T) {
	l := newLedger(times(1, "complete", fmt.Errorf("the handler has committed: %w", idempotency.ErrInterrupted)))
	recovery := idempotency.WithRecovery(func(http.Handler) http.Handler { return answers(200, "application/json", `"found"`) })
	h := idempotency.New(l, quiet, recovery)(&attempt{answer: answers(201, "application/json", `{}`)})
	detail := requireProblem(t, send(h, request("k", "b")), http.StatusServiceUnavailable, "ErrNotCommitted")
	require.Contains(t, detail, "Send the same request with the same key again")
	require.Equal(t, `"found"`, send(h, request("k", "b")).Body.String())
}

// Begin is told how long the response would be stored, and is not ended by the
// client.
func TestTransactorBegins(t *testing.T) {
	for expiry, want := range map[time.Duration]time.Duration{time.Hour: time.Hour, 0: idempotency.Forever} {
		ctx, leave := context.WithCancel(t.Context())
		l := &beginning{ledger: newLedger(never)}
		h := idempotency.New(l, idempotency.WithExpiry(expiry))(&attempt{answer: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			leave()
			require.NoError(t, l.ctx.Err())
			require.NoError(t, r.Context().Err())
			fmt.Fprint(w, "{}")
		})})
		send(h, request("k", "b").WithContext(ctx))
		send(h, request("k", "b"))
		require.Equal(t, []time.Duration{want}, l.expiries, "once for each claim")
		require.Equal(t, []string{"run 1"}, l.written)
	}
}

// beginning is a ledger that notes what Begin is given.
type beginning struct {
	*ledger
	ctx      context.Context
	expiries []time.Duration
}

func (b *beginning) Begin(ctx context.Context, key idempotency.Key, claim idempotency.Claim, expiry time.Duration) context.Context {
	b.ctx, b.expiries = ctx, append(b.expiries, expiry)
	return b.ledger.Begin(ctx, key, claim, expiry)
}
