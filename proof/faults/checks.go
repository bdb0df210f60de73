package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/idempotency-go/idempotency"
)

// verdict is what the checks found in a history.
type verdict struct {
	violations []violation
	secondRuns map[cause]int
	unexcused  int           // second runs that are violations
	lost       map[cause]int // answers that were to be stored, were sent, and are not the stored one

	interrupted      int // keys whose final answer was that their run was interrupted
	interruptedUnrun int // of those, the ones whose handler never ran
}

// violation is a promise that was broken.
type violation struct {
	check string // the letter of the check
	text  string
}

// fail adds a violation.
func (v *verdict) fail(check, format string, args ...any) {
	v.violations = append(v.violations, violation{check, fmt.Sprintf(format, args...)})
}

// failed returns the letters of the checks that found something, in order.
func (v *verdict) failed() string {
	var letters []string
	for _, found := range v.violations {
		letters = append(letters, found.check)
	}
	slices.Sort(letters)
	return strings.Join(slices.Compact(letters), " ")
}

// judge runs all checks on a history.
func judge(h *history, faultless bool) *verdict {
	v := &verdict{secondRuns: make(map[cause]int), lost: make(map[cause]int)}
	if faultless {
		checkOneRun(h, v)
	}
	checkSameAnswers(h, v)
	checkSecondRuns(h, v)
	checkOwnAnswers(h, v)
	checkFinalAnswers(h, v)
	checkDeadOwners(h, v)
	checkHeld(h, v)
	checkLeftovers(h, v)
	checkRefusals(h, v)
	return v
}

// checkOneRun is check (a): without a fault, each key has exactly one run.
func checkOneRun(h *history, v *verdict) {
	for _, g := range h.goals {
		if n := len(h.runs[g.payment]); n != 1 {
			v.fail("a", "%s has %d runs, and there was no fault", g.payment, n)
		}
	}
}

// checkSameAnswers is check (b). Answers of one run are the same bytes. All
// replays of a key are of one run, unless Redis lost it. An answer of another
// run is a lost one: it is counted by its cause, and without a cause it is a
// violation.
func checkSameAnswers(h *history, v *verdict) {
	runs := h.runByID()
	answers := make(map[payment][]*attempt)
	for i := range h.attempts {
		if a := &h.attempts[i]; a.answered() {
			answers[a.payment] = append(answers[a.payment], a)
		}
	}
	for p, all := range answers {
		slices.SortFunc(all, func(a, b *attempt) int { return cmp.Compare(a.done, b.done) })
		first := make(map[string]*attempt) // the first answer of each run
		replayed := make(map[string]bool)  // the runs of which there was a replay
		var last *attempt                  // the last replay
		for _, a := range all {
			same, ok := first[a.receipt.Run]
			if !ok {
				first[a.receipt.Run] = a
			} else if same.sum != a.sum || same.status != a.status {
				v.fail("b", "%s: two answers of run %s are not the same bytes", p, a.receipt.Run)
			}
			if !a.replayed {
				continue
			}
			if last != nil && last.receipt.Run != a.receipt.Run && !h.dataLost(last.sent, a.done) {
				v.fail("b", "%s: replayed as of run %s, then as of run %s", p, last.receipt.Run, a.receipt.Run)
			}
			last, replayed[a.receipt.Run] = a, true
		}
		checkLostAnswers(h, v, runs, first, replayed)
	}
}

// checkLostAnswers counts the answers that were to be stored, of runs that are
// not the stored one: the last that has stored its answer.
func checkLostAnswers(h *history, v *verdict, runs map[string]*run, first map[string]*attempt, replayed map[string]bool) {
	var stored *run
	for id, a := range first {
		r := runs[id]
		switch {
		case r == nil:
			v.fail("b", "%s: an answer of run %s, which no ledger has", a.payment, id)
		case (replayed[id] || r.fate == fateStored && r.err == "") && (stored == nil || stored.start < r.start):
			stored = r
		}
	}
	for id, a := range first {
		r := runs[id]
		if r == nil || r == stored || r.fate != fateStored {
			continue
		}
		until := h.healed
		if stored != nil {
			until = stored.start
		}
		why, ok := h.whyUnstored(r, until)
		if !ok {
			v.fail("b", "%s: the answer of run %s (%s, %q) is not the stored one, and nothing says why", a.payment, id, r.outcome, r.err)
			continue
		}
		v.lost[why]++
	}
}

// checkSecondRuns is checks (c) and (d). A second run of a key is allowed only
// where the earlier ones have released it, have died or have lost their claim;
// with at-most-once only after NoStore, and where Redis lost data.
func checkSecondRuns(h *history, v *verdict) {
	letter := "c"
	if h.mode == modeAtMostOnce {
		letter = "d"
	}
	for p, runs := range h.runs {
		for i, later := range runs[min(1, len(runs)):] {
			var last cause
			allowed := true
			for _, earlier := range runs[:i+1] {
				why, ok := h.whyAgain(earlier, later)
				if !ok {
					allowed = false
					v.fail(letter, "%s: run %s began %v after run %s (%s, %s, %q), and nothing allows it", p, later.id,
						time.Duration(later.start-earlier.start), earlier.id, earlier.fate, earlier.outcome, earlier.err)
				}
				last = why
			}
			if allowed {
				v.secondRuns[last]++
			} else {
				v.unexcused++
			}
		}
	}
}

// checkOwnAnswers is check (e): an answer is one to this key, scope and body.
func checkOwnAnswers(h *history, v *verdict) {
	for i := range h.attempts {
		a := &h.attempts[i]
		if a.answered() && (a.receipt.Scope != a.scope || a.receipt.Key != a.key || a.receipt.Body != a.body) {
			v.fail("e", "%s with body %s was answered with what was for %s/%s with body %s", a.payment, a.body,
				a.receipt.Scope, a.receipt.Key, a.receipt.Body)
		}
	}
}

// settling is how long, beyond one lease and the longest run, a key may take to
// its final answer once all faults have ended.
const settling = 4 * time.Second

// silence is how much longer calls of a client as it comes may hang or fail: its
// connections may have fallen silent, and it finds out only by its time-outs.
const silence = 10 * time.Second

// deadline is when every key must have its final answer.
func (h *history) deadline() int64 {
	return h.healed + int64(h.lease*time.Duration(1+h.longest)+settling+h.silence)
}

// checkFinalAnswers is check (f): once the faults have ended, nothing is stuck.
// In every mode each key comes to its answer; with at-most-once that may be that
// its run was interrupted.
func checkFinalAnswers(h *history, v *verdict) {
	for _, g := range h.goals {
		switch {
		case g.final == 0:
			v.fail("f", "%s never got a final answer (the last one: %v)", g.payment, g.problem)
		case g.final > h.deadline():
			v.fail("f", "%s got its final answer only %v after the faults had ended", g.payment, time.Duration(g.final-h.healed))
		case g.problem == idempotency.ErrInterrupted:
			v.interrupted++
			if len(h.runs[g.payment]) == 0 {
				v.interruptedUnrun++
			}
		}
	}
}

// deathGrace is how long, beyond one lease, the last renewal of a process that
// was killed may count: it may still be on its way.
const deathGrace = time.Second

// checkDeadOwners is check (f) too: with at-most-once nobody is told to wait for
// a run whose process is dead, one lease after its death.
func checkDeadOwners(h *history, v *verdict) {
	if h.mode != modeAtMostOnce {
		return // The key is free, and another may run.
	}
	for i := range h.attempts {
		a := &h.attempts[i]
		if a.problem != idempotency.ErrOutstanding {
			continue
		}
		var last *run
		for _, r := range h.runs[a.payment] {
			if r.start <= a.done {
				last = r
			}
		}
		if last == nil || last.event != 0 {
			continue
		}
		died, dead := h.deaths[last.process]
		if late := a.sent - died - int64(h.lease); dead && late > int64(deathGrace) && !h.dataLost(last.arrived, a.done) {
			v.fail("f", "%s was told outstanding %v after the process of run %s had died", a.payment, time.Duration(a.sent-died), last.id)
		}
	}
}

// checkHeld is check (f) too: nobody is told to wait for a run that has ended and
// released its claim.
func checkHeld(h *history, v *verdict) {
	for p, all := range h.attemptsByPayment() {
		for _, a := range all {
			if a.problem == idempotency.ErrOutstanding && !h.mayBeOutstanding(a, all) {
				v.fail("f", "%s was told outstanding, and nobody had its key", p)
			}
		}
	}
}

// What a quiet server may have more than when it began: connections of the
// client's pool and of HTTP, and the pools' memory.
const (
	goroutineSlack = 16
	heapSlack      = 16 << 20
)

// checkLeftovers is check (g): a quiet server has nothing left over.
func checkLeftovers(h *history, v *verdict) {
	for _, l := range h.leftover {
		if l.quiet.Outstanding > 0 {
			v.fail("g", "server %s: %d requests have not ended", l.process, l.quiet.Outstanding)
		}
		if l.renewed > 0 {
			v.fail("g", "server %s: %d renewals while nothing was outstanding", l.process, l.renewed)
		}
		if more := l.quiet.Goroutines - l.baseline.Goroutines; more > goroutineSlack {
			v.fail("g", "server %s: %d goroutines left over", l.process, more)
		}
		if l.quiet.Heap > l.baseline.Heap+heapSlack {
			v.fail("g", "server %s: %d bytes left over", l.process, l.quiet.Heap-l.baseline.Heap)
		}
	}
}

// checkRefusals is check (h): the refusal of an outstanding key asks for a retry,
// the one of an interrupted key does not. A key is told interrupted only where a
// run of it ended without its answer, and never after that answer.
func checkRefusals(h *history, v *verdict) {
	for p, all := range h.attemptsByPayment() {
		for _, a := range all {
			if a.problem == idempotency.ErrOutstanding && !a.retryAfter {
				v.fail("h", "%s was told outstanding without a Retry-After", p)
			}
			if a.problem != idempotency.ErrInterrupted {
				continue
			}
			if a.retryAfter {
				v.fail("h", "%s was told interrupted with a Retry-After", p)
			}
			if !h.mayBeInterrupted(a, all) {
				v.fail("h", "%s was told interrupted, and nothing says why", p)
			}
			for _, earlier := range all {
				if earlier.replayed && earlier.done <= a.sent && !h.dataLost(earlier.sent, a.done) {
					v.fail("h", "%s was told interrupted after a replay of run %s", p, earlier.receipt.Run)
				}
			}
		}
	}
}

// String names a payment in a message.
func (p payment) String() string { return p.scope + "/" + p.key }
