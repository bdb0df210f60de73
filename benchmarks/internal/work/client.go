package work

import (
	"io"
	"net/http"
	"net/url"
	"strings"
)

// A Client sends requests one after another. It is not safe for concurrent use:
// each goroutine has one of its own.
type Client interface {
	// Post sends a body under a key, or without one where key is empty, and
	// returns the answer, which holds until the next call.
	Post(key, body string) (status int, answer []byte, err error)
	// Header returns the values of a header of the last answer.
	Header(name string) []string
}

// NewDirect returns a [Client] that calls h in this process, without a network,
// and with a request and a ResponseWriter that cost nothing.
func NewDirect(h http.Handler) Client {
	body := new(strings.Reader)
	return &direct{
		handler: h,
		body:    body,
		request: &http.Request{
			Method:        http.MethodPost,
			URL:           &url.URL{Path: Path},
			RequestURI:    Path,
			Proto:         "HTTP/1.1",
			ProtoMajor:    1,
			ProtoMinor:    1,
			Host:          "service.example",
			Header:        make(http.Header),
			Body:          io.NopCloser(body),
			ContentLength: int64(len(Body)),
		},
		key:    make([]string, 1),
		header: make(http.Header),
	}
}

type direct struct {
	handler http.Handler
	request *http.Request
	body    *strings.Reader
	key     []string

	header http.Header
	status int
	answer []byte
}

func (d *direct) Post(key, body string) (int, []byte, error) {
	if key == "" {
		delete(d.request.Header, KeyHeader)
	} else {
		d.key[0] = key
		d.request.Header[KeyHeader] = d.key
	}
	d.body.Reset(body)
	d.request.ContentLength = int64(len(body))
	clear(d.header)
	d.status, d.answer = 0, d.answer[:0]
	d.handler.ServeHTTP((*directWriter)(d), d.request)
	return d.status, d.answer, nil
}

func (d *direct) Header(name string) []string { return d.header.Values(name) }

// directWriter is the ResponseWriter of a direct client.
type directWriter direct

func (w *directWriter) Header() http.Header { return w.header }

func (w *directWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
}

func (w *directWriter) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	w.answer = append(w.answer, p...)
	return len(p), nil
}
