//go:build !race

package idempotency_test

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/internal/redistest"
	"github.com/stretchr/testify/require"
)

// The race detector lets a sync.Pool forget, so that these are not for it.

// TestAllocations holds what a request costs, the handler's two allocations
// included. BenchmarkMemory and BenchmarkRedis say how long it takes.
func TestAllocations(t *testing.T) {
	backend := idempotency.NewMemory()
	h := idempotency.New(backend)(bareHandler(200))
	c := newBenchClient(t)
	c.send(h, "stored", benchBody)
	require.LessOrEqual(t, testing.AllocsPerRun(1000, func() { c.send(h, nextKey(), benchBody) }), 13., "first")
	require.LessOrEqual(t, testing.AllocsPerRun(1000, func() { c.send(h, "stored", benchBody) }), 2., "replay")
	require.LessOrEqual(t, testing.AllocsPerRun(1000, func() { c.send(h, "stored", otherBody) }), 2., "422")
	whileOutstanding(t, backend, "outstanding", func() {
		require.LessOrEqual(t, testing.AllocsPerRun(1000, func() { c.send(h, "outstanding", benchBody) }), 2., "409")
	})
}

// TestRedisAllocations holds what a request costs beyond the bare commands.
func TestRedisAllocations(t *testing.T) {
	client := redistest.Client(t)
	bare := newBareRedis(t, client, 200)
	stored := bare.stored(t)
	replay := testing.AllocsPerRun(500, func() { bare.claim(t, stored) })
	pair := testing.AllocsPerRun(500, func() {
		key := bare.prefix + nextKey()
		bare.claim(t, key)
		bare.complete(t, key)
	})
	h := idempotency.New(idempotency.NewRedis(client, idempotency.WithPrefix(freshPrefix(t, client))))(bareHandler(200))
	c := newBenchClient(t)
	c.send(h, "stored", benchBody)
	require.LessOrEqual(t, testing.AllocsPerRun(500, func() { c.send(h, "stored", benchBody) }), replay+10, "replay")
	require.LessOrEqual(t, testing.AllocsPerRun(500, func() { c.send(h, nextKey(), benchBody) }), pair+19, "first")
}

// TestBodyIsCopiedOnce holds that a response is copied once between the handler's
// Write and the store, and not at all on a replay from memory.
func TestBodyIsCopiedOnce(t *testing.T) {
	const size, runs = 100_000, 100
	bytesPerRun := func(f func(n int)) int {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for n := range runs {
			f(n)
		}
		runtime.ReadMemStats(&after)
		return int(after.TotalAlloc-before.TotalAlloc) / runs
	}
	check := func(name string, backend idempotency.Backend, first, replay int) {
		h := idempotency.New(backend)(bareHandler(size))
		c := newBenchClient(t)
		send := func(n int) { c.send(h, fmt.Sprint(n), benchBody) }
		require.LessOrEqual(t, bytesPerRun(send), first, "%s: first", name)
		require.LessOrEqual(t, bytesPerRun(send), replay, "%s: replay", name)
	}
	check("memory", idempotency.NewMemory(), size*5/4, 2000)
	client := redistest.Client(t)
	check("redis", idempotency.NewRedis(client, idempotency.WithPrefix(freshPrefix(t, client))), size*5/4, size*5/4)
}
