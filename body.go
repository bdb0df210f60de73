package idempotency

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
)

// firstRead is the most room that a body gets before its bytes have come, so
// that a client cannot take memory by declaring a length.
const firstRead = 32 << 10

// mostKept is the largest buffer that is kept for another request.
const mostKept = 64 << 10

// buffers has what bodies are read into.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// requestBody is the body of a request with a key. What the fingerprint and the
// user's functions need of it is read into a buffer, at most the limit and one byte,
// and is held until the handler has read it.
//
// The handler reads it from its beginning: what is held, then the rest. As with a
// server's own, it may be closed while it is read.
type requestBody struct {
	request *http.Request // as it came
	source  io.ReadCloser // its body; nil if it has none
	limit   int

	handlers *http.Request // what the handler has in its place
	broken   atomic.Bool   // The rest broke off while the handler read it.

	mu     sync.Mutex
	read   int64   // from the source
	buffer *[]byte // that held lies in; nil before it is read, and if held lies elsewhere
	held   []byte
	given  int   // of held, to the handler
	err    error // that the source ended with
	begun  bool  // The handler has the body.
	closed bool  // by the handler
	over   bool  // The handler has returned, or does not run.
}

// start sets what is read from. It reads nothing.
func (b *requestBody) start(r *http.Request, limit int) {
	b.request, b.limit = r, limit
	if r.Body != http.NoBody {
		b.source = r.Body
	}
}

// readAhead reads until the body ends or is longer than the limit. It returns the
// body up to the limit, and whether that cuts it.
func (b *requestBody) readAhead() (body []byte, cut bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.err == nil && len(b.held) <= b.limit {
		b.readMore()
	}
	n := min(len(b.held), b.limit)
	return b.held[:n:n], n < len(b.held), b.failure()
}

// failure returns why the body cannot be read ahead, or nil.
func (b *requestBody) failure() error {
	if b.err == nil || b.err == io.EOF {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrBodyUnreadable, b.err)
}

// readMore reads once into the buffer: up to the limit and a byte, which tells a
// longer body from one that just fits.
func (b *requestBody) readMore() {
	if b.source == nil {
		b.err = io.EOF
		return
	}
	if b.held == nil {
		b.buffer = buffers.Get().(*[]byte)
		b.held = slices.Grow((*b.buffer)[:0], b.firstRoom())
	}
	if len(b.held) == cap(b.held) {
		b.held = append(b.held, 0)[:len(b.held)]
	}
	room := b.held[len(b.held):cap(b.held)]
	if most := b.limit - len(b.held); len(room)-1 > most {
		room = room[:most+1]
	}
	n, err := b.source.Read(room)
	b.held, b.err = b.held[:len(b.held)+n], err
	b.read += int64(n)
}

// firstRoom returns how much room to make for the body at first.
func (b *requestBody) firstRoom() int {
	if b.request.ContentLength < 0 {
		return 512
	}
	return int(min(b.request.ContentLength, int64(b.limit), firstRead)) + 1
}

// shrink gives a large buffer back if a short body lies in it: it will be held for
// some time.
func (b *requestBody) shrink() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if cap(b.held) > 2*len(b.held) {
		held := bytes.Clone(b.held)
		b.drop()
		b.held = held
	}
}

// drop drops what is held. The buffer is kept for another request.
func (b *requestBody) drop() {
	if b.buffer != nil && cap(b.held) <= mostKept {
		*b.buffer = b.held[:0]
		buffers.Put(b.buffer)
	}
	b.buffer, b.held, b.given = nil, nil, 0
}

// give gives the body to the handler's request.
func (b *requestBody) give(r *http.Request) {
	b.mu.Lock()
	b.begun = true
	b.mu.Unlock()
	if b.source != nil {
		b.handlers, r.Body = r, b
	}
}

func (b *requestBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	n := copy(p, b.held[b.given:])
	whole := b.given == len(b.held)
	if b.given += n; b.given == len(b.held) {
		b.drop()
	}
	over := b.over
	b.mu.Unlock()
	switch {
	case over:
		return 0, http.ErrBodyReadAfterClose
	case whole:
		return b.readRest(p)
	}
	return n, nil
}

// readRest reads from the source for the handler.
func (b *requestBody) readRest(p []byte) (int, error) {
	n, err := b.source.Read(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.read += int64(n)
	if err == io.EOF && b.handlers.Trailer == nil {
		b.handlers.Trailer = b.request.Trailer // net/http has read it just now.
	}
	// A body within the limit that was read outside is refused before, or has left a form.
	short := b.read > int64(b.limit) && b.read < b.request.ContentLength
	if err != nil && !b.closed && (err != io.EOF || short) {
		b.broken.Store(true)
	}
	return n, err
}

func (b *requestBody) Close() error {
	b.mu.Lock()
	b.closed = true
	b.drop()
	b.mu.Unlock()
	return b.source.Close()
}

// finish drops what is held: its buffer is needed elsewhere. A handler
// that reads on in another goroutine learns that it is too late.
func (b *requestBody) finish() {
	b.mu.Lock()
	b.over = true
	b.drop()
	b.mu.Unlock()
}

// peek calls a function of the user's with a copy of the request. What the function
// reads of the body, or parses as a form, the next one and the handler get all the
// same.
func peek[T any](b *requestBody, f func(*http.Request) T) T {
	seen := *b.request
	if b.source != nil {
		seen.Body = &preview{body: b}
	}
	// A multipart form would be added to the maps of a form that is parsed already.
	seen.Form = url.Values(http.Header(seen.Form).Clone())
	seen.PostForm = url.Values(http.Header(seen.PostForm).Clone())
	defer removeFiles(&seen, b.request)
	return f(&seen)
}

// removeFiles removes the multipart files of a copy of r. net/http sees to r's only.
func removeFiles(seen, r *http.Request) {
	if seen.MultipartForm != nil && r.MultipartForm == nil {
		_ = seen.MultipartForm.RemoveAll()
	}
}

// preview is a body up to the limit, as a function of the user's reads it.
type preview struct {
	body *requestBody
	at   int
}

func (p *preview) Read(room []byte) (int, error) {
	b := p.body
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		shown := b.held[:min(len(b.held), b.limit)]
		switch {
		case b.begun || b.over:
			return 0, http.ErrBodyReadAfterClose
		case p.at < len(shown):
			n := copy(room, shown[p.at:])
			p.at += n
			return n, nil
		case len(shown) < len(b.held):
			return 0, &http.MaxBytesError{Limit: int64(b.limit)}
		case b.err != nil:
			return 0, b.err
		}
		b.readMore()
	}
}

// Close does nothing: the handler closes the body.
func (p *preview) Close() error { return nil }
