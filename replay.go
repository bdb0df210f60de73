package idempotency

import (
	"net/http"
	"slices"
	"strconv"
)

// replay answers a method with a stored response and returns its status. If that cannot
// be read it returns an error and answers nothing. What is never stored is not sent
// either, whatever the store holds.
func (c *config) replay(w http.ResponseWriter, method string, stored []byte) (status int, err error) {
	header := w.Header()
	outside := header["Content-Encoding"]
	response := Response{Header: header}
	if err := response.decode(stored, c.storesHeader); err != nil {
		return 0, err
	}
	room := make([]string, 3)
	room[0] = "true"
	header[c.replayHeader] = room[:1:1]
	if isRetried(response.Status) {
		room[2] = "false" // Each retry gets this answer.
		header["X-Should-Retry"] = room[2:]
	}
	encoded := header["Content-Encoding"]
	if tellsLength(method, response.Body) {
		setLength(header, response.Status, response.Body, room[1:2], len(encoded) > 0 && slices.Equal(encoded, outside))
	}
	w.WriteHeader(response.Status)
	if len(response.Body) > 0 {
		_, _ = w.Write(response.Body) // The client may be gone; it can retry again.
	}
	return response.Status, nil
}

// isRetried reports whether many clients send a request again by themselves after an answer
// with this status.
func isRetried(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusConflict, http.StatusTooManyRequests:
		return true
	}
	return status >= 500
}

// tellsLength reports whether a body tells how long the response to a method is. An empty
// one to HEAD does not: its handler may have left out what a GET would get.
func tellsLength(method string, body []byte) bool { return method != http.MethodHead || len(body) > 0 }

// setLength declares the length of a body, unless a writer outside will encode it. The
// value is put into room.
func setLength(h http.Header, status int, body []byte, room []string, encodedOutside bool) {
	if !bodyAllowed(status) || encodedOutside {
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
