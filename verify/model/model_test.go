package model_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency/verify/model"
)

// told is a trace as it is printed.
func told(r model.Result) string {
	var b strings.Builder
	for i, what := range r.Trace {
		fmt.Fprintf(&b, "\n%4d. %s", i+1, what)
	}
	return fmt.Sprintf("%s%s\nafter %d states", r.Broken, b.String(), r.States)
}

// TestProtocol explores the library's protocol in each of its modes.
func TestProtocol(t *testing.T) {
	modes := []struct {
		name string
		model.Config
	}{
		{"default", model.Config{}},
		{"default, messages arrive again", model.Config{Resent: true}},
		{"at most once", model.Config{AtMostOnce: true}},
		{"at most once, messages arrive again", model.Config{AtMostOnce: true, Resent: true}},
		{"at most once with NoStore", model.Config{AtMostOnce: true, NoStore: true}},
		{"at most once with NoStore, messages arrive again", model.Config{AtMostOnce: true, NoStore: true, Resent: true}},
	}
	for _, mode := range modes {
		for mode.Requests = 1; mode.Requests <= 3; mode.Requests++ {
			t.Run(fmt.Sprintf("%s, %d requests", mode.name, mode.Requests), func(t *testing.T) {
				result := model.Explore(mode.Config)
				require.Empty(t, result.Broken, told(result))
				t.Logf("%d states, %d steps", result.States, result.Steps)
			})
		}
	}
}

// TestDataLoss shows that a store that loses data breaks at-most-once.
func TestDataLoss(t *testing.T) {
	result := model.Explore(model.Config{Requests: 2, AtMostOnce: true, DataLoss: true})
	require.Contains(t, result.Broken, "at most one run")
	require.Contains(t, strings.Join(result.Trace, "\n"), "the store loses")
	t.Log(told(result))
}

// TestMutants demands a counterexample for each rule of the protocol.
func TestMutants(t *testing.T) {
	tests := []struct {
		mutant   model.Mutant
		requests int // the fewest that show it
		mode     model.Config
		broken   string
	}{
		{model.ClaimNotAtomic, 2, model.Config{}, "a second run"},
		{model.ClaimNotAtomic, 2, model.Config{AtMostOnce: true}, "at most one run"},
		{model.TokensShared, 2, model.Config{}, "a second run"},
		{model.TokensShared, 2, model.Config{AtMostOnce: true}, "at most one run"},
		{model.RenewUnfenced, 2, model.Config{}, "a second run"},
		{model.RenewOverResponse, 1, model.Config{}, "what is stored stays"},
		{model.CompleteOverClaim, 2, model.Config{}, "only the owner completes"},
		{model.CompleteOverResponse, 2, model.Config{}, "what is stored stays"},
		{model.ReleaseUnfenced, 3, model.Config{AtMostOnce: true}, "at most one run"},
		{model.ReleaseUnfenced, 2, model.Config{}, "a second run"},
		{model.ReleaseOverResponse, 2, model.Config{}, "what is stored stays"},
		{model.FailedClaimRuns, 2, model.Config{}, "a second run"},
		{model.FailedClaimRuns, 2, model.Config{AtMostOnce: true}, "at most one run"},
		{model.RefusedRuns, 2, model.Config{}, "a second run"},
		{model.RefusedRuns, 2, model.Config{AtMostOnce: true}, "at most one run"},
		{model.HoldIsLease, 2, model.Config{AtMostOnce: true}, "at most one run"},
		{model.PanicFrees, 2, model.Config{AtMostOnce: true}, "at most one run"},
		{model.UnstoredFrees, 2, model.Config{AtMostOnce: true}, "at most one run"},
	}
	for _, test := range tests {
		mode := "by default: "
		if test.mode.AtMostOnce {
			mode = "with at-most-once: "
		}
		t.Run(mode+string(test.mutant), func(t *testing.T) {
			c := test.mode
			c.Mutant = test.mutant
			c.Requests = test.requests - 1
			require.Empty(t, model.Explore(c).Broken, "fewer requests show it")
			c.Requests = test.requests
			result := model.Explore(c)
			require.Contains(t, result.Broken, test.broken, told(result))
			t.Log(told(result))
		})
	}
}
