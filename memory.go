package idempotency

import (
	"context"
	"crypto/sha256"
	"math"
	"sync"
	"time"
)

// What a record takes in memory beside its texts, in bytes. These are estimates:
// the garbage collector's own share comes on top.
const (
	recordOverhead = 260 // its entry, its place in the index, and the ends of its pieces
	fieldOverhead  = 40  // a field of its header
)

// Memory is a [Backend] in this process's memory: for a service of one process,
// for tests and for development. It is safe for concurrent use and has no
// goroutine of its own; records whose time is over are dropped by later calls.
//
// It is bounded in bytes. When it is full it drops the stored responses that
// are nearest to their expiry, but never a claim, nor the mark that a handler
// ran whose answer was not kept; where these alone fill it, Claim and Complete
// return [ErrFull].
type Memory struct {
	maxBytes int64
	start    time.Time // what times are counted from

	mu        sync.Mutex
	entries   map[recordKey]*entry
	fixed     queue // claims and marks: only time removes them
	droppable queue // responses: room may be made of them
}

// entry is one record of a Memory. Its response is set once and never altered,
// so that it can be read without the lock. What a replay needs comes first.
type entry struct {
	end       int64 // nanoseconds after the Memory's start
	completed bool  // there is a response
	claim     Claim
	response  response

	key        recordKey
	size       int64
	line       *line
	prev, next *entry // in line
}

// MemoryOption is a setting of [NewMemory].
type MemoryOption func(*Memory)

// WithMaxBytes bounds the memory that records take, in bytes: keys, headers and
// bodies, and what holds them, about 0.4 kB for each response. The default is
// 64 MiB.
func WithMaxBytes(n int64) MemoryOption {
	return func(m *Memory) { m.maxBytes = n }
}

// NewMemory returns an empty [Memory]. It panics if the bound is not positive.
func NewMemory(opts ...MemoryOption) *Memory {
	m := &Memory{maxBytes: 64 << 20, start: time.Now(), entries: make(map[recordKey]*entry)}
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
func (m *Memory) Claim(ctx context.Context, key string, claim Claim, lease time.Duration) (Record, bool, error) {
	held := claim
	resp, claimed, err := m.take(ctx, parseRecordKey(key), &held, nil, lease)
	if claimed || err != nil {
		return Record{}, claimed, err
	}
	return record{held, resp}.export(), false, nil
}

func (m *Memory) claim(ctx context.Context, key recordKey, fingerprint [sha256.Size]byte, lease time.Duration) (found, error) {
	claim := Claim{Fingerprint: fingerprint}
	resp, claimed, err := m.take(ctx, key, &claim, newToken, lease)
	if claimed || err != nil {
		return found{token: claim.Token, claimed: claimed}, err
	}
	return found{same: claim.Fingerprint == fingerprint, response: resp}, nil
}

// take claims for claim, whose token it makes by newToken, if that is given. Where
// the key has a record, claim becomes the record's, and its response is returned.
func (m *Memory) take(ctx context.Context, key recordKey, claim *Claim, newToken func() string, lease time.Duration) (resp *response, claimed bool, err error) {
	if err := ctx.Err(); err != nil {
		return nil, false, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	m.sweep(now)
	e := m.live(key, now)
	if e != nil {
		own := newToken == nil && e.claim.Token == claim.Token
		*claim = e.claim
		if e.completed {
			return &e.response, false, nil
		}
		return nil, own, nil
	}
	made := *claim
	if newToken != nil {
		made.Token = newToken()
	}
	if !m.put(e, key, made, nil, now, lease) {
		return nil, false, ErrFull
	}
	*claim = made
	return nil, true, nil
}

// Renew implements [Backend].
func (m *Memory) Renew(ctx context.Context, key string, claim Claim, lease time.Duration) error {
	return m.renew(ctx, parseRecordKey(key), claim, lease)
}

func (m *Memory) renew(ctx context.Context, key recordKey, claim Claim, lease time.Duration) error {
	return m.update(ctx, key, claim, nil, lease)
}

// Complete implements [Backend].
func (m *Memory) Complete(ctx context.Context, key string, claim Claim, resp *Response, expiry time.Duration) error {
	return m.complete(ctx, parseRecordKey(key), claim, newResponse(resp), expiry)
}

func (m *Memory) complete(ctx context.Context, key recordKey, claim Claim, resp *response, expiry time.Duration) error {
	return m.update(ctx, key, claim, resp, expiry)
}

// update sets the record of a key that holds this very claim, or nothing.
func (m *Memory) update(ctx context.Context, key recordKey, claim Claim, resp *response, d time.Duration) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	e := m.live(key, now)
	if e != nil {
		switch {
		case e.claim.Token != claim.Token:
			return ErrClaimLost
		case e.completed:
			return nil
		}
	}
	if !m.put(e, key, claim, resp, now, d) {
		return ErrFull
	}
	return nil
}

// Release implements [Backend].
func (m *Memory) Release(ctx context.Context, key string, claim Claim) error {
	return m.release(ctx, parseRecordKey(key), claim)
}

func (m *Memory) release(ctx context.Context, key recordKey, claim Claim) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.entries[key]; e != nil && e.claim.Token == claim.Token && !e.completed {
		m.remove(e)
	}
	return nil
}

func (m *Memory) lead() int { return 0 }

// live returns the entry of a key, or nil if there is none or its time is over.
func (m *Memory) live(key recordKey, now int64) *entry {
	e := m.entries[key]
	if e != nil && e.end <= now {
		m.remove(e)
		return nil
	}
	return e
}

// put makes a claim and its response, if there is one, the record of a key whose
// entry e is an outstanding claim or nil, and reports whether there was room for
// it. If there was none, the key keeps what it holds.
func (m *Memory) put(e *entry, key recordKey, claim Claim, resp *response, now int64, d time.Duration) bool {
	size := recordSize(claim, resp)
	growth := size
	if e != nil {
		growth -= e.size
	}
	// What is fixed and over goes first: it may be all that is in the way.
	for m.fixed.size+growth > m.maxBytes {
		if !m.fixed.over(now) {
			return false
		}
		m.remove(m.fixed.first())
	}
	for m.fixed.size+m.droppable.size+growth > m.maxBytes {
		m.remove(m.droppable.first())
	}
	if e == nil {
		e = &entry{key: key}
		m.entries[key] = e
	} else {
		e.line.queue.remove(e)
	}
	e.claim, e.size, e.end = claim, size, end(now, d)
	if resp != nil {
		e.response, e.completed = *resp, true
	}
	if resp == nil || resp.status == 0 {
		m.fixed.add(e, d)
	} else {
		m.droppable.add(e, d)
	}
	return true
}

func (m *Memory) remove(e *entry) {
	delete(m.entries, e.key)
	e.line.queue.remove(e)
}

// sweep drops a few of the records whose time is over: more than one call of
// Claim can add, and few enough that no request pays for all of them.
func (m *Memory) sweep(now int64) {
	for range 2 {
		for _, q := range []*queue{&m.fixed, &m.droppable} {
			if q.over(now) {
				m.remove(q.first())
			}
		}
	}
}

func (m *Memory) now() int64 { return int64(time.Since(m.start)) }

func end(now int64, d time.Duration) int64 {
	if d == 0 || int64(d) > math.MaxInt64-now {
		return math.MaxInt64
	}
	return now + int64(d)
}

func recordSize(claim Claim, resp *response) int64 {
	n := recordOverhead + len(claim.Token)
	if resp != nil {
		n += cap(resp.buffer) + fieldOverhead*(cap(resp.header)-len(resp.header))
		for _, f := range resp.header {
			n += fieldOverhead + len(f.name) + len(f.value)
		}
	}
	return int64(n)
}
