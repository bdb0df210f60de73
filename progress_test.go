package idempotency_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

// unreadable are progresses that no release has written.
var unreadable = map[string]string{
	"another version":    "\x02\x01\x01a\x01b",
	"no number":          "\x01",
	"a step too few":     "\x01\x02\x01a\x01b",
	"a step too many":    "\x01\x01\x01a\x01b\x01c\x01d",
	"a byte too many":    "\x01\x01\x01a\x01b\x00",
	"cut in a name":      "\x01\x01\x05abc",
	"cut before result":  "\x01\x01\x01a",
	"cut in a result":    "\x01\x01\x01a\x05bcd",
	"a name twice":       "\x01\x02\x01a\x01b\x01a\x01c",
	"a huge number":      "\x01\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
	"a huge name":        "\x01\x01\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
	"a huge result":      "\x01\x01\x01a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
	"a number too long":  "\x01\x81\x00\x01a\x01b",
	"of somebody else's": "some progress",
}

// A progress that cannot be read is refused, and its record stays as it is.
func TestStepUnreadable(t *testing.T) {
	for name, progress := range unreadable {
		t.Run(name, func(t *testing.T) {
			forEachBackend(t, func(t *testing.T, newBackend func(*testing.T) idempotency.Backend) {
				backend, es, s := newBackend(t), &events{}, &shop{}
				s.interrupt(t, backend)
				claim := idempotency.Claim{Token: claimOf("k").Token}
				mustClaim(t, backend, keyOf("k"), claim, idempotency.Terms{Lease: time.Hour, TakeOver: true})
				require.NoError(t, backend.Renew(t.Context(), keyOf("k"), claim, lease(time.Hour), []byte(progress)))
				require.NoError(t, backend.Release(t.Context(), keyOf("k"), claim, time.Hour))
				for n := range 3 {
					requireRefused(t, s.open(backend, es.option()), http.StatusServiceUnavailable, "ErrUnreadable")
					e, seen := es.last(t)
					require.Equal(t, n+1, seen)
					require.Equal(t, idempotency.Failed, e.Outcome)
					require.False(t, e.Recovered)
					require.ErrorIs(t, e.Err, idempotency.ErrUnreadable)
					rec := lookup(t, backend.(idempotency.Inspector), "k")
					require.Equal(t, idempotency.StateInterrupted, rec.State)
					require.Equal(t, progress, string(rec.Progress))
				}
				require.Zero(t, s.recoveries.Load())
				require.EqualValues(t, 1, s.runs.Load())
			})
		})
	}
	t.Run("and its claim is not released at once", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			backend := newCounted(times(2, "release", errDown))
			claim := backend.claim
			backend.claim = func(ctx context.Context, key idempotency.Key, c idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
				mustClaim(t, backend.Memory, key, claimOf("dead"), traced(time.Second, time.Hour))
				require.NoError(t, backend.Memory.Release(ctx, key, claimOf("dead"), time.Hour))
				held, claimed, err := claim(ctx, key, idempotency.Claim{Token: c.Token}, terms)
				held.Progress = []byte("?")
				return held, claimed, err
			}
			w := runIn(backend, func(context.Context) { t.Error("it ran") })
			requireProblem(t, w, http.StatusServiceUnavailable, "ErrUnreadable")
			require.Equal(t, idempotency.StateOutstanding, lookup(t, backend, "k").State)
			time.Sleep(20 * time.Second)
			require.EqualValues(t, 3, backend.releases.Load())
			require.Equal(t, idempotency.StateInterrupted, lookup(t, backend, "k").State)
		})
	})
}

// goldenProgresses are what testdata/progress_v1.golden has.
var goldenProgresses = map[string][][2]string{
	"one step":    {{"charge", "ch_1"}},
	"three steps": {{"flight", `{"id":1}`}, {"hotel", ""}, {"", "\x00\xff"}},
	"a long one":  {{"long", strings.Repeat("x", 300)}},
}

func TestGoldenProgress(t *testing.T) {
	golden := readGoldenFile(t, "testdata/progress_v1.golden")
	require.Len(t, golden, len(goldenProgresses))
	for name, steps := range goldenProgresses {
		t.Run(name, func(t *testing.T) {
			backend := newSending()
			take := func(ctx context.Context, f func(string) func(context.Context) ([]byte, error)) {
				for _, step := range steps {
					requireStep(t, ctx, step[0], step[1], f(step[1]))
				}
			}
			interruptIn(t, backend, func(ctx context.Context) {
				take(ctx, func(result string) func(context.Context) ([]byte, error) { return does(new(int), result) })
			})
			require.Equal(t, golden[name], backend.sent[len(backend.sent)-1],
				"the form of a released version has changed: stores hold what other releases cannot read")
			runIn(progressOf(golden[name]), func(ctx context.Context) {
				take(ctx, func(string) func(context.Context) ([]byte, error) { return nil })
			})
		})
	}
}

// progressOf returns a backend whose every claim takes over a progress.
func progressOf(progress []byte) *sending {
	backend := newSending()
	backend.claim = func(_ context.Context, _ idempotency.Key, claim idempotency.Claim, _ idempotency.Terms) (idempotency.Record, bool, error) {
		return idempotency.Record{Claim: claim, State: idempotency.StateInterrupted, Progress: progress}, true, nil
	}
	return backend
}

// FuzzProgress takes over arbitrary bytes as a progress. What is read is part, byte for byte,
// of what is sent with the next step. All else is refused.
func FuzzProgress(f *testing.F) {
	for _, b := range readGoldenFile(f, "testdata/progress_v1.golden") {
		f.Add(b)
		f.Add(b[:len(b)/2])
	}
	for _, text := range unreadable {
		f.Add([]byte(text))
	}
	f.Add([]byte(nil))
	f.Add([]byte("\x01\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		given, backend, ran := bytes.Clone(b), progressOf(b), false
		next := ""
		w := runIn(backend, func(ctx context.Context) {
			ran = true
			for bytes.Contains(b, []byte(next)) {
				next += "n" // No name that is there.
			}
			requireStep(t, ctx, next, "r", does(new(int), "r"))
		}, idempotency.WithBufferLimit(1<<30))
		require.Equal(t, given, b, "reading altered its input")
		if !ran {
			requireProblem(t, w, http.StatusServiceUnavailable, "ErrUnreadable")
			require.Empty(t, backend.sent)
			return
		}
		require.Len(t, backend.sent, 1)
		if len(b) == 0 {
			b = []byte("\x01\x00")
		}
		sent, added := backend.sent[0], append(binary.AppendUvarint(nil, uint64(len(next))), next+"\x01r"...)
		require.Equal(t, byte(1), sent[0])
		require.True(t, bytes.HasSuffix(sent, added))
		require.True(t, bytes.HasSuffix(sent[:len(sent)-len(added)], afterNumber(b)), "%x is not part of %x", b, sent)
		require.Len(t, runAgain(t, sent, next).sent, 0, "what was sent is read again")
	})
}

// runAgain takes over a progress that has a step.
func runAgain(t *testing.T, progress []byte, name string) *sending {
	backend := progressOf(progress)
	require.Equal(t, 200, runIn(backend, func(ctx context.Context) { requireStep(t, ctx, name, "r", nil) }).Code)
	return backend
}

// afterNumber returns the steps of a progress without what stands before them.
func afterNumber(progress []byte) []byte {
	rest := progress[1:]
	for len(rest) > 0 && rest[0] >= 0x80 {
		rest = rest[1:]
	}
	return rest[1:]
}
