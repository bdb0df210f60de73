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
// it refuses another amount, and it can be asked what it did. It forgets with this
// process.
//
// Some cards misbehave: tok_declined always is; tok_slow takes its time;
// tok_timeout times out at first, before anything is done; tok_lost is charged
// at first, but the answer does not arrive.
type processor struct {
	mu    sync.Mutex
	tries map[string]int
	moved map[string]movement // by key
}

// movement is a charge or, if its amount is below zero, a refund.
type movement struct {
	account  string
	amount   int64
	currency string
}

func newProcessor() *processor {
	return &processor{tries: make(map[string]int), moved: make(map[string]movement)}
}

// move charges a card, or refunds to it.
func (p *processor) move(ctx context.Context, key, card string, m movement) error {
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
	if moved, done := p.moved[key]; done && moved != m {
		return errOther
	}
	p.moved[key] = m
	if card == "tok_lost" && first {
		return errTimeout
	}
	return nil
}

// find returns what was moved under a key, if anything was.
func (p *processor) find(key string) (m movement, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m, ok = p.moved[key]
	return m, ok
}

// charges returns how often an account's cards were charged.
func (p *processor) charges(account string) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range p.moved {
		if m.account == account && m.amount > 0 {
			n++
		}
	}
	return n
}
