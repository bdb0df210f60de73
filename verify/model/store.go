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
	answer := ended // what a claim makes of its request
	switch m {
	case claim, take:
		what, answer = "Claim", c.claim(&n, i, m)
	case renew:
		what = "Renew"
		c.renew(&n, i)
	case complete:
		what = "Complete"
		c.complete(&n, i, record{stored, uint8(i)})
	case mark:
		what = "Complete with the mark"
		c.complete(&n, i, record{marked, uint8(i)})
	case release:
		what = "Release"
		c.release(&n, i)
	}
	what = fmt.Sprintf("%s of %s takes effect: the key is %s", what, name(i), n.record)
	broken := broken(s, n)
	steps := []step{{what: what, to: n, broken: broken}}
	if m&(claim|take) != 0 && answer != claiming && n.requests[i].phase == claiming {
		n.requests[i].phase = answer
		steps = append(steps, step{what: what + ", and it is told", to: n, broken: broken})
	}
	return steps
}

// hold makes the key the claim of a request.
func (s *state) hold(i int) {
	s.record = record{outstanding, uint8(i)}
	s.requests[i].freed = false
}

// own reports whether the key is held by a claim with the request's token.
func (c Config) own(s *state, i int) bool {
	return s.record.kind == outstanding && (int(s.record.owner) == i || c.Mutant == TokensShared)
}

// claim returns what a claim's answer makes of its request: claiming is none.
func (c Config) claim(s *state, i int, m message) phase {
	switch {
	case m == take:
		s.hold(i)
		return claimed
	case s.record.kind == nothing && c.Mutant == ClaimNotAtomic:
		s.requests[i].onWay |= take
		return claiming
	case s.record.kind == nothing:
		s.hold(i)
		return claimed
	case c.own(s, i):
		return claimed
	case s.record.kind == outstanding:
		return refused
	}
	return ended // It is replayed, or told that the answer was not kept.
}

func (c Config) renew(s *state, i int) {
	others := s.record.kind == outstanding && !c.own(s, i)
	ownResponse := s.record.kind >= stored && int(s.record.owner) == i
	if s.record.kind == nothing || others && c.Mutant == RenewUnfenced || ownResponse && c.Mutant == RenewOverResponse {
		s.hold(i)
	}
}

func (c Config) complete(s *state, i int, r record) {
	switch {
	case s.record.kind == nothing, c.own(s, i),
		s.record.kind == outstanding && c.Mutant == CompleteOverClaim,
		s.record.kind >= stored && c.Mutant == CompleteOverResponse:
		s.record = r
		s.completed |= 1 << i
	}
}

func (c Config) release(s *state, i int) {
	switch {
	case c.own(s, i):
		s.requests[i].freed = true
		s.record = record{}
	case s.record.kind == outstanding && c.Mutant == ReleaseUnfenced,
		s.record.kind >= stored && c.Mutant == ReleaseOverResponse:
		s.record = record{}
	}
}

// broken returns which rule about what is stored a message broke.
func broken(from, to state) string {
	if from.record.kind >= stored && to.record != from.record {
		return fmt.Sprintf("what is stored stays: the key was %s, and is %s", from.record, to.record)
	}
	if from.record.kind == outstanding && to.record.kind >= stored && to.record.owner != from.record.owner {
		return fmt.Sprintf("only the owner completes: the key was %s, and is %s", from.record, to.record)
	}
	if to.completed&(to.completed-1) != 0 && to.completed != from.completed {
		return "at most one owner completes: a second one did"
	}
	return ""
}

// String describes a record in a trace.
func (r record) String() string {
	switch r.kind {
	case outstanding:
		return "claimed by " + name(r.owner)
	case stored:
		return "with the response of " + name(r.owner)
	case marked:
		return "with the mark of " + name(r.owner)
	}
	return "free"
}
