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
	attempts []attempt
	runs     map[payment][]*run // of each payment, in the order of their begin
	windows  []window           // the faults
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
	process  string // the server process that it befell; "" is Redis
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

// dataLost reports whether Redis may have lost data within a time.
func (h *history) dataLost(from, to int64) bool {
	return slices.ContainsFunc(h.windows, func(w window) bool { return w.lost && w.overlaps(from, to) })
}

// impaired reports whether a fault that keeps the servers from Redis overlaps a
// time. A Redis that is slow within the client's time-outs does not, nor do slots
// that migrate: they must not cost a claim.
func (h *history) impaired(from, to int64) bool {
	return slices.ContainsFunc(h.windows, func(w window) bool {
		return w.process == "" && w.kind != faultSlow && w.kind != faultMoveSlots && w.overlaps(from, to)
	})
}

// paused reports whether a process stood still, within a time, for so long that
// its claim may have run out.
func (h *history) paused(process string, from, to int64) bool {
	return slices.ContainsFunc(h.windows, func(w window) bool {
		return w.kind == faultPause && w.process == process && w.overlaps(from, to) && w.to-w.from >= int64(h.lease)*2/3
	})
}
