package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/internal/pgtest"
	"github.com/idempotency-go/idempotency/internal/redistest"
	"github.com/idempotency-go/idempotency/postgres"
)

// page is what operators read.
const page = "../../docs/OPERATING.md"

var (
	console = regexp.MustCompile("(?ms)^```console\n(.*?)^```$")
	// byHand are commands that need what a test has not. Their blocks were run by hand.
	byHand = regexp.MustCompile(`(?m)^\$ (git|cd|export|redis-cli|psql) `)
	// differing are parts of a transcript that differ from run to run.
	differing = regexp.MustCompile(`\d{4}-\d\d-\d\dT[\d:.]+(Z|[+-]\d\d:\d\d)|[\da-f]{8}(-[\da-f]{4}){3}-[\da-f]{12}|\b(\d+(\.\d+)?(h|ms|µs|m|s))+`)
)

// The page's steps give what the page says that they give, on real servers.
func TestPage(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("SKIPPED: there is no sh to run the page's lines with on Windows.")
	}
	text, err := os.ReadFile(page)
	require.NoError(t, err)
	for store, newBackend := range map[string]func(t *testing.T) (b idempotency.Backend, variable string){
		"redis": func(t *testing.T) (idempotency.Backend, string) {
			server := redistest.Start(t)
			return idempotency.NewRedis(server.Client(t)), redisVariable + "=" + server.URL()
		},
		"postgres": func(t *testing.T) (idempotency.Backend, string) {
			server := pgtest.Start(t)
			pool, err := pgxpool.New(t.Context(), server.URL())
			require.NoError(t, err)
			t.Cleanup(pool.Close)
			b := postgres.New(pool)
			require.NoError(t, b.Migrate(t.Context()))
			return b, postgresVariable + "=" + server.URL()
		},
	} {
		t.Run(store, func(t *testing.T) {
			t.Parallel()
			b, variable := newBackend(t)
			dir := t.TempDir()
			useService(t, b, filepath.Join(dir, "service.log"))
			self, err := os.Executable()
			require.NoError(t, err)
			require.NoError(t, os.Symlink(self, filepath.Join(dir, "idempotency")))
			commands := 0
			for _, block := range console.FindAllStringSubmatch(string(text), -1) {
				if byHand.MatchString(block[1]) {
					continue
				}
				var given strings.Builder
				for line := range strings.Lines(block[1]) {
					if command, ok := strings.CutPrefix(line, "$ "); ok {
						commands++
						given.WriteString(line + shell(t, dir, variable, command))
					}
				}
				require.Equal(t, plain(block[1]), plain(given.String()))
			}
			require.Equal(t, 8, commands)
		})
	}
}

// plain returns a transcript without what differs from run to run, and without what a
// reader types.
func plain(transcript string) string {
	return strings.ReplaceAll(differing.ReplaceAllString(transcript, "…"), "[y/N] y\n", "[y/N] ")
}

// shell runs a line, whose questions it answers with yes.
func shell(t *testing.T, dir, variable, command string) string {
	t.Helper()
	cmd := program(t, []string{variable})
	cmd.Path, cmd.Args = "/bin/sh", []string{"sh", "-c", command}
	cmd.Env = append(cmd.Env, "PATH="+dir+string(filepath.ListSeparator)+os.Getenv("PATH"))
	cmd.Dir, cmd.Stdin = dir, strings.NewReader("y\n")
	said, err := cmd.CombinedOutput()
	if err != nil {
		require.ErrorAs(t, err, new(*exec.ExitError), command)
	}
	return string(said)
}

// useService runs services with a log, and lets customers use them.
func useService(t *testing.T, b idempotency.Backend, logFile string) {
	t.Helper()
	file, err := os.Create(logFile)
	require.NoError(t, err)
	t.Cleanup(func() { file.Close() })
	opts := []idempotency.Option{
		withLog(slog.New(slog.NewTextHandler(file, nil))),
		idempotency.WithScope(func(*http.Request) string { return "tenant-1" }),
	}
	charges := 0
	pay := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		charges++
		if charges == 1 {
			panic(http.ErrAbortHandler) // As if something broke after the charge.
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, `{"charges":%d}`, charges)
	})
	send := func(mode []idempotency.Option, key string) {
		defer func() { _ = recover() }() // As net/http does.
		r := httptest.NewRequest(http.MethodPost, "/payments", strings.NewReader("{}"))
		r.Header.Set("Idempotency-Key", key)
		idempotency.New(b, append(mode, opts...)...)(pay).ServeHTTP(httptest.NewRecorder(), r)
	}
	for range 2 {
		send([]idempotency.Option{idempotency.WithAtMostOnce()}, "order-17")
	}
	charges = 0
	for range 2 {
		send(nil, "order-19")
	}
}

// withLog is the observer of docs/OBSERVING.md.
func withLog(logger *slog.Logger) idempotency.Option {
	levels := map[idempotency.Outcome]slog.Level{idempotency.Reused: slog.LevelWarn, idempotency.Unprotected: slog.LevelWarn,
		idempotency.Failed: slog.LevelError, idempotency.Panicked: slog.LevelError}
	return idempotency.WithObserver(func(ctx context.Context, e idempotency.Event) {
		logger.Log(ctx, levels[e.Outcome], "idempotency", "outcome", e.Outcome, "status", e.Status,
			"reason", e.Reason, "duration", e.Duration, "storage_key", e.StorageKey.String(), "error", e.Err)
	})
}

// The line of shell gives the storage key, in whatever shell and whatever locale.
func TestShellStorageKey(t *testing.T) {
	for _, needed := range []string{"openssl", "sh"} {
		if _, err := exec.LookPath(needed); err != nil {
			t.Skipf("SKIPPED: there is no %s on the PATH to run the page's line with.", needed)
		}
	}
	text, err := os.ReadFile(page)
	require.NoError(t, err)
	found := regexp.MustCompile(`(?m)^\$ scope=tenant-1 key=order-17; (printf .*)$`).FindStringSubmatch(string(text))
	require.NotNil(t, found)
	for _, sh := range []string{"sh", "bash"} {
		if _, err := exec.LookPath(sh); err != nil {
			continue
		}
		for _, tt := range []struct{ scope, key string }{
			{"", "8e03978e"}, {"tenant-1", "8e03978e"}, {"7", "7"}, {"12345678", "a % \\ b"}, {"é", `"quoted"`},
			{strings.Repeat("s", 200), strings.Repeat("k", 255)}, {strings.Repeat("s", 255), "k"},
		} {
			cmd := exec.CommandContext(t.Context(), sh, "-c", found[1])
			cmd.Env = append(os.Environ(), "scope="+tt.scope, "key="+tt.key, "LC_ALL=C.UTF-8")
			said, err := cmd.CombinedOutput()
			require.NoError(t, err, string(said))
			require.Equal(t, idempotency.NewKey(tt.scope, tt.key).String(), strings.TrimSpace(string(said)), "%s: %q %q", sh, tt.scope, tt.key)
		}
	}
}
