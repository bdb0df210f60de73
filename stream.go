package idempotency

import (
	"errors"
	"maps"
	"net/http"
	"slices"
)

// pass sets the recorder to pass on what follows. It drops it instead if a
// response that tells of success cannot be stored and what its handler wrote is
// undone for it.
func (rec *recorder) pass(reason Reason) {
	rec.reason = reason
	rec.state = streaming
	if rec.transactional() && rec.status < http.StatusBadRequest && !rec.noStore.Load() {
		rec.state = dropping
		return
	}
	rec.run.followClient()
}

// stream sends what is held, and sets the recorder to pass on what follows.
func (rec *recorder) stream(reason Reason) error {
	rest := rec.held()
	rec.buffer = nil // It is held no longer than it takes to send it.
	if rec.pass(reason); rec.state == dropping {
		return nil
	}
	// The handler's header goes as it stood when it was written.
	explicit := !rec.implicit
	if rec.changed() {
		explicit = true // What follows must not take the header that is put back.
		header, then := rec.Header(), rec.headerThen()
		since := maps.Clone(header)
		clear(header)
		maps.Copy(header, then)
		defer func() {
			// Put back what the handler has set since: it may be trailers. All else
			// stays as the writer outside has left it.
			for name, values := range since {
				if !slices.Equal(then[name], values) {
					header[name] = values
				}
			}
		}()
	}
	switch {
	case rec.implicit && rec.empty:
		_, _ = rec.w.Write(nil) // Nothing that is held tells of it, and it writes the header.
	case explicit:
		rec.w.WriteHeader(rec.status)
	}
	if rec.flushed {
		if err := rec.writeBody(rest[:rec.flushedAt]); err != nil {
			return err
		}
		_ = http.NewResponseController(rec.w).Flush() // The handler was told that it is done.
		rest = rest[rec.flushedAt:]
	}
	return rec.writeBody(rest)
}

// finish sends what is still held of a response that is not stored. It returns true
// if the response was dropped.
func (rec *recorder) finish() (withheld bool) {
	if rec.state == holding {
		_ = rec.stream(rec.reason)
	}
	return rec.state == dropping
}

// writeBody passes on p, if there is anything in it: an empty write is one too.
func (rec *recorder) writeBody(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	_, err := rec.w.Write(p)
	return err
}

// errWithheld is what a handler gets that writes on, and what its event and the
// log tell.
var errWithheld = errors.New("idempotency: a response below 400 that cannot be stored is not sent, because what its handler wrote is undone (see Transactor)")
