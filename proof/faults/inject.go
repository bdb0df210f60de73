package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// injector carries out a schedule.
type injector struct {
	fleet *fleet
	store store
	turns bool       // whether the faults of the store take turns
	turn  sync.Mutex // held by such a fault
	lanes int        // how many servers have one fault at a time, each; 0 where each kind has

	mu      sync.Mutex
	windows []window
}

// run injects the faults of a schedule until ctx ends, and heals each of them.
// It returns when all are healed.
func (in *injector) run(ctx context.Context, plans map[faultKind][]planned) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	begin := time.Now()
	for _, plan := range sequences(plans, in.lanes) {
		wg.Go(func() {
			for _, f := range plan {
				if !rest(ctx, max(f.gap, time.Until(begin.Add(f.at)))) {
					return
				}
				if err := in.one(ctx, f); err != nil {
					cancel(fmt.Errorf("fault %s: %w", f.kind, err))
					return
				}
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil && err != context.Canceled && err != context.DeadlineExceeded {
		return err
	}
	return nil
}

// sequences returns the faults that come one after the other: of each kind, or of
// each of a number of servers.
func sequences(plans map[faultKind][]planned, servers int) [][]planned {
	if servers == 0 {
		return slices.Collect(maps.Values(plans))
	}
	all := make([][]planned, servers)
	for _, plan := range plans {
		for _, f := range plan {
			all[f.server] = append(all[f.server], f)
		}
	}
	for _, plan := range all {
		slices.SortFunc(plan, func(a, b planned) int { return cmp.Compare(a.at, b.at) })
	}
	return all
}

// one injects a fault, lets it last, and heals it.
func (in *injector) one(ctx context.Context, f planned) error {
	w, heal, err := in.begin(f)
	if heal == nil {
		return err
	}
	if err == nil {
		rest(ctx, f.lasts)
	}
	lost, healErr := heal()
	w.lost = lost
	w.to = time.Now().UnixNano()
	in.mu.Lock()
	in.windows = append(in.windows, w)
	in.mu.Unlock()
	if err != nil {
		return err
	}
	return healErr
}

// begin begins a fault.
func (in *injector) begin(f planned) (w window, heal func() (bool, error), err error) {
	certain := func(heal func() error) func() (bool, error) {
		return func() (bool, error) { return false, heal() }
	}
	switch f.kind {
	case faultKill:
		w, heal := in.fleet.kill(f.server)
		return w, certain(heal), nil
	case faultPause:
		w, heal, err := in.fleet.pause(f.server)
		return w, certain(heal), err
	}
	if in.turns {
		in.turn.Lock()
	}
	w = window{kind: f.kind, from: time.Now().UnixNano()}
	switch f.kind {
	case faultRefused, faultSilent, faultAnswers, faultSwitch:
		w.process = in.fleet.name(f.server)
	}
	undo, err := in.store.inject(f)
	return w, func() (lost bool, err error) {
		if in.turns {
			defer in.turn.Unlock()
		}
		if undo == nil {
			return false, nil
		}
		return undo()
	}, err
}

// rest waits for d and returns true, or returns false once ctx has ended.
func rest(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
