package idempotency

import "time"

// recordOverhead is what a record takes in memory beside its progress and its
// response, in bytes. This is an estimate: the garbage collector's own share comes
// on top.
const recordOverhead = 360 // its entry, its place in the index, and the ends of its pieces

// entry is one record of a Memory. Times are nanoseconds after the Memory's start.
type entry struct {
	Record         // its State is StateOutstanding or StateCompleted
	tookOver bool  // the claim took over the key of another
	leaseEnd int64 // of a claim that is not completed
	trace    time.Duration
	end      int64

	key        Key
	size       int64
	line       *line
	prev, next *entry // in line
}

// live returns the entry of a key, or nil if there is none or its time is over.
func (m *Memory) live(key Key, now int64) *entry {
	e := m.entries[key]
	if e != nil && e.end <= now {
		m.remove(e)
		return nil
	}
	return e
}

// record returns the record of an entry whose time is not over.
func (e *entry) record(now int64) Record {
	rec := e.Record
	if rec.State == StateOutstanding && e.leaseEnd <= now {
		rec.State = StateInterrupted
	}
	return rec
}

// makeRoom makes room for a record of a size and returns its entry: e, or a new one
// if e is nil. It returns nil, and leaves e as it is, if there is no room.
func (m *Memory) makeRoom(e *entry, key Key, size, now int64) *entry {
	growth := size
	if e != nil {
		growth -= e.size
	}
	// Of what may not be dropped, what is over goes first: it may be all that is in
	// the way.
	for m.fixed.size+growth > m.maxBytes {
		if !m.fixed.over(now) {
			return nil
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
		e.line.remove(e)
	}
	e.size = size
	return e
}

// lease makes the lease of an entry begin now. A claim that took over keeps the
// longer of its traces.
func (m *Memory) lease(e *entry, now int64, terms Terms) {
	if !e.tookOver {
		e.trace = 0
	}
	e.trace = max(e.trace, terms.Trace)
	e.leaseEnd = end(now, terms.Lease)
	m.place(&m.fixed, e, now, add(terms.Lease, e.trace))
}

// place puts an entry that lasts for d from now into a queue.
func (m *Memory) place(q *queue, e *entry, now int64, d time.Duration) {
	if e.line != nil {
		e.line.remove(e)
	}
	e.end = end(now, d)
	q.add(e, d)
}

func (m *Memory) remove(e *entry) {
	delete(m.entries, e.key)
	e.line.remove(e)
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

// end returns the end of a time that begins now.
func end(now int64, d time.Duration) int64 { return int64(add(time.Duration(now), d)) }

// size returns how much a record takes that has these bytes.
func size(b []byte) int64 { return recordOverhead + int64(cap(b)) }
