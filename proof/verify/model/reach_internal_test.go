package model

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// left returns whose key a state holds that nobody completes or releases any more: the
// owner has ended, and nothing of it is on its way. ok is false where there is none.
func left(s state, k kind) (owner request, ok bool) {
	owner = s.requests[s.record.owner]
	return owner, s.record.kind == k && owner.phase == ended && owner.onWay&(complete|release|releaseTrace) == 0
}

func claimedWithoutRun(s state) bool     { r, ok := left(s, outstanding); return ok && !r.ran }
func claimedAfterRun(s state) bool       { r, ok := left(s, outstanding); return ok && r.ran }
func interruptedWithoutRun(s state) bool { r, ok := left(s, interrupted); return ok && !r.ran }
func interruptedByNoStore(s state) bool  { r, ok := left(s, interrupted); return ok && r.noStore }

// TestWeaknesses shows where the protocol leaves a key claimed that nobody uses, or
// interrupted where nothing was, though no process died. A lease ends the first, the
// trace the second, or a recovery. A retry is refused until then, and no handler runs
// twice: no step on the way breaks a rule.
func TestWeaknesses(t *testing.T) {
	tests := []struct {
		name   string
		config Config
		wanted func(state) bool
		last   string
	}{
		{"a Claim arrives after its Release", Config{Requests: 1}, claimedWithoutRun, "Claim of a takes effect"},
		{"a Claim arrives after its Release, at most once", Config{Requests: 1, AtMostOnce: true}, interruptedWithoutRun, "the lease of a ends"},
		{"a Claim arrives again after a 409", Config{Requests: 2, Resent: true}, claimedWithoutRun, "Claim of b takes effect"},
		{"a Claim arrives again after a 409, at most once", Config{Requests: 2, AtMostOnce: true, NoStore: true, Resent: true}, claimedWithoutRun, "Claim of b takes effect"},
		{"a Renew arrives after the Release", Config{Requests: 1}, claimedAfterRun, "Renew of a takes effect"},
		{"a Renew arrives after the Release, at most once", Config{Requests: 1, AtMostOnce: true}, claimedAfterRun, "Renew of a takes effect"},
		{"a Renew arrives after the Release of a NoStore", Config{Requests: 1, AtMostOnce: true, NoStore: true}, interruptedByNoStore, "the lease of a ends"},
		{"a recovery calls NoStore", Config{Requests: 2, Recovery: true, NoStore: true}, interruptedByNoStore, "Release of b takes effect"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.config.NoCrash = true
			result := explore(test.config, test.wanted)
			require.Empty(t, result.Broken)
			require.NotEmpty(t, result.Trace, "it cannot happen")
			require.Contains(t, result.Trace[len(result.Trace)-1], test.last)
			t.Log("\n" + strings.Join(result.Trace, "\n"))
		})
	}
	t.Run("not where all is answered in time", func(t *testing.T) {
		for _, c := range []Config{{}, {AtMostOnce: true, NoStore: true}} {
			c.Requests, c.NoCrash, c.Timely, c.Answered = 3, true, true, true
			for _, wanted := range []func(state) bool{claimedWithoutRun, claimedAfterRun, interruptedWithoutRun, interruptedByNoStore} {
				require.Empty(t, explore(c, wanted).Trace)
			}
		}
	})
}

// TestReach shows that the exploration gets to what the rules are about.
func TestReach(t *testing.T) {
	runs := func(s state) (n int) {
		for _, r := range s.requests {
			if r.ran {
				n++
			}
		}
		return n
	}
	isRunning := func(s state, i int) bool { return s.requests[i].phase == running }
	lost := func(s state, owner uint8) bool {
		return s.record == record{completed, owner, false} && s.requests[0].phase == completing && s.requests[0].onWay&complete == 0
	}
	answered := func(s state, i int, phase phase) bool {
		return s.requests[i].phase == phase && s.requests[i].onWay == 0
	}
	tests := []struct {
		name   string
		config Config
		wanted func(state) bool
	}{
		{"a run for each request", Config{Requests: 3}, func(s state) bool { return runs(s) == 3 }},
		{"two run at the same time", Config{Requests: 2}, func(s state) bool { return isRunning(s, 0) && isRunning(s, 1) }},
		{"a run after NoStore", Config{Requests: 2, AtMostOnce: true, NoStore: true}, func(s state) bool { return runs(s) == 2 }},
		{"one whose claim was lost is refused", Config{Requests: 2}, func(s state) bool { return lost(s, 1) }},
		{"one whose key was taken over is refused", Config{Requests: 2, Recovery: true}, func(s state) bool { return lost(s, 1) }},
		{"an interrupted run is told of", Config{Requests: 2, AtMostOnce: true}, func(s state) bool {
			return s.record.kind == interrupted && s.requests[0].ran && answered(s, 1, ended)
		}},
		{"an interrupted owner completes", Config{Requests: 2, AtMostOnce: true}, func(s state) bool {
			return s.requests[0].freed && s.record == record{completed, 0, false}
		}},
		{"a recovery of a recovery", Config{Requests: 3, Recovery: true}, func(s state) bool {
			return runs(s) == 3 && s.record == record{completed, 2, false} && s.requests[1].recovers && s.requests[2].recovers
		}},
		{"another fingerprint claims once the key is free", Config{Requests: 2, Recovery: true, NoStore: true, Reused: true}, func(s state) bool { return runs(s) == 2 }},
		{"one without a mode is told of an interrupted run", Config{Requests: 2, Recovery: true, Mixed: true}, func(s state) bool {
			return s.record.kind == interrupted && s.requests[0].ran && answered(s, 1, ended)
		}},
		{"a late claim runs", Config{Requests: 1, Timely: true, NoCrash: true}, func(s state) bool {
			return isRunning(s, 0) && s.requests[0].onWay == 0 && s.record.kind == outstanding
		}},
		{"a late claim is refused", Config{Requests: 2, Timely: true, NoCrash: true}, func(s state) bool {
			return isRunning(s, 1) && s.requests[0] == request{phase: ended, onWay: release, freed: true, late: true}
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			result := explore(test.config, test.wanted)
			require.Empty(t, result.Broken)
			require.NotEmpty(t, result.Trace)
		})
	}
}
