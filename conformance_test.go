package idempotency_test

import (
	"strings"
	"testing"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/idempotencytest"
	"github.com/idempotency-go/idempotency/internal/redistest"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

func TestMemoryConformance(t *testing.T) {
	t.Parallel()
	idempotencytest.Run(t, func(*testing.T) idempotency.Backend { return idempotency.NewMemory() })
}

// A small bound holds the contract as a large one does.
func TestMemoryConformanceInLittleRoom(t *testing.T) {
	t.Parallel()
	idempotencytest.Run(t, func(*testing.T) idempotency.Backend {
		return idempotency.NewMemory(idempotency.WithMaxBytes(16 << 20))
	})
}

func TestRedisConformance(t *testing.T) {
	t.Parallel()
	forEachRedis(t, func(t *testing.T, newClient func(t *testing.T) *redis.Client) {
		client := newClient(t)
		idempotencytest.Run(t, func(t *testing.T) idempotency.Backend {
			return idempotency.NewRedis(client, idempotency.WithPrefix(freshPrefix(t, client)))
		})
	})
}

// A Redis Cluster refuses a command whose keys lie in several slots, and a
// script that reaches for a key that it did not name.
func TestRedisClusterConformance(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, "cluster-enabled yes")
	ctx := t.Context()
	one := server.Client(t)
	require.NoError(t, one.ClusterAddSlotsRange(ctx, 0, 16383).Err())
	require.Eventually(t, func() bool {
		return strings.Contains(one.ClusterInfo(ctx).Val(), "cluster_state:ok")
	}, time.Minute, 10*time.Millisecond)
	client := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{server.Options().Addr}, Password: server.Options().Password})
	t.Cleanup(func() { client.Close() })
	idempotencytest.Run(t, func(t *testing.T) idempotency.Backend { return idempotency.NewRedis(client) })
}
