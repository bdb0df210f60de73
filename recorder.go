package idempotency

import (
	"bufio"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
)

// recording is what a recorder does with what the handler writes.
type recording uint8

const (
	holding   recording = iota // The response may still be stored.
	streaming                  // It is passed on, and not stored.
	dropping                   // It is neither stored nor sent; see pass.
	hijacked                   // The handler has the connection.
)

// recorder is the ResponseWriter that a handler writes to. It holds a response
// while that may still be stored, and streams from the moment that it is known
// that it will not be: then it writes out what it holds and passes on the rest.
type recorder struct {
	w      http.ResponseWriter
	cfg    *config
	body   *requestBody
	before http.Header // what outside had set before the handler ran

	state       recording
	reason      Reason    // why the response is not stored; "" while it may be
	status      int       // 0 until the handler has written its header
	header      []byte    // as it stood then, encoded, while the response is held
	head        []byte    // of the stored form
	typed       bool      // The header had a Content-Type, which was
	contentType string    // this one, or "".
	encoded     bool      // The handler has set a Content-Encoding.
	length      int64     // the declared length, or -1
	begun       bool      // The body's first significant byte was seen.
	flushed     bool      // The handler has flushed what is held, first
	flushedAt   int       // when the body was this long.
	implicit    bool      // The handler has not written its header.
	buffer      []byte    // the stored form: the head, then the body; nil before the first byte of that
	room        [192]byte // for header, and for head, if that is enough
	sentRoom    [1]string // for the length that is sent

	noStore atomic.Bool // NoStore was called
	refused atomic.Bool // middleware inside has refused a request of the handler's
}

var (
	_ http.Flusher  = (*recorder)(nil)
	_ http.Hijacker = (*recorder)(nil)
)

// start sets what the recorder writes to, and the body that is answered.
func (rec *recorder) start(w http.ResponseWriter, cfg *config, body *requestBody) {
	rec.w, rec.cfg, rec.body = w, cfg, body
	if header := w.Header(); len(header) > 0 {
		rec.before = header.Clone()
	}
}

// Unwrap is for [http.ResponseController].
func (rec *recorder) Unwrap() http.ResponseWriter { return rec.w }

func (rec *recorder) Header() http.Header { return rec.w.Header() }

func (rec *recorder) WriteHeader(status int) {
	if rec.status != 0 || rec.state == hijacked {
		if rec.state == streaming {
			rec.w.WriteHeader(status) // It is too late: the one below says so.
		}
		return
	}
	informational := 100 <= status && status <= 199 && status != http.StatusSwitchingProtocols
	invalid := status < 100 || status > 999 // The one below says so, with a panic.
	if informational || invalid {
		rec.w.WriteHeader(status)
		return
	}
	rec.implicit = false
	rec.begin(status)
}

// begin takes the handler's header as it stands.
func (rec *recorder) begin(status int) {
	if rec.state == holding {
		reason := rec.judgeHeader(status, rec.Header()) // It may panic: nothing is set before.
		rec.status = status
		if reason == "" {
			rec.keepHeader(rec.Header())
			return
		}
		rec.pass(reason)
	}
	rec.status = status
	if !rec.implicit && rec.state == streaming {
		rec.w.WriteHeader(status)
	}
}

// pass sets the recorder to pass on what follows. It drops it instead if a
// response that tells of success cannot be stored and what its handler wrote is
// undone for it.
func (rec *recorder) pass(reason Reason) {
	rec.reason = reason
	rec.state = streaming
	if rec.transactional() && rec.status < http.StatusBadRequest && !rec.noStore.Load() {
		rec.state = dropping
	}
}

// transactional reports whether what the handler writes is undone if its
// response is not stored.
func (rec *recorder) transactional() bool { return rec.cfg != nil && rec.cfg.transactional }

// ensureHeader takes the header of a handler that has not written one: net/http
// does so at the first Write or Flush, or when the handler returns.
func (rec *recorder) ensureHeader() {
	if rec.status == 0 && rec.state != hijacked {
		rec.implicit = true
		rec.begin(http.StatusOK)
	}
}

func (rec *recorder) Write(p []byte) (int, error) {
	rec.ensureHeader()
	if rec.state == holding {
		if !bodyAllowed(rec.status) {
			return 0, http.ErrBodyNotAllowed
		}
		if reason := rec.judgeBody(p); reason != "" {
			if err := rec.stream(reason); err != nil {
				return 0, err
			}
		}
	}
	switch rec.state {
	case holding:
		if rec.buffer == nil {
			rec.makeBuffer(len(p))
		}
		rec.buffer = append(rec.buffer, p...)
		return len(p), nil
	case dropping:
		return 0, errWithheld
	}
	return rec.w.Write(p)
}

func (rec *recorder) Flush() { _ = rec.FlushError() }

// FlushError is what [http.ResponseController] calls.
func (rec *recorder) FlushError() error {
	rec.ensureHeader()
	if rec.state == holding && rec.mustNotStore() != "" {
		if err := rec.stream(rec.mustNotStore()); err != nil {
			return err
		}
	}
	switch rec.state {
	case holding:
		if !rec.flushed {
			rec.flushed, rec.flushedAt = true, len(rec.held())
		}
		return nil
	case dropping:
		return http.ErrNotSupported
	}
	return http.NewResponseController(rec.w).Flush()
}

func (rec *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if rec.transactional() {
		return nil, nil, errHijack // What went over it could not be taken back.
	}
	if rec.status != 0 && rec.state == holding {
		if err := rec.stream(ReasonHijacked); err != nil {
			return nil, nil, err
		}
	}
	conn, rw, err := http.NewResponseController(rec.w).Hijack()
	if err == nil {
		rec.state, rec.reason = hijacked, ReasonHijacked
	}
	return conn, rw, err
}

// response ends the recording: it returns what is to be stored, or nil.
func (rec *recorder) response() []byte {
	rec.ensureHeader()
	if rec.state == holding {
		rec.reason = rec.judge()
	}
	if rec.reason != "" {
		return nil
	}
	body := rec.held()
	if !rec.typed && !rec.encoded && len(body) > 0 {
		// net/http would detect the type too, but only for the first answer.
		header := rec.headerThen()
		header.Set("Content-Type", http.DetectContentType(body))
		rec.keepHeader(header)
		rec.buffer = nil
	}
	if rec.buffer == nil {
		rec.makeBuffer(len(body))
		rec.buffer = append(rec.buffer, body...)
	}
	setBodyLength(rec.buffer, len(body))
	return rec.buffer
}

// send sends a response that was held to the end, to be stored.
func (rec *recorder) send() {
	header := rec.Header()
	if rec.changed() {
		clear(header)
		maps.Copy(header, rec.headerThen())
	}
	setLength(header, rec.status, rec.held(), rec.sentRoom[:], !rec.encoded && len(header["Content-Encoding"]) > 0)
	rec.state = streaming
	rec.w.WriteHeader(rec.status)
	_ = rec.writeBody(rec.held()) // The client may be gone; its retry finds the response.
}

// finish sends what is still held of a response that is not stored. It returns true
// if the response was dropped.
func (rec *recorder) finish() (withheld bool) {
	if rec.state == holding {
		_ = rec.stream(rec.reason)
	}
	return rec.state == dropping
}

// sentStatus returns the status code that the client was sent, or 0.
func (rec *recorder) sentStatus() int {
	if rec.state == holding || rec.state == dropping {
		return 0
	}
	return rec.status
}

// reset drops what is held, for a handler that has panicked. What recovers
// outside may have no other writer to answer with, as Echo has not.
func (rec *recorder) reset() {
	if rec.state == holding || rec.state == dropping {
		rec.state, rec.status, rec.buffer = streaming, 0, nil
	}
}

// errWithheld is what a handler gets that writes on, and what its event and the
// log tell.
var errWithheld = errors.New("idempotency: a response below 400 that cannot be stored is not sent, because what its handler wrote is undone (see Transactor)")

var errHijack = fmt.Errorf("idempotency: hijack in a transaction (see Transactor): %w", http.ErrNotSupported)

// stream sends what is held, and sets the recorder to pass on what follows.
func (rec *recorder) stream(reason Reason) error {
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
	if explicit {
		rec.w.WriteHeader(rec.status)
	}
	rest := rec.held()
	if rec.flushed {
		if err := rec.writeBody(rest[:rec.flushedAt]); err != nil {
			return err
		}
		_ = http.NewResponseController(rec.w).Flush() // The handler was told that it is done.
		rest = rest[rec.flushedAt:]
	}
	return rec.writeBody(rest)
}

// writeBody passes on p, if there is anything in it: an empty write is one too.
func (rec *recorder) writeBody(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	_, err := rec.w.Write(p)
	return err
}
