package model

import "fmt"

// arrives returns what can come of a message that arrives: its answer is lost,
// or arrives too where its sender waits for it.
func (c Config) arrives(s state, i int, m message) []step {
	n := s
	if !c.Resent {
		n.requests[i].onWay &^= m
	}
	var what string
	told := func(*state) string { return "" } // how its sender is told
	waits := false
	switch m {
	case claim, take:
		what = "Claim"
		if answer := c.claim(&n, i, m); answer != none && n.requests[i].phase == claiming {
			waits = true
			told = func(n *state) string { return c.told(n, i, answer) }
		}
	case renew:
		what = "Renew"
		lost := c.renew(&n, i)
		if n.requests[i].phase == renewing {
			waits = true
			told = func(n *state) string {
				if r := &n.requests[i]; lost {
					r.phase, r.onWay = ended, r.onWay|release
				} else {
					r.phase, r.late = claimed, false
				}
				return ""
			}
		}
	case keepOf(1), keepOf(2), keepOf(3):
		what = fmt.Sprintf("Renew with progress %02b", resultsOf(m))
		lost := c.keep(&n, i, resultsOf(m))
		if r := n.requests[i]; r.phase == running && r.steps.unkept() != 0 && resultsOf(m) == c.sends(r.steps) {
			waits = true
			told = func(n *state) string { return c.toldKept(n, i, resultsOf(m), lost) }
		}
	case complete:
		what = "Complete"
		c.complete(&n, i)
	case release:
		what = "Release"
		c.release(&n, i, false)
	case releaseTrace:
		what = "Release with a trace"
		c.release(&n, i, true)
	}
	if n.record.kind == nothing || n.record.kind == completed {
		n.progress = 0
	}
	what = fmt.Sprintf("%s of %s takes effect: the key is %s", what, name(i), n.record)
	broken := c.broken(s, n, i, m)
	var steps []step
	if !waits || !c.Answered {
		steps = append(steps, step{what: what, to: n, broken: broken})
	}
	if waits {
		if wrong := told(&n); broken == "" {
			broken = wrong
		}
		steps = append(steps, step{what: what + ", and it is told", to: n, broken: broken})
	}
	return steps
}

// lease makes the key the claim of a request, whose lease begins. It returns what the
// request is told.
func (s *state) lease(i int, tookOver bool) answer {
	s.record = record{outstanding, uint8(i), tookOver}
	s.requests[i].freed = false
	if tookOver {
		s.takenOver = true
		return recovery
	}
	return run
}

// own reports whether the key is held by this very claim.
func (c Config) own(s *state, i int) bool {
	claimed := s.record.kind == outstanding || s.record.kind == interrupted
	return claimed && (int(s.record.owner) == i || c.Mutant == TokensShared)
}

// claim returns the answer to a claim, or none if it has none yet.
func (c Config) claim(s *state, i int, m message) answer {
	r := s.record
	same := c.match(i, int(r.owner)) || c.Mutant == TakeOverOtherFingerprint && r.kind == interrupted
	free := r.kind == nothing ||
		r.kind == interrupted && (c.Mutant == InterruptedIsFree || c.Mutant == JudgedByAskersTerms && !c.trace(i))
	over := r.kind == interrupted && same && c.takesOver(i) && !(c.Mutant == RecoveredOnce && r.tookOver)
	over = over || r.kind == outstanding && same && c.takesOver(i) && c.Mutant == TakeOverOutstanding
	switch {
	case m == take && r.kind != completed:
		return s.lease(i, c.Mutant == TakeOverNotAtomic && r.kind != nothing)
	case c.own(s, i) && c.Mutant == RepeatedClaimSilent:
		s.lease(i, r.tookOver)
		return run
	case c.own(s, i):
		return s.lease(i, r.tookOver && c.Mutant != RepeatedClaimForgets)
	case free && c.Mutant == ClaimNotAtomic, over && c.Mutant == TakeOverNotAtomic:
		s.requests[i].onWay |= take
		return none
	case free:
		return s.lease(i, false)
	case over:
		if c.Mutant == TakeOverForgetsSteps {
			s.progress = 0
		}
		return s.lease(i, true)
	case !same:
		return isReused
	case r.kind == outstanding:
		return isOutstanding
	case r.kind == interrupted:
		return isInterrupted
	}
	return isCompleted
}

// renew reports whether the claim was lost.
func (c Config) renew(s *state, i int) (lost bool) {
	r := s.record
	ownResponse := r.kind == completed && int(r.owner) == i
	switch {
	case r.kind == interrupted && c.own(s, i) && c.Mutant == RenewDoesNotRevive:
		s.requests[i].freed = false
	case c.own(s, i):
		s.lease(i, r.tookOver && c.Mutant != RenewForgets)
		if c.Mutant == RenewDropsProgress {
			s.progress = 0
		}
	case r.kind == nothing,
		r.kind == outstanding && c.Mutant == RenewUnfenced,
		r.tookOver && r.kind == outstanding && c.Mutant == RenewOverTookOver,
		ownResponse && c.Mutant == RenewOverResponse:
		s.lease(i, false)
	default:
		return !ownResponse
	}
	return false
}

func (c Config) complete(s *state, i int) {
	r := s.record
	switch {
	case r.kind == nothing, c.own(s, i),
		r.kind == outstanding && c.Mutant == CompleteOverClaim,
		r.tookOver && r.kind != completed && c.Mutant == CompleteOverTookOver,
		r.kind == interrupted && c.Mutant == CompleteOverInterrupted,
		r.kind == completed && c.Mutant == CompleteOverResponse:
		s.record = record{completed, uint8(i), false}
		s.completed |= 1 << i
	}
}

func (c Config) release(s *state, i int, trace bool) {
	r := s.record
	switch {
	case r.kind == nothing && trace:
		s.record = record{interrupted, uint8(i), false}
		s.requests[i].freed = true
	case c.own(s, i):
		s.requests[i].freed = true
		if trace || r.tookOver && c.Mutant != ReleaseDeletesTookOver {
			s.record = record{interrupted, uint8(i), r.tookOver && c.Mutant != ReleaseForgets}
			return
		}
		s.record = record{}
	case r.kind == outstanding && c.Mutant == ReleaseUnfenced,
		r.kind == interrupted && c.Mutant == ReleaseOverInterrupted,
		r.kind == completed && c.Mutant == ReleaseOverResponse:
		s.record = record{}
	}
}

// broken returns which rule about the record a message of request i broke.
func (c Config) broken(from, to state, i int, m message) string {
	was, is := from.record, to.record
	change := fmt.Sprintf("the key was %s, and is %s", was, is)
	switch {
	case was.kind == completed && is != was:
		return "what is stored stays: " + change
	case was.kind != nothing && is.kind == completed && is.owner != was.owner:
		return "only the owner completes: " + change
	case to.completed&(to.completed-1) != 0 && to.completed != from.completed:
		return "at most one owner completes: a second one did"
	case was.kind == interrupted && is.kind == nothing && int(was.owner) != i,
		from.takenOver && is.kind == nothing && !c.DataLoss:
		return "an interrupted run is not forgotten: " + change
	case was.kind == interrupted && is.kind == outstanding && !c.match(int(was.owner), int(is.owner)):
		return "only the same request takes over: " + change
	case c.Answered && m == renew && int(is.owner) == i && was.kind != is.kind && to.requests[i].phase == ended:
		return "no renewal after the release: " + change
	}
	return ""
}

// String describes a record in a trace.
func (r record) String() string {
	by := " by " + name(r.owner)
	if r.tookOver {
		by += ", which took over"
	}
	switch r.kind {
	case outstanding:
		return "claimed" + by
	case interrupted:
		return "interrupted" + by
	case completed:
		return "completed" + by
	}
	return "free"
}
