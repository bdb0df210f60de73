package idempotency

import (
	"encoding/binary"
	"fmt"
)

// progressVersion is the first byte of a progress. A change of the form takes a new
// version, and the old one stays readable.
const progressVersion = 1

// encodeProgress returns the progress with the results of steps:
//
//	version (1), number of steps, for each: name, result
//
// Numbers are uvarints; names and results are their length and their bytes.
func encodeProgress(done []*step) []byte {
	b := binary.AppendUvarint([]byte{progressVersion}, uint64(len(done)))
	for _, s := range done {
		b = appendText(b, s.name)
		b = binary.AppendUvarint(b, uint64(len(s.result)))
		b = append(b, s.result...)
	}
	return b
}

// resume takes over the results that an interrupted run has kept.
func (x *run) resume(held Record) error {
	if len(held.Progress) == 0 {
		return nil
	}
	progress, err := x.opened(held, sealedProgress, held.Progress)
	if err != nil {
		return err
	}
	if len(progress) == 0 || progress[0] != progressVersion {
		return fmt.Errorf("%w: a progress of %d bytes and another version", ErrUnreadable, len(progress))
	}
	l, over := &x.steps, make(chan struct{})
	close(over)
	d := decoder{rest: string(progress[1:])}
	// A step takes two bytes at the least.
	for range d.number(len(d.rest) / 2) {
		s := &step{run: x, name: d.text(), over: over}
		result := d.text()
		if d.failed || l.named[s.name] != nil {
			d.failed = true
			break
		}
		l.name(s)
		_ = l.add(s, []byte(result), len(progress)) // It was within the limit of its process.
	}
	if d.failed || d.rest != "" {
		return fmt.Errorf("%w: a malformed progress of %d bytes", ErrUnreadable, len(progress))
	}
	l.kept = len(l.done)
	return nil
}
