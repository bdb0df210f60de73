package idempotency

import (
	"bufio"
	"fmt"
	"maps"
	"net"
	"net/http"
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
	run    *run        // whose context ends with its client once this streams; nil if it does not

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
	implicit    bool      // No WriteHeader has written the header.
	empty       bool      // A Write of nothing has.
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
	if rec.status == 0 {
		rec.empty = len(p) == 0
	}
	rec.ensureHeader()
	if rec.state == holding {
		if len(p) > 0 && !bodyAllowed(rec.status) {
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
		rec.run.followClient()
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

// send sends a response that was held to the end, to be stored. The method is the
// request's.
func (rec *recorder) send(method string) {
	header := rec.Header()
	if rec.changed() {
		clear(header)
		maps.Copy(header, rec.headerThen())
	}
	body := rec.held()
	rec.buffer = nil // It is held no longer than it takes to send it.
	if tellsLength(method, body) {
		setLength(header, rec.status, body, rec.sentRoom[:], !rec.encoded && len(header["Content-Encoding"]) > 0)
	}
	rec.state = streaming
	rec.w.WriteHeader(rec.status)
	_ = rec.writeBody(body) // The client may be gone; its retry finds the response.
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

var errHijack = fmt.Errorf("idempotency: hijack in a transaction (see Transactor): %w", http.ErrNotSupported)
