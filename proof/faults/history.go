package main

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/idempotency-go/idempotency"
)

// history is all that is known of one run of the harness, from three sources
// that are apart from the Redis under test: what the clients saw, what the
// servers' ledgers say, and what faults were injected when.
type history struct {
	mode     string
	lease    time.Duration
	longest  int           // how many leases the slowest handler takes
	silence  time.Duration // how long after a fault connections may still be silent
	attempts []attempt
	runs     map[payment][]*run // of each payment, in the order of their begin
	windows  []window           // the faults
	stalls   []window           // when the machine was too busy
	deaths   map[string]int64   // when each killed server process was killed
	healed   int64              // when the last fault had ended
	goals    []goal             // what each client wanted, and when it had it
	leftover []leftover         // of each server process at the end
}

// payment is what a client wants to happen once: a key in a scope.
type payment struct{ scope, key string }

// attempt is one request of a client, and its answer.
type attempt struct {
	payment
	token      string
	body       string // the digest of the request's
	sent, done int64
	status     int      // 0 where no answer came
	problem    error    // the sentinel of a refusal
	retryAfter bool     // the refusal had a Retry-After
	replayed   bool     //
	kept       bool     // an answer of the handler that was to be stored
	sum        [32]byte // of the answer's body
	receipt    receipt  // of an answer of the handler
	hungUp     bool     // the client left on purpose
}

// answered reports whether the attempt got an answer of the handler, itself or
// a replay of it.
func (a *attempt) answered() bool { return a.receipt.Run != "" }

// felt reports whether the attempt saw something of a fault.
func (a *attempt) felt() bool {
	return !a.hungUp && (a.status == 0 || a.status == 503 ||
		a.problem == idempotency.ErrOutstanding || a.problem == idempotency.ErrInterrupted)
}

// goal is a payment that a client has pursued.
type goal struct {
	payment
	final   int64 // when the final answer came; 0 if none did
	problem error // the sentinel of that answer, or of the last one; nil where it was none
}

// run is one run of the handler, by the ledger of its process. The times that
// the process did not live to write are 0.
type run struct {
	payment
	id, process, body, attempt string
	arrived, start, end, event int64
	fate                       string // how the handler ended
	outcome, err               string // what the observer was told
}

// window is a fault.
type window struct {
	kind     faultKind
	process  string // the server process that it befell; "" is Redis, and so all of them
	from, to int64
	lost     bool // Redis may have lost data
}

// overlaps reports whether the window has a moment in common with a time.
func (w *window) overlaps(from, to int64) bool { return w.from <= to && from <= w.to }

// leftover is what a server process had left when all was quiet.
type leftover struct {
	process         string
	baseline, quiet serverState
	renewed         int64 // renewals in a time in which nothing was outstanding
}

// runsOf puts the runs of all ledgers in order.
func runsOf(ledgers map[string][]record) map[payment][]*run {
	byID := make(map[string]*run)
	byPayment := make(map[payment][]*run)
	for process, records := range ledgers {
		for _, r := range records {
			switch r.Kind {
			case recordStart:
				started := &run{payment: payment{r.Scope, r.Key}, id: r.Run, process: process,
					body: r.Body, attempt: r.Attempt, arrived: r.Arrived, start: r.Time}
				byID[r.Run] = started
				byPayment[started.payment] = append(byPayment[started.payment], started)
			case recordEnd:
				byID[r.Run].end, byID[r.Run].fate = r.Time, r.Fate
			case recordEvent:
				byID[r.Run].event, byID[r.Run].outcome, byID[r.Run].err = r.Time, r.Outcome, r.Err
			}
		}
	}
	for _, runs := range byPayment {
		slices.SortFunc(runs, func(a, b *run) int {
			return cmp.Or(cmp.Compare(a.start, b.start), strings.Compare(a.id, b.id))
		})
	}
	return byPayment
}

// runByID returns all runs by their identity.
func (h *history) runByID() map[string]*run {
	all := make(map[string]*run)
	for _, runs := range h.runs {
		for _, r := range runs {
			all[r.id] = r
		}
	}
	return all
}

// attemptsByPayment returns all attempts by what they were for.
func (h *history) attemptsByPayment() map[payment][]*attempt {
	of := make(map[payment][]*attempt)
	for i := range h.attempts {
		of[h.attempts[i].payment] = append(of[h.attempts[i].payment], &h.attempts[i])
	}
	return of
}

// dataLost reports whether Redis may have lost data within a time.
func (h *history) dataLost(from, to int64) bool {
	return slices.ContainsFunc(h.windows, func(w window) bool { return w.lost && w.overlaps(from, to) })
}

// standsStill reports whether a fault stops a process.
func standsStill(kind faultKind) bool { return kind == faultPause || kind == faultStall }

// cutsOff reports whether a fault keeps claims from being renewed. A Redis that is
// slow within a tenth of the lease, or full, does not, nor do slots that migrate.
func cutsOff(kind faultKind) bool {
	switch kind {
	case faultKill, faultSlow, faultUneven, faultFull, faultEvict, faultMoveSlots:
		return false
	}
	return true
}

// impaired reports whether a process was kept from Redis at some time.
func (h *history) impaired(process string, from, to int64) bool {
	return h.outage(process, from, to, cutsOff) > 0
}

// wasFull reports whether Redis was full at some time.
func (h *history) wasFull(from, to int64) bool {
	return slices.ContainsFunc(h.windows, func(w window) bool {
		return (w.kind == faultFull || w.kind == faultEvict) && w.overlaps(from, to)
	})
}

// outage returns how long faults of some kinds befell a process without a break,
// within a time, at most. What lies between two faults is a break if it is long
// enough to renew a claim: a twentieth of a lease.
func (h *history) outage(process string, from, to int64, counts func(faultKind) bool) int64 {
	var befell []window
	for _, of := range [][]window{h.windows, h.stalls} {
		for _, w := range of {
			if counts(w.kind) && (w.process == "" || w.process == process) && w.overlaps(from, to) {
				befell = append(befell, w)
			}
		}
	}
	slices.SortFunc(befell, func(a, b window) int { return cmp.Compare(a.from, b.from) })
	var longest, begin, end int64
	for i, w := range befell {
		if i == 0 || w.from-end >= int64(h.lease)/20 {
			begin, end = max(w.from, from), 0
		}
		end = max(end, min(w.to, to))
		longest = max(longest, end-begin)
	}
	return longest
}

// leaseLost returns why a run may have lost its claim by a time: for nearly a lease
// it could not be renewed.
func (h *history) leaseLost(r *run, until int64) (cause, bool) {
	most := int64(holds * float64(h.lease))
	if r.event != 0 {
		until = min(until, r.event) // What is not stored by then is left to run out.
	}
	// A process may stand still between its claim and its run, too.
	if h.outage(r.process, r.arrived, until, standsStill) > most {
		if h.outage(r.process, r.arrived, until, func(kind faultKind) bool { return kind == faultPause }) == 0 {
			return causeStalled, true
		}
		return causePaused, true
	}
	// But no run begins with a claim that was not renewed for more than half a lease,
	// unless its process stands still then.
	still := h.outage(r.process, r.arrived, r.start, standsStill)
	known := max(r.arrived, r.start-int64(h.lease)/2-still)
	return causeUnreachable, h.outage(r.process, known, until, cutsOff) > most
}
