// Package work is what every measurement in this module does: the request that
// is sent, the handler that answers it, and clients that send one after another.
package work

import (
	"io"
	"net/http"
	"strings"
	"sync/atomic"
)

// The request and the answer.
const (
	Path      = "/payments"
	KeyHeader = "Idempotency-Key"
	Location  = "/payments/1"
	Status    = http.StatusCreated

	AnswerSize = 200 // bytes
)

// Body is the request's body, of 150 bytes.
var Body = strings.Repeat("x", 150)

// Answer returns valid JSON of n bytes, 11 at the least.
func Answer(n int) []byte {
	const begin, end = `{"note":"`, `"}`
	return []byte(begin + strings.Repeat("y", n-len(begin)-len(end)) + end)
}

// A Service is the handler in the middle: it reads the whole body, sets
// Content-Type and Location, and answers 201 with its Answer.
type Service struct {
	// Answer is the body of every answer.
	Answer []byte
	// Location returns the header of the nth answer, counted from 1. Nil is
	// the same [Location] for all.
	Location func(n int64) string
	// Hold, if it is not nil, is called in each run, before the answer.
	Hold func()

	runs atomic.Int64
}

// Runs returns how often the handler has run.
func (s *Service) Runs() int64 { return s.runs.Load() }

// Run counts a run, and returns the Location to answer it with. It is for
// servers other than net/http's.
func (s *Service) Run() (location string) {
	n := s.runs.Add(1)
	if s.Hold != nil {
		s.Hold()
	}
	if s.Location != nil {
		return s.Location(n)
	}
	return Location
}

// ServeHTTP implements [http.Handler].
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body) // A body that breaks off is answered too: nobody reads the answer.
	location := s.Run()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Location", location)
	w.WriteHeader(Status)
	_, _ = w.Write(s.Answer)
}
