package scale

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency/internal/redistest"
)

func TestRun(t *testing.T) {
	out := filepath.Join(t.TempDir(), "new")
	var progress bytes.Buffer
	require.NoError(t, Run(t.Context(), Config{
		Records:  2000,
		Time:     rounds * time.Millisecond,
		Redis:    redistest.Start(t).Options(),
		Progress: &progress,
		Out:      out,
	}))
	require.Contains(t, progress.String(), "2,000 of 2,000 responses stored\n")

	written, err := os.ReadFile(filepath.Join(out, "scale.md"))
	require.NoError(t, err)
	report := string(written)
	for _, word := range []string{"NaN", "Inf", "%!", "| 0 "} {
		require.NotContains(t, report, word)
	}
	const number = `[1-9][\d,]*`
	const spans = `-?[\d,]+` // Few records may fill gaps that were there before.
	const duration = `\d+(\.\d+)? (ns|µs|ms|s)`
	for _, row := range []string{
		// The memory backend: what records take, then rates.
		`1,000 | N B | S B`, `2,000 | N B | S B`,
		`1,000 | 1 | N | N | N`, `2,000 | 1 | N | N | N`,
		`while none expires | D | D | D | D`, `while all expire | D | D | D | D`,
		// Redis: what records take, then what requests cost.
		`200 B | N | N B | N B | N B | N B`, `4,000 B | N | N B | N B | N B | N B`, `100,000 B | N | N B | N B | N B | N B`,
		`200 B | first request | N B | N B | D | N`, `200 B | replay | N B | N B | D | N`,
		`4,000 B | first request | N B | N B | D | N`, `4,000 B | replay | N B | N B | D | N`,
		`100,000 B | first request | N B | N B | D | N`, `100,000 B | replay | N B | N B | D | N`,
	} {
		pattern := strings.NewReplacer("N", number, "S", spans, "D", duration).Replace(regexp.QuoteMeta("| " + row + " |"))
		require.Regexp(t, "(?m)^"+pattern+"$", report)
	}
}

func TestRefused(t *testing.T) {
	good := Config{Records: 1000, Time: time.Second, Redis: &redis.Options{Addr: "127.0.0.1:1"}, Progress: io.Discard}
	for message, change := range map[string]func(*Config){
		"records: fewer than 1000": func(c *Config) { c.Records = 999 },
		"time: not positive":       func(c *Config) { c.Time = 0 },
		"connection refused":       func(*Config) {},
	} {
		config := good
		change(&config)
		require.ErrorContains(t, Run(t.Context(), config), message)
	}
}

func TestSizes(t *testing.T) {
	require.Equal(t, []int{1000}, sizes(1000))
	require.Equal(t, []int{1000, 2000}, sizes(2000))
	require.Equal(t, []int{1000, 10_000, 100_000}, sizes(100_000))
}

func TestSummarise(t *testing.T) {
	times := make([]time.Duration, 3000)
	for i := range times {
		times[(i*7)%3000] = time.Duration(i + 1)
	}
	require.Equal(t, latencies{median: 1501, slow: 2998, slowMean: 2999, slowest: 3000}, summarise(times))
}

// TestWire holds the counted bytes against what the commands are made of.
func TestWire(t *testing.T) {
	server := redistest.Start(t)
	s := storedInRedis{body: 200}
	require.NoError(t, s.measureWire(t.Context(), server.Client(t), server.Options()))
	length, err := server.Client(t).StrLen(t.Context(), redisPrefix+storageKey(heldKeys, 0).String()).Result()
	require.NoError(t, err)
	require.Greater(t, s.first.sent, float64(length), "the record goes to Redis once")
	require.Greater(t, s.replay.received, float64(length), "and back on a replay")
	require.Less(t, s.replay.received, float64(length)+16)
	require.Less(t, s.first.received, 16.0)
}

// TestFillInTime holds that a filling that takes too long is tried again, and
// given up in the end.
func TestFillInTime(t *testing.T) {
	var progress bytes.Buffer
	r := &results{Config: Config{Records: 1000, Progress: &progress}}
	_, _, err := r.fillInTime(t.Context(), time.Nanosecond)
	require.ErrorIs(t, err, errTooLate)
	require.Equal(t, fillTries-1, strings.Count(progress.String(), "once more"))
}
