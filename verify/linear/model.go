package linear

import (
	"fmt"
	"math"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/idempotency-go/idempotency"
)

// never is later than any moment of a history.
const never = math.MaxInt64 / 4

// The verbs of a backend.
const (
	verbClaim    = "Claim"
	verbRenew    = "Renew"
	verbComplete = "Complete"
	verbRelease  = "Release"
)

// input is a call. Times are nanoseconds of the clock that the backend has.
type input struct {
	verb        string
	key         string
	claim       idempotency.Claim
	response    string // of a Complete, as from text
	life        int64  // the lease or the expiry; 0 is for ever
	from, until int64  // It took effect between the two.
}

// output is what a call returned.
type output struct {
	unknown  bool // It failed.
	claimed  bool
	lost     bool
	held     idempotency.Claim
	response string
}

// state is what is known of one record.
type state struct {
	claim    idempotency.Claim // without a token: the key holds nothing
	response string            // empty while outstanding
	life     int64

	now            int64 // the earliest moment of the next call
	setFrom, setTo int64 // between which the record was set
}

// Model returns the record of a backend as porcupine's model of one key's
// history. The lives of records end late by less than the given time: 0 is a
// backend that keeps them to the nanosecond.
func Model(late time.Duration) porcupine.Model {
	m := porcupine.NondeterministicModel{
		Partition: byKey,
		Init:      func() []any { return []any{state{}} },
		Step: func(s, in, out any) []any {
			return s.(state).step(in.(input), out.(output), int64(late))
		},
		DescribeOperation: func(in, out any) string { return in.(input).String() + " " + out.(output).String() },
		DescribeState:     func(s any) string { return fmt.Sprint(s) },
	}
	return m.ToModel()
}

// step returns the states that a call can leave behind, none if it cannot have
// returned what it did.
func (s state) step(in input, out output, late int64) []any {
	var next []any
	if out.unknown {
		next = append(next, s) // It took no effect.
	}
	for _, m := range s.moments(in, late) {
		for _, e := range m.effects(in) {
			if out.unknown || e.output == out {
				next = append(next, e.state)
			}
		}
	}
	return next
}

// moment is the record as a call can find it, and the latest that it is then.
type moment struct {
	state
	until int64
}

// moments returns the record as it was, if a call can have found it held, and
// nothing, if its time can have been over.
func (s state) moments(in input, late int64) []moment {
	s.now = max(s.now, in.from)
	// What was set before this call was set before this call returned.
	s.setTo = min(s.setTo, in.until)
	if s.now > in.until || s.setFrom > s.setTo {
		return nil
	}
	if s.claim.Token == "" || s.life == 0 {
		return []moment{{s, in.until}}
	}
	var found []moment
	if held := s; held.now < held.setTo+held.life+late {
		held.setFrom = max(held.setFrom, held.now-held.life-late+1)
		found = append(found, moment{held, min(in.until, held.setTo+held.life+late-1)})
	}
	if s.setFrom+s.life <= in.until {
		found = append(found, moment{state{now: max(s.now, s.setFrom+s.life)}, in.until})
	}
	return found
}

// effect is what a call returns, and the state that it leaves behind.
type effect struct {
	output output
	state  state
}

// effects is the contract of the four verbs.
func (m moment) effects(in input) []effect {
	set := state{claim: in.claim, response: in.response, life: in.life, now: m.now, setFrom: m.now, setTo: m.until}
	nothing := m.claim.Token == ""
	own := m.claim.Token == in.claim.Token
	outstanding := m.response == ""
	switch {
	case in.verb == verbClaim && nothing:
		return []effect{{output{claimed: true}, set}}
	case in.verb == verbClaim && own && outstanding:
		// The contract does not say which of the two leases holds.
		return []effect{{output{claimed: true}, m.state}, {output{claimed: true}, set}}
	case in.verb == verbClaim:
		return []effect{{output{held: m.claim, response: m.response}, m.state}}
	case in.verb == verbRelease && own && outstanding:
		return []effect{{output{}, state{now: m.now}}}
	case in.verb == verbRelease:
		return []effect{{output{}, m.state}}
	case nothing || own && outstanding:
		return []effect{{output{}, set}}
	case own:
		return []effect{{output{}, m.state}}
	}
	return []effect{{output{lost: true}, m.state}}
}

// text is a response in a history; it is never empty.
func text(r *idempotency.Response) string { return fmt.Sprintf("%d %s", r.Status, r.Body) }

// byKey parts a history by the keys of its calls.
func byKey(history []porcupine.Operation) [][]porcupine.Operation {
	parts := make(map[string][]porcupine.Operation)
	for _, op := range history {
		key := op.Input.(input).key
		parts[key] = append(parts[key], op)
	}
	var all [][]porcupine.Operation
	for _, part := range parts {
		all = append(all, part)
	}
	return all
}

// String describes a call in a visualization, in milliseconds.
func (in input) String() string {
	until := "?"
	if in.until != never {
		until = millis(in.until)
	}
	return fmt.Sprintf("%s(%s, %q, %v) at %s to %s:", in.verb, in.claim.Token, in.response, time.Duration(in.life), millis(in.from), until)
}

// String describes what a call returned.
func (out output) String() string {
	switch {
	case out.unknown:
		return "unknown"
	case out.claimed:
		return "claimed"
	case out.lost:
		return "lost"
	case out.held.Token != "":
		return fmt.Sprintf("held by %s, %q", out.held.Token, out.response)
	}
	return "ok"
}

// String describes what is known of a record.
func (s state) String() string {
	if s.claim.Token == "" {
		return "nothing, from " + millis(s.now)
	}
	return fmt.Sprintf("%s, %q, set for %v between %s and %s", s.claim.Token, s.response, time.Duration(s.life), millis(s.setFrom), millis(s.setTo))
}

// millis is the last ten seconds' part of a moment.
func millis(t int64) string { return fmt.Sprintf("%.3f ms", float64(t%10e9)/1e6) }

// Failed reports whether a call of a history failed, so that its outcome is
// unknown.
func Failed(op porcupine.Operation) bool { return op.Output.(output).unknown }
