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
	key         idempotency.Key
	claim       idempotency.Claim
	progress    string // of a Renew; it may be none
	response    string // of a Complete
	life        int64  // the lease, or the expiry
	trace       int64  // of a Claim, a Renew and a Release
	takeOver    bool
	from, until int64 // It took effect between the two.
}

// output is what a call returned. The progress and the response of another
// fingerprint's record do not count.
type output struct {
	unknown  bool // It failed.
	claimed  bool
	lost     bool
	held     idempotency.Claim
	state    idempotency.State
	progress string
	response string
}

// state is what is known of one record.
type state struct {
	claim    idempotency.Claim
	state    idempotency.State // none: the key holds nothing
	tookOver bool
	progress string
	response string
	life     int64 // the lease, the rest of the trace, or the expiry
	trace    int64 // of what is outstanding

	now            int64 // the earliest moment of the next call
	setFrom, setTo int64 // between which life began
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
		if e := m.effect(in); out.unknown || e.output == out {
			next = append(next, e.state)
		}
	}
	return next
}

// moment is the record as a call can find it, and the latest that it is then.
type moment struct {
	state
	until int64
}

// moments returns the record as a call can find it: as it was, interrupted if its
// lease can have been over, and nothing if its time can have been.
func (s state) moments(in input, late int64) []moment {
	s.now = max(s.now, in.from)
	// What was set before this call was set before this call returned.
	s.setTo = min(s.setTo, in.until)
	if s.now > in.until || s.setFrom > s.setTo {
		return nil
	}
	if s.state == 0 {
		return []moment{{s, in.until}}
	}
	var found []moment
	if held := s; held.now < held.setTo+held.life+late {
		held.setFrom = max(held.setFrom, held.now-held.life-late+1)
		found = append(found, moment{held, min(in.until, held.setTo+held.life+late-1)})
	}
	if s.setFrom+s.life > in.until {
		return found
	}
	if s.state != idempotency.StateOutstanding || s.trace == 0 {
		return append(found, moment{state{now: max(s.now, s.setFrom+s.life)}, in.until})
	}
	// The trace began when the lease was over, which it was before this call returned.
	s.state = idempotency.StateInterrupted
	s.setFrom, s.setTo = s.setFrom+s.life, min(s.setTo+s.life, in.until)
	s.life = s.trace
	s.now = max(s.now, s.setFrom)
	return append(found, s.moments(in, late)...)
}

// effect is what a call returns, and the state that it leaves behind.
type effect struct {
	output output
	state  state
}

// effect is the contract of the four verbs.
func (m moment) effect(in input) effect {
	nothing := m.state.state == 0
	own := m.claim.Token == in.claim.Token
	completed := m.state.state == idempotency.StateCompleted
	switch {
	case in.verb == verbClaim:
		return m.claimed(in)
	case !nothing && !own && in.verb == verbRelease, own && completed:
		return effect{output{}, m.state}
	case !nothing && !own:
		return effect{output{lost: true}, m.state}
	case in.verb == verbRelease:
		return effect{output{}, m.released(in)}
	case in.verb == verbComplete:
		return effect{output{}, m.set(in, state{claim: in.claim, state: idempotency.StateCompleted, response: in.response})}
	}
	return effect{output{}, m.leased(in)}
}

// claimed is what a Claim does.
func (m moment) claimed(in input) effect {
	held := m.state
	own := held.claim.Token == in.claim.Token && held.state != idempotency.StateCompleted
	over := held.state == idempotency.StateInterrupted && in.takeOver && match(held.claim, in.claim)
	if held.state != 0 && !own && !over {
		out := output{held: held.claim, state: held.state}
		if match(held.claim, in.claim) {
			out.progress, out.response = held.progress, held.response
		}
		return effect{out, held}
	}
	m.tookOver = held.tookOver || over && !own
	to := m.leased(in)
	if !to.tookOver {
		return effect{output{claimed: true}, to}
	}
	return effect{output{claimed: true, held: in.claim, state: idempotency.StateInterrupted, progress: to.progress}, to}
}

// leased is the record once a lease began.
func (m moment) leased(in input) state {
	to := state{claim: in.claim, state: idempotency.StateOutstanding, tookOver: m.tookOver, progress: m.progress, trace: in.trace}
	if len(in.progress) > len(to.progress) {
		to.progress = in.progress
	}
	if m.tookOver {
		to.trace = max(to.trace, m.left())
	}
	return m.set(in, to)
}

// released is the record once its claim, or nothing, was released.
func (m moment) released(in input) state {
	to := state{claim: in.claim, state: idempotency.StateInterrupted, tookOver: m.tookOver, progress: m.progress}
	in.life = in.trace
	if m.tookOver {
		in.life = max(in.life, m.left())
	}
	if in.life == 0 {
		return state{now: m.now}
	}
	return m.set(in, to)
}

// left is the trace of a claim that took over.
func (m moment) left() int64 {
	if m.state.state == idempotency.StateInterrupted {
		return m.life
	}
	return m.trace
}

// set returns a record whose life begins at the moment.
func (m moment) set(in input, to state) state {
	to.life, to.now, to.setFrom, to.setTo = in.life, m.now, m.now, m.until
	return to
}

// match reports whether two claims may be of one request.
func match(a, b idempotency.Claim) bool {
	var any [32]byte
	return a.Fingerprint == b.Fingerprint || a.Fingerprint == any || b.Fingerprint == any
}

// byKey parts a history by the keys of its calls.
func byKey(history []porcupine.Operation) [][]porcupine.Operation {
	parts := make(map[idempotency.Key][]porcupine.Operation)
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
	takeOver := ""
	if in.takeOver {
		takeOver = ", takes over"
	}
	return fmt.Sprintf("%s(%s, %q, for %v, trace %v%s) at %s to %s:", in.verb, claimName(in.claim), in.progress+in.response,
		time.Duration(in.life), time.Duration(in.trace), takeOver, millis(in.from), until)
}

// String describes what a call returned.
func (out output) String() string {
	switch {
	case out.unknown:
		return "unknown"
	case out.claimed && out.state != 0:
		return fmt.Sprintf("took over, %q", out.progress)
	case out.claimed:
		return "claimed"
	case out.lost:
		return "lost"
	case out.state != 0:
		return fmt.Sprintf("%v by %s, %q", out.state, claimName(out.held), out.progress+out.response)
	}
	return "ok"
}

// String describes what is known of a record.
func (s state) String() string {
	if s.state == 0 {
		return "nothing, from " + millis(s.now)
	}
	tookOver := ""
	if s.tookOver {
		tookOver = ", which took over"
	}
	return fmt.Sprintf("%v by %s%s, %q, trace %v, for %v from between %s and %s", s.state, claimName(s.claim), tookOver, s.progress+s.response,
		time.Duration(s.trace), time.Duration(s.life), millis(s.setFrom), millis(s.setTo))
}

// claimName tells a claim's token and its fingerprint.
func claimName(c idempotency.Claim) string { return fmt.Sprintf("%c%d", c.Token[0], c.Fingerprint[0]) }

// millis is the last ten seconds' part of a moment.
func millis(t int64) string { return fmt.Sprintf("%.3f ms", float64(t%10e9)/1e6) }

// Failed reports whether a call of a history failed, so that its outcome is
// unknown.
func Failed(op porcupine.Operation) bool { return op.Output.(output).unknown }

// TookOver reports whether a call of a history was told that it took a key over.
func TookOver(op porcupine.Operation) bool {
	out := op.Output.(output)
	return out.claimed && out.state == idempotency.StateInterrupted
}
