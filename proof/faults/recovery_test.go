package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency/internal/recoverytest"
)

// TestRecovery kills servers at every point of runs and recoveries, and of three steps.
func TestRecovery(t *testing.T) {
	requireHarness(t)
	t.Parallel()
	for _, part := range recoveryProofs {
		t.Run(part.name, func(t *testing.T) {
			t.Parallel()
			p, err := runRecovery(part, 40*part.share/100, recoverytest.Settings{Lease: recoveryLease, Lanes: 8, Seed: 1})
			require.NoError(t, err)
			t.Log(p.Counted())
			require.Empty(t, p.Violations(9))
			require.Positive(t, p.Count(recoverytest.Kills))
		})
	}
}

// TestBrokenRecoveries demands that each broken build is found, and nothing in one that is
// not broken.
func TestBrokenRecoveries(t *testing.T) {
	requireHarness(t)
	t.Parallel()
	for _, b := range recoverytest.Breakages {
		t.Run(b.Name, func(t *testing.T) {
			t.Parallel()
			p, err := runBrokenRecovery(b, 1)
			require.NoError(t, err)
			require.Equal(t, b.Finds != "", p.Found(b.Finds) > 0, p.Violations(9))
			t.Log(p.Violations(1))
		})
	}
}
