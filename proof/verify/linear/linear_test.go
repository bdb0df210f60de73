package linear_test

import (
	"flag"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/internal/redistest"
	"github.com/idempotency-go/idempotency/proof/verify/linear"
)

var (
	rounds = flag.Int("rounds", 0, "how many histories each check of a whole backend makes (0: a few seconds' worth)")
	seed   = flag.Uint64("seed", 1, "the seed of the first history; each further one has the next")
)

func TestMain(m *testing.M) {
	code := m.Run()
	redistest.Stop()
	os.Exit(code)
}

// instant is the workload of a backend whose calls take no time, in a bubble.
func instant(seed uint64) linear.Workload {
	return linear.Workload{
		Seed: seed, Clients: 5, Keys: 3, Calls: 30, Tokens: 5,
		Lives: []time.Duration{2 * time.Millisecond, 4 * time.Millisecond, 8 * time.Millisecond},
		Pause: 2 * time.Millisecond, Patience: time.Second,
	}
}

// inBubble runs a workload in a time of its own.
func inBubble(t *testing.T, w linear.Workload, b func() idempotency.Backend) (history []porcupine.Operation) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		history = w.Run(t.Context(), b())
		time.Sleep(time.Second) // What is still on its way arrives.
	})
	return history
}

// requireLinear checks one history of each seed.
func requireLinear(t *testing.T, n int, late time.Duration, run func(seed uint64) []porcupine.Operation) {
	t.Helper()
	if *rounds > 0 {
		n = *rounds
	}
	calls, failed, tookOver, unchecked := 0, 0, 0, 0
	for i := range n {
		history := run(*seed + uint64(i))
		calls += len(history)
		for _, op := range history {
			if linear.Failed(op) {
				failed++
			}
			if linear.TookOver(op) {
				tookOver++
			}
		}
		result, info := porcupine.CheckOperationsVerbose(linear.Model(late), history, 10*time.Second)
		switch result {
		case porcupine.Unknown: // It has very many calls with an unknown outcome: the machine is slow.
			unchecked++
		case porcupine.Illegal:
			file, err := os.CreateTemp("", "idempotency-linear-*.html")
			require.NoError(t, err)
			require.NoError(t, porcupine.Visualize(linear.Model(late), info, file))
			require.NoError(t, file.Close())
			t.Fatalf("the history of seed %d is not linearizable: see %s", *seed+uint64(i), file.Name())
		}
	}
	t.Logf("%d histories, %d calls, %d of them with an unknown outcome, %d took over; %d histories took too long to check", n, calls, failed, tookOver, unchecked)
	require.Greater(t, tookOver, n, "too few claims took over")
	require.LessOrEqual(t, unchecked, n/20, "too many histories took too long to check")
}

// requireCaught runs a broken backend until a history of it is not linearizable.
func requireCaught(t *testing.T, late time.Duration, run func(seed uint64) []porcupine.Operation) {
	t.Helper()
	const most = 100
	for i := range most {
		// A history that takes long to check is left for the next one.
		if porcupine.CheckOperationsTimeout(linear.Model(late), run(uint64(i)), 5*time.Second) == porcupine.Illegal {
			t.Logf("caught in round %d", i+1)
			return
		}
	}
	t.Fatalf("not caught in %d rounds", most)
}

func TestMemory(t *testing.T) {
	memory := func() idempotency.Backend { return idempotency.NewMemory() }
	t.Run("at once", func(t *testing.T) {
		requireLinear(t, 1000, 0, func(seed uint64) []porcupine.Operation {
			w := instant(seed)
			w.Pause = 600 * time.Microsecond // Most clients do not wait.
			return inBubble(t, w, memory)
		})
	})
	t.Run("now and then", func(t *testing.T) {
		requireLinear(t, 1000, 0, func(seed uint64) []porcupine.Operation { return inBubble(t, instant(seed), memory) })
	})
	t.Run("contexts that have ended", func(t *testing.T) {
		requireLinear(t, 300, 0, func(seed uint64) []porcupine.Operation {
			w := instant(seed)
			w.Ended = 0.1
			return inBubble(t, w, memory)
		})
	})
	t.Run("behind a network", func(t *testing.T) {
		requireLinear(t, 300, 0, func(seed uint64) []porcupine.Operation {
			return inBubble(t, instant(seed), func() idempotency.Backend {
				return linear.NewLossy(memory(), seed, 0.1, time.Millisecond)
			})
		})
	})
}

// TestNoFault shows that it is its faults that a broken backend is caught by.
func TestNoFault(t *testing.T) {
	requireLinear(t, 20, 0, func(seed uint64) []porcupine.Operation {
		return inBubble(t, instant(seed), func() idempotency.Backend { return newBroken("") })
	})
}

func TestBroken(t *testing.T) {
	for _, fault := range faults {
		t.Run(fault, func(t *testing.T) {
			requireCaught(t, 0, func(seed uint64) []porcupine.Operation {
				return inBubble(t, instant(seed), func() idempotency.Backend { return newBroken(fault) })
			})
		})
	}
}

// TestBrokenBehindNetwork shows that unknown outcomes do not explain faults away.
func TestBrokenBehindNetwork(t *testing.T) {
	for _, fault := range faults {
		t.Run(fault, func(t *testing.T) {
			requireCaught(t, 0, func(seed uint64) []porcupine.Operation {
				return inBubble(t, instant(seed), func() idempotency.Backend {
					return linear.NewLossy(newBroken(fault), seed, 0.1, time.Millisecond)
				})
			})
		})
	}
}
