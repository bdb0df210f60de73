package idempotency

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// firstRead is the most room that a body gets before its bytes have come, so
// that a client cannot take memory by declaring a length.
const firstRead = 32 << 10

// mostKept is the largest buffer that is kept for another request.
const mostKept = 64 << 10

// buffers has what bodies are read into.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// keep keeps a buffer for another request. Nothing may refer to it any more.
func keep(buffer *[]byte) {
	if cap(*buffer) <= mostKept {
		buffers.Put(buffer)
	}
}

// requestBody is a body of which some was read for the fingerprint. It is read
// from its beginning: what was read already, then the rest.
//
// As with a server's own, it may be closed while it is read.
type requestBody struct {
	mu   sync.Mutex
	read []byte
	over bool // the handler has returned
	rest io.ReadCloser
}

func (b *requestBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	n := copy(p, b.read)
	whole := len(b.read) == 0
	b.read = b.read[n:]
	over := b.over
	b.mu.Unlock()
	switch {
	case over:
		return 0, http.ErrBodyReadAfterClose
	case whole:
		return b.rest.Read(p)
	}
	return n, nil
}

func (b *requestBody) Close() error {
	b.mu.Lock()
	b.read = nil
	b.mu.Unlock()
	return b.rest.Close()
}

// finish drops what was read: its buffer is needed elsewhere. A handler
// that reads on in another goroutine learns that it is too late.
func (b *requestBody) finish() {
	b.mu.Lock()
	b.read, b.over = nil, true
	b.mu.Unlock()
}

// fingerprint returns what tells this request from another under the same key,
// and what it read of the body, in the buffer: at most the limit and one byte.
//
// It is a SHA-256 over the client's key, so that what lies in a store tells nothing
// to one who does not know the key; then by default over the method, the path, the
// query and the body, the parts told apart by their lengths. The path counts as it
// was sent too: two routes that http.StripPrefix makes alike are two. A body that
// is longer than the limit counts by its first bytes and its declared length.
func (h *handler) fingerprint(r *http.Request, key string, buffer *[]byte) (sum [sha256.Size]byte, read []byte, err error) {
	if h.fingerprintOff {
		return sum, nil, nil
	}
	b := appendText((*buffer)[:0], key)
	if h.fingerprintFunc == nil {
		sent := sentPath(r.RequestURI)
		if sent == r.URL.Path {
			sent = "" // To hash it twice would tell nothing more.
		}
		for _, s := range [...]string{r.Method, r.URL.Path, r.URL.RawPath, r.URL.RawQuery, sent} {
			b = appendText(b, s)
		}
	}
	b = append(b, 0) // The body is whole, see below.
	parts := len(b)
	b, err = appendBody(slices.Grow(b, bodyRoom(r, h.bufferLimit)), r, h.bufferLimit)
	*buffer = b
	if err != nil {
		return sum, nil, fmt.Errorf("%w: %w", ErrBodyUnreadable, err)
	}
	read = b[parts:]
	length := min(len(read), h.bufferLimit)
	compared := read[:length:length]
	cut := len(compared) < len(read)
	if !cut && h.fingerprintFunc == nil {
		return sha256.Sum256(b), read, nil
	}
	if cut {
		b[parts-1] = 1
	}
	digest := sha256.New()
	digest.Write(b[:parts])
	if h.fingerprintFunc != nil {
		digest.Write(h.fingerprintFunc(r, compared))
	} else {
		digest.Write(compared)
		digest.Write(binary.BigEndian.AppendUint64(nil, uint64(r.ContentLength))) // -1 if none is declared
	}
	digest.Sum(sum[:0])
	return sum, read, nil
}

// sentPath returns the path of a request's target, which may be in origin-form or
// absolute-form (RFC 9112, section 3.2).
func sentPath(target string) string {
	if !strings.HasPrefix(target, "/") {
		_, target, _ = strings.Cut(target, "://")
		target = target[max(strings.IndexByte(target, '/'), 0):]
	}
	path, _, _ := strings.Cut(target, "?")
	return path
}

// bodyRoom returns how much room to make for a body at first.
func bodyRoom(r *http.Request, limit int) int {
	if r.ContentLength < 0 {
		return 512
	}
	return int(min(r.ContentLength, int64(limit), firstRead)) + 1
}

// appendBody reads the body of r until it ends or exceeds the limit by a byte,
// which tells a longer body from one that just fits.
func appendBody(b []byte, r *http.Request, limit int) ([]byte, error) {
	if r.Body == nil || r.Body == http.NoBody {
		return b, nil
	}
	for begin := len(b); len(b)-begin <= limit; {
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
		room := b[len(b):cap(b)]
		if most := limit - (len(b) - begin); len(room)-1 > most {
			room = room[:most+1]
		}
		n, err := r.Body.Read(room)
		b = b[:len(b)+n]
		if err == io.EOF {
			break
		}
		if err != nil {
			return b, err
		}
	}
	return b, nil
}
