package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// watchStalls notes each time in which a process stood still, as it does on a
// machine that is busy, until ctx ends. With a probe it is also each time in which
// the probe was not answered.
func watchStalls(ctx context.Context, lease time.Duration, probe func(context.Context) error, note func(from, to int64)) {
	tick := min(max(lease/100, 2*time.Millisecond), 20*time.Millisecond)
	for last := time.Now(); rest(ctx, tick); {
		if probe != nil && probe(ctx) != nil {
			continue
		}
		now := time.Now()
		if now.Sub(last) > 2*tick {
			note(last.UnixNano(), now.UnixNano())
		}
		last = now
	}
}

// stallsOf returns the file of a process's stalls, beside its ledger.
func stallsOf(ledger string) string { return strings.TrimSuffix(ledger, ".ledger") + ".stalls" }

// readStalls reads when the servers of a folder stood still. A last line that a kill
// has cut is left out.
func readStalls(dir string) ([]window, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.stalls"))
	if err != nil {
		return nil, err
	}
	var stalls []window
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		w := window{kind: faultStall, process: strings.TrimSuffix(filepath.Base(path), ".stalls")}
		whole := strings.NewReader(string(text[:strings.LastIndexByte(string(text), '\n')+1]))
		for {
			_, err := fmt.Fscanln(whole, &w.from, &w.to)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("stalls of %s: %w", w.process, err)
			}
			stalls = append(stalls, w)
		}
	}
	return stalls, nil
}
