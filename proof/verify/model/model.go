package model

// most is how many requests there can be.
const most = 3

// Config is a protocol to explore. The zero value with a number of requests is
// the library as it is, by default.
type Config struct {
	Requests   int  // 1 to 3
	AtMostOnce bool // WithAtMostOnce: a trace, and no take-over
	Recovery   bool // a trace, and take-over
	Mixed      bool // The last request is of a process with neither of the two.
	Reused     bool // The last request has another fingerprint.
	NoStore    bool // Handlers may call NoStore.
	Steps      int  // 0 to 2, that each handler takes, in a request that may take over

	Resent   bool // A message may arrive more than once.
	DataLoss bool // The store may lose a record.
	NoCrash  bool // No process dies.
	Timely   bool // No lease ends while its owner runs: renewals reach the store in time.
	Answered bool // No request gives up what it has sent.
	Mutant   Mutant
}

// Mode names the mode of the library.
func (c Config) Mode() string {
	switch {
	case c.AtMostOnce:
		return "at most once"
	case c.Recovery:
		return "recovery"
	}
	return "again"
}

// trace reports whether the terms of a request have a trace.
func (c Config) trace(i int) bool {
	return (c.AtMostOnce || c.Recovery) && !(c.Mixed && i == c.Requests-1)
}

// takesOver reports whether the terms of a request say TakeOver.
func (c Config) takesOver(i int) bool { return c.Recovery && c.trace(i) }

// match reports whether two requests have the same fingerprint.
func (c Config) match(i, j int) bool {
	last := c.Requests - 1
	return !c.Reused || (i == last) == (j == last)
}

// A phase is where a request is on its way.
type phase uint8

const (
	fresh phase = iota
	claiming
	refused
	claimed
	renewing // a claim that was answered late
	running
	completing
	ended
)

// A message to the store; a set of them is their sum.
type message uint16

const (
	claim message = 1 << iota
	take          // the second half of a claim that is not atomic
	renew
	complete
	release
	releaseTrace // Release with a trace
	keep         // Renew with the results of step 1; then, of step 2; and of both
)

var messages = []message{claim, take, renew, complete, release, releaseTrace, keepOf(1), keepOf(2), keepOf(3)}

// request is one of the requests.
type request struct {
	phase    phase
	onWay    message // sent, and not known to be lost
	recovers bool    // It was told that its claim took over.
	ran      bool
	freed    bool // Its claim ended: by its lease, or by its Release.
	late     bool // Its lease ended after it was told of its claim, and before its run.
	noStore  bool // Its handler called NoStore.
	steps    steps
}

// What the store holds.
type kind uint8

const (
	nothing kind = iota
	outstanding
	interrupted
	completed
)

// record is what the store holds, and whose it is.
type record struct {
	kind     kind
	owner    uint8
	tookOver bool
}

// state is everything: the store, and the requests on their ways.
type state struct {
	record    record
	completed uint8 // the requests whose response took effect, a bit for each
	takenOver bool  // A claim took the key over, at some time.
	progress  uint8 // the results that the record has, a bit for each step
	kept      uint8 // the steps of which somebody was told that they are kept
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
	if s.record.kind == outstanding && c.canEnd(s.requests[s.record.owner].phase) {
		steps = append(steps, step{what: "the lease of " + name(s.record.owner) + " ends", to: c.leaseEnds(s)})
	}
	if s.record.kind != nothing && c.DataLoss {
		to := s
		to.record, to.progress = record{}, 0
		steps = append(steps, step{what: "the store loses the record of " + name(s.record.owner), to: to})
	}
	return steps
}

func name[T int | uint8](i T) string { return string(rune('a' + i)) }

// canEnd reports whether a lease can end while its owner is in a phase.
func (c Config) canEnd(owner phase) bool {
	runs := owner == running || owner == completing
	return !c.Timely || !runs || c.Mutant == RenewalStops
}

// leaseEnds returns the state once the time of the lease is over.
func (c Config) leaseEnds(s state) state {
	r := &s.requests[s.record.owner]
	r.freed, r.late = true, r.late || r.phase == claimed || r.phase == renewing
	switch {
	case c.Mutant == InterruptedIsOutstanding && c.trace(int(s.record.owner)):
	case c.Mutant != TraceForgotten && (s.record.tookOver || c.trace(int(s.record.owner))):
		s.record.kind = interrupted
	default:
		s.record, s.progress = record{}, 0
	}
	return s
}
