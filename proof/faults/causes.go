package main

import (
	"net/http"
	"slices"
)

// cause is why a second run of a key, or an answer that is not the stored one,
// is as it must be.
type cause string

// The causes.
const (
	causeReleased    cause = "released"          // a panic, or an answer that is not to be stored
	causeDied        cause = "owner died"        // its process was killed
	causePaused      cause = "owner paused"      // for so long that its claim ran out
	causeUnreachable cause = "Redis unreachable" // its claim could not be renewed, or its answer not stored
	causeDataLost    cause = "Redis lost data"   // the claim or the answer was lost in Redis
)

// causes has all of them, in the order in which tables show them.
var causes = []cause{causeReleased, causeDied, causePaused, causeUnreachable, causeDataLost}

// whyAgain returns why the handler could run again after an earlier run of the
// same key, or false where nothing allows it.
func (h *history) whyAgain(earlier, later *run) (cause, bool) {
	ended := earlier.end != 0 && earlier.end <= later.start
	lost := h.dataLost(min(earlier.arrived, later.arrived), later.start)
	if ended && earlier.fate == fateNoStore {
		return causeReleased, true
	}
	if h.mode == modeAtMostOnce {
		// In every other case the key keeps a trace of the earlier run.
		return causeDataLost, lost
	}
	if ended && earlier.fate != fateStored {
		return causeReleased, true
	}
	// The later one may have claimed first, and stood still before it began.
	overtaken := h.paused(later.process, later.arrived, later.start)
	if earlier.outcome == "stored" && ended && earlier.event <= later.start && !overtaken {
		return causeDataLost, lost
	}
	// What follows lets the claim run out, which takes a lease. It was made when
	// the request arrived; its process may have stood still before the run began.
	ranOut := later.start-min(earlier.arrived, later.arrived) >= int64(h.lease-claimPatience)
	if overtaken || ranOut && h.paused(earlier.process, earlier.arrived, later.start) {
		return causePaused, true
	}
	if died, ok := h.deaths[earlier.process]; ok && ranOut && died <= later.start && earlier.outcome == "" {
		return causeDied, true
	}
	if lost && earlier.err != errorUnreachable && earlier.err != errorFull {
		return causeDataLost, true
	}
	return causeUnreachable, ranOut && h.impaired(min(earlier.arrived, later.arrived), later.start)
}

// whyUnstored returns why an answer that was to be stored, and that a client
// got until a time, is not the one that is stored for its key.
func (h *history) whyUnstored(r *run, until int64) (cause, bool) {
	if r.outcome == "stored" || r.event == 0 {
		// A process that answered and was killed before it told its observer has
		// stored before.
		return causeDataLost, h.dataLost(r.arrived, until)
	}
	if r.err != "" && h.paused(r.process, r.arrived, r.event) {
		return causePaused, true
	}
	if r.err == errorLost && h.dataLost(r.arrived, r.event) {
		return causeDataLost, true
	}
	return causeUnreachable, r.err != "" && h.impaired(r.arrived, r.event)
}

// mayBeInterrupted reports whether a key may have been interrupted when an
// attempt was told so; all are the attempts for this key.
func (h *history) mayBeInterrupted(told *attempt, all []*attempt) bool {
	if h.mode != modeAtMostOnce {
		return false
	}
	for _, r := range h.runs[told.payment] {
		if r.arrived > told.done {
			continue
		}
		ended := r.end != 0 && r.end <= told.done
		died, dead := h.deaths[r.process]
		// The lease began when the run's request arrived, or later.
		ranOut := told.done-r.arrived >= int64(h.lease-claimPatience)
		switch {
		case r.outcome == "stored" && r.event <= told.sent:
			if h.dataLost(r.arrived, told.done) {
				return true
			}
		case ended && (r.fate == fateText || r.fate == fatePanic),
			ended && r.err != "",
			ranOut && dead && died <= told.done && r.event == 0,
			ranOut && h.paused(r.process, r.arrived, told.done),
			ranOut && h.impaired(r.arrived, told.done):
			return true
		}
	}
	// A claim may have landed without a run: of a process that died or stood
	// still, or one whose reply was lost.
	return len(h.windows) > 0 && slices.ContainsFunc(all, func(a *attempt) bool {
		return (a.status == 0 || a.status == http.StatusServiceUnavailable) && a.sent <= told.done-int64(h.lease-claimPatience)
	})
}
