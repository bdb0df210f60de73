package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"
)

// selfTest runs every broken build and returns an error unless the check that
// must find it does.
func selfTest(ctx context.Context, set settings, stdout io.Writer) error {
	t := &table{header: []string{"broken build", "what is broken", "scenario", "check", "found", "failed checks"}}
	missed := 0
	set.duration, set.progress = 5*time.Second, io.Discard
	for _, b := range breakages {
		found, err := findBreakage(ctx, b, set)
		if err != nil {
			return fmt.Errorf("broken build %s: %w", b.name, err)
		}
		if err := os.RemoveAll(found.kept); err != nil {
			return err
		}
		count := 0
		for _, v := range found.verdict.violations {
			if v.check == b.check {
				count++
			}
		}
		if count == 0 {
			missed++
		}
		fmt.Fprintf(stdout, "%s: check (%s) found %d violations\n", b.name, b.check, count)
		t.add(b.name, b.what, b.scenario+", "+b.mode, b.check, fmt.Sprint(count), found.verdict.failed())
	}
	missedRecoveries, err := findBrokenRecoveries(set.seed, stdout, t)
	if err != nil {
		return err
	}
	missed += missedRecoveries
	if err := writeTables(stdout, "", t); err != nil {
		return err
	}
	if missed > 0 {
		return fmt.Errorf("%d broken builds were not found", missed)
	}
	return nil
}

// findBreakage runs a broken build.
func findBreakage(ctx context.Context, b breakage, set settings) (*result, error) {
	found, err := findScenarios(b.scenario)
	if err != nil {
		return nil, err
	}
	set.broken = b.name
	if found[0].longLived() {
		set.duration *= 2 // There are few runs.
	}
	return runScenario(ctx, found[0], b.mode, set)
}
