package model

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// left reports whether a request that has ended holds the key, with nothing on
// its way that would end its claim, and whether its handler ran.
func left(s state) (holds, ran bool) {
	r := s.requests[s.record.owner]
	settles := r.onWay&(complete|mark|release) != 0
	return s.record.kind == outstanding && r.phase == ended && !settles, r.ran
}

func leftWithoutRun(s state) bool { holds, ran := left(s); return holds && !ran }
func leftAfterRun(s state) bool   { holds, ran := left(s); return holds && ran }

// TestWeaknesses shows where the protocol leaves a key claimed that nobody uses,
// though no process died. By default its lease ends that; with at-most-once the
// expiry does. A retry is refused until then, and no handler runs twice: no step
// on the way breaks a rule.
func TestWeaknesses(t *testing.T) {
	tests := []struct {
		name   string
		config Config
		wanted func(state) bool
		last   string
	}{
		{"a Claim arrives after its Release", Config{Requests: 1}, leftWithoutRun, "Claim of a takes effect"},
		{"a Claim arrives after its Release, at most once", Config{Requests: 1, AtMostOnce: true}, leftWithoutRun, "Claim of a takes effect"},
		{"a Claim arrives again after a 409", Config{Requests: 2, Resent: true}, leftWithoutRun, "Claim of b takes effect"},
		{"a Claim arrives again after a 409, at most once", Config{Requests: 2, AtMostOnce: true, Resent: true}, leftWithoutRun, "Claim of b takes effect"},
		{"a Renew arrives after the Release", Config{Requests: 1}, leftAfterRun, "Renew of a takes effect"},
		{"a Renew arrives after the Release of a NoStore", Config{Requests: 1, AtMostOnce: true, NoStore: true}, leftAfterRun, "Renew of a takes effect"},
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
	t.Run("a Renew after the mark leaves nothing", func(t *testing.T) {
		result := explore(Config{Requests: 3, AtMostOnce: true, NoCrash: true}, leftAfterRun)
		require.Empty(t, result.Trace)
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
	tests := []struct {
		name   string
		config Config
		wanted func(state) bool
	}{
		{"a run for each request", Config{Requests: 3}, func(s state) bool { return runs(s) == 3 }},
		{"two run at the same time", Config{Requests: 2}, func(s state) bool { return s.requests[0].phase == running && s.requests[1].phase == running }},
		{"a run after NoStore", Config{Requests: 2, AtMostOnce: true, NoStore: true}, func(s state) bool { return runs(s) == 2 }},
		{"one whose claim was lost is refused", Config{Requests: 2}, func(s state) bool {
			return s.record == record{stored, 1} && s.requests[0].phase == completing && s.requests[0].onWay&complete == 0
		}},
		{"the mark", Config{Requests: 2, AtMostOnce: true}, func(s state) bool { return s.record.kind == marked && s.requests[1].phase == ended }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			result := explore(test.config, test.wanted)
			require.Empty(t, result.Broken)
			require.NotEmpty(t, result.Trace)
		})
	}
}
