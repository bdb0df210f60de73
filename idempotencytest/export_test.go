package idempotencytest

import (
	"slices"
	"testing"
	"time"

	"github.com/idempotency-go/idempotency"
)

// RunFast is Run in parallel, with less time and patience, for backends in
// memory, whose records end on time.
func RunFast(t *testing.T, newBackend func(t *testing.T) idempotency.Backend) {
	timing := timing{soon: 40 * time.Millisecond, patience: time.Second, prompt: 10 * time.Second}
	for _, c := range slices.Concat(cases, furtherCases(newBackend(t))) {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.test(t, newBackend(t), timing)
		})
	}
}

// Clauses returns the clause of each case, by its name.
func Clauses() map[string]string {
	clauses := make(map[string]string)
	for _, c := range slices.Concat(cases, inspectorCases, transactorCases) {
		clauses[c.name] = c.clause
	}
	return clauses
}
