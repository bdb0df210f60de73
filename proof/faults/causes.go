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
	causeStalled     cause = "machine stalled"   // the same, and nobody had paused it
	causeUnreachable cause = "Redis unreachable" // its claim could not be renewed
	causeUnstored    cause = "answer not stored" // in 5 s, after which its claim was left to run out
	causeFull        cause = "Redis full"        // the same, at once
	causeDataLost    cause = "Redis lost data"   // the claim or the answer was lost in Redis
)

// causes has all of them, in the order in which tables show them.
var causes = []cause{causeReleased, causeDied, causePaused, causeStalled, causeUnreachable, causeUnstored, causeFull, causeDataLost}

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
	overtaken := h.outage(later.process, later.arrived, later.start, standsStill) > int64(holds*float64(h.lease))
	if earlier.outcome == "stored" && ended && earlier.event <= later.start && !overtaken {
		return causeDataLost, lost
	}
	if overtaken {
		return causePaused, true
	}
	if why, ok := h.leaseLost(earlier, later.start); ok {
		return why, true
	}
	// The claim was made when the request arrived, or later, and took a lease to end.
	ranOut := later.start-earlier.arrived >= int64(h.lease)
	if died, ok := h.deaths[earlier.process]; ok && ranOut && died <= later.start && earlier.outcome == "" {
		return causeDied, true
	}
	if lost && earlier.err != errorUnreachable && earlier.err != errorFull {
		return causeDataLost, true
	}
	why, ok := h.whyNotPut(earlier)
	return why, ok && ranOut && earlier.event <= later.start
}

// whyNotPut returns why the answer of a run could not be stored.
func (h *history) whyNotPut(r *run) (cause, bool) {
	switch {
	case r.end == 0 || r.event == 0:
		return "", false
	case r.err == errorFull:
		return causeFull, h.wasFull(r.end, r.event)
	case r.err == errorUnreachable:
		return causeUnstored, h.impaired(r.process, r.end-int64(h.silence), r.event)
	}
	return "", false
}

// whyUnstored returns why an answer that was to be stored, and that a client
// got until a time, is not the one that is stored for its key.
func (h *history) whyUnstored(r *run, until int64) (cause, bool) {
	if r.outcome == "stored" || r.event == 0 {
		// A process that answered and was killed before it told its observer has
		// stored before.
		return causeDataLost, h.dataLost(r.arrived, until)
	}
	if r.err == errorLost && h.dataLost(r.arrived, r.event) {
		return causeDataLost, true
	}
	if r.err == errorLost {
		return h.leaseLost(r, r.event)
	}
	return h.whyNotPut(r)
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
		ranOut := told.done-r.arrived >= int64(h.lease)
		_, lost := h.leaseLost(r, told.done)
		switch {
		case r.outcome == "stored" && r.event <= told.sent:
			if h.dataLost(r.arrived, told.done) {
				return true
			}
		case ended && (r.fate == fateText || r.fate == fatePanic),
			ended && r.err != "",
			ranOut && dead && died <= told.done && r.event == 0,
			lost:
			return true
		}
	}
	// A claim may have landed without a run: of a process that died or stood
	// still, or one whose reply was lost.
	return len(h.windows) > 0 && slices.ContainsFunc(all, func(a *attempt) bool {
		return (a.status == 0 || a.status == http.StatusServiceUnavailable) && !h.hasRun(a) && a.sent <= told.done-int64(h.lease)
	})
}

// hasRun reports whether an attempt is one whose handler ran.
func (h *history) hasRun(a *attempt) bool {
	return slices.ContainsFunc(h.runs[a.payment], func(r *run) bool { return r.attempt == a.token })
}

// mayBeOutstanding reports whether a request may have had the key when an attempt was
// told so; all are the attempts for this key.
func (h *history) mayBeOutstanding(told *attempt, all []*attempt) bool {
	for _, r := range h.runs[told.payment] {
		if r.arrived <= told.done && (r.event == 0 || told.sent <= r.event || r.err != "") {
			return true
		}
		// A renewal whose reply was lost may land after the release.
		if h.outage(r.process, r.arrived, told.done, cutsOff) > 0 || h.wasFull(r.arrived, told.done) {
			return true
		}
	}
	// One that claims may not have begun its run, or have lost the reply to its claim.
	return slices.ContainsFunc(all, func(a *attempt) bool {
		failed := a.status == 0 || a.status == http.StatusServiceUnavailable
		return a != told && a.sent <= told.done && (a.done >= told.sent || failed)
	})
}
