package main

import (
	"fmt"
	"strconv"
)

// longFaults is what a scenario about claims that must hold has shown of faults of
// one length.
type longFaults struct {
	least, most float64 // in leases
	faults      int     // that befell a run
	runs        int     // that were under way, and befallen: each for each fault
}

// longFaults counts the faults by how long they were: the machine may have made
// them longer than was planned.
func (h *history) longFaults() []longFaults {
	rows := []longFaults{{least: within.least, most: holds}, {least: holds, most: beyond.most}}
	for _, w := range h.windows {
		befallen := 0
		for _, runs := range h.runs {
			for _, r := range runs {
				until := r.event
				if until == 0 {
					until = h.healed
				}
				if (w.process == "" || w.process == r.process) && w.overlaps(r.start, until) {
					befallen++
				}
			}
		}
		if befallen == 0 {
			continue
		}
		row, lasted := &rows[0], h.lasted(w)
		if lasted > holds {
			row = &rows[1]
			row.most = max(row.most, lasted)
		}
		row.faults++
		row.runs += befallen
	}
	return rows
}

// lasted returns how long a fault lasted, in leases, with the stalls of the machine
// that made it longer.
func (h *history) lasted(w window) float64 {
	counts := cutsOff
	if w.kind == faultFull {
		counts = func(kind faultKind) bool { return kind == faultFull }
	}
	process := w.process
	long := h.outage(process, w.from-int64(h.lease)/4, w.to+int64(h.lease)/4, counts)
	return float64(max(long, w.to-w.from)) / float64(h.lease)
}

// leaseTableOf puts the results of the scenarios about claims that must hold into a
// table, or returns nil where there are none.
func leaseTableOf(results []*result) *table {
	t := &table{header: []string{"scenario", "mode", "lease", "length in leases", "faults", "runs under them", "second runs: claim lost", "answer not stored"}}
	for _, r := range results {
		// How long the fault was does not matter to these: the first row has them.
		unstored := strconv.Itoa(r.verdict.secondRuns[causeUnstored] + r.verdict.secondRuns[causeFull])
		for _, row := range r.longLived {
			if row.faults == 0 {
				continue
			}
			// What nothing excuses is booked on the short ones.
			again := r.verdict.unexcused
			if row.least >= holds {
				again = r.verdict.secondRuns[causePaused] + r.verdict.secondRuns[causeStalled] + r.verdict.secondRuns[causeUnreachable]
			}
			t.add(r.scenario, r.mode, r.lease.String(), fmt.Sprintf("%.1f to %.1f", row.least, row.most),
				strconv.Itoa(row.faults), strconv.Itoa(row.runs), strconv.Itoa(again), unstored)
			unstored = ""
		}
	}
	if len(t.rows) == 0 {
		return nil
	}
	return t
}
