package idempotency

import (
	"context"
	"math"
	"sync"
	"time"
)

// Memory is a [Backend] in this process's memory: for a service of one process,
// for tests and for development. It is an [Inspector], safe for concurrent use,
// and has no goroutine of its own; records whose time is over are dropped by
// later calls.
//
// It is bounded in bytes. When it is full it drops the stored responses that
// are nearest to their expiry, but never an outstanding or interrupted record.
// If these alone fill it, a call that
// needs room returns [ErrFull].
//
// All scopes share that room: a backend sees hashes, and cannot tell one tenant's keys
// from another's. A tenant whose runs are interrupted, with [WithAtMostOnce], fills it for
// all others until the traces are over. If tenants do not trust each other, bound how
// many keys each may use, or give each a Memory of its own.
type Memory struct {
	maxBytes int64
	start    time.Time // what times are counted from

	mu        sync.Mutex
	entries   map[Key]*entry
	fixed     queue // outstanding and interrupted: only time removes them
	droppable queue // completed: room may be made of them
}

// MemoryOption is a setting of [NewMemory].
type MemoryOption func(*Memory)

// WithMaxBytes bounds the memory that records take, in bytes: keys, headers and
// bodies, and what holds them, about 0.5 kB for each response. There is no bound for
// each scope; see [Memory]. The default is 64 MiB.
func WithMaxBytes(n int64) MemoryOption {
	return func(m *Memory) { m.maxBytes = n }
}

// NewMemory returns an empty [Memory]. It panics if the bound is not positive.
func NewMemory(opts ...MemoryOption) *Memory {
	m := &Memory{maxBytes: 64 << 20, start: time.Now(), entries: make(map[Key]*entry)}
	for _, opt := range opts {
		if opt == nil {
			panic("idempotency: NewMemory: nil option")
		}
		opt(m)
	}
	if m.maxBytes <= 0 {
		panic("idempotency: WithMaxBytes: not positive")
	}
	return m
}

// Claim implements [Backend].
func (m *Memory) Claim(ctx context.Context, key Key, claim Claim, terms Terms) (Record, bool, error) {
	if err := terms.check(); err != nil {
		return Record{}, false, err
	}
	if err := ctx.Err(); err != nil {
		return Record{}, false, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	m.sweep(now)
	e := m.live(key, now)
	if e == nil {
		if e = m.makeRoom(nil, key, recordOverhead, now); e == nil {
			return Record{}, false, ErrFull
		}
		e.Record = Record{Claim: claim, State: StateOutstanding}
		m.lease(e, now, terms)
		return Record{}, true, nil
	}
	held := e.record(now)
	switch {
	case held.State == StateCompleted:
		return held, false, nil
	case held.Claim.Token == claim.Token:
	case held.State == StateInterrupted && terms.TakeOver && held.Claim.matches(claim):
		e.Claim, e.tookOver = claim, true
	default:
		return held, false, nil
	}
	m.lease(e, now, terms)
	if !e.tookOver {
		return Record{}, true, nil
	}
	return Record{Claim: claim, State: StateInterrupted, Progress: e.Progress}, true, nil
}

// Renew implements [Backend].
func (m *Memory) Renew(ctx context.Context, key Key, claim Claim, terms Terms, progress []byte) error {
	if err := terms.check(); err != nil {
		return err
	}
	return m.update(ctx, key, claim, func(e *entry, now int64) error {
		switch {
		case e == nil:
			if e = m.makeRoom(nil, key, size(progress), now); e == nil {
				return ErrFull
			}
			e.Record = Record{Claim: claim, State: StateOutstanding, Progress: progress}
		case len(progress) > len(e.Progress):
			if m.makeRoom(e, key, size(progress), now) == nil {
				return ErrFull
			}
			e.Progress = progress
		}
		m.lease(e, now, terms)
		return nil
	})
}

// Complete implements [Backend].
func (m *Memory) Complete(ctx context.Context, key Key, claim Claim, response []byte, expiry time.Duration) error {
	if expiry <= 0 {
		return errExpiry
	}
	return m.update(ctx, key, claim, func(e *entry, now int64) error {
		if e = m.makeRoom(e, key, size(response), now); e == nil {
			return ErrFull
		}
		e.Record = Record{Claim: claim, State: StateCompleted, Response: response}
		m.place(&m.droppable, e, now, expiry)
		return nil
	})
}

// Release implements [Backend].
func (m *Memory) Release(ctx context.Context, key Key, claim Claim, trace time.Duration) error {
	if err := checkTrace(trace); err != nil {
		return err
	}
	err := m.update(ctx, key, claim, func(e *entry, now int64) error {
		switch {
		case e == nil && trace == 0:
			return nil
		case e == nil:
			if e = m.makeRoom(nil, key, recordOverhead, now); e == nil {
				return ErrFull
			}
			e.Record = Record{Claim: claim, State: StateOutstanding}
		case e.tookOver:
			trace = max(trace, e.trace)
		case trace == 0:
			m.remove(e)
			return nil
		}
		e.leaseEnd, e.trace = now, trace
		m.place(&m.fixed, e, now, trace)
		return nil
	})
	if err == ErrClaimLost {
		return nil
	}
	return err
}

// Lookup implements [Inspector].
func (m *Memory) Lookup(ctx context.Context, key Key) (rec Record, left time.Duration, ok bool, err error) {
	if err := ctx.Err(); err != nil {
		return Record{}, 0, false, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	e := m.live(key, now)
	if e == nil {
		return Record{}, 0, false, nil
	}
	left = Forever
	if e.end != math.MaxInt64 {
		left = time.Duration(e.end - now)
	}
	return e.record(now), left, true, nil
}

// Forget implements [Inspector].
func (m *Memory) Forget(ctx context.Context, key Key, seen Record) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	e := m.live(key, now)
	if e == nil || e.Claim.Token != seen.Claim.Token || e.record(now).State != seen.State {
		return false, nil
	}
	m.remove(e)
	return true, nil
}

// update calls change with the entry of a key that holds this very claim, or with
// nil if the key holds nothing. On the claim's own response it does nothing.
func (m *Memory) update(ctx context.Context, key Key, claim Claim, change func(e *entry, now int64) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	e := m.live(key, now)
	switch {
	case e != nil && e.Claim.Token != claim.Token:
		return ErrClaimLost
	case e != nil && e.State == StateCompleted:
		return nil
	}
	return change(e, now)
}
