package model

import (
	"fmt"
	"math/bits"
)

// steps are what a request knows of its steps: a bit for each.
type steps struct {
	has    uint8 // It knows their results.
	told   uint8 // It was told that they are kept.
	left   uint8 // It gave up to keep them: nobody knows whether they are.
	before uint8 // They were kept, and somebody was told so, when it was told of its claim.
}

// keepOf is a Renew with the results of these steps.
func keepOf(results uint8) message { return keep << (results - 1) }

// resultsOf is what a Renew carries; 0 is nothing.
func resultsOf(m message) uint8 {
	if m < keep {
		return 0
	}
	return uint8(bits.TrailingZeros16(uint16(m/keep))) + 1
}

// unkept are the steps whose results are still to be kept.
func (r steps) unkept() uint8 { return r.has &^ (r.told | r.left) }

// sends is what a request sends to keep its results: all that it has.
func (c Config) sends(r steps) uint8 {
	if c.Mutant == KeepsOnlyItsOwn {
		return r.unkept()
	}
	return r.has
}

// takesSteps adds what a run does for its steps.
func (c Config) takesSteps(m *moves, r request) {
	if !c.takesOver(m.i) {
		return
	}
	if r.steps.unkept() != 0 {
		m.add("sends Renew with progress", running, keepOf(c.sends(r.steps)))
		if !c.Answered {
			left := m.add("gives its Renew with progress up", running, 0)
			left.steps.left |= r.steps.unkept()
		}
		return
	}
	for k := range c.Steps {
		if bit := uint8(1) << k; r.steps.has&bit == 0 {
			m.add(fmt.Sprintf("does step %d", k+1), running, 0).steps.has |= bit
			if r.steps.before&bit != 0 {
				m.steps[len(m.steps)-1].broken = fmt.Sprintf("a step that was kept is not done again: %s does step %d", name(m.i), k+1)
			}
			return
		}
	}
}

// keep is Renew with progress. It reports whether the claim was lost.
func (c Config) keep(s *state, i int, results uint8) (lost bool) {
	r := s.record
	switch {
	case r.kind == nothing:
		s.lease(i, false)
		s.progress = 0
	case c.own(s, i):
		s.lease(i, r.tookOver)
	case r.kind == completed && int(r.owner) == i:
		return false
	case c.Mutant != KeepUnfenced || r.kind == completed:
		return true
	}
	longer := bits.OnesCount8(results) > bits.OnesCount8(s.progress) || c.Mutant == ShorterReplaces
	if longer && c.Mutant != KeepsNothing {
		s.progress = results
	}
	return false
}

// toldKept tells a request what became of its Renew with progress. It returns which rule
// that breaks.
func (c Config) toldKept(s *state, i int, results uint8, lost bool) (broken string) {
	r := &s.requests[i]
	if lost {
		r.steps.left |= r.steps.unkept()
		return ""
	}
	r.steps.told |= results
	s.kept |= results
	if int(s.record.owner) != i {
		return fmt.Sprintf("a step is kept with its own claim: %s is told so, and the key is %s", name(i), s.record)
	}
	return ""
}
