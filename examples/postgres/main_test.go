package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net/http"
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
)

// TestProgram uses the program as its reader does: it pays, lets it crash, starts
// it again and retries.
func TestProgram(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("SKIPPED: there is no SIGTERM to stop the program with on Windows.")
	}
	url := pgtest.Start(t).URL()
	program := filepath.Join(t.TempDir(), "postgres")
	built, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput()
	require.NoError(t, err, string(built))

	p := start(t, program, url)
	status, body, replayed := p.pay(t, "order-1", `{"amount": 1250}`)
	require.Equal(t, http.StatusCreated, status, body)
	require.False(t, replayed)
	status, again, replayed := p.pay(t, "order-1", `{"amount": 1250}`)
	require.Equal(t, http.StatusCreated, status)
	require.Equal(t, body, again)
	require.True(t, replayed)
	status, _, _ = p.pay(t, "order-0", `{"amount": 0}`)
	require.Equal(t, http.StatusBadRequest, status)
	require.Equal(t, []int64{1250}, amounts(t, url))

	p.stop(t)
	p = start(t, program, url, "-crash")
	const order = `{"amount": 900}`
	status, _, _ = p.pay(t, "order-2", order)
	require.Zero(t, status, "there is no answer")
	require.Error(t, p.cmd.Wait())
	require.Equal(t, 3, p.cmd.ProcessState.ExitCode())
	require.Equal(t, []int64{1250}, amounts(t, url), "nothing of it is left")

	p = start(t, program, url)
	require.Eventually(t, func() bool {
		status, body, replayed = p.pay(t, "order-2", order)
		return status != http.StatusConflict
	}, time.Minute, 50*time.Millisecond)
	require.Equal(t, http.StatusCreated, status, body)
	require.False(t, replayed)
	_, again, replayed = p.pay(t, "order-2", order)
	require.Equal(t, body, again)
	require.True(t, replayed)
	require.Equal(t, []int64{1250, 900}, amounts(t, url))
	require.Contains(t, p.get(t), `"amount":900`)

	p.stop(t)
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

// pay sends a payment. One that is not answered has status 0.
func (p *process) pay(t *testing.T, key, body string) (status int, answer string, replayed bool) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.url+"/payments", strings.NewReader(body))
	require.NoError(t, err)
	r.Header.Set("Idempotency-Key", key)
	// Without a body to read again it is sent once.
	r.GetBody = nil
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, "", false
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(text), resp.Header.Get("Idempotent-Replayed") == "true"
}

func (p *process) get(t *testing.T) string {
	t.Helper()
	resp, err := http.Get(p.url + "/payments")
	require.NoError(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return string(bytes.TrimSpace(text))
}

// amounts reads what is in the table, past the program.
func amounts(t *testing.T, url string) []int64 {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	defer conn.Close(context.Background())
	rows, err := conn.Query(t.Context(), "SELECT amount FROM payments_example ORDER BY id")
	require.NoError(t, err)
	found, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	require.NoError(t, err)
	return found
}
