// Package gate lets a few calls through at once, and does not let those that hang keep
// the others out.
package gate

import (
	"sync"
	"time"
)

// A Gate has places for calls. It is safe for concurrent use.
type Gate struct{ places chan struct{} }

// New returns a gate for n calls at once.
func New(n int) Gate { return Gate{make(chan struct{}, n)} }

// Enter waits for a place, and takes it until leave is called, or for patience: a call
// that takes longer goes on without one.
func (g Gate) Enter(patience time.Duration) (leave func()) {
	g.places <- struct{}{}
	free := sync.OnceFunc(func() { <-g.places })
	timer := time.AfterFunc(patience, free)
	return func() {
		timer.Stop()
		free()
	}
}
