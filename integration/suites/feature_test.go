package suites

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cucumber/godog"
	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
)

// featureFile names a copy of idempot-dev's idempotency.feature.
const featureFile = "IDEMPOTENCY_TEST_FEATURE"

// TestFeature runs the scenarios of idempot-dev, as they come. docs/SUITES.md has their
// verdicts: which pass, at which step another one ends, and why.
func TestFeature(t *testing.T) {
	file := os.Getenv(featureFile)
	if file == "" {
		t.Skipf("SKIPPED: %s names no copy of idempot-dev's idempotency.feature, ITS SCENARIOS ARE NOT RUN.", featureFile)
	}
	page, err := os.ReadFile("../../docs/SUITES.md")
	require.NoError(t, err)
	var rows []string
	suite := godog.TestSuite{
		Options: &godog.Options{Format: "progress", Output: io.Discard, Paths: []string{file}, Strict: true},
		ScenarioInitializer: func(sc *godog.ScenarioContext) {
			newOrders().define(sc)
			var ended string
			sc.StepContext().After(func(ctx context.Context, step *godog.Step, status godog.StepResultStatus, err error) (context.Context, error) {
				require.NotEqual(t, godog.StepUndefined, status, step.Text)
				if err != nil {
					ended = err.Error()
				}
				return ctx, nil
			})
			sc.After(func(ctx context.Context, s *godog.Scenario, err error) (context.Context, error) {
				verdict := "passes"
				if err != nil {
					verdict = ended
				}
				rows = append(rows, fmt.Sprintf("| %d | %s |", len(rows)+1, verdict))
				t.Log(rows[len(rows)-1], s.Name)
				return ctx, nil
			})
		},
	}
	suite.Run()
	var documented []string
	for _, row := range regexp.MustCompile(`(?m)^(\| \d+ \|)[^|]+(\| [^|]+ \|)([^|]*)\|$`).FindAllStringSubmatch(string(page), -1) {
		require.Equal(t, row[2] == "| passes |", strings.TrimSpace(row[3]) == "", "a difference has a reason: %s", row[0])
		documented = append(documented, row[1]+row[2][1:])
	}
	require.Equal(t, rows, documented)
}

// orders is the service that the scenarios ask for.
type orders struct {
	*idempotency.Memory
	down   atomic.Bool // the store
	made   atomic.Int32
	h      http.Handler
	keys   []string // of the next request: none, one, or an empty one
	answer *httptest.ResponseRecorder
}

func (o *orders) Claim(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
	if o.down.Load() {
		return idempotency.Record{}, false, errors.New("connection refused")
	}
	return o.Memory.Claim(ctx, key, claim, terms)
}

func newOrders() *orders {
	o := &orders{Memory: idempotency.NewMemory()}
	o.h = idempotency.New(o, quiet, idempotency.WithRequired(), idempotency.WithReplayHeader("X-Idempotent-Replayed"))(
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			o.made.Add(1)
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, `{"success":true}`)
		}))
	return o
}

// define gives each step of the scenarios its meaning.
func (o *orders) define(sc *godog.ScenarioContext) {
	sc.Given(`^a (?:POST|PATCH) endpoint at "[^"]*" that creates an order$`, func() {})
	sc.Given(`^the SQLite store is clean$`, func() {})
	sc.Given(`^an Idempotency-Key "([^"]*)"$`, func(key string) { o.keys = []string{key} })
	sc.Given(`^an Idempotency-Key of (\d+) characters$`, func(n int) { o.keys = []string{strings.Repeat("k", n)} })
	sc.Given(`^an empty Idempotency-Key header$`, func() { o.keys = []string{""} })
	sc.Given(`^the idempotency store is unavailable$`, func() { o.down.Store(true) })
	sc.Given(`^the key "([^"]*)" is currently being processed$`, o.process)
	sc.Step(`^I (?:previously sent|send) an? (\w+) request to "([^"]*)"(?: with body '(.*)'| with (empty) body| without an Idempotency-Key header)?$`,
		func(method, path, body, _ string) { o.send(method, path, body) })

	sc.Then(`^the response status should be (\d+)$`, func(want int) error { return equal("status", want, o.answer.Code) })
	sc.Then(`^the response content-type should be "([^"]*)"$`, func(want string) error {
		return equal("content type", want, o.answer.Header().Get("Content-Type"))
	})
	sc.Then(`^the response should have header "([^"]*)" with value "([^"]*)"$`, func(name, want string) error {
		return equal(name, want, o.answer.Header().Get(name))
	})
	sc.Then(`^the response body should contain "([^"]*)"$`, func(want string) error {
		return holds("body", want, o.answer.Body.String())
	})
	sc.Then(`^the response body instance field should match pattern "([^"]*)"$`, func(want string) error {
		return holds("instance", want, o.field("instance"))
	})
	sc.Then(`^the response (retryable|idempotency_key) field should be "?([^"]*)"?$`, func(name, want string) error {
		return equal(name, want, o.field(name))
	})
	sc.Then(`^(\d+) orders should exist in the database$`, func(want int) error { return equal("orders", want, int(o.made.Load())) })
	sc.Then(`^an idempotency record should exist with key "([^"]*)"$`, func(key string) error { return equal("records", 1, o.records(key)) })
	sc.Then(`^(\d+) idempotency records should exist with key "([^"]*)"$`, func(want int, key string) error {
		return equal("records", want, o.records(key))
	})
	sc.Then(`^the idempotency record status should be "complete"$`, func() error {
		rec, _ := o.record(o.keys[0])
		return equal("state", idempotency.StateCompleted, rec.State)
	})
	sc.Then(`^the idempotency record response status should be (\d+)$`, func(want int) error {
		return equal("stored status", want, o.stored().Status)
	})
	sc.Then(`^the idempotency record response body should contain "([^"]*)"$`, func(want string) error {
		return holds("stored body", want, string(o.stored().Body))
	})
}

func equal(what string, want, got any) error {
	if fmt.Sprint(want) != fmt.Sprint(got) {
		return fmt.Errorf("%s %v, not %v", what, got, want)
	}
	return nil
}

func holds(what, want, got string) error {
	if !strings.Contains(got, want) {
		return fmt.Errorf("no %s in the %s", want, what)
	}
	return nil
}

// send sends a request with the key that the steps before have given it.
func (o *orders) send(method, path, body string) {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header["Idempotency-Key"] = o.keys
	o.answer = httptest.NewRecorder()
	o.h.ServeHTTP(o.answer, r)
}

// process claims a key as another process would that serves the request to come.
func (o *orders) process(key string) error {
	claim := idempotency.Claim{Token: idempotency.Token{1}} // Its zero fingerprint matches any.
	_, claimed, err := o.Claim(context.Background(), idempotency.NewKey("", key), claim, idempotency.Terms{Lease: time.Hour})
	return errors.Join(err, equal("claimed", true, claimed))
}

// field returns a field of the answer's JSON as text, "" if there is none.
func (o *orders) field(name string) string {
	var fields map[string]any
	if json.Unmarshal(o.answer.Body.Bytes(), &fields) != nil || fields[name] == nil {
		return ""
	}
	return fmt.Sprint(fields[name])
}

func (o *orders) record(key string) (rec idempotency.Record, ok bool) {
	rec, _, ok, _ = o.Lookup(context.Background(), idempotency.NewKey("", key)) // Memory does not fail.
	return rec, ok
}

func (o *orders) records(key string) int {
	if _, ok := o.record(key); !ok {
		return 0
	}
	return 1
}

// stored returns the response that the store has for the key.
func (o *orders) stored() *idempotency.Response {
	rec, _ := o.record(o.keys[0])
	response, err := rec.Open("", o.keys[0])
	if err != nil {
		return &idempotency.Response{}
	}
	return response
}
