package work

import (
	"context"
	"encoding/json"
	"errors"
	"regexp"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
)

func TestAnswer(t *testing.T) {
	for _, n := range []int{11, AnswerSize, 100_000} {
		require.Len(t, Answer(n), n)
		require.True(t, json.Valid(Answer(n)))
	}
	require.Len(t, Body, 150)
}

func TestKey(t *testing.T) {
	require.Equal(t, "00000000-0000-4000-8000-000000000000", Key(0, 0))
	require.Equal(t, "deadbeef-0000-4000-8000-0000000f4240", Key(0xdeadbeef, 1_000_000))
	require.Regexp(t, regexp.MustCompile(`^[0-9a-f-]{36}$`), Key(1<<32-1, 1<<48-1))
	require.NoError(t, idempotency.UUIDv4(Key(7, 11)))
}

func TestDirect(t *testing.T) {
	service := &Service{Answer: Answer(AnswerSize)}
	client := NewDirect(idempotency.New(idempotency.NewMemory())(service))
	for _, step := range []struct {
		key    string
		runs   int64
		replay []string
	}{{"", 1, nil}, {Key(0, 0), 2, nil}, {Key(0, 0), 2, []string{"true"}}, {"", 3, nil}} {
		status, answer, err := client.Post(step.key, Body)
		require.NoError(t, err)
		require.Equal(t, Status, status)
		require.Equal(t, service.Answer, answer)
		require.Equal(t, []string{Location}, client.Header("Location"))
		require.Equal(t, step.replay, client.Header("Idempotent-Replayed"))
		require.Equal(t, step.runs, service.Runs())
	}
	status, _, err := client.Post(Key(0, 0), "another body")
	require.NoError(t, err)
	require.Equal(t, 422, status)
}

func TestTogether(t *testing.T) {
	t.Run("for a time", func(t *testing.T) {
		var calls [3]atomic.Int64
		ops, elapsed, err := Together(t.Context(), 10*time.Millisecond, len(calls), func(worker int, n int64) error {
			if calls[worker].Add(1) != n+1 {
				return errors.New("miscounted")
			}
			return nil
		})
		require.NoError(t, err)
		require.Equal(t, calls[0].Load()+calls[1].Load()+calls[2].Load(), ops)
		require.GreaterOrEqual(t, elapsed, 10*time.Millisecond)
	})
	t.Run("for no time", func(t *testing.T) {
		var worked [1000]atomic.Bool // Most begin when it is over.
		_, _, err := Together(t.Context(), -1, len(worked), func(worker int, _ int64) error {
			worked[worker].Store(true)
			return nil
		})
		require.NoError(t, err)
		for worker := range worked {
			require.True(t, worked[worker].Load(), worker)
		}
	})
	t.Run("one fails", func(t *testing.T) {
		failure := errors.New("failure")
		_, elapsed, err := Together(t.Context(), time.Hour, 2, func(worker int, n int64) error {
			if worker == 1 && n == 3 {
				return failure
			}
			return nil
		})
		require.Equal(t, failure, err)
		require.Less(t, elapsed, time.Minute)
	})
	t.Run("told to end", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, elapsed, err := Together(ctx, time.Hour, 2, func(int, int64) error { return nil })
		require.NoError(t, err)
		require.Less(t, elapsed, time.Minute)
	})
}
