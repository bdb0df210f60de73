package model_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency/proof/verify/model"
)

// library is what the library does, with an outage of 0.9 of a lease.
var library = model.Lease{Renewed: 2, Tried: 1, Outage: 36}

func TestLease(t *testing.T) {
	states, lost := library.Explore()
	require.Empty(t, lost, strings.Join(lost, "\n"))
	require.Greater(t, states, 100)
	t.Logf("%d states", states)
}

// TestLeaseMutants demands that each fault in the renewing loses a claim.
func TestLeaseMutants(t *testing.T) {
	mutants := map[string]func(*model.Lease){
		"an outage of a whole lease":                     func(c *model.Lease) { c.Outage = 40 },
		"renewed every 0.9 of a lease":                   func(c *model.Lease) { c.Renewed = 36 },
		"renewed every third of the lease":               func(c *model.Lease) { c.Renewed = 13 },
		"tried again a third of the lease later":         func(c *model.Lease) { c.Tried = 13 },
		"tried again a sixth of the lease later":         func(c *model.Lease) { c.Tried = 6 },
		"a try that hangs keeps the next from its time":  func(c *model.Lease) { c.HangsBlock = true },
		"the renewing ends after a try that was refused": func(c *model.Lease) { c.GivesUp = true },
	}
	for name, mutate := range mutants {
		t.Run(name, func(t *testing.T) {
			mutant := library
			mutate(&mutant)
			_, lost := mutant.Explore()
			require.NotEmpty(t, lost)
			t.Log(strings.Join(lost, "\n"))
		})
	}
}

// TestLeaseLimits tells how long an outage may be.
func TestLeaseLimits(t *testing.T) {
	longest := 0
	for outage := range 41 {
		c := library
		c.Outage = outage
		if _, lost := c.Explore(); lost == nil {
			longest = outage
		}
	}
	require.Equal(t, 37, longest)
}
