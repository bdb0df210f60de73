package idempotency_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/idempotency-go/idempotency"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// allCalls are all verbs, and Forget.
func allCalls() []verb {
	return append(allVerbs(), verb{"forget", func(ctx context.Context, b *idempotency.Redis, key idempotency.Key) error {
		forgotten, err := b.Forget(ctx, key, idempotency.Record{Claim: claimOf("mine"), State: idempotency.StateOutstanding})
		if forgotten {
			return errors.Join(errors.New("it forgot a record"), err)
		}
		return err
	}})
}

func TestRedisFaults(t *testing.T) {
	key := idempotency.NewKey("tenant", "client-key")
	// Each call of the client tries once.
	connect := func(t *testing.T, addr string, readTimeout time.Duration) *redis.Client {
		client := redis.NewClient(&redis.Options{
			Addr: addr, MaxRetries: -1, DialerRetries: 1, DialTimeout: time.Minute,
			ReadTimeout: readTimeout, WriteTimeout: time.Minute, ContextTimeoutEnabled: true,
		})
		t.Cleanup(func() { client.Close() })
		return client
	}
	check := func(t *testing.T, ctx context.Context, client *redis.Client, want func(error) bool) {
		t.Helper()
		for _, verb := range allCalls() {
			err := verb.call(ctx, idempotency.NewRedis(client), key)
			require.Error(t, err, verb.name)
			require.True(t, want(err), "%s: the cause is not wrapped: %#v", verb.name, err)
			require.True(t, strings.HasPrefix(err.Error(), "idempotency: redis"), "%s: %v", verb.name, err)
			require.NotContains(t, err.Error(), key.String(), verb.name)
			for _, sentinel := range []error{idempotency.ErrClaimLost, idempotency.ErrFull, idempotency.ErrUnreadable} {
				require.NotErrorIs(t, err, sentinel, "%s: a fault that a retry may mend", verb.name)
			}
		}
	}
	t.Run("server gone", func(t *testing.T) {
		server := miniredis.RunT(t)
		client := connect(t, server.Addr(), time.Minute)
		require.NoError(t, client.Ping(t.Context()).Err())
		server.Close()
		check(t, t.Context(), client, func(err error) bool {
			var network net.Error
			return errors.As(err, &network) || errors.Is(err, io.EOF)
		})
		// It recovers when the server is back.
		require.NoError(t, server.Restart())
		require.Eventually(t, func() bool { return client.Ping(t.Context()).Err() == nil }, time.Minute, 10*time.Millisecond)
		mine, b := claimOf("mine"), idempotency.NewRedis(client)
		mustClaim(t, b, key, mine, lease(time.Hour))
		require.NoError(t, b.Renew(t.Context(), key, mine, lease(time.Hour), nil))
		require.NoError(t, b.Complete(t.Context(), key, mine, nil, time.Hour))
	})
	t.Run("server does not answer", func(t *testing.T) {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer listener.Close()
		check(t, t.Context(), connect(t, listener.Addr().String(), 50*time.Millisecond), func(err error) bool {
			var network net.Error
			return errors.As(err, &network) && network.Timeout()
		})
	})
	t.Run("server does not speak Redis", func(t *testing.T) {
		web := httptest.NewServer(http.NotFoundHandler())
		defer web.Close()
		check(t, t.Context(), connect(t, web.Listener.Addr().String(), time.Minute), func(error) bool { return true })
	})
	t.Run("server refuses commands", func(t *testing.T) {
		server := miniredis.RunT(t)
		client := connect(t, server.Addr(), time.Minute)
		server.SetError("LOADING Redis is loading the dataset in memory")
		check(t, t.Context(), client, func(err error) bool { return redis.HasErrorPrefix(err, "LOADING") })
	})
	t.Run("client closed", func(t *testing.T) {
		client := connect(t, miniredis.RunT(t).Addr(), time.Minute)
		client.Close()
		for _, verb := range allCalls() {
			err := verb.call(t.Context(), idempotency.NewRedis(client), key)
			if verb.name == "renew" { // without progress
				require.NoError(t, err, "it has connections of its own")
			} else {
				require.ErrorIs(t, err, redis.ErrClosed, verb.name)
			}
		}
	})
	t.Run("context cancelled", func(t *testing.T) {
		server := miniredis.RunT(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		check(t, ctx, connect(t, server.Addr(), time.Minute), func(err error) bool { return errors.Is(err, context.Canceled) })
		require.Empty(t, server.Keys())
	})
	t.Run("deadline passed", func(t *testing.T) {
		server := miniredis.RunT(t)
		ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
		defer cancel()
		check(t, ctx, connect(t, server.Addr(), time.Minute), func(err error) bool { return errors.Is(err, context.DeadlineExceeded) })
		require.Empty(t, server.Keys())
	})
	t.Run("deadline while the server does not answer", func(t *testing.T) {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer listener.Close()
		client := redis.NewClient(&redis.Options{
			Addr: listener.Addr().String(), ReadTimeout: time.Hour, DialTimeout: time.Hour, ContextTimeoutEnabled: true,
		})
		defer client.Close()
		for _, verb := range allCalls() {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			err := verb.call(ctx, idempotency.NewRedis(client), key)
			cancel()
			// With time-outs of an hour, only the deadline can have ended it.
			require.True(t, errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded), "%s: %v", verb.name, err)
		}
	})
}

// A claim whose answer was lost is known by its token: claimed again, it is the
// claimant's own, and a Release frees it.
func TestRedisClaimThatFailedMayHaveLanded(t *testing.T) {
	forEachRedis(t, func(t *testing.T, newClient func(t *testing.T) *redis.Client) {
		client := newClient(t)
		b := provenRedis(t, client, idempotency.WithPrefix(freshPrefix(t, client)))
		learnScripts(t, b)
		lost := &loseNext{}
		client.AddHook(lost)
		mine, other := claimOf("mine"), claimOf("other")
		for _, terms := range []idempotency.Terms{lease(time.Hour), traced(time.Hour, time.Hour)} {
			key := keyOf(terms.Trace.String())
			lost.next.Store(true)
			_, claimed, err := b.Claim(t.Context(), key, mine, terms)
			require.ErrorIs(t, err, errLost)
			require.False(t, claimed)
			mustHold(t, b, key, other, terms)
			require.Zero(t, mustClaim(t, b, key, mine, terms))
			require.NoError(t, b.Release(t.Context(), key, mine, 0))
			mustClaim(t, b, key, other, terms)
		}
	})
}

var errLost = errors.New("the answer is lost")

// loseNext loses the answer to the next command.
type loseNext struct{ next atomic.Bool }

func (h *loseNext) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h *loseNext) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if h.next.Swap(false) {
			cmd.SetErr(errLost)
			return errLost
		}
		return err
	}
}

func (h *loseNext) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}
