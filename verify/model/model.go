package model

import "fmt"

// most is how many requests there can be.
const most = 3

// Config is a protocol to explore. The zero value with a number of requests is
// the library as it is, by default.
type Config struct {
	Requests   int  // 1 to 3
	AtMostOnce bool // WithAtMostOnce
	NoStore    bool // with AtMostOnce: handlers may call NoStore
	Resent     bool // A message may arrive more than once.
	DataLoss   bool // The store may lose a record.
	NoCrash    bool // No process dies.
	Mutant     Mutant
}

// A phase is where a request is on its way.
type phase uint8

const (
	fresh phase = iota
	claiming
	refused
	claimed
	running
	completing
	ended
)

// A message to the store; a set of them is their sum.
type message uint8

const (
	claim message = 1 << iota
	take          // the second half of a claim that is not atomic
	renew
	complete
	mark
	release
)

var messages = []message{claim, take, renew, complete, mark, release}

// request is one of the requests.
type request struct {
	phase  phase
	onWay  message // sent, and not known to be lost
	ran    bool
	freed  bool // Its claim ended: by its lease, or by its letting go.
	letRun bool // Its handler called NoStore.
}

// What the store holds.
type kind uint8

const (
	nothing kind = iota
	outstanding
	stored
	marked
)

// record is what the store holds, and whose it is.
type record struct {
	kind  kind
	owner uint8
}

// state is everything: the store, and the requests on their ways.
type state struct {
	record    record
	completed uint8 // the requests whose response or mark took effect, a bit for each
	requests  [most]request
}

// step is what can happen next. Where it breaks a rule, broken says which.
type step struct {
	what   string
	to     state
	broken string
}

// next returns everything that can happen in a state.
func (c Config) next(s state) []step {
	var steps []step
	for i := range c.Requests {
		if i == 0 || s.requests[i-1].phase != fresh {
			steps = append(steps, c.moves(s, i)...)
		}
		for _, m := range messages {
			if s.requests[i].onWay&m != 0 {
				steps = append(steps, c.arrives(s, i, m)...)
			}
		}
	}
	if s.record.kind == outstanding && (!c.AtMostOnce || c.Mutant == HoldIsLease) {
		to := s
		to.requests[s.record.owner].freed = true
		steps = append(steps, step{what: "the lease of " + name(s.record.owner) + " ends", to: to.with(record{})})
	}
	if s.record.kind != nothing && c.DataLoss {
		steps = append(steps, step{what: "the store loses the record of " + name(s.record.owner), to: s.with(record{})})
	}
	return steps
}

func name[T int | uint8](i T) string { return string(rune('a' + i)) }

// with returns the state with another record.
func (s state) with(r record) state {
	s.record = r
	return s
}

// moves returns what a request can do of its own.
func (c Config) moves(s state, i int) []step {
	var steps []step
	do := func(what string, to phase, sent message, change ...func(*request)) {
		n := s
		r := &n.requests[i]
		r.phase, r.onWay = to, r.onWay|sent
		for _, f := range change {
			f(r)
		}
		steps = append(steps, step{what: name(i) + " " + what, to: n})
	}
	switch r := s.requests[i]; r.phase {
	case fresh:
		do("sends Claim", claiming, claim)
		return steps // It has no process yet that could crash.
	case claiming:
		if c.Mutant == FailedClaimRuns {
			do("gives its claim up and runs all the same", claimed, release)
		} else {
			do("gives its claim up, sends Release and answers 503", ended, release)
		}
	case refused:
		do("answers 409", ended, 0)
		do("looks again: it sends Claim", claiming, claim)
		if c.Mutant == RefusedRuns {
			do("runs all the same", claimed, 0)
		}
	case claimed:
		do("begins its run", running, 0, func(r *request) { r.ran = true })
		steps[0].broken = c.secondRun(s, i)
	case running:
		do("sends Renew", running, renew)
		do("has a response and sends Complete", completing, complete)
		if c.AtMostOnce && c.Mutant != PanicFrees {
			do("panics, or has nothing to store, and sends Complete with the mark", ended, mark)
		} else {
			do("panics, or has nothing to store, and sends Release", ended, release)
		}
		if c.AtMostOnce && c.NoStore {
			do("calls NoStore and sends Release", ended, release, func(r *request) { r.letRun = true })
		}
	case completing:
		do("sends Renew", completing, renew)
		do("sends Complete again", completing, complete)
		if c.Mutant == UnstoredFrees {
			do("gives Complete up and sends Release", ended, release)
		} else {
			do("is told of its Complete, or gives it up, and answers", ended, 0)
		}
	case ended:
		return nil
	}
	if !c.NoCrash {
		do("crashes", ended, 0)
	}
	return steps
}

// secondRun returns which rule a run of request i breaks, if it begins now.
func (c Config) secondRun(s state, i int) string {
	for j, other := range s.requests[:c.Requests] {
		switch {
		case j == i || !other.ran:
		case c.AtMostOnce && (!other.letRun || !other.freed):
			return fmt.Sprintf("at most one run: %s runs, and %s did", name(i), name(j))
		case !c.AtMostOnce && !other.freed && !s.requests[i].freed:
			return fmt.Sprintf("a second run only after a claim ended: %s runs, and %s did", name(i), name(j))
		}
	}
	return ""
}
