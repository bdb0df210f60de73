package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/idempotency-go/idempotency"
)

// progressEvery is how often stats tells how far it is.
const progressEvery = time.Second

// counts are how many records there are.
type counts struct {
	Outstanding int64 `json:"outstanding"`
	Interrupted int64 `json:"interrupted"`
	Completed   int64 `json:"completed"`
	// Unreadable are records that are of another version, or broken.
	Unreadable int64 `json:"unreadable"`
	// Over are rows of PostgreSQL whose time is over, until they are swept.
	Over int64 `json:"over"`
	// Foreign are Redis keys under the prefix whose names are not those of records.
	Foreign int64 `json:"foreign"`
	// Oldest is the outstanding record whose claim was made first.
	Oldest *oldest `json:"oldest_outstanding,omitempty"`
}

type oldest struct {
	StorageKey string    `json:"storage_key"`
	Claim      string    `json:"claim"`
	Claimed    time.Time `json:"claimed"`

	token idempotency.Token
}

// outstanding takes note of an outstanding record.
func (n *counts) outstanding(key idempotency.Key, token idempotency.Token) {
	if n.Oldest == nil || bytes.Compare(token[:], n.Oldest.token[:]) < 0 {
		n.Oldest = &oldest{key.String(), token.String(), token.Time().UTC(), token}
	}
}

// tally counts records one by one, and tells from time to time how many those are. It
// is safe for concurrent use.
type tally struct {
	progress io.Writer
	every    time.Duration

	mu sync.Mutex
	counts
	seen int64
	told time.Time
}

// add counts a record that a store has returned. It returns an error that does not tell
// of the record.
func (t *tally) add(key idempotency.Key, rec idempotency.Record, ok bool, err error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case errors.Is(err, idempotency.ErrUnreadable):
		t.Unreadable++
	case err != nil:
		return err
	case !ok: // It has ended meanwhile.
	case rec.State == idempotency.StateOutstanding:
		t.Outstanding++
		t.outstanding(key, rec.Claim.Token)
	case rec.State == idempotency.StateInterrupted:
		t.Interrupted++
	case rec.State == idempotency.StateCompleted:
		t.Completed++
	}
	return nil
}

// step takes note that so many keys were seen, some of them foreign.
func (t *tally) step(seen, foreign int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seen += int64(seen)
	t.Foreign += int64(foreign)
	if now := time.Now(); now.Sub(t.told) >= t.every {
		t.told = now
		fmt.Fprintf(t.progress, "idempotency: %d keys so far\n", t.seen)
	}
}

// stats counts the records of the store.
func (c *command) stats(s store) error {
	t := &tally{progress: c.stderr, every: progressEvery, told: time.Now()}
	if err := s.count(c, t); err != nil {
		return err
	}
	if c.json {
		return printJSON(c.stdout, t.counts)
	}
	return t.print(c.stdout)
}

func (n counts) print(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range []struct {
		name  string
		n     int64
		shown bool
	}{
		{"outstanding", n.Outstanding, true},
		{"interrupted", n.Interrupted, true},
		{"completed", n.Completed, true},
		{"unreadable", n.Unreadable, true},
		{"over, not swept yet", n.Over, n.Over > 0},
		{"foreign keys", n.Foreign, n.Foreign > 0},
	} {
		if row.shown {
			fmt.Fprintf(table, "%s\t%d\n", row.name, row.n)
		}
	}
	if n.Oldest != nil {
		fmt.Fprintf(table, "oldest outstanding\t%s\n", n.Oldest.StorageKey)
		fmt.Fprintf(table, "  claimed\t%s\n", since(n.Oldest.token))
	}
	return table.Flush()
}
