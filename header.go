package idempotency

import (
	"bytes"
	"net/http"
	"slices"
)

// keepHeader keeps a header as it stands, and makes the head of the stored form.
// Both are encoded alike, and are the same if everything is stored.
func (rec *recorder) keepHeader(h http.Header) {
	_, rec.typed = h["Content-Type"]
	rec.contentType = h.Get("Content-Type")
	rec.encoded = rec.encodes(h)
	var room [16]string
	names := sortedNames(room[:0], h)
	rec.header = appendHead(rec.room[:0], rec.status, names, h)
	rec.head = rec.header
	if stored := rec.storedNames(h, names); len(stored) < len(names) || len(rec.before) > 0 {
		rec.head = appendHead(rec.header[len(rec.header):], rec.status, stored, h)
	}
}

// sortedNames appends the names of a header to room.
func sortedNames(room []string, h http.Header) []string {
	for name := range h {
		room = append(room, name)
	}
	slices.Sort(room)
	return room
}

// storedNames returns, of the sorted names of a header, those that the handler added
// or changed, with those that it took away. It may use the memory of names.
func (rec *recorder) storedNames(h http.Header, names []string) []string {
	stored := slices.DeleteFunc(names, func(name string) bool {
		was, there := rec.before[name]
		return there && slices.Equal(was, h[name]) || !rec.cfg.storesHeader(rec.status, name)
	})
	for name := range rec.before {
		if _, there := h[name]; !there && rec.cfg.storesHeader(rec.status, name) {
			stored = append(stored, name)
		}
	}
	slices.Sort(stored)
	return stored
}

// headerThen returns the header as it stood when the handler wrote it.
func (rec *recorder) headerThen() http.Header {
	var then Response
	_ = then.decode(rec.header, everyHeader) // It was encoded here.
	return then.Header
}

// changed reports whether the header is another one than when the handler wrote it.
func (rec *recorder) changed() bool {
	var room [16]string
	var encoded [192]byte
	h := rec.Header()
	return !bytes.Equal(rec.header, appendHead(encoded[:0], rec.status, sortedNames(room[:0], h), h))
}

// mostRoom is the most room that a declared length gets before its bytes have come.
const mostRoom = 1 << 20

// makeBuffer makes the stored form, with room for a body that begins with n bytes.
func (rec *recorder) makeBuffer(n int) {
	if rec.length > int64(n) && rec.length <= int64(rec.cfg.bufferLimit) {
		n = max(n, int(min(rec.length, mostRoom)))
	}
	rec.buffer = append(make([]byte, 0, len(rec.head)+n), rec.head...)
}

// held returns what is held of the body.
func (rec *recorder) held() []byte {
	if rec.buffer == nil {
		return nil
	}
	return rec.buffer[len(rec.head):]
}
