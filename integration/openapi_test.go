package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

// claimed is a backend that answers each claim with a record, or with an error.
type claimed struct {
	idempotency.Backend
	response []byte
	err      error
}

func (b claimed) Claim(_ context.Context, _ idempotency.Key, claim idempotency.Claim, _ idempotency.Terms) (idempotency.Record, bool, error) {
	return idempotency.Record{Claim: claim, State: idempotency.StateCompleted, Response: b.response}, false, b.err
}

// refusal is a situation in which the middleware answers by itself.
type refusal struct {
	example string // of docs/openapi.yaml
	status  int
	wait    string // the value of Retry-After
	opts    []idempotency.Option
	backend idempotency.Backend // nil is a Memory
	key     string              // "" is the usual one; "-" is none
	body    io.Reader           // nil is {}
	before  func(t *testing.T, a *clauseAPI)
	handler http.Handler // nil is the usual one
}

func everyRefusal() []refusal {
	committing := func(err error) idempotency.Backend {
		return transactional{notCompleting{idempotency.NewMemory(), err}}
	}
	first := func(t *testing.T, a *clauseAPI) { a.post(someV4, `{"first":true}`) }
	return []refusal{
		{example: "key-missing", status: 400, key: "-", opts: []idempotency.Option{idempotency.WithRequired()}},
		{example: "body-unreadable", status: 400, body: iotest.ErrReader(io.ErrUnexpectedEOF)},
		{example: "outstanding", status: 409, wait: "1", before: func(t *testing.T, a *clauseAPI) {
			a.finish = make(chan struct{})
			done := make(chan struct{})
			go func() { a.post(someV4, "{}"); close(done) }()
			await(t, a.running, "the handler")
			t.Cleanup(func() { close(a.finish); <-done })
		}},
		{example: "interrupted", status: 409, opts: []idempotency.Option{idempotency.WithAtMostOnce(),
			idempotency.WithStoreIf(func(int, http.Header) bool { return false })},
			before: func(t *testing.T, a *clauseAPI) { a.post(someV4, "{}") }},
		{example: "claim-lost", status: 409, wait: "1", backend: committing(idempotency.ErrClaimLost)},
		{example: "too-large", status: 413, body: iotest.ErrReader(&http.MaxBytesError{Limit: 1})},
		{example: "key-invalid", status: 422, key: strings.Repeat("k", 256)},
		{example: "key-reused", status: 422, before: first},
		{example: "not-processed", status: 500, backend: transactional{idempotency.NewMemory()},
			opts: []idempotency.Option{idempotency.WithBufferLimit(4)}},
		{example: "not-committed", status: 503, wait: "1", backend: committing(idempotency.ErrNotCommitted)},
		{example: "not-committed-unknown", status: 503, backend: committing(idempotency.ErrFull)},
		{example: "unreadable", status: 503, backend: claimed{response: []byte("cut")}},
		{example: "unavailable", status: 503, wait: "1", backend: claimed{err: errors.New("connection refused")}},
		{example: "full", status: 503, wait: "1", handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			idempotency.WriteError(w, r, idempotency.ErrFull)
		})},
	}
}

// answer brings the situation about.
func (c refusal) answer(t *testing.T, more ...idempotency.Option) (*http.Request, *httptest.ResponseRecorder) {
	if c.backend == nil {
		c.backend = idempotency.NewMemory()
	}
	if c.body == nil {
		c.body = strings.NewReader("{}")
	}
	if c.key == "" {
		c.key = someV4
	}
	opts := append([]idempotency.Option{idempotency.WithLogger(slog.New(slog.DiscardHandler))}, append(c.opts, more...)...)
	a := newClauseAPIOn(c.backend, func(backend idempotency.Backend) func(http.Handler) http.Handler {
		once := idempotency.New(backend, opts...)
		return func(next http.Handler) http.Handler {
			if c.handler != nil {
				next = c.handler
			}
			return once(next)
		}
	})
	if c.before != nil {
		c.before(t, a)
	}
	r := httptest.NewRequest(http.MethodPost, "/payments", c.body)
	r.Header.Set("Authorization", "alice")
	if c.key != "-" {
		r.Header.Set("Idempotency-Key", c.key)
	}
	w := httptest.NewRecorder()
	a.h.ServeHTTP(w, r)
	return r, w
}

// fragment is docs/openapi.yaml.
type fragment struct {
	doc    *openapi3.T
	router routers.Router
}

func loadFragment(t *testing.T) fragment {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromFile(filepath.Join(root, "docs", "openapi.yaml"))
	require.NoError(t, err)
	require.NoError(t, doc.Validate(t.Context()), "each example must fit its schema too")
	router, err := gorillamux.NewRouter(doc)
	require.NoError(t, err)
	return fragment{doc, router}
}

// check checks an answer against the fragment: its status, its headers, all of them, and its body.
func (f fragment) check(r *http.Request, w *httptest.ResponseRecorder) error {
	route, params, err := f.router.FindRoute(r)
	if err != nil {
		return err
	}
	err = openapi3filter.ValidateResponse(r.Context(), &openapi3filter.ResponseValidationInput{
		RequestValidationInput: &openapi3filter.RequestValidationInput{Request: r, Route: route, PathParams: params},
		Status:                 w.Code,
		Header:                 w.Header(),
		Body:                   io.NopCloser(bytes.NewReader(w.Body.Bytes())),
		Options:                &openapi3filter.Options{IncludeResponseStatus: true},
	})
	if err != nil {
		return err
	}
	described := route.Operation.Responses.Status(w.Code).Value.Headers
	for name := range w.Header() {
		if name != "Content-Type" && name != "Content-Length" && described[name] == nil {
			return errors.New("the header " + name + " is not described")
		}
	}
	return nil
}

// examples returns the problems that the fragment shows for a status, by their names.
func (f fragment) examples(status int) openapi3.Examples {
	of := f.doc.Paths.Find("/payments").Post.Responses.Status(status).Value
	return of.Content.Get("application/problem+json").Examples
}

// The middleware answers as docs/openapi.yaml describes it, word for word, and in no other way.
func TestOpenAPI(t *testing.T) {
	f := loadFragment(t)
	shown := 0
	for _, status := range f.doc.Paths.Find("/payments").Post.Responses.Map() {
		if content := status.Value.Content.Get("application/problem+json"); content != nil {
			shown += len(content.Examples)
		}
	}
	refusals := everyRefusal()
	require.Len(t, refusals, shown, "each example is shown to be sent")
	for _, c := range refusals {
		t.Run(c.example, func(t *testing.T) {
			r, w := c.answer(t)
			require.Equal(t, c.status, w.Code, w.Body)
			require.NoError(t, f.check(r, w))
			require.Equal(t, c.wait, w.Header().Get("Retry-After"))
			example := f.examples(c.status)[c.example]
			require.NotNil(t, example, "docs/openapi.yaml shows no %s", c.example)
			want, err := json.Marshal(example.Value.Value)
			require.NoError(t, err)
			require.JSONEq(t, string(want), w.Body.String())
			var problem struct{ Retryable bool }
			require.NoError(t, json.Unmarshal(w.Body.Bytes(), &problem))
			require.Equal(t, problem.Retryable, w.Header().Get("X-Should-Retry") == "true")
		})
	}
	// With the options that add headers too.
	for _, c := range refusals {
		if c.handler == nil { // That one writes itself.
			r, w := everyRefusalNamed(t, c.example).answer(t,
				idempotency.WithDocumentation("https://api.example.com/keys"), idempotency.WithEcho())
			require.NoError(t, f.check(r, w), c.example)
			require.NotEmpty(t, w.Header().Get("Link"))
		}
	}
}

// everyRefusalNamed returns a situation anew: its store and its body are used up.
func everyRefusalNamed(t *testing.T, example string) refusal {
	t.Helper()
	for _, c := range everyRefusal() {
		if c.example == example {
			return c
		}
	}
	require.FailNow(t, "no "+example)
	panic("unreachable")
}

// Every problem of problem.go is in the fragment.
func TestOpenAPIHasEveryProblem(t *testing.T) {
	f := loadFragment(t)
	source, err := os.ReadFile(filepath.Join(root, "problem.go"))
	require.NoError(t, err)
	found := regexp.MustCompile(`(?m)^\t\{Err\w+, "([\w-]+)", "[^"]+", http\.Status(\w+),`).FindAllSubmatch(source, -1)
	require.GreaterOrEqual(t, len(found), 11)
	codes := map[string]int{"BadRequest": 400, "Conflict": 409, "UnprocessableEntity": 422, "ServiceUnavailable": 503}
	for _, problem := range found {
		require.Contains(t, f.examples(codes[string(problem[2])]), string(problem[1]))
	}
}

// A stored answer and its replay are in the fragment, and it is stored for as long as that says.
func TestOpenAPIStored(t *testing.T) {
	f := loadFragment(t)
	echo := func(backend idempotency.Backend) func(http.Handler) http.Handler {
		return idempotency.New(backend, idempotency.WithEcho())
	}
	a := newClauseAPI(echo)
	r := httptest.NewRequest(http.MethodPost, "/payments", nil)
	for _, replayed := range []string{"", "true"} {
		w := a.post(someV4, "{}")
		require.Equal(t, replayed, w.Header().Get("Idempotent-Replayed"))
		require.NoError(t, f.check(r, w))
	}
	parameter := f.doc.Components.Parameters["IdempotencyKey"].Value
	lifetime, err := time.ParseDuration(strings.ToLower(strings.TrimPrefix(parameter.Extensions["x-lifetime"].(string), "PT")))
	require.NoError(t, err)
	requireKept(t, echo, lifetime, func(a *clauseAPI) *httptest.ResponseRecorder { return a.post(someV4, "{}") })
}

// What is not in the fragment fails the check.
func TestOpenAPIRefusesOthers(t *testing.T) {
	f := loadFragment(t)
	for name, spoil := range map[string]func(w *httptest.ResponseRecorder){
		"a status":                func(w *httptest.ResponseRecorder) { w.Code = http.StatusTeapot },
		"a header":                func(w *httptest.ResponseRecorder) { w.Header().Set("X-Other", "1") },
		"a value of a header":     func(w *httptest.ResponseRecorder) { w.Header().Set("X-Should-Retry", "maybe") },
		"no X-Should-Retry":       func(w *httptest.ResponseRecorder) { w.Header().Del("X-Should-Retry") },
		"a Retry-After of no int": func(w *httptest.ResponseRecorder) { w.Header().Set("Retry-After", "soon") },
		"a type":                  func(w *httptest.ResponseRecorder) { w.Header().Set("Content-Type", "application/json") },
		"a member more": func(w *httptest.ResponseRecorder) {
			w.Body = bytes.NewBufferString(strings.Replace(w.Body.String(), "{", `{"key":"k",`, 1))
		},
		"a member less": func(w *httptest.ResponseRecorder) {
			w.Body = bytes.NewBufferString(strings.Replace(w.Body.String(), `"retryable"`, `"retry"`, 1))
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, w := everyRefusalNamed(t, "outstanding").answer(t)
			require.NoError(t, f.check(r, w))
			spoil(w)
			require.Error(t, f.check(r, w))
		})
	}
}
