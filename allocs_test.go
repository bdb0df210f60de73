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
// included. BenchmarkMemory and BenchmarkRedis say how long it takes. A backend of
// others costs the same as Memory.
func TestAllocations(t *testing.T) {
	for name, backend := range map[string]idempotency.Backend{
		"Memory":        idempotency.NewMemory(),
		"a third party": plain{idempotency.NewMemory()},
	} {
		t.Run(name, func(t *testing.T) {
			h := idempotency.New(backend)(bareHandler(200))
			c := newBenchClient(t)
			c.send(h, "stored", benchBody)
			first := testing.AllocsPerRun(1000, func() { c.send(h, nextKey(), benchBody) })
			replay := testing.AllocsPerRun(1000, func() { c.send(h, "stored", benchBody) })
			reused := testing.AllocsPerRun(1000, func() { c.send(h, "stored", otherBody) })
			outstanding := 0.
			whileOutstanding(t, backend, "outstanding", func() {
				outstanding = testing.AllocsPerRun(1000, func() { c.send(h, "outstanding", benchBody) })
			})
			t.Logf("first %v, replay %v, 422 %v, 409 %v", first, replay, reused, outstanding)
			require.LessOrEqual(t, first, 14.)
			require.LessOrEqual(t, replay, 5.)
			require.LessOrEqual(t, reused, 5.)
			require.LessOrEqual(t, outstanding, 5.)
		})
	}
}

// TestRedisAllocations holds what a request costs beyond the bare commands.
func TestRedisAllocations(t *testing.T) {
	client := redistest.Client(t)
	bare := newBareRedis(t, client, 200)
	key := bare.stored(t)
	bareReplay := testing.AllocsPerRun(500, func() { bare.claim(t, key) })
	barePair := testing.AllocsPerRun(500, func() {
		key := bare.prefix + nextKey()
		bare.claim(t, key)
		bare.complete(t, key)
	})
	h := idempotency.New(idempotency.NewRedis(client, idempotency.WithPrefix(freshPrefix(t, client))))(bareHandler(200))
	c := newBenchClient(t)
	c.send(h, "stored", benchBody)
	replay := testing.AllocsPerRun(500, func() { c.send(h, "stored", benchBody) })
	first := testing.AllocsPerRun(500, func() { c.send(h, nextKey(), benchBody) })
	t.Logf("replay %v (bare %v), first %v (bare %v)", replay, bareReplay, first, barePair)
	require.LessOrEqual(t, replay, bareReplay+10, "replay")
	require.LessOrEqual(t, first, barePair+29, "first")
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
		firstBytes, replayBytes := bytesPerRun(send), bytesPerRun(send)
		t.Logf("%s: first %d bytes, replay %d", name, firstBytes, replayBytes)
		require.LessOrEqual(t, firstBytes, first, "%s: first", name)
		require.LessOrEqual(t, replayBytes, replay, "%s: replay", name)
	}
	check("memory", idempotency.NewMemory(), size*5/4, 2000)
	check("a third party", plain{idempotency.NewMemory()}, size*5/4, 2000)
	client := redistest.Client(t)
	check("redis", idempotency.NewRedis(client, idempotency.WithPrefix(freshPrefix(t, client))), size*5/4, size*5/4)
}
