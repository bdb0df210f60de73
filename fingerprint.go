package idempotency

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
)

// firstRead is the most room that a body gets before its bytes have come, so
// that a client cannot take memory by declaring a length.
const firstRead = 32 << 10

// requestBody is a body of which some was read for the fingerprint. It is read
// from its beginning: what was read already, then the rest.
//
// As with a server's own, it may be closed while it is read.
type requestBody struct {
	mu   sync.Mutex
	read []byte
	rest io.ReadCloser
}

func (b *requestBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	n := copy(p, b.read)
	whole := len(b.read) == 0
	b.read = b.read[n:]
	b.mu.Unlock()
	if whole {
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

// fingerprint returns what tells this request from another under the same key,
// and the body for the handler to read. It holds at most the limit and one byte
// of the body.
//
// By default it is a SHA-256 over the method, the path, the query and the body,
// the parts told apart by their lengths. The path counts as it was sent too: two
// routes that http.StripPrefix makes alike are two. A body that is longer than
// the limit counts by its first bytes and its declared length.
func (h *handler) fingerprint(r *http.Request) (sum [sha256.Size]byte, body io.ReadCloser, err error) {
	if h.fingerprintOff {
		return sum, r.Body, nil
	}
	parts := make([]byte, 0, 256+bodyRoom(r, h.bufferLimit))
	if h.fingerprintFunc == nil {
		for _, s := range []string{r.Method, r.URL.Path, r.URL.RawPath, r.URL.RawQuery, sentPath(r.RequestURI)} {
			parts = binary.BigEndian.AppendUint64(parts, uint64(len(s)))
			parts = append(parts, s...)
		}
		parts = binary.BigEndian.AppendUint64(parts, 0) // The body is whole, see below.
	}
	b, err := appendBody(parts, r, h.bufferLimit)
	if err != nil {
		return sum, nil, fmt.Errorf("%w: %w", ErrBodyUnreadable, err)
	}
	body, read := r.Body, b[len(parts):]
	if len(read) > 0 {
		body = &requestBody{read: read, rest: r.Body}
	}
	cut := len(read) > h.bufferLimit
	if cut {
		read = read[:h.bufferLimit]
	}
	if h.fingerprintFunc != nil {
		return sha256.Sum256(h.fingerprintFunc(r, read)), body, nil
	}
	if cut {
		// The declared length is -1 where there is none: what stands here is
		// never the 0 of a body that is whole.
		binary.BigEndian.PutUint64(b[len(parts)-8:], uint64(r.ContentLength+2))
	}
	return sha256.Sum256(b[:len(parts)+len(read)]), body, nil
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
func bodyRoom(r *http.Request, limit int) int64 {
	if r.ContentLength < 0 {
		return 512
	}
	return min(r.ContentLength, int64(limit), firstRead) + 1
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
			return nil, err
		}
	}
	return b, nil
}
