package main

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
)

// second is a second of a history's clock, whose faults have ended at 100.
const second = int64(time.Second)

var pay1 = payment{"alice", "order-1"}

// newRun returns a run that stored its answer.
func newRun(id string, start int64) *run {
	return &run{payment: pay1, id: id, process: "s" + id, arrived: start, start: start, end: start + second/2,
		event: start + second*6/10, attempt: "attempt " + id, fate: fateStored, outcome: "stored"}
}

// newAnswer returns an answer of a run.
func newAnswer(id string, done int64, replayed bool) attempt {
	return attempt{payment: pay1, body: "b", sent: done - second/10, done: done, status: 201, replayed: replayed, kept: true,
		sum: [32]byte{id[0]}, receipt: receipt{Run: id, Scope: pay1.scope, Key: pay1.key, Body: "b"}}
}

// newHistory returns a history of one payment, which breaks no promise as long
// as it has one run.
func newHistory(runs ...*run) *history {
	return &history{mode: modeAgain, lease: time.Second, healed: 100 * second, runs: map[payment][]*run{pay1: runs},
		deaths: map[string]int64{}, goals: []goal{{payment: pay1, final: 50 * second}}}
}

// died makes a run one whose process was killed after it began.
func died(h *history, r *run) {
	r.end, r.event, r.fate, r.outcome = 0, 0, "", ""
	h.deaths[r.process] = r.start + second/10
}

// befalls has a run last until 4 s and a fault befall it, from and to a hundredth of
// a second.
func befalls(h *history, kind faultKind, process string, from, to int64) {
	h.runs[pay1][0].end, h.runs[pay1][0].event = 4*second, 4*second
	h.windows = append(h.windows, window{kind: kind, process: process, from: from * second / 100, to: to * second / 100})
}

// told adds a refusal of a key, with at-most-once.
func told(h *history, problem error, sent int64) {
	h.mode = modeAtMostOnce
	h.attempts = append(h.attempts, attempt{payment: pay1, sent: sent, done: sent + second/10, status: 409,
		problem: problem, retryAfter: problem == idempotency.ErrOutstanding})
}

// TestChecks feeds each check histories that break its promise, and ones that
// are as near to that as is allowed.
func TestChecks(t *testing.T) {
	window := func(kind faultKind, process string, from, to int64, lost bool) window {
		return window{kind: kind, process: process, from: from * second, to: to * second, lost: lost}
	}
	tests := []struct {
		name   string
		change func(h *history)
		second bool   // whether there is a second run, at 3 s
		fails  string // the checks
	}{
		{"(a) one run", func(*history) {}, false, ""},
		{"(a) no run", func(h *history) { delete(h.runs, pay1) }, false, "a"},
		{"(b) a replay is the same", func(h *history) {
			h.attempts = []attempt{newAnswer("1", second, false), newAnswer("1", 2*second, true)}
		}, false, ""},
		{"(b) a replay with other bytes", func(h *history) {
			h.attempts = []attempt{newAnswer("1", second, false), newAnswer("1", 2*second, true)}
			h.attempts[1].sum[5]++
		}, false, "b"},
		{"(b) a replay with another status", func(h *history) {
			h.attempts = []attempt{newAnswer("1", second, false), newAnswer("1", 2*second, true)}
			h.attempts[1].status = 402
		}, false, "b"},
		{"(b) an answer of a run that is in no ledger", func(h *history) { h.attempts = []attempt{newAnswer("9", second, false)} }, false, "b"},
		{"(b) replays of two runs", func(h *history) {
			h.attempts = []attempt{newAnswer("1", 4*second, true), newAnswer("2", 5*second, true)}
		}, true, "b c"},
		{"(b) replays of two runs, data lost", func(h *history) {
			h.attempts = []attempt{newAnswer("1", second, true), newAnswer("2", 5*second, true)}
			h.windows = append(h.windows, window(faultRedisKill, "", 2, 3, true))
		}, true, ""},
		{"(b) the first answer is not the stored one", func(h *history) {
			h.attempts = []attempt{newAnswer("1", second, false), newAnswer("2", 5*second, true)}
		}, true, "b c"},
		{"(b) a lost answer, Redis cut off", func(h *history) {
			h.attempts = []attempt{newAnswer("1", second, false), newAnswer("2", 5*second, true)}
			h.runs[pay1][0].outcome, h.runs[pay1][0].err = "not_stored", errorUnreachable
			h.windows = append(h.windows, window(faultCut, "", 0, 2, false))
		}, true, ""},
		{"(c) a second run", func(*history) {}, true, "c"},
		{"(c) its owner died", func(h *history) { died(h, h.runs[pay1][0]) }, true, ""},
		{"(c) its owner died later", func(h *history) {
			died(h, h.runs[pay1][0])
			h.deaths["s1"] = 9 * second
		}, true, "c"},
		{"(c) its owner died, within its lease", func(h *history) {
			died(h, h.runs[pay1][0])
			h.runs[pay1][1].arrived, h.runs[pay1][1].start = second/10, second/10
		}, true, "c"},
		{"(c) it died after it had stored", func(h *history) { h.deaths["s1"] = 2 * second }, true, "c"},
		{"(c) released", func(h *history) { h.runs[pay1][0].fate, h.runs[pay1][0].outcome = fatePanic, "panicked" }, true, ""},
		{"(c) released too late", func(h *history) {
			h.runs[pay1][0].fate, h.runs[pay1][0].end = fatePanic, 4*second
		}, true, "c"},
		{"(c) its owner paused", func(h *history) {
			h.runs[pay1][0].end, h.runs[pay1][0].event = 4*second, 4*second
			h.windows = append(h.windows, window(faultPause, "s1", 0, 3, false))
		}, true, ""},
		{"(c) its owner paused between its claim and its run", func(h *history) {
			r := h.runs[pay1][0]
			r.arrived, r.start, r.end, r.event = second, 3*second-second/100, 4*second, 4*second
			h.windows = append(h.windows, window(faultPause, "s1", 1, 2, false))
		}, true, ""},
		{"(c) another paused", func(h *history) {
			h.runs[pay1][0].end, h.runs[pay1][0].event = 4*second, 4*second
			h.windows = append(h.windows, window(faultPause, "s7", 0, 3, false))
		}, true, "c"},
		{"(c) its owner paused for less than 0.9 of a lease", func(h *history) { befalls(h, faultPause, "s1", 100, 190) }, true, "c"},
		{"(c) its owner paused for more than 0.9 of a lease", func(h *history) { befalls(h, faultPause, "s1", 100, 191) }, true, ""},
		{"(c) its owner paused before its claim", func(h *history) { befalls(h, faultPause, "s1", -100, 90) }, true, "c"},
		{"(c) its owner paused when the other ran", func(h *history) { befalls(h, faultPause, "s1", 211, 400) }, true, "c"},
		{"(c) its owner paused twice", func(h *history) {
			befalls(h, faultPause, "s1", 100, 150)
			befalls(h, faultPause, "s1", 155, 205)
		}, true, "c"},
		{"(c) its owner paused twice, with no time to renew", func(h *history) {
			befalls(h, faultPause, "s1", 100, 150)
			befalls(h, faultCut, "", 154, 205)
		}, true, ""},
		{"(c) its owner paused, and stalled until it was awake", func(h *history) {
			befalls(h, faultPause, "s1", 100, 185)
			h.stalls = append(h.stalls, window(faultStall, "s1", 1, 2, false))
		}, true, ""},
		{"(c) its owner was cut off", func(h *history) { befalls(h, faultSilent, "s1", 100, 191) }, true, ""},
		{"(c) its owner was cut off for less than 0.9 of a lease", func(h *history) { befalls(h, faultSilent, "s1", 100, 190) }, true, "c"},
		{"(c) another was cut off", func(h *history) { befalls(h, faultSilent, "s2", 100, 300) }, true, "c"},
		{"(c) its claim was answered late", func(h *history) {
			befalls(h, faultAnswers, "s1", 0, 150)
			h.runs[pay1][0].start = second * 15 / 10
		}, true, "c"},
		{"(c) Redis was full", func(h *history) { befalls(h, faultFull, "", 0, 300) }, true, "c"},
		{"(c) Redis was full when it was to store", func(h *history) {
			h.runs[pay1][0].outcome, h.runs[pay1][0].err = "not_stored", errorFull
			h.windows = append(h.windows, window(faultFull, "", 0, 2, false))
		}, true, ""},
		{"(c) Redis was full when it was to store, and its claim was not left to run out", func(h *history) {
			h.runs[pay1][0].outcome, h.runs[pay1][0].err = "not_stored", errorFull
			h.runs[pay1][1].arrived, h.runs[pay1][1].start = second*9/10, second*9/10
			h.windows = append(h.windows, window(faultFull, "", 0, 2, false))
		}, true, "c"},
		{"(c) Redis was full before it was to store", func(h *history) {
			h.runs[pay1][0].outcome, h.runs[pay1][0].err = "not_stored", errorFull
			h.windows = append(h.windows, window(faultFull, "", -2, 0, false))
		}, true, "c"},
		{"(c) Redis was gone after it had stored", func(h *history) {
			h.windows = append(h.windows, window(faultCut, "", 1, 2, false))
		}, true, "c"},
		{"(c) Redis was gone while it ran", func(h *history) {
			h.runs[pay1][0].outcome, h.runs[pay1][0].err = "not_stored", errorUnreachable
			h.windows = append(h.windows, window(faultCut, "", 0, 2, false))
		}, true, ""},
		{"(c) slots moved while it ran", func(h *history) {
			h.runs[pay1][0].outcome, h.runs[pay1][0].err = "not_stored", errorUnreachable
			h.windows = append(h.windows, window(faultMoveSlots, "", 0, 2, false))
		}, true, "c"},
		{"(c) Redis lost data", func(h *history) { h.windows = append(h.windows, window(faultRedisKill, "", 1, 2, true)) }, true, ""},
		{"(d) its owner died", func(h *history) {
			h.mode = modeAtMostOnce
			died(h, h.runs[pay1][0])
		}, true, "d"},
		{"(d) a panic", func(h *history) { h.mode, h.runs[pay1][0].fate = modeAtMostOnce, fatePanic }, true, "d"},
		{"(d) Redis was gone", func(h *history) {
			h.mode = modeAtMostOnce
			h.runs[pay1][0].outcome, h.runs[pay1][0].err = "not_stored", errorUnreachable
			h.windows = append(h.windows, window(faultCut, "", 0, 2, false))
		}, true, "d"},
		{"(d) no-store", func(h *history) { h.mode, h.runs[pay1][0].fate = modeAtMostOnce, fateNoStore }, true, ""},
		{"(d) Redis lost data", func(h *history) {
			h.mode = modeAtMostOnce
			h.windows = append(h.windows, window(faultRedisKill, "", 1, 2, true))
		}, true, ""},
		{"(e) another's scope", func(h *history) {
			h.attempts = []attempt{newAnswer("1", second, false)}
			h.attempts[0].receipt.Scope = "bob"
		}, false, "e"},
		{"(e) another body", func(h *history) {
			h.attempts = []attempt{newAnswer("1", second, false)}
			h.attempts[0].receipt.Body = "other"
		}, false, "e"},
		{"(f) no final answer", func(h *history) { h.goals[0].final = 0 }, false, "f"},
		{"(f) a final answer too late", func(h *history) { h.goals[0].final = h.deadline() + 1 }, false, "f"},
		{"(f) interrupted", func(h *history) {
			h.mode, h.goals[0].problem = modeAtMostOnce, idempotency.ErrInterrupted
		}, false, ""},
		{"(f) interrupted too late", func(h *history) {
			h.mode, h.goals[0].problem, h.goals[0].final = modeAtMostOnce, idempotency.ErrInterrupted, h.deadline()+1
		}, false, "f"},
		{"(f) outstanding to the end", func(h *history) {
			h.mode, h.goals[0] = modeAtMostOnce, goal{payment: pay1, problem: idempotency.ErrOutstanding}
			died(h, h.runs[pay1][0])
		}, false, "f"},
		{"(f) told outstanding, its owner has just died", func(h *history) {
			told(h, idempotency.ErrOutstanding, 2*second)
			died(h, h.runs[pay1][0])
		}, false, ""},
		{"(f) told outstanding, its owner died long ago", func(h *history) {
			told(h, idempotency.ErrOutstanding, 3*second)
			died(h, h.runs[pay1][0])
		}, false, "f"},
		{"(f) told outstanding, its owner died long ago, by default", func(h *history) {
			told(h, idempotency.ErrOutstanding, 3*second)
			died(h, h.runs[pay1][0])
			h.mode = modeAgain
		}, false, ""},
		{"(f) told outstanding, its owner died long ago, data lost", func(h *history) {
			told(h, idempotency.ErrOutstanding, 3*second)
			died(h, h.runs[pay1][0])
			h.windows = append(h.windows, window(faultRedisKill, "", 1, 2, true))
		}, false, ""},
		{"(f) told outstanding while it ran", func(h *history) {
			told(h, idempotency.ErrOutstanding, second/2)
			h.mode = modeAgain
		}, false, ""},
		{"(f) told outstanding after it had ended", func(h *history) {
			told(h, idempotency.ErrOutstanding, second)
			h.mode, h.runs[pay1][0].fate, h.runs[pay1][0].outcome = modeAgain, fatePanic, "panicked"
		}, false, "f"},
		{"(f) told outstanding after it had ended, calls had come unevenly", func(h *history) {
			told(h, idempotency.ErrOutstanding, second)
			h.mode, h.runs[pay1][0].fate, h.runs[pay1][0].outcome = modeAgain, fatePanic, "panicked"
			h.windows = append(h.windows, window(faultUneven, "", 0, 1, false))
		}, false, "f"},
		{"(f) told outstanding after it had ended, another may have claimed", func(h *history) {
			told(h, idempotency.ErrOutstanding, second)
			h.mode, h.runs[pay1][0].fate, h.runs[pay1][0].outcome = modeAgain, fatePanic, "panicked"
			h.attempts = append(h.attempts, attempt{payment: pay1, sent: second / 2, done: second})
		}, false, ""},
		{"(f) told outstanding after it had ended, a renewal may have come late", func(h *history) {
			told(h, idempotency.ErrOutstanding, second)
			h.mode, h.runs[pay1][0].fate, h.runs[pay1][0].outcome = modeAgain, fatePanic, "panicked"
			h.windows = append(h.windows, window(faultAnswers, "s1", 0, 1, false))
		}, false, ""},
		{"(h) told outstanding without Retry-After", func(h *history) {
			told(h, idempotency.ErrOutstanding, second/2)
			h.attempts[0].retryAfter = false
		}, false, "h"},
		{"(h) told interrupted with Retry-After", func(h *history) {
			told(h, idempotency.ErrInterrupted, 3*second)
			died(h, h.runs[pay1][0])
			h.attempts[0].retryAfter = true
		}, false, "h"},
		{"(h) told interrupted, its owner died", func(h *history) {
			told(h, idempotency.ErrInterrupted, 3*second)
			died(h, h.runs[pay1][0])
		}, false, ""},
		{"(h) told interrupted, its owner has just died", func(h *history) {
			told(h, idempotency.ErrInterrupted, second*15/100)
			died(h, h.runs[pay1][0])
		}, false, "h"},
		{"(h) told interrupted, its owner died, by default", func(h *history) {
			told(h, idempotency.ErrInterrupted, 3*second)
			died(h, h.runs[pay1][0])
			h.mode = modeAgain
		}, false, "h"},
		{"(h) told interrupted while it ran", func(h *history) { told(h, idempotency.ErrInterrupted, second/2) }, false, "h"},
		{"(h) told interrupted after it had stored", func(h *history) { told(h, idempotency.ErrInterrupted, 3*second) }, false, "h"},
		{"(h) told interrupted after it had stored, Redis cut off", func(h *history) {
			told(h, idempotency.ErrInterrupted, 3*second)
			h.windows = append(h.windows, window(faultCut, "", 0, 2, false))
		}, false, "h"},
		{"(h) told interrupted after it had stored, data lost", func(h *history) {
			told(h, idempotency.ErrInterrupted, 3*second)
			h.windows = append(h.windows, window(faultRedisKill, "", 1, 2, true))
		}, false, ""},
		{"(h) told interrupted after a panic", func(h *history) {
			told(h, idempotency.ErrInterrupted, 3*second)
			h.runs[pay1][0].fate, h.runs[pay1][0].outcome = fatePanic, "panicked"
		}, false, ""},
		{"(h) told interrupted after NoStore", func(h *history) {
			told(h, idempotency.ErrInterrupted, 3*second)
			h.runs[pay1][0].fate, h.runs[pay1][0].outcome = fateNoStore, "not_stored"
		}, false, "h"},
		{"(h) told interrupted, its owner paused", func(h *history) {
			told(h, idempotency.ErrInterrupted, 3*second)
			h.runs[pay1][0].end, h.runs[pay1][0].event = 4*second, 4*second
			h.windows = append(h.windows, window(faultPause, "s1", 0, 3, false))
		}, false, ""},
		{"(h) told interrupted, another paused", func(h *history) {
			told(h, idempotency.ErrInterrupted, 3*second)
			h.runs[pay1][0].end, h.runs[pay1][0].event = 4*second, 4*second
			h.windows = append(h.windows, window(faultPause, "s7", 0, 3, false))
		}, false, "h"},
		{"(h) told interrupted, its answer could not be stored", func(h *history) {
			told(h, idempotency.ErrInterrupted, 3*second)
			h.runs[pay1][0].outcome, h.runs[pay1][0].err = "not_stored", errorUnreachable
			h.windows = append(h.windows, window(faultCut, "", 0, 1, false))
		}, false, ""},
		{"(h) told interrupted, no run, a claim without a reply", func(h *history) {
			told(h, idempotency.ErrInterrupted, 3*second)
			h.runs[pay1][0].arrived, h.runs[pay1][0].start = 4*second, 4*second
			h.attempts = append(h.attempts, attempt{payment: pay1, sent: second, done: 2 * second})
			h.windows = append(h.windows, window(faultCut, "", 1, 2, false))
		}, false, ""},
		{"(h) told interrupted while it ran, after its client had left", func(h *history) {
			told(h, idempotency.ErrInterrupted, 3*second)
			befalls(h, faultRefused, "s1", 0, 90)
			h.attempts = append(h.attempts, attempt{payment: pay1, token: "attempt 1", done: second})
		}, false, "h"},
		{"(h) told interrupted, no run, a claim without a reply, no fault", func(h *history) {
			told(h, idempotency.ErrInterrupted, 3*second)
			h.runs[pay1][0].arrived, h.runs[pay1][0].start = 4*second, 4*second
			h.attempts = append(h.attempts, attempt{payment: pay1, sent: second, done: 2 * second})
		}, false, "h"},
		{"(h) told interrupted after a replay", func(h *history) {
			told(h, idempotency.ErrInterrupted, 3*second)
			died(h, h.runs[pay1][0])
			h.attempts = append(h.attempts, newAnswer("1", 2*second, true))
		}, false, "h"},
		{"(g) quiet", func(h *history) {
			h.leftover = []leftover{{quiet: serverState{Goroutines: goroutineSlack, Heap: heapSlack}}}
		}, false, ""},
		{"(g) a goroutine", func(h *history) { h.leftover = []leftover{{quiet: serverState{Goroutines: goroutineSlack + 1}}} }, false, "g"},
		{"(g) memory", func(h *history) { h.leftover = []leftover{{quiet: serverState{Heap: heapSlack + 1}}} }, false, "g"},
		{"(g) a request", func(h *history) { h.leftover = []leftover{{quiet: serverState{Outstanding: 1}}} }, false, "g"},
		{"(g) a claim's timer", func(h *history) { h.leftover = []leftover{{renewed: 1}} }, false, "g"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			runs := []*run{newRun("1", 0)}
			if test.second {
				runs = append(runs, newRun("2", 3*second))
			}
			h := newHistory(runs...)
			test.change(h)
			v := judge(h, !test.second)
			require.Equal(t, test.fails, v.failed(), "%v", v.violations)
		})
	}
}

// TestEveryCheckIsSeenToFail holds that each check has a broken build.
func TestEveryCheckIsSeenToFail(t *testing.T) {
	for _, check := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		require.True(t, slices.ContainsFunc(breakages, func(b breakage) bool { return b.check == check }), check)
	}
}

// TestCausesAreCounted counts second runs and lost answers by cause.
func TestCausesAreCounted(t *testing.T) {
	h := newHistory(newRun("1", 0), newRun("2", 3*second), newRun("3", 6*second))
	h.attempts = []attempt{newAnswer("1", second, false), newAnswer("3", 8*second, true)}
	h.runs[pay1][0].outcome, h.runs[pay1][0].err = "not_stored", errorUnreachable
	h.windows = []window{{kind: faultCut, from: 0, to: second}}
	died(h, h.runs[pay1][1])
	v := judge(h, false)
	require.Empty(t, v.violations)
	require.Equal(t, map[cause]int{causeUnstored: 1, causeDied: 1}, v.secondRuns)
	require.Equal(t, map[cause]int{causeUnstored: 1}, v.lost)
}
