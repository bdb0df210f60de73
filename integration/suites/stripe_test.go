package suites

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/stripe/stripe-mock/embedded"
	"github.com/stripe/stripe-mock/server"

	"github.com/idempotency-go/idempotency"
)

// stripePackages are all packages of stripe-go.
const stripePackages = "github.com/stripe/stripe-go/v85/..."

// TestStripe runs the tests of stripe-go, as they come, against stripe-mock: without the
// middleware, through it, and through it with the first answer to every key thrown away, so
// that stripe-go sends the request again by itself. What passes must be the same.
func TestStripe(t *testing.T) {
	mock := newStripeMock(t)
	through, again := new(outcomes), new(outcomes)
	middleware := func(seen *outcomes) http.Handler {
		return emptyBodies(idempotency.New(idempotency.NewMemory(), quiet, seen.option())(mock))
	}
	lost := &firstAnswersLost{next: middleware(again)}
	ways := []stripeWay{
		{"without the middleware", mock},
		{"through the middleware", middleware(through)},
		{"through the middleware, first answers lost", lost},
	}
	verdicts := runStripeTests(t, ways)
	page, err := os.ReadFile("../../docs/SUITES.md")
	require.NoError(t, err)
	for i, way := range ways {
		for test, verdict := range verdicts[i] {
			require.Equal(t, "PASS", verdict, "%s: %s", way.name, test)
		}
		require.Equal(t, slices.Sorted(maps.Keys(verdicts[0])), slices.Sorted(maps.Keys(verdicts[i])), way.name)
		require.Contains(t, string(page), fmt.Sprintf("\n| %s | %d |\n", way.name, len(verdicts[i])))
	}
	require.Greater(t, len(verdicts[0]), 1900, "stripe-go has more tests")

	require.Contains(t, string(page), fmt.Sprintf("\n%d keys", through.of(idempotency.Stored)))
	require.Zero(t, through.of(idempotency.Replayed), "stripe-go makes a new key for each request")
	require.Equal(t, through.of(idempotency.Stored), again.of(idempotency.Stored), "each key runs once, whatever is lost")
	require.Equal(t, int(lost.cut.Load()), again.of(idempotency.Replayed), "each answer that was lost is replayed")
}

// newStripeMock returns stripe-mock.
func newStripeMock(t *testing.T) http.Handler {
	t.Helper()
	spec, err := server.LoadSpec(embedded.OpenAPISpec, "")
	require.NoError(t, err)
	fixtures, err := server.LoadFixtures(embedded.OpenAPIFixtures, "")
	require.NoError(t, err)
	stub, err := server.NewStubServer(fixtures, spec, false, false)
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.HandleFunc("/", stub.HandleRequest)
	return &server.DoubleSlashFixHandler{Mux: mux}
}

// emptyBodies says of a body that is empty that it is. stripe-go sends a POST without
// parameters over HTTP/2 as a body of unknown length, which the middleware would refuse: it
// cannot tell that from a body that was read outside.
func emptyBodies(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength < 0 {
			first := make([]byte, 1)
			n, err := io.ReadFull(r.Body, first)
			rest := r.Body
			r.Body = struct {
				io.Reader
				io.Closer
			}{io.MultiReader(bytes.NewReader(first[:n]), rest), rest}
			if err == io.EOF {
				r.Body, r.ContentLength = http.NoBody, 0
			}
		}
		next.ServeHTTP(w, r)
	})
}

// firstAnswersLost cuts the connection in place of the first answer to each key of a POST.
type firstAnswersLost struct {
	next http.Handler
	seen sync.Map
	cut  atomic.Int64
}

func (f *firstAnswersLost) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	key := r.Header.Get("Idempotency-Key")
	if r.Method != http.MethodPost || key == "" {
		f.next.ServeHTTP(w, r)
		return
	}
	if _, again := f.seen.LoadOrStore(key, true); again {
		f.next.ServeHTTP(w, r)
		return
	}
	f.next.ServeHTTP(httptest.NewRecorder(), r)
	f.cut.Add(1)
	panic(http.ErrAbortHandler)
}

// outcomes counts the requests by what became of them.
type outcomes struct {
	mu    sync.Mutex
	count map[idempotency.Outcome]int
}

func (o *outcomes) option() idempotency.Option {
	return idempotency.WithObserver(func(_ context.Context, e idempotency.Event) {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.count == nil {
			o.count = make(map[idempotency.Outcome]int)
		}
		o.count[e.Outcome]++
	})
}

func (o *outcomes) of(outcome idempotency.Outcome) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.count[outcome]
}

// stripeWay is a way in which stripe-go's tests reach stripe-mock.
type stripeWay struct {
	name string
	h    http.Handler
}

// runStripeTests runs the tests of stripe-go in each way. It returns the verdict on each
// test by its name, for each way.
func runStripeTests(t *testing.T, ways []stripeWay) []map[string]string {
	t.Helper()
	var ports []string
	for _, way := range ways {
		s := httptest.NewUnstartedServer(way.h)
		s.EnableHTTP2 = true // stripe-go's tests insist on it.
		s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
		s.StartTLS()
		t.Cleanup(s.Close)
		at, err := url.Parse(s.URL)
		require.NoError(t, err)
		ports = append(ports, at.Port())
	}
	// Each package's tests are linked once. In place of a run, go test starts this program
	// (TestMain), which runs them in each way.
	results := t.TempDir()
	test := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-vet=off", "-p=8", "-exec="+os.Args[0], stripePackages)
	test.Env = append(os.Environ(), stripeResults+"="+results, stripePorts+"="+strings.Join(ports, ","))
	said, err := test.CombinedOutput()
	require.NoError(t, err, "%s", said)

	verdicts := make([]map[string]string, len(ways))
	files, err := filepath.Glob(filepath.Join(results, "*.json"))
	require.NoError(t, err)
	for _, file := range files {
		var of []map[string]string
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(text, &of))
		for i := range ways {
			if verdicts[i] == nil {
				verdicts[i] = make(map[string]string)
			}
			maps.Copy(verdicts[i], of[i])
		}
	}
	return verdicts
}

const (
	stripeResults = "IDEMPOTENCY_STRIPE_RESULTS" // the folder for the verdicts
	stripePorts   = "IDEMPOTENCY_STRIPE_PORTS"   // one for each way
)

// TestMain also runs where go test starts this program in place of a package's tests.
func TestMain(m *testing.M) {
	if results := os.Getenv(stripeResults); results != "" {
		if err := runStripePackage(results, os.Args[1:]); err != nil {
			println(err.Error())
			os.Exit(1)
		}
		os.Exit(0)
	}
	status := m.Run()
	for _, dir := range removeLater {
		_ = os.RemoveAll(dir)
	}
	os.Exit(status)
}

// removeLater are folders that TestMain removes.
var removeLater []string

// runStripePackage runs the tests of one package in each way, and writes down the verdicts.
// A test that fails is a verdict, no error.
func runStripePackage(results string, command []string) error {
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	ports := strings.Split(os.Getenv(stripePorts), ",")
	listed, err := stripeCommand(ports[0], append(slices.Clone(command), "-test.list=."))
	if err != nil {
		return fmt.Errorf("%w: %s", err, listed)
	}
	names := strings.Fields(string(listed))
	verdicts, errs := make([]map[string]string, len(ports)), make([]error, len(ports))
	var mu sync.Mutex
	var runs sync.WaitGroup
	for i, port := range ports {
		verdicts[i] = make(map[string]string)
		// stripe-go waits half a second before it sends a request again, so that the tests
		// run in parts, at once.
		for part := range slices.Chunk(names, stripePart) {
			runs.Go(func() {
				found, err := stripeVerdicts(port, append(slices.Clone(command), "-test.v", "-test.run=^("+strings.Join(part, "|")+")$"))
				mu.Lock()
				defer mu.Unlock()
				errs[i] = errors.Join(errs[i], err)
				for name, verdict := range found {
					verdicts[i][dir+" "+name] = verdict
				}
			})
		}
	}
	runs.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	text, err := json.Marshal(verdicts)
	if err != nil {
		return err
	}
	file, err := os.CreateTemp(results, "*.json")
	if err != nil {
		return err
	}
	_, err = file.Write(text)
	return errors.Join(err, file.Close())
}

// stripePart is how many tests of a package run in one process.
const stripePart = 40

var stripeVerdict = regexp.MustCompile(`(?m)^ *--- (PASS|FAIL|SKIP): (\S+)`)

func stripeVerdicts(port string, command []string) (map[string]string, error) {
	said, err := stripeCommand(port, command)
	verdicts := make(map[string]string)
	for _, found := range stripeVerdict.FindAllSubmatch(said, -1) {
		verdicts[string(found[2])] = string(found[1])
	}
	if err != nil && !bytes.Contains(said, []byte("--- FAIL")) {
		return nil, errors.New(string(said)) // It ended before its tests did.
	}
	return verdicts, nil
}

func stripeCommand(port string, command []string) (said []byte, err error) {
	test := exec.Command(command[0], command[1:]...)
	test.Env = append(os.Environ(), "STRIPE_MOCK_PORT="+port)
	return test.CombinedOutput()
}
