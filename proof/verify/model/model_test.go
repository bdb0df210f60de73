package model_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency/proof/verify/model"
)

// told is a trace as it is printed.
func told(r model.Result) string {
	var b strings.Builder
	for i, what := range r.Trace {
		fmt.Fprintf(&b, "\n%4d. %s", i+1, what)
	}
	return fmt.Sprintf("%s%s\nafter %d states", r.Broken, b.String(), r.States)
}

// The modes of the library.
var (
	again      = model.Config{}
	atMostOnce = model.Config{AtMostOnce: true}
	recovery   = model.Config{Recovery: true}
)

// TestProtocol explores the library's protocol in each of its modes.
func TestProtocol(t *testing.T) {
	variants := []struct {
		name string
		with func(*model.Config)
	}{
		{"nothing else", func(*model.Config) {}},
		{"NoStore, messages arrive again", func(c *model.Config) { c.NoStore, c.Resent = true, true }},
		{"one without a mode", func(c *model.Config) { c.Mixed = true }},
		{"the key is reused, NoStore, messages arrive again", func(c *model.Config) { c.Reused, c.NoStore, c.Resent = true, true, true }},
		{"renewals in time, NoStore", func(c *model.Config) { c.Timely, c.NoStore = true, true }},
		{"renewals in time, messages arrive again", func(c *model.Config) { c.Timely, c.Resent = true, true }},
		{"all is answered", func(c *model.Config) { c.Answered, c.Timely, c.NoCrash, c.NoStore = true, true, true, true }},
	}
	for _, mode := range []model.Config{again, atMostOnce, recovery} {
		for _, variant := range variants {
			c := mode
			variant.with(&c)
			if mode == again && c.Mixed {
				continue // It is no different there.
			}
			for c.Requests = 1; c.Requests <= 3; c.Requests++ {
				t.Run(fmt.Sprintf("%s, %s, %d requests", mode.Mode(), variant.name, c.Requests), func(t *testing.T) {
					result := model.Explore(c)
					require.Empty(t, result.Broken, told(result))
					t.Logf("%d states, %d steps", result.States, result.Steps)
				})
			}
		}
	}
}

// TestSteps explores handlers that take steps.
func TestSteps(t *testing.T) {
	variants := []struct {
		name string
		with func(*model.Config)
	}{
		{"nothing else", func(*model.Config) {}},
		{"NoStore, messages arrive again", func(c *model.Config) { c.NoStore, c.Resent = true, true }},
		{"the key is reused", func(c *model.Config) { c.Reused = true }},
		{"renewals in time, NoStore", func(c *model.Config) { c.Timely, c.NoStore = true, true }},
		{"all is answered", func(c *model.Config) { c.Answered, c.Timely, c.NoCrash, c.NoStore = true, true, true, true }},
	}
	for _, variant := range variants {
		for _, size := range []struct{ requests, steps int }{{1, 2}, {2, 1}, {2, 2}} {
			c := recovery
			variant.with(&c)
			c.Requests, c.Steps = size.requests, size.steps
			if c.Requests == 2 && c.Steps == 2 && !c.Answered && !c.Reused {
				continue // There are up to 1.6 million states, in which no rule is broken.
			}
			t.Run(fmt.Sprintf("%s, %d requests, %d steps", variant.name, c.Requests, c.Steps), func(t *testing.T) {
				t.Parallel()
				result := model.Explore(c)
				require.Empty(t, result.Broken, told(result))
				t.Logf("%d states, %d steps", result.States, result.Steps)
			})
		}
	}
}

// TestDataLoss shows that a store that loses data breaks what every mode promises.
func TestDataLoss(t *testing.T) {
	for broken, c := range map[string]model.Config{"at most one run": atMostOnce, "a second run": recovery} {
		c.Requests, c.DataLoss = 2, true
		result := model.Explore(c)
		require.Contains(t, result.Broken, broken)
		require.Contains(t, strings.Join(result.Trace, "\n"), "the store loses")
		t.Log(told(result))
	}
}

// TestMutants demands a counterexample for each rule of the protocol.
func TestMutants(t *testing.T) {
	const (
		secondRun  = "a second run only after"
		atMost     = "at most one run"
		recovered  = "what was interrupted is recovered"
		remembered = "an interrupted run is not forgotten"
		stays      = "what is stored stays"
		owner      = "only the owner completes"
		truth      = "a retry is told the truth"
		oneAtATime = "one run at a time"
		notAgain   = "a step that was kept is not done again"
	)
	var (
		noStore      = func(c *model.Config) { c.NoStore = true }
		resent       = func(c *model.Config) { c.Resent = true }
		mixed        = func(c *model.Config) { c.Mixed = true }
		reused       = func(c *model.Config) { c.Reused = true }
		timely       = func(c *model.Config) { c.Timely = true }
		timelyResent = func(c *model.Config) { c.Timely, c.Resent = true, true }
		answered     = func(c *model.Config) { c.Answered, c.NoCrash, c.Timely = true, true, true }
		unmodified   = func(*model.Config) {}
		oneStep      = func(c *model.Config) { c.Steps = 1 }
		twoSteps     = func(c *model.Config) { c.Steps = 2 }
		stepNoStore  = func(c *model.Config) { c.Steps, c.NoStore = 1, true }
	)
	tests := []struct {
		mutant   model.Mutant
		requests int // the fewest that show it
		mode     model.Config
		with     func(*model.Config)
		broken   string
	}{
		{model.ClaimNotAtomic, 2, again, unmodified, secondRun},
		{model.ClaimNotAtomic, 2, atMostOnce, unmodified, atMost},
		{model.ClaimNotAtomic, 2, recovery, unmodified, secondRun},
		{model.TokensShared, 2, again, unmodified, secondRun},
		{model.TokensShared, 2, atMostOnce, unmodified, remembered},
		{model.TokensShared, 2, recovery, unmodified, remembered},
		{model.InterruptedIsFree, 2, atMostOnce, unmodified, atMost},
		{model.InterruptedIsFree, 2, recovery, unmodified, recovered},
		{model.InterruptedIsOutstanding, 2, atMostOnce, unmodified, truth},
		{model.InterruptedIsOutstanding, 2, recovery, unmodified, truth},
		{model.TraceForgotten, 2, atMostOnce, unmodified, atMost},
		{model.TraceForgotten, 2, recovery, unmodified, recovered},
		{model.JudgedByAskersTerms, 2, atMostOnce, mixed, atMost},
		{model.JudgedByAskersTerms, 2, recovery, mixed, recovered},
		{model.TakeOverNotAtomic, 2, recovery, unmodified, secondRun},
		{model.TakeOverOutstanding, 2, recovery, unmodified, secondRun},
		{model.TakeOverOtherFingerprint, 2, recovery, reused, "only the same request takes over"},
		{model.RecoveredOnce, 3, recovery, unmodified, recovered},
		{model.RepeatedClaimForgets, 2, recovery, resent, remembered},
		{model.RepeatedClaimSilent, 2, recovery, resent, recovered},
		{model.RenewUnfenced, 2, again, unmodified, secondRun},
		{model.RenewUnfenced, 2, recovery, unmodified, secondRun},
		{model.RenewOverTookOver, 2, recovery, unmodified, secondRun},
		{model.RenewOverResponse, 1, again, unmodified, stays},
		{model.RenewDoesNotRevive, 2, atMostOnce, unmodified, truth},
		{model.RenewDoesNotRevive, 2, recovery, unmodified, secondRun},
		{model.RenewForgets, 2, recovery, noStore, remembered},
		{model.CompleteOverClaim, 2, again, unmodified, owner},
		{model.CompleteOverTookOver, 2, recovery, unmodified, owner},
		{model.CompleteOverInterrupted, 2, recovery, unmodified, owner},
		{model.CompleteOverResponse, 2, again, unmodified, stays},
		{model.ReleaseUnfenced, 2, again, unmodified, secondRun},
		{model.ReleaseUnfenced, 3, atMostOnce, unmodified, atMost},
		{model.ReleaseOverInterrupted, 2, atMostOnce, unmodified, remembered},
		{model.ReleaseOverInterrupted, 2, recovery, unmodified, remembered},
		{model.ReleaseOverResponse, 2, again, unmodified, stays},
		{model.ReleaseDeletesTookOver, 2, recovery, unmodified, remembered},
		{model.ReleaseDeletesTookOver, 2, recovery, noStore, remembered},
		{model.ReleaseForgets, 2, recovery, resent, remembered},
		{model.FailedClaimRuns, 2, again, unmodified, secondRun},
		{model.FailedClaimRuns, 2, atMostOnce, unmodified, atMost},
		{model.FailedClaimRuns, 2, recovery, unmodified, secondRun},
		{model.RefusedRuns, 2, again, unmodified, secondRun},
		{model.RefusedRuns, 2, atMostOnce, unmodified, atMost},
		{model.RefusedRuns, 2, recovery, unmodified, secondRun},
		{model.InterruptedRuns, 2, atMostOnce, unmodified, atMost},
		{model.RecoversAsFirst, 2, recovery, unmodified, recovered},
		{model.LateClaimRuns, 2, again, timely, oneAtATime},
		{model.LateClaimRuns, 2, recovery, timely, oneAtATime},
		{model.LateClaimRenews, 2, recovery, timelyResent, recovered},
		{model.RenewalStops, 2, again, timely, oneAtATime},
		{model.RenewalStops, 2, recovery, timely, oneAtATime},
		{model.RenewNotAwaited, 1, again, answered, "no renewal after the release"},
		{model.RenewNotAwaited, 1, atMostOnce, answered, "no renewal after the release"},
		{model.PanicFrees, 2, atMostOnce, unmodified, atMost},
		{model.PanicFrees, 2, recovery, unmodified, recovered},
		{model.UnstoredFrees, 2, atMostOnce, unmodified, atMost},
		{model.UnstoredFrees, 2, recovery, unmodified, recovered},
		{model.KeepsNothing, 2, recovery, oneStep, notAgain},
		{model.KeepUnfenced, 2, recovery, oneStep, "a step is kept with its own claim"},
		{model.ShorterReplaces, 2, recovery, twoSteps, notAgain},
		{model.RenewDropsProgress, 2, recovery, oneStep, notAgain},
		{model.TakeOverForgetsSteps, 2, recovery, oneStep, notAgain},
		{model.KeepsOnlyItsOwn, 2, recovery, twoSteps, notAgain},
		{model.NoStoreForgetsSteps, 2, recovery, stepNoStore, notAgain},
	}
	for _, test := range tests {
		c := test.mode
		test.with(&c)
		c.Mutant = test.mutant
		t.Run(fmt.Sprintf("%s: %s", c.Mode(), test.mutant), func(t *testing.T) {
			c.Requests = test.requests - 1
			require.Empty(t, model.Explore(c).Broken, "fewer requests show it")
			c.Requests = test.requests
			result := model.Explore(c)
			require.Contains(t, result.Broken, test.broken, told(result))
			t.Log(told(result))
		})
	}
}
