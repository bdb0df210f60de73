package idempotency

import (
	"crypto/sha256"
	"encoding/binary"
	"net/http"
	"slices"
	"strings"
)

// What a fingerprint says of the body that it is over. They are part of the hash, so
// that no body of one kind is one of another.
const (
	bodyCut         = 1 << iota // It is longer than the limit.
	bodyParsed                  // Middleware outside has parsed a form.
	boundaryLeftOut             // It is a multipart body.
)

// fingerprint returns what tells this request from another under the same key.
//
// It is a SHA-256 over the client's key, so that what lies in a store tells nothing
// to one who does not know the key; then by default over the method, the path, the
// query and the body, the parts told apart by their lengths. A body that is longer
// than the limit counts by its first bytes and its declared length.
func (x *exchange) fingerprint(r *http.Request) (sum [sha256.Size]byte, err error) {
	if x.h.fingerprintOff {
		// A scope may have read it. Nothing is compared, so no form gets the replay of another;
		// to ask what was read outside, the body would have to be read ahead.
		return sum, x.body.failure()
	}
	body, cut, err := x.body.readAhead()
	if err != nil {
		return sum, err
	}
	form, err := parsedForm(r)
	if err != nil {
		return sum, err
	}
	if form == nil && wasEaten(r, len(body), cut) {
		return sum, errEaten
	}
	if x.h.fingerprintFunc != nil {
		return x.ownFingerprint(body, cut, form), nil
	}
	var room [512]byte
	parts := appendTarget(appendText(room[:0], x.key), r)
	kind := byte(0)
	if cut {
		kind |= bodyCut
	}
	if form != nil {
		kind |= bodyParsed
	}
	if without := sumWithoutBoundary(body, boundaryOf(r)); without != nil {
		kind |= boundaryLeftOut
		body = without
	}
	digest := sha256.New()
	digest.Write(append(parts, kind))
	digest.Write(body)
	if cut {
		digest.Write(binary.BigEndian.AppendUint64(room[:0], uint64(r.ContentLength)))
	}
	if form != nil {
		formSum := sha256.Sum256(form)
		digest.Write(formSum[:])
	}
	digest.Sum(sum[:0])
	return sum, nil
}

// ownFingerprint returns a fingerprint over what the user's function returns. If a form that
// middleware outside has parsed is not in the body, the function gets it in place of that: all
// of it, since it is in memory, and its files come last. If that cannot be known, the form
// counts besides.
func (x *exchange) ownFingerprint(body []byte, cut bool, form []byte) (sum [sha256.Size]byte) {
	declared := x.body.request.ContentLength
	parts, kind := appendText(nil, x.key), byte(0)
	if cut {
		kind |= bodyCut
	}
	switch length := int64(len(body)); {
	case form == nil || !cut && length == declared: // It is the request's own.
	case !cut && (length == 0 || length < declared): // What is left of it stood behind the form.
		body, declared = slices.Clip(form), int64(len(form))
	default:
		kind |= bodyParsed
		whole := sha256.Sum256(form)
		parts = append(parts, whole[:]...)
	}
	digest := sha256.New()
	digest.Write(append(parts, kind))
	digest.Write(peek(&x.body, func(r *http.Request) []byte {
		r.ContentLength = declared
		return x.h.fingerprintFunc(r, body)
	}))
	digest.Sum(sum[:0])
	return sum
}

// appendTarget appends the method, the path and the query of a request. The path counts as
// it was sent too: two routes that http.StripPrefix makes alike are two.
func appendTarget(parts []byte, r *http.Request) []byte {
	sent := sentPath(r.RequestURI)
	if sent == r.URL.Path {
		sent = "" // To hash it twice would tell nothing more.
	}
	for _, s := range [...]string{r.Method, r.URL.Path, r.URL.RawPath, r.URL.RawQuery, sent} {
		parts = appendText(parts, s)
	}
	return parts
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
