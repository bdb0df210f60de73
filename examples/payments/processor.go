package main

import (
	"context"
	"errors"
	"sync"
	"time"
)

// slowCard is how long tok_slow takes.
const slowCard = 2 * time.Second

var (
	errDeclined = errors.New("card declined")
	errTimeout  = errors.New("card processor timed out")
	errOther    = errors.New("this key was used with another amount")
)

// processor plays the card processor, in a real service another company's API.
// Like that it takes idempotency keys: what it did for one it does not do again,
// and it refuses another amount.
//
// Some cards misbehave: tok_declined always is; tok_slow takes its time;
// tok_timeout times out at first, before anything is done; tok_lost is charged
// at first, but the answer does not arrive.
type processor struct {
	mu    sync.Mutex
	tries map[string]int
	moved map[string]int64 // amounts by key: charges, and refunds below zero
}

func newProcessor() *processor {
	return &processor{tries: make(map[string]int), moved: make(map[string]int64)}
}

// move takes an amount from a card or, where it is negative, pays it back.
func (p *processor) move(ctx context.Context, key, card string, amount int64) error {
	if card == "tok_slow" {
		select {
		case <-time.After(slowCard):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tries[key]++
	first := p.tries[key] == 1
	switch {
	case card == "tok_declined":
		return errDeclined
	case card == "tok_timeout" && first:
		return errTimeout
	}
	if moved, done := p.moved[key]; done && moved != amount {
		return errOther
	}
	p.moved[key] = amount
	if card == "tok_lost" && first {
		return errTimeout
	}
	return nil
}
