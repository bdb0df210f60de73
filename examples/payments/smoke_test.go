package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/internal/redistest"
)

// TestProgram builds the program and uses it as a person would: as processes of
// its own, over HTTP, stopped by a signal.
func TestProgram(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		t.Skip("SKIPPED: there is no SIGTERM to stop the program with on Windows.")
	}
	program := filepath.Join(t.TempDir(), "payments")
	built, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput()
	require.NoError(t, err, string(built))

	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		p := start(t, program)
		usePayments(t, "smoke-"+rand.Text(), p, p)
		p.stop(t)
	})
	t.Run("two copies on one redis", func(t *testing.T) {
		t.Parallel()
		url := redisURL(t)
		key := "smoke-" + rand.Text()
		cleanUp(t, url, key)
		one, other := start(t, program, "-redis", url), start(t, program, "-redis", url)
		usePayments(t, key, one, other)
		one.stop(t)
		other.stop(t)
	})
	t.Run("no redis", func(t *testing.T) {
		t.Parallel()
		cmd := exec.Command(program, "-redis", "redis://127.0.0.1:1/0")
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		require.Error(t, cmd.Run())
		require.Equal(t, 1, cmd.ProcessState.ExitCode())
		require.Empty(t, stdout.String())
		require.Equal(t, 1, strings.Count(stderr.String(), "\n"), stderr.String())
	})
	t.Run("the printed lines", func(t *testing.T) {
		t.Parallel()
		for _, tool := range []string{"curl", "sh"} {
			if _, err := exec.LookPath(tool); err != nil {
				t.Skipf("SKIPPED: there is no %s on the PATH to run the printed lines with.", tool)
			}
		}
		p := start(t, program)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		said, err := exec.CommandContext(ctx, "sh", "-c", p.lines).Output()
		require.NoError(t, err)
		var statuses []string
		for _, found := range regexp.MustCompile(`HTTP/1.1 (\d+)`).FindAllSubmatch(said, -1) {
			statuses = append(statuses, string(found[1]))
		}
		require.Equal(t, "201 201 422 409 201 503 201 500 201 200 200 201", strings.Join(statuses, " "), string(said))
		require.Equal(t, 1, bytes.Count(said, []byte("Idempotent-Replayed: true")), string(said))
		require.Equal(t, 1, bytes.Count(said, []byte("Charge-Found: true")), string(said))
		require.Contains(t, string(said), `{"charges":4,"runs":5}`)
		p.stop(t)
	})
}

// usePayments pays through one process and retries through another.
func usePayments(t *testing.T, key string, one, other *process) {
	paid := post(t, one.url+"/payments", key, visa)
	require.Equal(t, 201, paid.status, paid.body)
	require.False(t, paid.replayed)
	require.Contains(t, paid.body, path.Base(paid.location))

	retried := post(t, other.url+"/payments", key, visa)
	require.Equal(t, answer{201, paid.body, paid.location, true}, retried)

	changed := post(t, other.url+"/payments", key, strings.Replace(visa, "1250", "9900", 1))
	require.Equal(t, 422, changed.status, changed.body)

	slow := strings.Replace(visa, "tok_visa", "tok_slow", 1)
	first := make(chan answer, 1)
	go func() { first <- post(t, one.url+"/payments", key+"-slow", slow) }()
	second := post(t, other.url+"/payments", key+"-slow", slow)
	require.ElementsMatch(t, []int{201, 409}, []int{(<-first).status, second.status})

	refunds := paid.location + "/refunds"
	refunded := post(t, one.url+refunds, key+"-refund", `{"amount": 1000}`)
	require.Equal(t, 201, refunded.status, refunded.body)
	again := post(t, other.url+refunds, key+"-refund", `{"amount": 1000}`)
	require.Equal(t, answer{201, refunded.body, "", true}, again)
	tooMuch := post(t, other.url+refunds, key+"-more", `{"amount": 1000}`)
	require.Equal(t, 422, tooMuch.status, tooMuch.body)
}

// process is a running copy of the program.
type process struct {
	url   string
	lines string // to paste
	cmd   *exec.Cmd
}

func start(t *testing.T, program string, args ...string) *process {
	t.Helper()
	cmd := exec.Command(program, append(args, "-addr", "127.0.0.1:0")...)
	cmd.Stderr = t.Output()
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // It is over already where the test has passed.
		_ = cmd.Wait()
	})
	out := bufio.NewReader(stdout)
	p := &process{url: introURL(t, out), cmd: cmd}
	for last := false; !last; {
		line, err := out.ReadString('\n')
		require.NoError(t, err)
		if last = strings.HasPrefix(line, "Other cards"); !last {
			p.lines += line
		}
	}
	return p
}

// stop stops a process as a supervisor does, and expects a clean end.
func (p *process) stop(t *testing.T) {
	t.Helper()
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(t, p.cmd.Wait(), "exit status 0")
}

// redisURL returns the Redis that the environment names, or starts one.
func redisURL(t *testing.T) string {
	t.Helper()
	if url := os.Getenv(redistest.Variable); url != "" {
		return url
	}
	return redistest.Start(t).URL()
}

// cleanUp deletes what usePayments leaves in Redis, and nothing else.
func cleanUp(t *testing.T, url, key string) {
	client := clientOf(t, url)
	t.Cleanup(func() {
		ctx := context.Background()
		for _, suffix := range []string{"", "-slow", "-refund", "-more"} {
			client.Del(ctx, "idempotency:"+idempotency.NewKey("alice", key+suffix).String())
		}
		payments, err := redisStore{client}.List(ctx, "alice")
		require.NoError(t, err)
		for _, p := range payments {
			if strings.HasPrefix(p.Reference, key) {
				client.HDel(ctx, hashPrefix+"alice", p.ID)
			}
		}
	})
}

func clientOf(t *testing.T, url string) *redis.Client {
	opts, err := redis.ParseURL(url)
	require.NoError(t, err)
	client := redis.NewClient(opts)
	t.Cleanup(func() { client.Close() })
	return client
}
