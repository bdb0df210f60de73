package proof

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestFindsBrokenBuilds runs the proof against servers that break a promise on
// purpose, and demands that it finds each.
func TestFindsBrokenBuilds(t *testing.T) {
	t.Parallel()
	kills := func(steps ...string) func(*world) {
		return func(w *world) { w.proveKills(steps, 2) }
	}
	cuts := func(how string) func(*world) {
		return func(w *world) { w.proveCuts([]cutPass{{frontend: true, how: how, label: "Q commit"}}) }
	}
	interrupted := func(w *world) {
		w.config.Mode = modeAtMostOnce
		w.proveKills([]string{"claim-end", "written", "commit-start"}, 2)
	}
	undone := func(w *world) { w.proveUndone([]undoing{{doPanic, 0}, {doFail, 500}}) }
	lost := func(w *world) { w.proveLost([]string{"written", "returned"}) }
	held := func(kinds ...string) func(*world) {
		return func(w *world) {
			w.config.Lease = steadyLease
			w.proveHeld(kinds, 9)
		}
	}
	crowd := func(w *world) {
		w.config.Lease = 5 * time.Second
		w.proveCrowd(20, 200)
	}
	for _, test := range []struct {
		broken, by string
		prove      func(*world)
		finds      string // the kind of a violation; "" is none
	}{
		{brokenApart, "kills", kills("commit-end"), "doubled"},
		{brokenRecordFirst, "kills", kills("commit-start"), "missing"},
		{brokenCommitted, "cuts", cuts(cutLost), "missing"},
		{brokenNotCommitted, "cuts", cuts(cutDelivered), "doubled"},
		{brokenNotCommitted, "half cuts", cuts(cutKept), "doubled"},
		{brokenAdmitsNone, "cuts", cuts(cutDelivered), "status"},
		{brokenFoundNone, "a cut, and an heir", (*world).proveFoundNone, "answer"},
		{brokenFence, "pauses", lost, "doubled"},
		{brokenClaimFence, "an heir that has not yet answered", (*world).proveOvertaken, "overtaken"},
		{brokenLeaves, "clients that leave", func(w *world) { w.proveLeft([]string{"claim-sent"}, 4) }, "stuck"},
		{brokenSeldom, "pauses within a lease", held(faultPaused), "again"},
		{brokenOnce, "cuts within a lease", held(faultRefused), "again"},
		{brokenKeepsWrites, "panics", undone, "trace"},
		{brokenLeavesOpen, "panics", undone, "open"},
		{brokenRaces, "a crowd", crowd, "doubled"},
		{brokenHolds, "duplicates", (*world).proveDuplicates, "connections"},
		{brokenChanges, "kills", kills("answer"), "answer"},
		{brokenForgets, "kills with at most once", interrupted, "again"},
		// What breaks nothing has the same parts: it is the breach that is found.
		{brokenNot, "cuts", cuts(cutLost), ""},
		{brokenNot, "kills", kills("returned", "commit-start", "commit-sent", "commit-end", "answer"), ""},
		{brokenNot, "kills with at most once", interrupted, ""},
		{brokenNot, "pauses", lost, ""},
		{brokenNot, "a cut, and an heir", (*world).proveFoundNone, ""},
		{brokenNot, "an heir that has not yet answered", (*world).proveOvertaken, ""},
		{brokenNot, "clients that leave", func(w *world) {
			w.proveLeft([]string{"claim-start", "claim-sent", "claim-end", "written", "commit-start"}, 1)
		}, ""},
		{brokenNot, "panics", undone, ""},
		{brokenNot, "a crowd", crowd, ""},
	} {
		t.Run(test.broken+", by "+test.by, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, requireServers(t), test.broken)
			test.prove(w)
			if test.finds == "" {
				w.require()
				return
			}
			require.True(t, w.verdict.found(test.finds), "not found; instead: %s", &w.verdict)
			t.Logf("found: %s: %s", test.finds, w.verdict.first(test.finds))
		})
	}
}
