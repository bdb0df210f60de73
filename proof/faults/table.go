package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// table is rows of cells under a header.
type table struct {
	header []string
	rows   [][]string
}

// add adds a row.
func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

// write writes the table as Markdown, its columns aligned.
func (t *table) write(w io.Writer) error {
	widths := make([]int, len(t.header))
	for _, row := range append([][]string{t.header}, t.rows...) {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	rule := make([]string, len(widths))
	for i, width := range widths {
		rule[i] = strings.Repeat("-", width)
	}
	var text strings.Builder
	for _, row := range append([][]string{t.header, rule}, t.rows...) {
		for i, cell := range row {
			fmt.Fprintf(&text, "| %s%s ", cell, strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)))
		}
		text.WriteString("|\n")
	}
	_, err := io.WriteString(w, text.String())
	return err
}

// tableOf puts results into a table, with their sum as its last row.
func tableOf(results []*result) *table {
	t := &table{header: []string{"scenario", "mode", "requests", "keys", "runs", "faults", "hang-ups", "felt by"}}
	for _, c := range causes {
		t.header = append(t.header, "again: "+string(c))
	}
	t.header = append(t.header, "lost answers", "interrupted keys (without a run)", "final after", "goroutines", "failed checks")
	sum := &result{scenario: "all", verdict: &verdict{secondRuns: make(map[cause]int), lost: make(map[cause]int)}, faults: make(map[faultKind]int)}
	for _, r := range results {
		t.add(r.cells()...)
		sum.merge(r)
	}
	t.add(sum.cells()...)
	return t
}

// cells returns a result as a row.
func (r *result) cells() []string {
	cells := []string{r.scenario, r.mode, strconv.Itoa(r.requests), strconv.Itoa(r.keys), strconv.Itoa(r.runs),
		strconv.Itoa(r.faultCount()), strconv.Itoa(r.hangUps), strconv.Itoa(r.felt)}
	for _, c := range causes {
		cells = append(cells, strconv.Itoa(r.verdict.secondRuns[c]))
	}
	failed := r.verdict.failed()
	switch {
	case r.noEffect:
		failed += " (a fault without effect)"
	case failed == "":
		failed = "none"
	}
	return append(cells, byCause(r.verdict.lost), fmt.Sprintf("%d (%d)", r.verdict.interrupted, r.verdict.interruptedUnrun),
		fmt.Sprintf("%.1f s", r.slowest.Seconds()), fmt.Sprintf("%+d", r.maxGo), failed)
}

// byCause returns counts as a text.
func byCause(counts map[cause]int) string {
	var parts []string
	for _, c := range causes {
		if n := counts[c]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, c))
		}
	}
	if parts == nil {
		return "0"
	}
	return strings.Join(parts, ", ")
}

// merge adds another result to a sum.
func (r *result) merge(other *result) {
	r.requests += other.requests
	r.keys += other.keys
	r.runs += other.runs
	r.felt += other.felt
	r.hangUps += other.hangUps
	r.took += other.took
	r.maxGo = max(r.maxGo, other.maxGo)
	r.slowest = max(r.slowest, other.slowest)
	r.noEffect = r.noEffect || other.noEffect
	for kind, n := range other.faults {
		r.faults[kind] += n
	}
	r.verdict.violations = append(r.verdict.violations, other.verdict.violations...)
	r.verdict.interrupted += other.verdict.interrupted
	r.verdict.interruptedUnrun += other.verdict.interruptedUnrun
	for c, n := range other.verdict.secondRuns {
		r.verdict.secondRuns[c] += n
	}
	for c, n := range other.verdict.lost {
		r.verdict.lost[c] += n
	}
}

// printViolations prints what the checks found, and where it can be looked into.
func printViolations(w io.Writer, r *result) {
	const most = 5 // of each check
	shown := make(map[string]int)
	for _, v := range r.verdict.violations {
		if shown[v.check]++; shown[v.check] <= most {
			fmt.Fprintf(w, "  FAILED (%s) %s\n", v.check, v.text)
		}
	}
	if r.noEffect {
		fmt.Fprintln(w, "  FAILED a fault was not injected, or no request saw it")
	}
	if r.kept != "" {
		fmt.Fprintf(w, "  %d violations; the ledgers are kept in %s\n", len(r.verdict.violations), r.kept)
	}
	fmt.Fprintf(w, "  %d requests, %d faults, %v\n", r.requests, r.faultCount(), r.took.Round(100*time.Millisecond))
}

// report prints the tables of results and further ones, writes them to a file if
// one is named, and returns an error where a check has failed.
func report(stdout io.Writer, path string, results []*result, more ...*table) error {
	faults := &table{header: []string{"fault", "injected"}}
	counts := make(map[faultKind]int)
	failed := 0
	for _, r := range results {
		for kind, n := range r.faults {
			counts[kind] += n
		}
		if r.failed() {
			failed++
		}
	}
	var kinds []string
	for kind := range counts {
		kinds = append(kinds, string(kind))
	}
	slices.Sort(kinds)
	for _, kind := range kinds {
		faults.add(kind, strconv.Itoa(counts[faultKind(kind)]))
	}
	tables := append([]*table{tableOf(results), faults}, more...)
	if t := leaseTableOf(results); t != nil {
		tables = append(tables, t)
	}
	if err := writeTables(stdout, path, tables...); err != nil {
		return err
	}
	if failed > 0 {
		return fmt.Errorf("checks failed in %d of %d runs", failed, len(results))
	}
	return nil
}

// writeTables prints tables, and writes them to a file if one is named.
func writeTables(stdout io.Writer, path string, tables ...*table) error {
	var text strings.Builder
	for _, t := range tables {
		text.WriteString("\n")
		if err := t.write(&text); err != nil {
			return err
		}
	}
	_, err := io.WriteString(stdout, text.String())
	if path != "" {
		err = errors.Join(err, os.WriteFile(path, []byte(text.String()[1:]), 0o644))
	}
	return err
}
