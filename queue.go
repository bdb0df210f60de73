package idempotency

import (
	"container/heap"
	"time"
)

// queue holds the entries of a Memory by the end of their time, the nearest
// first. Entries that last equally long end in the order in which they came, so
// that they stand in one line: a queue costs as much as it has lines, of which
// one middleware needs one.
type queue struct {
	lines map[time.Duration]*line
	heads lineHeap // the lines that are not empty
	size  int64    // the sum of the entries' sizes
}

// line is a list of entries that last equally long.
type line struct {
	queue       *queue
	d           time.Duration // its entries last for d
	first, last *entry
	index       int // in the queue's heads
}

// spareLines is how many lines stay, empty, for the next entry.
const spareLines = 8

// add adds an entry that lasts for d from now. Time must not run backwards.
func (q *queue) add(e *entry, d time.Duration) {
	l := q.lines[d]
	if l == nil {
		if q.lines == nil {
			q.lines = make(map[time.Duration]*line)
		}
		l = &line{queue: q, d: d}
		q.lines[d] = l
	}
	q.size += e.size
	e.line, e.prev, e.next = l, l.last, nil
	if l.last != nil {
		l.last.next = e
		l.last = e
		return
	}
	l.first, l.last = e, e
	heap.Push(&q.heads, l)
}

// remove removes an entry of the line.
func (l *line) remove(e *entry) {
	q := l.queue
	q.size -= e.size
	e.line = nil
	if e.next != nil {
		e.next.prev = e.prev
	} else {
		l.last = e.prev
	}
	if e.prev != nil {
		e.prev.next = e.next
		return
	}
	l.first = e.next
	if l.first != nil {
		heap.Fix(&q.heads, l.index)
		return
	}
	heap.Remove(&q.heads, l.index)
	if len(q.lines) > spareLines {
		delete(q.lines, l.d)
	}
}

// first returns the entry that is nearest to its end.
func (q *queue) first() *entry { return q.heads[0].first }

// over reports whether there is an entry whose time is over.
func (q *queue) over(now int64) bool { return len(q.heads) > 0 && q.first().end <= now }

// lineHeap implements [heap.Interface].
type lineHeap []*line

func (h lineHeap) Len() int           { return len(h) }
func (h lineHeap) Less(i, j int) bool { return h[i].first.end < h[j].first.end }

func (h lineHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *lineHeap) Push(x any) {
	l := x.(*line)
	l.index = len(*h)
	*h = append(*h, l)
}

func (h *lineHeap) Pop() any {
	last := len(*h) - 1
	l := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return l
}
