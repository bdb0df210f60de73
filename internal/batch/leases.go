package batch

import (
	"sync"
	"time"
)

// Leases has one thing for each lease that there are claims with, such as its connections:
// renewals of a long lease that hang may not hold up those of a short one. There are as many
// leases as settings of the middleware. It is safe for concurrent use, and its zero value is
// ready for it.
type Leases[T any] struct {
	mu   sync.Mutex
	made map[time.Duration]T
}

// Get returns the thing of a lease. If there is none yet, it is made.
func (l *Leases[T]) Get(lease time.Duration, new func() (T, error)) (T, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if of, ok := l.made[lease]; ok {
		return of, nil
	}
	of, err := new()
	if err == nil {
		if l.made == nil {
			l.made = make(map[time.Duration]T)
		}
		l.made[lease] = of
	}
	return of, err
}

// Take returns all things, and forgets them.
func (l *Leases[T]) Take() map[time.Duration]T {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := l.made
	l.made = nil
	return all
}
