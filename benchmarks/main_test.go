package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency/internal/redistest"
)

// TestProgram builds the program and uses it as a person would.
func TestProgram(t *testing.T) {
	program := filepath.Join(t.TempDir(), "benchmarks")
	built, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput()
	require.NoError(t, err, string(built))

	t.Run("compare", func(t *testing.T) {
		redistest.Start(t) // It skips the test where there is none to start.
		out := t.TempDir()
		cmd := exec.Command(program, "compare", "-out", out, "-rounds", "1", "-time", "2ms", "-clients", "2")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		stdout, err := cmd.Output()
		require.NoError(t, err, stderr.String())
		table, chart := filepath.Join(out, "compare.md"), filepath.Join(out, "compare.svg")
		require.Equal(t, "wrote "+table+"\nwrote "+chart+"\n", string(stdout))
		written, err := os.ReadFile(table)
		require.NoError(t, err)
		// A program, unlike a test, knows the versions that it was built with.
		require.Regexp(t, `(?m)^- github.com/gofiber/fiber/v3 v3\.\d+\.\d+$`, string(written))
		require.NotContains(t, string(written), "unknown version")
		require.FileExists(t, chart)
	})
	t.Run("interrupted", func(t *testing.T) {
		if runtime.GOOS == "windows" {
			t.Skip("SKIPPED: there is no SIGTERM to stop the program with on Windows.")
		}
		redistest.Start(t)
		temp := t.TempDir()
		for name, args := range map[string][]string{
			"compare": {"compare", "-out", temp, "-time", "1m"},
			"scale":   {"scale", "-out", temp, "-time", "1m"},
		} {
			cmd := exec.Command(program, args...)
			cmd.Env = append(os.Environ(), "TMPDIR="+temp)
			var stderr bytes.Buffer
			progress, err := cmd.StderrPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			_, err = progress.Read(make([]byte, 1)) // It has begun.
			require.NoError(t, err)
			time.Sleep(100 * time.Millisecond)
			require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
			_, err = stderr.ReadFrom(progress)
			require.NoError(t, err)
			require.Error(t, cmd.Wait())
			require.Equal(t, 1, cmd.ProcessState.ExitCode(), name)
			require.True(t, strings.HasSuffix(stderr.String(), "\nbenchmarks: interrupted\n"), stderr.String())
			left, err := os.ReadDir(temp)
			require.NoError(t, err)
			require.Empty(t, left, "neither a report nor a Redis's directory")
		}
	})
}

func TestCommand(t *testing.T) {
	for _, c := range []struct {
		args   string
		status int
		stdout string
		stderr string
	}{
		{"", 1, "", "benchmarks: no command: compare or scale\n"},
		{"measure-it", 1, "", "benchmarks: no command \"measure-it\": compare or scale\n"},
		{"compare -rounds many", 1, "", "benchmarks: invalid value \"many\" for flag -rounds: parse error\n"},
		{"compare -records 5", 1, "", "benchmarks: flag provided but not defined: -records\n"},
		{"scale more", 1, "", "benchmarks: unexpected argument \"more\"; -h lists the flags\n"},
		{"measure", 1, "", "benchmarks: measurement: EOF\n"},
		{"-h", 0, "usage: go run . compare", ""},
		{"compare -h", 0, "how many clients at once are many (default 8)", ""},
		{"scale -h", 0, "how many responses to fill the memory backend with (default 1000000)", ""},
	} {
		t.Run(c.args, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			status := run(t.Context(), strings.Fields(c.args), strings.NewReader(""), &stdout, &stderr)
			require.Equal(t, c.status, status)
			require.Contains(t, stdout.String(), c.stdout)
			require.Equal(t, c.stderr, stderr.String())
		})
	}
	t.Run("bad values", func(t *testing.T) {
		redistest.Start(t)
		for args, message := range map[string]string{
			"compare -rounds 0":  "rounds: fewer than 1",
			"compare -clients 1": "clients: fewer than 2",
			"compare -time -1s":  "time: not positive",
			"scale -records 7":   "records: fewer than 1000",
			"scale -time 0":      "time: not positive",
		} {
			var stdout, stderr bytes.Buffer
			require.Equal(t, 1, run(t.Context(), strings.Fields(args), strings.NewReader(""), &stdout, &stderr))
			require.Equal(t, "benchmarks: "+message+"\n", stderr.String())
		}
	})
}
