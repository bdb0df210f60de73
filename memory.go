package idempotency

import (
	"bytes"
	"container/heap"
	"context"
	"math"
	"net/http"
	"strings"
	"sync"
	"time"
)

// What a record takes in memory beside its texts, in bytes. These are estimates:
// the garbage collector's own share comes on top.
const (
	recordOverhead = 320 // its entry, and its places in the index and in a queue
	headerOverhead = 400 // the smallest map
	nameOverhead   = 64  // a name and its slice of values in that map
	valueOverhead  = 16  // a string in that slice
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
	entries   map[string]*entry
	fixed     queue // claims and marks: only time removes them
	droppable queue // responses: room may be made of them
}

// entry is one record of a Memory. Its response is never altered, so that it
// can be read without the lock.
type entry struct {
	key    string
	record Record
	size   int64
	end    int64 // nanoseconds after start
	queue  *queue
	index  int // in queue
}

// MemoryOption is a setting of [NewMemory].
type MemoryOption func(*Memory)

// WithMaxBytes bounds the memory that records take, in bytes: keys, headers and
// bodies, and what holds them, about 0.8 kB for each response. The default is
// 64 MiB.
func WithMaxBytes(n int64) MemoryOption {
	return func(m *Memory) { m.maxBytes = n }
}

// NewMemory returns an empty [Memory]. It panics if the bound is not positive.
func NewMemory(opts ...MemoryOption) *Memory {
	m := &Memory{maxBytes: 64 << 20, start: time.Now(), entries: make(map[string]*entry)}
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
	if err := ctx.Err(); err != nil {
		return Record{}, false, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	m.sweep(now)
	if e := m.live(key, now); e != nil {
		if e.record.Response == nil && e.record.Claim.Token == claim.Token {
			return Record{}, true, nil
		}
		return e.record, false, nil
	}
	if !m.put(key, Record{Claim: claim}, now, lease) {
		return Record{}, false, ErrFull
	}
	return Record{}, true, nil
}

// Renew implements [Backend].
func (m *Memory) Renew(ctx context.Context, key string, claim Claim, lease time.Duration) error {
	return m.update(ctx, key, claim, nil, lease)
}

// Complete implements [Backend].
func (m *Memory) Complete(ctx context.Context, key string, claim Claim, resp *Response, expiry time.Duration) error {
	header := resp.Header.Clone()
	return m.update(ctx, key, claim, &Response{Status: resp.Status, Header: header, Body: bytes.Clone(resp.Body)}, expiry)
}

// update sets the record of a key that holds this very claim, or nothing.
func (m *Memory) update(ctx context.Context, key string, claim Claim, resp *Response, d time.Duration) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	if e := m.live(key, now); e != nil {
		switch {
		case e.record.Claim.Token != claim.Token:
			return ErrClaimLost
		case e.record.Response != nil:
			return nil
		}
	}
	if !m.put(key, Record{Claim: claim, Response: resp}, now, d) {
		return ErrFull
	}
	return nil
}

// Release implements [Backend].
func (m *Memory) Release(ctx context.Context, key string, claim Claim) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.entries[key]; e != nil && e.record.Claim.Token == claim.Token && e.record.Response == nil {
		m.remove(e)
	}
	return nil
}

// live returns the entry of a key, or nil if there is none or its time is over.
func (m *Memory) live(key string, now int64) *entry {
	e := m.entries[key]
	if e != nil && e.end <= now {
		m.remove(e)
		return nil
	}
	return e
}

// put makes rec the record of a key that holds an outstanding claim or nothing,
// and reports whether there was room for it. If there was none, the key keeps
// what it holds.
func (m *Memory) put(key string, rec Record, now int64, d time.Duration) bool {
	e := m.entries[key]
	size := recordSize(key, rec)
	growth := size
	if e != nil {
		growth -= e.size
	}
	// What is fixed and over goes first: it may be all that is in the way.
	for m.fixed.size+growth > m.maxBytes {
		if !m.fixed.over(now) {
			return false
		}
		m.remove(m.fixed.items[0])
	}
	for m.fixed.size+m.droppable.size+growth > m.maxBytes {
		m.remove(m.droppable.items[0])
	}
	if e == nil {
		e = &entry{key: strings.Clone(key)} // The key given may be a part of a longer string.
		m.entries[e.key] = e
	} else {
		e.queue.remove(e)
	}
	e.record, e.size, e.end = rec, size, end(now, d)
	if rec.Response == nil || rec.Response.Status == 0 {
		m.fixed.add(e)
	} else {
		m.droppable.add(e)
	}
	return true
}

func (m *Memory) remove(e *entry) {
	delete(m.entries, e.key)
	e.queue.remove(e)
}

// sweep drops a few of the records whose time is over: more than one call of
// Claim can add, and few enough that no request pays for all of them.
func (m *Memory) sweep(now int64) {
	for range 2 {
		for _, q := range []*queue{&m.fixed, &m.droppable} {
			if q.over(now) {
				m.remove(q.items[0])
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

func recordSize(key string, rec Record) int64 {
	n := recordOverhead + len(key) + len(rec.Claim.Token)
	if rec.Response != nil {
		n += len(rec.Response.Body) + headerSize(rec.Response.Header)
	}
	return int64(n)
}

func headerSize(h http.Header) int {
	if len(h) == 0 {
		return 0
	}
	n := headerOverhead
	for name, values := range h {
		n += nameOverhead + len(name)
		for _, v := range values {
			n += valueOverhead + len(v)
		}
	}
	return n
}

// queue is a heap of entries, the nearest to its end first.
type queue struct {
	items entryHeap
	size  int64 // the sum of the entries' sizes
}

func (q *queue) add(e *entry) {
	e.queue = q
	q.size += e.size
	heap.Push(&q.items, e)
}

func (q *queue) remove(e *entry) {
	q.size -= e.size
	heap.Remove(&q.items, e.index)
}

// over reports whether there is an entry whose time is over.
func (q *queue) over(now int64) bool { return len(q.items) > 0 && q.items[0].end <= now }

// entryHeap implements [heap.Interface].
type entryHeap []*entry

func (h entryHeap) Len() int           { return len(h) }
func (h entryHeap) Less(i, j int) bool { return h[i].end < h[j].end }

func (h entryHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *entryHeap) Push(x any) {
	e := x.(*entry)
	e.index = len(*h)
	*h = append(*h, e)
}

func (h *entryHeap) Pop() any {
	last := len(*h) - 1
	e := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return e
}
