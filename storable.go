package idempotency

import (
	"encoding/json"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

const mediaTypeJSON = "application/json"

// judgeHeader returns why a response with this header is not stored, or "" if it may
// be.
func (rec *recorder) judgeHeader(status int, header http.Header) Reason {
	rec.length = declaredLength(header)
	contentType := header.Get("Content-Type")
	if reason := rec.mustNotStore(); reason != "" {
		return reason
	}
	switch {
	case status == http.StatusSwitchingProtocols:
		return ReasonHijacked
	case !rec.cfg.everyType && rec.encodes(header):
		return ReasonEncoded
	case len(header["Trailer"]) > 0 && !slices.Equal(header["Trailer"], rec.before["Trailer"]) || hasLateTrailers(header):
		return ReasonTrailers
	case rec.cfg.transactional && status >= http.StatusInternalServerError:
		return ReasonServerError // A handler that fails asks for what it wrote to be undone.
	case !rec.cfg.everyType && contentType != "" && !rec.cfg.storesType(contentType):
		return ReasonContentType
	case rec.length > int64(rec.cfg.bufferLimit) && rec.length != noLength:
		return ReasonTooLarge
	case rec.cfg.storeIf != nil && !rec.cfg.storeIf(status, header):
		return ReasonStoreIf
	}
	return ""
}

// judgeBody returns why the response is not stored with p added to it, or "" if it
// may be.
func (rec *recorder) judgeBody(p []byte) Reason {
	if reason := rec.mustNotStore(); reason != "" {
		return reason
	}
	n := len(rec.held()) + len(p)
	switch {
	case n > rec.cfg.bufferLimit || uint64(n) > mostBody:
		return ReasonTooLarge
	case rec.length >= 0 && int64(n) > rec.length:
		return ReasonLength
	case rec.begun || rec.cfg.everyType:
		return ""
	}
	i := slices.IndexFunc(p, func(c byte) bool { return c != ' ' && c != '\t' && c != '\r' && c != '\n' })
	if i < 0 {
		return ""
	}
	rec.begun = true
	beginsJSON := strings.IndexByte(`{["-0123456789tfn`, p[i]) >= 0
	contentType := rec.contentType
	switch {
	case contentType != "" && (beginsJSON || !isJSON(contentType)):
		return ""
	case contentType != "":
		return ReasonInvalidJSON
	case beginsJSON && rec.cfg.storesType(mediaTypeJSON) || rec.cfg.storesType(http.DetectContentType(p)):
		return ""
	}
	return ReasonContentType
}

// judge returns why the response that the handler has finished is not stored, or
// "" if it is.
func (rec *recorder) judge() Reason {
	if reason := rec.mustNotStore(); reason != "" {
		return reason
	}
	body, contentType := rec.held(), rec.contentType
	switch {
	case hasLateTrailers(rec.Header()):
		return ReasonTrailers
	case rec.length >= 0 && rec.length != int64(len(body)):
		return ReasonLength
	case rec.cfg.everyType, contentType != "" && !isJSON(contentType):
		return ""
	case json.Valid(body) && (contentType != "" || rec.cfg.storesType(mediaTypeJSON)):
		return ""
	case contentType != "":
		return ReasonInvalidJSON
	case len(body) > 0 && rec.cfg.storesType(http.DetectContentType(body)):
		return ""
	}
	return ReasonContentType
}

// mustNotStore returns why no response is stored, whatever it is, or "": the handler has
// asked for it, a refusal from inside is part of it, or the request's body broke off.
func (rec *recorder) mustNotStore() Reason {
	switch {
	case rec.noStore.Load() || rec.refused.Load():
		return ReasonNoStore
	case rec.body.broken.Load():
		return ReasonRequestBody
	}
	return ""
}

// encodes reports whether the handler has set a Content-Encoding. One that compression
// outside has set says nothing of this body.
func (rec *recorder) encodes(header http.Header) bool {
	encoding := header["Content-Encoding"]
	return len(encoding) > 0 && !slices.Equal(encoding, rec.before["Content-Encoding"])
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

// noLength is a length that no body meets.
const noLength = math.MaxInt64

// declaredLength returns the Content-Length, -1 if there is none, or noLength if it is
// malformed.
func declaredLength(h http.Header) int64 {
	declared := h["Content-Length"]
	if len(declared) == 0 {
		return -1
	}
	n, err := strconv.ParseInt(declared[0], 10, 64)
	if err != nil || n < 0 {
		return noLength
	}
	return n
}

// storesType reports whether the media type of a Content-Type is listed.
func (c *config) storesType(contentType string) bool {
	return slices.ContainsFunc(c.contentTypes, func(t string) bool { return strings.EqualFold(t, mediaType(contentType)) })
}

// storesHeader reports whether a header of a response with this status is stored.
func (c *config) storesHeader(status int, name string) bool {
	name = http.CanonicalHeaderKey(name)
	switch name {
	case "Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Date":
		return false // They belong to one connection or one answer (RFC 9110, section 7.6.1).
	case "Content-Length":
		return false // It is computed afresh.
	case "Retry-After":
		if status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable {
			return false // It was for one client at one time.
		}
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
