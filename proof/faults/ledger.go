package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// record is a line of a ledger. A run has one of each kind, unless its process
// died before.
type record struct {
	Kind string `json:"kind"` // recordStart, recordEnd or recordEvent
	Run  string `json:"run"`
	Time int64  `json:"time"` // nanoseconds since 1970, of the one machine's clock

	// Of a start.
	Scope   string `json:"scope,omitempty"`
	Key     string `json:"key,omitempty"`
	Body    string `json:"body,omitempty"`
	Attempt string `json:"attempt,omitempty"` // the client's token of the request
	PID     int    `json:"pid,omitempty"`
	Arrived int64  `json:"arrived,omitempty"` // when the request came, before it claimed its key

	// Of an end.
	Fate   string `json:"fate,omitempty"` // how the handler ended
	Status int    `json:"status,omitempty"`
	Lost   bool   `json:"lost,omitempty"` // the handler's context had ended with ErrClaimLost

	// Of an event: what the observer was told.
	Outcome string `json:"outcome,omitempty"`
	Err     string `json:"err,omitempty"`
}

// The kinds of a record.
const (
	recordStart = "start"
	recordEnd   = "end"
	recordEvent = "event"
)

// ledger is an append-only file of one process. What append has returned from
// survives a kill of the process and of the machine. It is safe for concurrent
// use: appends that come while the disk is busy share the next sync.
type ledger struct {
	file *os.File
	disk sync.Mutex // held while a batch is written

	mu    sync.Mutex
	batch *batch // takes the lines that come
}

// batch is a set of lines that reach the disk together.
type batch struct {
	lines []byte
	done  chan struct{}
	err   error
}

// openLedger creates the ledger's file.
func openLedger(path string) (*ledger, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	return &ledger{file: file, batch: &batch{done: make(chan struct{})}}, nil
}

// append writes a record and returns when it is on the disk.
func (l *ledger) append(r record) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	l.mu.Lock()
	b := l.batch
	first := len(b.lines) == 0
	b.lines = append(append(b.lines, line...), '\n')
	l.mu.Unlock()
	if !first {
		<-b.done
		return b.err
	}
	// The first of a batch writes it, when the disk is done with the last one.
	l.disk.Lock()
	defer l.disk.Unlock()
	l.mu.Lock()
	l.batch = &batch{done: make(chan struct{})}
	l.mu.Unlock()
	if _, b.err = l.file.Write(b.lines); b.err == nil {
		b.err = l.file.Sync()
	}
	close(b.done)
	return b.err
}

// readLedgers reads all ledgers of a folder, by the name of their process. A
// last line that a kill has cut is left out.
func readLedgers(dir string) (map[string][]record, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.ledger"))
	if err != nil {
		return nil, err
	}
	ledgers := make(map[string][]record, len(paths))
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		name := strings.TrimSuffix(filepath.Base(path), ".ledger")
		whole := text[:bytes.LastIndexByte(text, '\n')+1]
		decoder := json.NewDecoder(bytes.NewReader(whole))
		for {
			var r record
			err := decoder.Decode(&r)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("ledger %s: %w", name, err)
			}
			ledgers[name] = append(ledgers[name], r)
		}
	}
	return ledgers, nil
}
