package linear

import (
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
)

const (
	lease = 100
	trace = 50
	late  = 10
)

// claimOf returns the claim of a name: * matches any fingerprint, X has another one.
func claimOf(name string) idempotency.Claim {
	c := idempotency.Claim{Token: idempotency.Token{name[0]}, Fingerprint: [32]byte{1}}
	switch name {
	case "*":
		c.Fingerprint[0] = 0
	case "X":
		c.Fingerprint[0] = 2
	}
	return c
}

// call is a call of a short history, such as "Claim a trace over" or "Renew a =progress".
type call struct {
	from, until int64
	what        string
	output
}

// input returns the call as the n-th of a history. Its response is its number.
func (c call) input(n int) input {
	words := strings.Fields(c.what)
	in := input{verb: words[0], claim: claimOf(words[1]), life: lease, from: c.from, until: c.until}
	if in.verb == verbComplete {
		in.response = string(rune('1' + n))
	}
	for _, word := range words[2:] {
		switch word {
		case "trace":
			in.trace = trace
		case "over":
			in.takeOver = true
		default:
			in.progress = word[1:]
		}
	}
	return in
}

// shown is what a Claim is shown of a record.
func shown(name string, state idempotency.State, text string) output {
	out := output{held: claimOf(name), state: state}
	if state == idempotency.StateCompleted {
		out.response = text
	} else {
		out.progress = text
	}
	return out
}

// over is what a Claim that took over is told.
func over(name, progress string) output {
	return output{claimed: true, held: claimOf(name), state: idempotency.StateInterrupted, progress: progress}
}

// TestModel checks the model itself, on short histories of one key.
func TestModel(t *testing.T) {
	const (
		outstanding = idempotency.StateOutstanding
		interrupted = idempotency.StateInterrupted
		completed   = idempotency.StateCompleted
	)
	claimed, ok, lost, unknown := output{claimed: true}, output{}, output{lost: true}, output{unknown: true}
	tests := []struct {
		name    string
		history []call
		legal   bool
	}{
		{"one of two claims at once", []call{{0, 9, "Claim a", claimed}, {0, 9, "Claim b", shown("a", outstanding, "")}}, true},
		{"both of two claims at once", []call{{0, 9, "Claim a", claimed}, {0, 9, "Claim b", claimed}}, false},
		{"none of two claims at once", []call{{0, 9, "Claim a", shown("b", outstanding, "")}, {0, 9, "Claim b", shown("a", outstanding, "")}}, false},
		{"held to the last", []call{{5, 5, "Claim a", claimed}, {104, 104, "Claim b", shown("a", outstanding, "")}}, true},
		{"freed at its end", []call{{5, 5, "Claim a", claimed}, {105, 105, "Claim b", claimed}}, true},
		{"freed too early", []call{{5, 5, "Claim a", claimed}, {104, 104, "Claim b", claimed}}, false},
		{"freed within the bounds", []call{{0, 5, "Claim a", claimed}, {90, 100, "Claim b", claimed}}, true},
		{"freed before the bounds", []call{{1, 5, "Claim a", claimed}, {90, 100, "Claim b", claimed}}, false},
		{"held late", []call{{5, 5, "Claim a", claimed}, {114, 114, "Claim b", shown("a", outstanding, "")}}, true},
		{"held too late", []call{{5, 5, "Claim a", claimed}, {115, 115, "Claim b", shown("a", outstanding, "")}}, false},
		{"held too late after a claim that could be later", []call{{0, 9, "Claim a", claimed}, {119, 119, "Claim b", shown("a", outstanding, "")}}, false},
		{"held once renewed", []call{{0, 0, "Claim a", claimed}, {50, 50, "Renew a", ok}, {149, 149, "Claim b", shown("a", outstanding, "")}}, true},
		{"freed though renewed", []call{{0, 0, "Claim a", claimed}, {50, 50, "Renew a", ok}, {149, 149, "Claim b", claimed}}, false},
		{"seen held, then free too soon", []call{{0, 50, "Claim a", claimed}, {140, 140, "Claim b", shown("a", outstanding, "")}, {141, 141, "Claim c", claimed}}, true},
		{"seen free, then held again", []call{{0, 50, "Claim a", claimed}, {120, 120, "Release b", ok}, {120, 120, "Claim c", claimed}, {121, 121, "Claim d", shown("a", outstanding, "")}}, false},
		{"a claim seen by a call that returned before it", []call{{0, 80, "Claim a", claimed}, {10, 20, "Claim b", shown("a", outstanding, "")}, {119, 119, "Claim c", shown("a", outstanding, "")}}, true},
		{"it was set before that call returned", []call{{0, 80, "Claim a", claimed}, {10, 20, "Claim b", shown("a", outstanding, "")}, {130, 130, "Claim c", shown("a", outstanding, "")}}, false},
		{"released", []call{{0, 0, "Claim a", claimed}, {1, 1, "Release a", ok}, {2, 2, "Claim b", claimed}}, true},
		{"released by another", []call{{0, 0, "Claim a", claimed}, {1, 1, "Release b", ok}, {2, 2, "Claim b", claimed}}, false},
		{"replayed", []call{{0, 0, "Complete a", ok}, {1, 1, "Complete a", ok}, {2, 2, "Claim b", shown("a", completed, "1")}}, true},
		{"overwritten by a repetition", []call{{0, 0, "Complete a", ok}, {1, 1, "Complete a", ok}, {2, 2, "Claim b", shown("a", completed, "2")}}, false},
		{"completed over a claim", []call{{0, 0, "Claim a", claimed}, {1, 1, "Complete b", ok}}, false},
		{"refused over a claim", []call{{0, 0, "Claim a", claimed}, {1, 1, "Complete b", lost}}, true},
		{"took effect at once", []call{{0, never, "Claim a", unknown}, {5, 5, "Claim b", shown("a", outstanding, "")}}, true},
		{"took effect late", []call{{0, never, "Claim a", unknown}, {500, 500, "Claim b", claimed}, {700, 700, "Claim b", shown("a", outstanding, "")}}, true},
		{"took no effect", []call{{0, never, "Claim a", unknown}, {5, 5, "Claim b", claimed}}, true},
		{"took effect twice", []call{{0, never, "Claim a", unknown}, {5, 5, "Claim b", shown("a", outstanding, "")}, {300, 300, "Claim c", claimed}, {500, 500, "Claim b", shown("a", outstanding, "")}}, false},
		{"took effect before it was called", []call{{5, 5, "Claim b", shown("a", outstanding, "")}, {9, never, "Claim a", unknown}}, false},
		{"interrupted at its end", []call{{0, 0, "Claim a trace", claimed}, {100, 100, "Claim b", shown("a", interrupted, "")}}, true},
		{"interrupted too early", []call{{0, 0, "Claim a trace", claimed}, {99, 99, "Claim b", shown("a", interrupted, "")}}, false},
		{"interrupted without a trace", []call{{0, 0, "Claim a", claimed}, {100, 100, "Claim b", shown("a", interrupted, "")}}, false},
		{"outstanding too late", []call{{0, 0, "Claim a trace", claimed}, {110, 110, "Claim b", shown("a", outstanding, "")}}, false},
		{"outstanding again", []call{{0, 20, "Claim a trace", claimed}, {110, 110, "Claim b", shown("a", interrupted, "")}, {111, 111, "Claim b", shown("a", outstanding, "")}}, false},
		{"interrupted within the bounds", []call{{0, 20, "Claim a trace", claimed}, {110, 110, "Claim b", shown("a", interrupted, "")}}, true},
		{"free at the end of its trace", []call{{0, 0, "Claim a trace", claimed}, {150, 150, "Claim b", claimed}}, true},
		{"free before the end of its trace", []call{{0, 0, "Claim a trace", claimed}, {149, 149, "Claim b", claimed}}, false},
		{"interrupted after its trace", []call{{0, 0, "Claim a trace", claimed}, {160, 160, "Claim b", shown("a", interrupted, "")}}, false},
		{"seen interrupted, then free too soon", []call{{0, 20, "Claim a trace", claimed}, {105, 105, "Claim b", shown("a", interrupted, "")}, {149, 149, "Claim b", claimed}}, false},
		{"seen interrupted early, then free in time", []call{{0, 20, "Claim a trace", claimed}, {105, 105, "Claim b", shown("a", interrupted, "")}, {155, 155, "Claim b", claimed}}, true},
		{"interrupted by its Release", []call{{0, 0, "Claim a", claimed}, {1, 1, "Release a trace", ok}, {50, 50, "Claim b", shown("a", interrupted, "")}}, true},
		{"free after the trace of its Release", []call{{0, 0, "Claim a", claimed}, {1, 1, "Release a trace", ok}, {51, 51, "Claim b", claimed}}, true},
		{"a trace where there was nothing", []call{{0, 0, "Release a trace", ok}, {1, 1, "Claim b", shown("a", interrupted, "")}}, true},
		{"a trace where another claims", []call{{0, 0, "Claim a", claimed}, {1, 1, "Release b trace", ok}, {2, 2, "Claim b", shown("a", outstanding, "")}}, true},
		{"claimed again once interrupted", []call{{0, 0, "Claim a trace", claimed}, {100, 100, "Claim a trace", claimed}, {199, 199, "Claim b", shown("a", outstanding, "")}}, true},
		{"renewed once interrupted", []call{{0, 0, "Claim a trace", claimed}, {100, 100, "Renew a trace", ok}, {199, 199, "Claim b", shown("a", outstanding, "")}}, true},
		{"completed once interrupted", []call{{0, 0, "Claim a trace", claimed}, {100, 100, "Complete a", ok}, {199, 199, "Claim b", shown("a", completed, "2")}}, true},
		{"taken over", []call{{0, 0, "Claim a trace", claimed}, {100, 100, "Claim b trace over", over("b", "")}, {199, 199, "Claim a", shown("b", outstanding, "")}}, true},
		{"taken over in its lease", []call{{0, 0, "Claim a trace", claimed}, {99, 99, "Claim b trace over", over("b", "")}}, false},
		{"taken over unasked", []call{{0, 0, "Claim a trace", claimed}, {100, 100, "Claim b trace", over("b", "")}}, false},
		{"not taken over", []call{{0, 0, "Claim a trace", claimed}, {100, 100, "Claim b trace over", shown("a", interrupted, "")}}, false},
		{"taken over by two", []call{{0, 0, "Release a trace", ok}, {1, 9, "Claim b trace over", over("b", "")}, {1, 9, "Claim c trace over", over("c", "")}}, false},
		{"taken over as a first claim", []call{{0, 0, "Release a trace", ok}, {1, 1, "Claim b trace over", claimed}}, false},
		{"taken over by another fingerprint", []call{{0, 0, "Release a trace", ok}, {1, 1, "Claim X trace over", over("X", "")}}, false},
		{"shown to another fingerprint", []call{{0, 0, "Release a trace", ok}, {1, 1, "Claim X trace over", shown("a", interrupted, "")}}, true},
		{"taken over by any fingerprint", []call{{0, 0, "Release a trace", ok}, {1, 1, "Claim * trace over", over("*", "")}}, true},
		{"taken over, and completed by the first", []call{{0, 0, "Release a trace", ok}, {1, 1, "Claim b over", over("b", "")}, {2, 2, "Complete a", ok}}, false},
		{"taken over, and refused to the first", []call{{0, 0, "Release a trace", ok}, {1, 1, "Claim b over", over("b", "")}, {2, 2, "Complete a", lost}}, true},
		{"taken over, and told again", []call{{0, 0, "Release a trace", ok}, {1, 1, "Claim b over", over("b", "")}, {2, 2, "Claim b", over("b", "")}}, true},
		{"taken over, and told otherwise", []call{{0, 0, "Release a trace", ok}, {1, 1, "Claim b over", over("b", "")}, {2, 2, "Claim b", claimed}}, false},
		{"taken over, then deleted", []call{{0, 0, "Release a trace", ok}, {1, 1, "Claim b over", over("b", "")}, {2, 2, "Release b", ok}, {3, 3, "Claim c", claimed}}, false},
		{"taken over, then put back", []call{{0, 0, "Release a trace", ok}, {1, 1, "Claim b over", over("b", "")}, {2, 2, "Release b", ok}, {51, 51, "Claim c", shown("b", interrupted, "")}}, true},
		{"taken over, put back, and free once its trace is over", []call{{0, 0, "Release a trace", ok}, {1, 1, "Claim b over", over("b", "")}, {2, 2, "Release b", ok}, {52, 52, "Claim c", claimed}}, true},
		{"taken over, and interrupted by the trace before", []call{{0, 0, "Release a trace", ok}, {1, 1, "Claim b over", over("b", "")}, {101, 101, "Claim c", shown("b", interrupted, "")}}, true},
		{"taken over in turn", []call{{0, 0, "Release a trace", ok}, {1, 1, "Claim b over", over("b", "")}, {101, 101, "Claim c over", over("c", "")}}, true},
		{"progress", []call{{0, 0, "Claim a", claimed}, {1, 1, "Renew a =xx", ok}, {2, 2, "Claim b", shown("a", outstanding, "xx")}}, true},
		{"progress lost", []call{{0, 0, "Claim a", claimed}, {1, 1, "Renew a =xx", ok}, {2, 2, "Claim b", shown("a", outstanding, "")}}, false},
		{"progress as long", []call{{0, 0, "Claim a", claimed}, {1, 1, "Renew a =xx", ok}, {2, 2, "Renew a =yy", ok}, {3, 3, "Claim b", shown("a", outstanding, "yy")}}, false},
		{"progress grown", []call{{0, 0, "Claim a", claimed}, {1, 1, "Renew a =xx", ok}, {2, 2, "Renew a =yyy", ok}, {3, 3, "Claim b", shown("a", outstanding, "yyy")}}, true},
		{"progress kept by a Renew without", []call{{0, 0, "Claim a", claimed}, {1, 1, "Renew a =xx", ok}, {2, 2, "Renew a", ok}, {3, 3, "Claim b", shown("a", outstanding, "xx")}}, true},
		{"progress taken over", []call{{0, 0, "Renew a =xx", ok}, {1, 1, "Release a trace", ok}, {2, 2, "Claim b over", over("b", "xx")}}, true},
		{"progress not taken over", []call{{0, 0, "Renew a =xx", ok}, {1, 1, "Release a trace", ok}, {2, 2, "Claim b over", over("b", "")}}, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var history []porcupine.Operation
			for i, c := range test.history {
				history = append(history, porcupine.Operation{ClientId: i, Input: c.input(i), Output: c.output, Call: c.from, Return: c.until})
			}
			require.Equal(t, test.legal, porcupine.CheckOperations(Model(late*time.Nanosecond), history))
		})
	}
}
