package idempotency_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

var (
	errDown = errors.New("dial tcp 10.0.0.7:6379: connection refused")
	quiet   = idempotency.WithLogger(slog.New(slog.DiscardHandler))
)

// logInto logs as text.
func logInto(w io.Writer) idempotency.Option {
	return idempotency.WithLogger(slog.New(slog.NewTextHandler(w, nil)))
}

// payments is a handler that counts its runs and answers each with its number.
type payments struct{ runs atomic.Int32 }

func (p *payments) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n := p.runs.Add(1)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Location", fmt.Sprintf("/payments/%d", n))
	w.WriteHeader(http.StatusCreated)
	fmt.Fprintf(w, `{"payment":%d}`, n)
}

// A script is a handler as data: what it does, one step after another.
type script []step

// step is one thing that a handler does.
type step struct {
	do    string // which of the functions below made it
	name  string
	value string
	code  int
}

func set(name, value string) step        { return step{do: "set", name: name, value: value} }
func setMany(name, values string) step   { return step{do: "set many", name: name, value: values} } // a comma between two
func add(name, value string) step        { return step{do: "add", name: name, value: value} }
func drop(name string) step              { return step{do: "drop", name: name} }
func suppress(name string) step          { return step{do: "suppress", name: name} } // It has no value.
func code(n int) step                    { return step{do: "code", code: n} }
func says(text string) step              { return step{do: "says", value: text} }
func refusedToSay(text string) step      { return step{do: "refused to say", value: text} } // no body is allowed
func tooLong(text string) step           { return step{do: "too long", value: text} }       // for the declared length
func panics(value string) step           { return step{do: "panics", value: value} }
func redirects(to string, code int) step { return step{do: "redirects", value: to, code: code} }

var (
	asJSON   = set("Content-Type", "application/json")
	flush    = step{do: "flush"}
	noStore  = step{do: "no store"}
	aborts   = step{do: "aborts"}   // It panics with http.ErrAbortHandler.
	recovers = step{do: "recovers"} // It says what a later step panics with.
)

func (s script) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	for _, step := range s {
		if step == recovers {
			defer func() { fmt.Fprintf(w, "<%v>", recover()) }()
			continue
		}
		step.run(w, r)
	}
}

func (s step) run(w http.ResponseWriter, r *http.Request) {
	switch s.do {
	case "set":
		w.Header().Set(s.name, s.value)
	case "set many":
		w.Header()[s.name] = strings.Split(s.value, ",")
	case "add":
		w.Header().Add(s.name, s.value)
	case "drop":
		w.Header().Del(s.name)
	case "suppress":
		w.Header()[s.name] = nil
	case "code":
		w.WriteHeader(s.code)
	case "says":
		_, _ = io.WriteString(w, s.value)
	case "refused to say":
		if n, err := io.WriteString(w, s.value); n != 0 || err != http.ErrBodyNotAllowed {
			panic(fmt.Sprint("written: ", n, err))
		}
	case "too long":
		if _, err := io.WriteString(w, s.value); r.ProtoMajor == 1 && r.Context().Value(http.ServerContextKey) != nil && err != http.ErrContentLength {
			panic(fmt.Sprint("written: ", err))
		}
	case "flush":
		w.(http.Flusher).Flush()
	case "no store":
		idempotency.NoStore(r.Context())
	case "panics":
		panic(s.value)
	case "aborts":
		panic(http.ErrAbortHandler)
	case "redirects":
		http.Redirect(w, r, s.value, s.code)
	default:
		panic("no such step: " + s.do)
	}
}

// with makes a list of options, for tables.
func with(opts ...idempotency.Option) []idempotency.Option { return opts }

// boom panics under a name that a stack shows.
func boom(http.ResponseWriter, *http.Request) { panic("boom") }

// request returns a POST with a key ("" is none) and a body.
func request(key, body string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/payments?currency=EUR", strings.NewReader(body))
	if key != "" {
		r.Header.Set("Idempotency-Key", key)
	}
	return r
}

// requestWith returns a POST with two keys, the second in a header of that name.
func requestWith(key, header, second string) *http.Request {
	r := request(key, "b")
	r.Header.Set(header, second)
	return r
}

func send(h http.Handler, r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// requireReplayed checks that an answer is a replay with this body.
func requireReplayed(t *testing.T, w *httptest.ResponseRecorder, body string) {
	t.Helper()
	require.Equal(t, body, w.Body.String())
	require.Equal(t, []string{"true"}, w.Header()["Idempotent-Replayed"])
}

// requireProblem checks that a refusal is the problem of the sentinel named.
func requireProblem(t *testing.T, w *httptest.ResponseRecorder, status int, sentinel string) (detail string) {
	t.Helper()
	require.Equal(t, status, w.Code, w.Body)
	require.Equal(t, "application/problem+json", w.Header().Get("Content-Type"))
	var p struct {
		Type, Title, Detail string
		Status              int
		Retryable           *bool
	}
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &p))
	fragment := strings.ToLower(regexp.MustCompile("[A-Z]").ReplaceAllString(strings.TrimPrefix(sentinel, "Err"), "-$0"))[1:]
	require.Equal(t, "https://github.com/idempotency-go/idempotency/blob/main/docs/PROBLEMS.md#"+fragment, p.Type)
	require.NotNil(t, p.Retryable)
	require.Equal(t, []string{strconv.FormatBool(*p.Retryable)}, w.Header()["X-Should-Retry"])
	if w.Header().Get("Retry-After") != "" {
		require.True(t, *p.Retryable)
	}
	require.Equal(t, status, p.Status)
	require.NotEmpty(t, p.Title)
	require.NotEmpty(t, p.Detail)
	return p.Detail
}

// requireRefused sends a request again and checks that it is the problem of the
// sentinel named.
func requireRefused(t *testing.T, h http.Handler, status int, sentinel string) {
	t.Helper()
	requireProblem(t, send(h, request("k", "b")), status, sentinel)
}

// responseBytes returns a response as it is stored.
func responseBytes(t *testing.T, response idempotency.Response) []byte {
	t.Helper()
	b, err := response.MarshalBinary()
	require.NoError(t, err)
	return b
}

// readResponse reads a response as it was stored.
func readResponse(t *testing.T, b []byte) idempotency.Response {
	t.Helper()
	var response idempotency.Response
	require.NoError(t, response.UnmarshalBinary(b))
	return response
}

// lookup returns the record of the client's key in no scope; nil is none.
func lookup(t *testing.T, backend idempotency.Inspector, key string) *idempotency.Record {
	t.Helper()
	rec, _, ok, err := backend.Lookup(context.Background(), idempotency.NewKey("", key))
	require.NoError(t, err)
	if !ok {
		return nil
	}
	return &rec
}

// claimSent returns the claim that a request sends to its backend.
func claimSent(r *http.Request, opts ...idempotency.Option) (sent idempotency.Claim) {
	spy := newHooked()
	spy.claim = func(_ context.Context, _ idempotency.Key, claim idempotency.Claim, _ idempotency.Terms) (idempotency.Record, bool, error) {
		sent = claim
		return idempotency.Record{}, false, idempotency.ErrUnreadable
	}
	send(idempotency.New(spy, append(opts, quiet)...)(&payments{}), r)
	return sent
}

// hooked is a Backend whose verbs a test can replace.
type hooked struct {
	*idempotency.Memory
	claim    func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error)
	renew    func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms, progress []byte) error
	complete func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, response []byte, expiry time.Duration) error
	release  func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, trace time.Duration) error
}

// newHooked returns a hooked Memory, with no verb replaced.
func newHooked() *hooked { return &hooked{Memory: idempotency.NewMemory()} }

func (b *hooked) Claim(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
	if b.claim != nil {
		return b.claim(ctx, key, claim, terms)
	}
	return b.Memory.Claim(ctx, key, claim, terms)
}

func (b *hooked) Renew(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms, progress []byte) error {
	if b.renew != nil {
		return b.renew(ctx, key, claim, terms, progress)
	}
	return b.Memory.Renew(ctx, key, claim, terms, progress)
}

func (b *hooked) Complete(ctx context.Context, key idempotency.Key, claim idempotency.Claim, response []byte, expiry time.Duration) error {
	if b.complete != nil {
		return b.complete(ctx, key, claim, response, expiry)
	}
	return b.Memory.Complete(ctx, key, claim, response, expiry)
}

func (b *hooked) Release(ctx context.Context, key idempotency.Key, claim idempotency.Claim, trace time.Duration) error {
	if b.release != nil {
		return b.release(ctx, key, claim, trace)
	}
	return b.Memory.Release(ctx, key, claim, trace)
}

// counted counts the calls of each verb and lets them fail.
type counted struct {
	*hooked
	claims, renews, completes, releases atomic.Int32
}

// newCounted returns a Memory whose Claim, Renew, Complete and Release first ask
// fail, which gets the verb and how often it was called before; an error is
// returned in place of the call.
func newCounted(fail func(verb string, before int) error) *counted {
	c := &counted{hooked: newHooked()}
	memory := c.Memory
	c.claim = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
		if err := fail("claim", int(c.claims.Add(1))-1); err != nil {
			return idempotency.Record{}, false, err
		}
		return memory.Claim(ctx, key, claim, terms)
	}
	c.renew = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms, progress []byte) error {
		if err := fail("renew", int(c.renews.Add(1))-1); err != nil {
			return err
		}
		return memory.Renew(ctx, key, claim, terms, progress)
	}
	c.complete = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, response []byte, expiry time.Duration) error {
		if err := fail("complete", int(c.completes.Add(1))-1); err != nil {
			return err
		}
		return memory.Complete(ctx, key, claim, response, expiry)
	}
	c.release = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, trace time.Duration) error {
		if err := fail("release", int(c.releases.Add(1))-1); err != nil {
			return err
		}
		return memory.Release(ctx, key, claim, trace)
	}
	return c
}

func never(string, int) error { return nil }

// always fails one verb, every time.
func always(verb string) func(string, int) error {
	return func(v string, _ int) error {
		if v == verb {
			return errDown
		}
		return nil
	}
}

// alwaysWith fails one verb with err, every time; not if err is nil.
func alwaysWith(verb string, err error) func(string, int) error { return times(1<<30, verb, err) }

// times fails one verb with err, n times.
func times(n int, verb string, err error) func(string, int) error {
	return func(v string, before int) error {
		if v == verb && before < n {
			return err
		}
		return nil
	}
}

// events is an observer that keeps what it is told.
type events struct {
	mu  sync.Mutex
	all []idempotency.Event
}

func (es *events) option() idempotency.Option {
	return idempotency.WithObserver(func(_ context.Context, e idempotency.Event) {
		es.mu.Lock()
		defer es.mu.Unlock()
		es.all = append(es.all, e)
	})
}

// seen returns the events so far.
func (es *events) seen() []idempotency.Event {
	es.mu.Lock()
	defer es.mu.Unlock()
	return slices.Clone(es.all)
}

// last returns the newest event and how many there were.
func (es *events) last(t *testing.T) (idempotency.Event, int) {
	t.Helper()
	es.mu.Lock()
	defer es.mu.Unlock()
	require.NotEmpty(t, es.all)
	return es.all[len(es.all)-1], len(es.all)
}
