package model

import "fmt"

// moves are what a request can do of its own.
type moves struct {
	from  state
	i     int
	steps []step
}

// add adds a step of the request and returns what the step makes of it.
func (m *moves) add(what string, to phase, sent message) *request {
	m.steps = append(m.steps, step{what: name(m.i) + " " + what, to: m.from})
	r := &m.steps[len(m.steps)-1].to.requests[m.i]
	r.phase, r.onWay = to, r.onWay|sent
	return r
}

// moves returns what a request can do of its own.
func (c Config) moves(s state, i int) []step {
	m := moves{from: s, i: i}
	switch r := s.requests[i]; r.phase {
	case fresh:
		m.add("sends Claim", claiming, claim)
		return m.steps // It has no process yet that could crash.
	case claiming:
		switch {
		case c.Mutant == FailedClaimRuns:
			m.add("gives its claim up and runs all the same", claimed, release)
		case !c.Answered:
			m.add("gives its claim up, sends Release and answers 503", ended, release)
		}
	case refused:
		m.add("answers 409", ended, 0)
		m.add("looks again: it sends Claim", claiming, claim)
		if c.Mutant == RefusedRuns {
			m.add("runs all the same", claimed, 0)
		}
	case claimed:
		if c.Timely && r.late && c.takesOver(i) && c.Mutant != LateClaimRuns && c.Mutant != LateClaimRenews {
			m.add("was answered late, and sends Claim again", claiming, claim)
			break
		}
		if c.Timely && r.late && c.Mutant != LateClaimRuns {
			m.add("was answered late, and sends Renew", renewing, renew)
			break
		}
		begun := m.add("begins its run", running, 0)
		begun.ran, begun.late = true, false
		m.steps[0].broken = c.secondRun(s, i)
	case renewing:
		if c.Answered {
			break
		}
		m.add("gives its claim up, sends Release and answers 503", ended, release)
	case running:
		m.add("sends Renew", running, renew)
		m.add("has a response and sends Complete", completing, complete)
		c.takesSteps(&m, r)
		c.endsWithout(&m, r)
	case completing:
		m.add("sends Renew", completing, renew)
		m.add("sends Complete again", completing, complete)
		switch {
		case c.Mutant == UnstoredFrees:
			m.add("gives Complete up and sends Release", ended, release)
		case !c.Answered || r.onWay&complete == 0:
			m.add("is told of its Complete, or gives it up, and answers", ended, 0)
		}
	case ended:
		return nil
	}
	if !c.NoCrash {
		m.add("crashes", ended, 0)
	}
	return m.steps
}

// endsWithout adds how a run ends without a response to store.
func (c Config) endsWithout(m *moves, r request) {
	if c.Answered && (r.onWay&renew != 0 || r.onWay >= keep) && c.Mutant != RenewNotAwaited {
		return // It waits for its renewal.
	}
	if c.trace(m.i) && c.Mutant != PanicFrees {
		m.add("panics, or has nothing to store, and sends Release with a trace", ended, releaseTrace)
	} else {
		m.add("panics, or has nothing to store, and sends Release", ended, release)
	}
	if c.trace(m.i) && c.NoStore && (r.steps.has == 0 || c.Mutant == NoStoreForgetsSteps) {
		m.add("calls NoStore and sends Release", ended, release).noStore = true
	}
}

// secondRun returns which rule a run of request i breaks, if it begins now.
func (c Config) secondRun(s state, i int) string {
	r := s.requests[i]
	for j, other := range s.requests[:c.Requests] {
		if j == i || !other.ran {
			continue
		}
		letFree := other.noStore && other.freed
		switch {
		case c.Timely && (other.phase == running || other.phase == completing):
			return fmt.Sprintf("one run at a time: %s runs, and %s does", name(i), name(j))
		case !other.freed && !r.late && !(c.AtMostOnce && c.trace(j)):
			return fmt.Sprintf("a second run only after a claim ended: %s runs, and %s did", name(i), name(j))
		case c.AtMostOnce && c.trace(j) && !letFree && !(r.late && !c.trace(i)):
			return fmt.Sprintf("at most one run: %s runs, and %s did", name(i), name(j))
		case c.Recovery && c.trace(j) && !letFree && !r.late && !r.recovers:
			return fmt.Sprintf("what was interrupted is recovered: %s runs as if %s had not", name(i), name(j))
		}
	}
	return ""
}

// An answer is what a request is told of its claim.
type answer uint8

const (
	none answer = iota
	run
	recovery
	isOutstanding
	isInterrupted
	isReused
	isCompleted
)

var answers = [...]string{run: "run", recovery: "recover", isOutstanding: "outstanding", isInterrupted: "interrupted", isReused: "reused", isCompleted: "replay"}

// told tells a request the answer to its claim. It returns which rule that breaks.
func (c Config) told(s *state, i int, a answer) (broken string) {
	r, owner := &s.requests[i], s.record.owner
	r.late = false
	switch a {
	case run, recovery:
		r.phase, r.recovers = claimed, a == recovery && c.Mutant != RecoversAsFirst
		r.steps = steps{has: s.progress, told: s.progress, before: s.kept}
	case isOutstanding:
		r.phase = refused
	default:
		r.phase = ended
	}
	switch lapsed := s.requests[owner].freed; {
	case a == isOutstanding && lapsed, a == isInterrupted && !lapsed:
		return fmt.Sprintf("a retry is told the truth: %s is told %q of the claim of %s", name(i), answers[a], name(owner))
	case a == isInterrupted && c.Mutant == InterruptedRuns:
		r.phase = claimed
	case a == isInterrupted && c.takesOver(i):
		return fmt.Sprintf("what was interrupted is recovered: %s is told that %s was interrupted", name(i), name(owner))
	}
	return ""
}
