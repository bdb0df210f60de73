package idempotency

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
)

const mediaTypeJSON = "application/json"

// recorder is the ResponseWriter that a handler writes to. It holds a response
// while that may still be stored, and streams from the moment that it is known
// that it will not be: then it writes out what it holds and passes on the rest.
type recorder struct {
	w      http.ResponseWriter
	cfg    *config
	before fields // what outside had set before the handler ran

	streaming bool
	withheld  bool // what would be streamed is dropped, see pass
	hijacked  bool
	status    int    // 0 until the handler has written its header
	header    fields // as it stood then, while the response is held
	length    int64  // the declared length, or -1
	begun     bool   // the body's first significant byte was seen
	flushed   bool   // the handler has flushed what is held, first
	flushedAt int    // when it was this long
	implicit  bool   // the handler has not written its header
	buffer    []byte // the body, after the room that the store wants
	body      []byte // what the handler has written
	lead      int    // that room
	stored    response
	room      [1]string // for the length that is sent

	noStore atomic.Bool // see NoStore; a refusal within sets it too
	asked   atomic.Bool // NoStore was called
}

var (
	_ http.Flusher  = (*recorder)(nil)
	_ http.Hijacker = (*recorder)(nil)
)

// Unwrap is for [http.ResponseController].
func (rec *recorder) Unwrap() http.ResponseWriter { return rec.w }

func (rec *recorder) Header() http.Header { return rec.w.Header() }

func (rec *recorder) WriteHeader(status int) {
	if rec.status != 0 || rec.hijacked {
		if rec.streaming {
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
	header := fields(nil)
	if !rec.streaming {
		header = newFields(rec.Header())
	}
	held := !rec.streaming && rec.mayStore(status, header) // It may panic: nothing is set before.
	rec.status = status
	if held {
		rec.header = header
		return
	}
	rec.pass()
	if !rec.implicit {
		rec.w.WriteHeader(status)
	}
}

// pass sets the recorder to pass on what follows; or to drop it, where a
// response that tells of success cannot be stored and what its handler wrote is
// undone for it.
func (rec *recorder) pass() {
	if rec.transactional() && !rec.streaming && rec.status < http.StatusBadRequest && !rec.asked.Load() {
		rec.withheld = true
		rec.w = dropped{rec.w}
	}
	rec.streaming = true
}

// transactional reports whether what the handler writes is undone where its
// response is not stored.
func (rec *recorder) transactional() bool { return rec.cfg != nil && rec.cfg.transactional }

// ensureHeader takes the header of a handler that has not written one: net/http
// does so at the first Write or Flush, or when the handler returns.
func (rec *recorder) ensureHeader() {
	if rec.status == 0 && !rec.hijacked {
		rec.implicit = true
		rec.begin(http.StatusOK)
	}
}

func (rec *recorder) Write(p []byte) (int, error) {
	rec.ensureHeader()
	if !rec.streaming && !bodyAllowed(rec.status) {
		return 0, http.ErrBodyNotAllowed
	}
	if !rec.streaming && !rec.mayStoreBody(p) {
		if err := rec.stream(); err != nil {
			return 0, err
		}
	}
	if rec.streaming {
		return rec.w.Write(p)
	}
	if rec.buffer == nil {
		rec.buffer = rec.newBuffer(len(p))
	}
	rec.buffer = append(rec.buffer, p...)
	rec.body = rec.buffer[rec.lead:]
	return len(p), nil
}

// newBuffer returns what a body is recorded into that begins with n bytes: nil
// where append makes it best.
func (rec *recorder) newBuffer(n int) []byte {
	if rec.length > int64(n) && rec.length <= int64(rec.cfg.bufferLimit) {
		n = int(rec.length)
	} else if rec.lead == 0 {
		return nil
	}
	return make([]byte, rec.lead, rec.lead+n)
}

func (rec *recorder) Flush() { _ = rec.FlushError() }

// FlushError is what [http.ResponseController] calls.
func (rec *recorder) FlushError() error {
	rec.ensureHeader()
	if !rec.streaming && rec.noStore.Load() {
		if err := rec.stream(); err != nil {
			return err
		}
	}
	if !rec.streaming {
		if !rec.flushed {
			rec.flushed, rec.flushedAt = true, len(rec.body)
		}
		return nil
	}
	return http.NewResponseController(rec.w).Flush()
}

func (rec *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if rec.transactional() {
		return nil, nil, errHijack // What went over it could not be taken back.
	}
	if rec.status != 0 && !rec.streaming {
		if err := rec.stream(); err != nil {
			return nil, nil, err
		}
	}
	conn, rw, err := http.NewResponseController(rec.w).Hijack()
	if err == nil {
		rec.streaming, rec.hijacked = true, true
	}
	return conn, rw, err
}

// mayStore reports whether the response may be stored, judged by its header.
func (rec *recorder) mayStore(status int, header fields) bool {
	rec.length = header.length()
	// One that compression outside has set says nothing of this body.
	encoding := header.named("Content-Encoding")
	encoded := len(encoding) > 0 && !encoding[0].empty && !slices.Equal(encoding, rec.before.named("Content-Encoding"))
	if status == http.StatusSwitchingProtocols || encoded || header.haveTrailers() {
		return false
	}
	if rec.cfg.transactional && status >= http.StatusInternalServerError {
		return false // A handler that fails asks for what it wrote to be undone.
	}
	contentType := header.get("Content-Type")
	if !rec.cfg.everyType && contentType != "" && !rec.cfg.storesType(contentType) {
		return false
	}
	return rec.cfg.storeIf == nil || rec.cfg.storeIf(status, rec.Header())
}

// mayStoreBody reports whether the response may be stored with p added to it.
func (rec *recorder) mayStoreBody(p []byte) bool {
	n := len(rec.body) + len(p)
	if rec.noStore.Load() || n > rec.cfg.bufferLimit || rec.length >= 0 && int64(n) > rec.length {
		return false
	}
	if rec.begun || rec.cfg.everyType {
		return true
	}
	i := slices.IndexFunc(p, func(c byte) bool { return c != ' ' && c != '\t' && c != '\r' && c != '\n' })
	if i < 0 {
		return true
	}
	rec.begun = true
	beginsJSON := strings.IndexByte(`{["-0123456789tfn`, p[i]) >= 0
	contentType := rec.header.get("Content-Type")
	if contentType != "" {
		return beginsJSON || !isJSON(contentType)
	}
	return beginsJSON && rec.cfg.storesType(mediaTypeJSON) || rec.cfg.storesType(http.DetectContentType(p))
}

// storable reports whether the response that the handler has finished is to be
// stored.
func (rec *recorder) storable() bool {
	switch {
	case rec.streaming, rec.noStore.Load():
		return false
	case !rec.header.equal(rec.Header()) && hasLateTrailers(rec.Header()):
		return false
	case rec.length >= 0 && rec.length != int64(len(rec.body)):
		return false
	case rec.cfg.everyType:
		return true
	}
	contentType := rec.header.get("Content-Type")
	if contentType != "" {
		return !isJSON(contentType) || json.Valid(rec.body)
	}
	return rec.cfg.storesType(mediaTypeJSON) && json.Valid(rec.body) ||
		len(rec.body) > 0 && rec.cfg.storesType(http.DetectContentType(rec.body))
}

// hasLateTrailers reports whether h has trailers that need no declaration, and may
// have come after the header was written.
func hasLateTrailers(h http.Header) bool {
	for name := range h {
		if strings.HasPrefix(name, http.TrailerPrefix) {
			return true
		}
	}
	return false
}

// response ends the recording: it returns what is to be stored, or nil.
func (rec *recorder) response() *response {
	rec.ensureHeader()
	if !rec.storable() {
		return nil
	}
	// net/http would do the same, to the first answer only.
	if rec.header.named("Content-Type") == nil && len(rec.body) > 0 {
		rec.header = append(rec.header, field{name: "Content-Type", value: http.DetectContentType(rec.body)})
		rec.header.sort()
	}
	rec.stored = response{rec.status, rec.storedHeader(), rec.buffer, len(rec.buffer) - len(rec.body)}
	return &rec.stored
}

// storedHeader returns the headers that the handler added, changed or took away.
func (rec *recorder) storedHeader() fields {
	stored := rec.header
	left := func(f field) bool {
		unchanged := len(rec.before) > 0 && slices.Equal(rec.before.named(f.name), rec.header.named(f.name))
		return unchanged || !rec.cfg.storesHeader(f.name)
	}
	if slices.ContainsFunc(stored, left) {
		stored = slices.DeleteFunc(slices.Clone(stored), left)
	}
	for fs := rec.before; len(fs) > 0; fs = fs[fs.first():] {
		name := fs[0].name
		if rec.header.named(name) == nil && rec.cfg.storesHeader(name) {
			stored = append(slices.Clip(stored), field{name: name, empty: true})
			stored.sort()
		}
	}
	return stored
}

// send sends a response that was held to the end, stored or not.
func (rec *recorder) send(stored bool) {
	switch {
	case stored:
		header := rec.Header()
		rec.header.restore(header)
		setLength(header, rec.status, rec.body, rec.room[:])
		rec.streaming = true
		rec.w.WriteHeader(rec.status)
		_ = rec.writeBody(rec.body) // The client may be gone; its retry finds the response.
	case !rec.streaming:
		_ = rec.stream()
	}
}

// sentStatus returns the status code that the client was sent, or 0.
func (rec *recorder) sentStatus() int {
	if !rec.streaming || rec.withheld {
		return 0
	}
	return rec.status
}

// abandon drops what is held, or withheld, for a handler that has panicked.
// Whoever recovers outside may have no other writer to answer with, as Echo has
// not.
func (rec *recorder) abandon() {
	if rec.withheld {
		rec.w, rec.streaming = rec.w.(dropped).ResponseWriter, false
	}
	if !rec.streaming {
		rec.streaming, rec.status, rec.body = true, 0, nil
	}
}

// errWithheld is what a handler gets that writes on, and what its event and the
// log tell.
var errWithheld = errors.New("idempotency: a response below 400 that cannot be stored is not sent, because what its handler wrote is undone (see Transactor)")

var errHijack = fmt.Errorf("idempotency: hijack in a transaction (see Transactor): %w", http.ErrNotSupported)

// dropped is a ResponseWriter that sends nothing.
type dropped struct{ http.ResponseWriter }

func (dropped) WriteHeader(int) {}

func (dropped) Write([]byte) (int, error) { return 0, errWithheld }

// stream sends what is held, and sets the recorder to pass on what follows.
func (rec *recorder) stream() error {
	rec.pass()
	// The handler's header goes as it stood when it was written.
	header := rec.Header()
	if !rec.header.equal(header) {
		since := maps.Clone(header)
		rec.header.restore(header)
		defer func() {
			// What was set since may be trailers. What was not is as a writer
			// outside has left it.
			for name, values := range since {
				was := rec.header.named(name)
				if !was.are(values) && (was != nil || len(values) > 0) {
					header[name] = values
				}
			}
		}()
	}
	if !rec.implicit {
		rec.w.WriteHeader(rec.status)
	}
	rest := rec.body
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

// replay answers with a stored response.
func replay(w http.ResponseWriter, resp *response, mark string) {
	header := w.Header()
	room := resp.header.set(header, make([]string, len(resp.header)+2))
	room[0] = "true"
	header[mark] = room[:1:1]
	body := resp.body()
	setLength(header, resp.status, body, room[1:])
	w.WriteHeader(resp.status)
	if len(body) > 0 {
		_, _ = w.Write(body) // The client may be gone; it can retry again.
	}
}

// setLength declares the length of a body that is sent as it is. The value is
// put into room.
func setLength(h http.Header, status int, body []byte, room []string) {
	if !bodyAllowed(status) || len(h["Content-Encoding"]) > 0 {
		delete(h, "Content-Length")
		return
	}
	room[0] = strconv.Itoa(len(body))
	h["Content-Length"] = room[:1:1]
}

// bodyAllowed reports whether a final response may have a body (RFC 9110,
// sections 15.3.5 and 15.4.5).
func bodyAllowed(status int) bool {
	return status != http.StatusNoContent && status != http.StatusNotModified
}

// storesType reports whether the media type of a Content-Type is listed.
func (c *config) storesType(contentType string) bool {
	return slices.ContainsFunc(c.contentTypes, func(t string) bool { return strings.EqualFold(t, mediaType(contentType)) })
}

// storesHeader reports whether a response header is stored.
func (c *config) storesHeader(name string) bool {
	name = http.CanonicalHeaderKey(name)
	switch name {
	case "Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Date":
		return false // They belong to one connection or one answer (RFC 9110, section 7.6.1).
	case "Content-Length":
		return false // It is computed afresh.
	}
	return c.headerFilter(name)
}

// mediaType returns a Content-Type without its parameters.
func mediaType(contentType string) string {
	t, _, _ := strings.Cut(contentType, ";")
	return strings.TrimSpace(t)
}

// isJSON reports whether the media type of a Content-Type is JSON, also by its
// suffix (RFC 6839, section 3.1).
func isJSON(contentType string) bool {
	t := mediaType(contentType)
	const suffix = "+json"
	return strings.EqualFold(t, mediaTypeJSON) ||
		len(t) > len(suffix) && strings.EqualFold(t[len(t)-len(suffix):], suffix)
}
