package main

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency/internal/pgtest"
	"github.com/idempotency-go/idempotency/postgres"
)

// TestProgram uses the program as its reader does: it pays, lets it crash, starts
// it again and retries. The recovery crashes too, and is recovered in turn.
func TestProgram(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("SKIPPED: there is no SIGTERM to stop the program with on Windows.")
	}
	url := pgtest.Start(t).URL()
	program := filepath.Join(t.TempDir(), "postgres")
	built, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput()
	require.NoError(t, err, string(built))

	p := start(t, program, url)
	first := p.pay(t, "order-1", `{"amount": 1250}`)
	require.Equal(t, http.StatusCreated, first.status, first.body)
	require.Equal(t, answer{http.StatusCreated, first.body, "replayed"}, p.pay(t, "order-1", `{"amount": 1250}`))
	require.Equal(t, http.StatusBadRequest, p.pay(t, "order-0", `{"amount": 0}`).status)
	require.Equal(t, []int64{1250}, payments(t, url))
	require.Equal(t, []int64{1250}, charges(t, url))

	p.stop(t)
	const order = `{"amount": 900}`
	for _, what := range []string{"the handler", "its recovery"} {
		p = start(t, program, url, "-crash")
		require.Zero(t, p.payUntilClaimed(t, "order-2", order).status, "%s does not answer", what)
		require.Error(t, p.cmd.Wait())
		require.Equal(t, 3, p.cmd.ProcessState.ExitCode())
		require.Equal(t, []int64{1250}, payments(t, url), "what %s wrote is undone", what)
		require.Equal(t, []int64{1250, 900}, charges(t, url), "the card is charged")
	}

	p = start(t, program, url)
	recovered := p.payUntilClaimed(t, "order-2", order)
	require.Equal(t, http.StatusCreated, recovered.status, recovered.body)
	require.Equal(t, "found", recovered.how)
	require.Equal(t, answer{http.StatusCreated, recovered.body, "replayed"}, p.pay(t, "order-2", order))
	require.Equal(t, []int64{1250, 900}, payments(t, url))
	require.Equal(t, []int64{1250, 900}, charges(t, url), "one charge")
	require.Contains(t, p.get(t, "/payments"), `"amount":900`)
	require.Contains(t, p.get(t, "/charges"), `"amount":900`)

	p.stop(t)
}

// A payment that is interrupted before the charge is made by its retry.
func TestNothingCharged(t *testing.T) {
	url := pgtest.Start(t).URL()
	pool, err := connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	backend := postgres.NewTransactional(pool)
	a := &api{pool, processor{pool}, func() {}}
	require.NoError(t, errors.Join(backend.Migrate(t.Context()), a.migrate(t.Context())))
	h := a.handler(backend)
	pay := func() *httptest.ResponseRecorder {
		r, w := httptest.NewRequest("POST", "/payments", strings.NewReader(`{"amount": 900}`)), httptest.NewRecorder()
		r.Header.Set("Idempotency-Key", "order-1")
		h.ServeHTTP(w, r)
		return w
	}
	require.Equal(t, http.StatusInternalServerError, pay().Code, "the processor has no table")
	require.Equal(t, http.StatusInternalServerError, pay().Code, "nor can it be asked")
	require.NoError(t, a.cards.migrate(t.Context()))
	w := pay()
	require.Equal(t, http.StatusCreated, w.Code, w.Body)
	require.Empty(t, w.Header().Get("Charge-Found"), "the handler ran again")
	require.Equal(t, []int64{900}, charges(t, url))
	require.Equal(t, []int64{900}, payments(t, url))
}

func TestBadStart(t *testing.T) {
	for name, test := range map[string]struct{ url, says string }{
		"no URL":    {"", "-postgres: give"},
		"malformed": {"postgres://:hunter2@127.0.0.1:x/", "-postgres: give"},
		"not there": {"postgres://:hunter2@127.0.0.1:1/", "no answer from PostgreSQL at 127.0.0.1"},
	} {
		t.Run(name, func(t *testing.T) {
			err := serve(t.Context(), test.url, "127.0.0.1:0", io.Discard, func() {})
			require.ErrorContains(t, err, test.says)
			require.NotContains(t, err.Error(), "hunter2")
		})
	}
}

// process is a running copy of the program.
type process struct {
	url string
	cmd *exec.Cmd
}

func start(t *testing.T, program, url string, flags ...string) *process {
	t.Helper()
	cmd := exec.Command(program, append(flags, "-postgres", url, "-addr", "127.0.0.1:0")...)
	cmd.Stderr = t.Output()
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // It is over already where the test has passed.
		_ = cmd.Wait()
	})
	out := bufio.NewReader(stdout)
	line, err := out.ReadString('\n')
	require.NoError(t, err)
	go func() { _, _ = io.Copy(io.Discard, out) }()
	fields := strings.Fields(line)
	require.Greater(t, len(fields), 2, line)
	return &process{strings.TrimSuffix(fields[2], "."), cmd}
}

// stop stops a process as a supervisor does, and expects a clean end.
func (p *process) stop(t *testing.T) {
	t.Helper()
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(t, p.cmd.Wait())
}

// answer is what became of a request. One that was not answered has status 0.
type answer struct {
	status int
	body   string
	how    string // "replayed", "found" if the charge was, or ""
}

// pay sends a payment.
func (p *process) pay(t *testing.T, key, body string) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.url+"/payments", strings.NewReader(body))
	require.NoError(t, err)
	r.Header.Set("Idempotency-Key", key)
	// Without a body to read again it is sent once.
	r.GetBody = nil
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return answer{}
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	a := answer{status: resp.StatusCode, body: string(text)}
	switch {
	case resp.Header.Get("Idempotent-Replayed") == "true":
		a.how = "replayed"
	case resp.Header.Get("Charge-Found") == "true":
		a.how = "found"
	}
	return a
}

// payUntilClaimed sends a payment until the lease of a process that died is over.
func (p *process) payUntilClaimed(t *testing.T, key, body string) (a answer) {
	t.Helper()
	require.Eventually(t, func() bool {
		a = p.pay(t, key, body)
		return a.status != http.StatusConflict
	}, time.Minute, 50*time.Millisecond)
	return a
}

func (p *process) get(t *testing.T, path string) string {
	t.Helper()
	resp, err := http.Get(p.url + path)
	require.NoError(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return string(text)
}

// payments and charges read the amounts in the tables, past the program.
func payments(t *testing.T, url string) []int64 {
	t.Helper()
	return amounts(t, url, "SELECT amount FROM payments_example ORDER BY id")
}

func charges(t *testing.T, url string) []int64 {
	t.Helper()
	return amounts(t, url, "SELECT amount FROM payments_example_charges ORDER BY created")
}

func amounts(t *testing.T, url, query string) []int64 {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer conn.Close(context.Background())
	rows, err := conn.Query(t.Context(), query)
	require.NoError(t, err)
	found, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	require.NoError(t, err)
	return found
}
