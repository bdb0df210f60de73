package idempotency

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestQueue compares a queue with a slice, for few and for many durations.
func TestQueue(t *testing.T) {
	for _, durations := range []int{1, 2, spareLines, 3 * spareLines, 1000} {
		random := rand.New(rand.NewPCG(1, uint64(durations)))
		var (
			q       queue
			entries []*entry
			now     int64
			size    int64
		)
		for range 20_000 {
			now += random.Int64N(3)
			if len(entries) == 0 || random.IntN(2*len(entries)+100) > len(entries)+45 {
				d := time.Duration(1+random.IntN(durations)) * 50
				if random.IntN(10) == 0 {
					d = Forever
				}
				e := &entry{end: end(now, d), size: random.Int64N(1000)}
				q.add(e, d)
				entries = append(entries, e)
				size += e.size
			} else {
				i := random.IntN(len(entries))
				if random.IntN(2) == 0 {
					i = slices.Index(entries, q.first())
				}
				e := entries[i]
				entries = slices.Delete(entries, i, i+1)
				e.line.remove(e)
				size -= e.size
				require.Nil(t, e.line)
			}
			require.Equal(t, size, q.size)
			if len(entries) == 0 {
				require.False(t, q.over(now))
				continue
			}
			nearest := slices.MinFunc(entries, func(a, b *entry) int { return int(min(max(a.end-b.end, -1), 1)) })
			require.Equal(t, nearest.end, q.first().end)
			require.True(t, slices.Contains(entries, q.first()))
			require.Equal(t, nearest.end <= now, q.over(now))
			require.LessOrEqual(t, len(q.lines), len(q.heads)+spareLines+1, "empty lines pile up")
		}
	}
}
