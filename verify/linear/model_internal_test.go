package linear

import (
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
)

// TestModel checks the model itself, on short histories of one key.
func TestModel(t *testing.T) {
	const (
		lease = 100
		late  = 10
	)
	claimed, ok, lost, unknown := output{claimed: true}, output{}, output{lost: true}, output{unknown: true}
	held := func(token string) output { return output{held: idempotency.Claim{Token: token}} }
	stored := func(token, response string) output {
		return output{held: idempotency.Claim{Token: token}, response: response}
	}
	type call struct {
		from, until int64
		verb, token string
		output
	}
	tests := []struct {
		name    string
		history []call
		legal   bool
	}{
		{"one of two claims at once", []call{{0, 9, "Claim", "a", claimed}, {0, 9, "Claim", "b", held("a")}}, true},
		{"both of two claims at once", []call{{0, 9, "Claim", "a", claimed}, {0, 9, "Claim", "b", claimed}}, false},
		{"none of two claims at once", []call{{0, 9, "Claim", "a", held("b")}, {0, 9, "Claim", "b", held("a")}}, false},
		{"held to the last", []call{{5, 5, "Claim", "a", claimed}, {104, 104, "Claim", "b", held("a")}}, true},
		{"freed at its end", []call{{5, 5, "Claim", "a", claimed}, {105, 105, "Claim", "b", claimed}}, true},
		{"freed too early", []call{{5, 5, "Claim", "a", claimed}, {104, 104, "Claim", "b", claimed}}, false},
		{"freed within the bounds", []call{{0, 5, "Claim", "a", claimed}, {90, 100, "Claim", "b", claimed}}, true},
		{"freed before the bounds", []call{{1, 5, "Claim", "a", claimed}, {90, 100, "Claim", "b", claimed}}, false},
		{"held late", []call{{5, 5, "Claim", "a", claimed}, {114, 114, "Claim", "b", held("a")}}, true},
		{"held too late", []call{{5, 5, "Claim", "a", claimed}, {115, 115, "Claim", "b", held("a")}}, false},
		{"held too late after a claim that could be later", []call{{0, 9, "Claim", "a", claimed}, {119, 119, "Claim", "b", held("a")}}, false},
		{"held once renewed", []call{{0, 0, "Claim", "a", claimed}, {50, 50, "Renew", "a", ok}, {149, 149, "Claim", "b", held("a")}}, true},
		{"freed though renewed", []call{{0, 0, "Claim", "a", claimed}, {50, 50, "Renew", "a", ok}, {149, 149, "Claim", "b", claimed}}, false},
		{"seen held, then free too soon", []call{{0, 50, "Claim", "a", claimed}, {140, 140, "Claim", "b", held("a")}, {141, 141, "Claim", "c", claimed}}, true},
		{"seen free, then held again", []call{{0, 50, "Claim", "a", claimed}, {120, 120, "Release", "b", ok}, {120, 120, "Claim", "c", claimed}, {121, 121, "Claim", "d", held("a")}}, false},
		{"a claim seen by a call that returned before it", []call{{0, 80, "Claim", "a", claimed}, {10, 20, "Claim", "b", held("a")}, {119, 119, "Claim", "c", held("a")}}, true},
		{"it was set before that call returned", []call{{0, 80, "Claim", "a", claimed}, {10, 20, "Claim", "b", held("a")}, {130, 130, "Claim", "c", held("a")}}, false},
		{"released", []call{{0, 0, "Claim", "a", claimed}, {1, 1, "Release", "a", ok}, {2, 2, "Claim", "b", claimed}}, true},
		{"released by another", []call{{0, 0, "Claim", "a", claimed}, {1, 1, "Release", "b", ok}, {2, 2, "Claim", "b", claimed}}, false},
		{"replayed", []call{{0, 0, "Complete", "a", ok}, {1, 1, "Complete", "a", ok}, {2, 2, "Claim", "b", stored("a", "1")}}, true},
		{"overwritten by a repetition", []call{{0, 0, "Complete", "a", ok}, {1, 1, "Complete", "a", ok}, {2, 2, "Claim", "b", stored("a", "2")}}, false},
		{"completed over a claim", []call{{0, 0, "Claim", "a", claimed}, {1, 1, "Complete", "b", ok}}, false},
		{"refused over a claim", []call{{0, 0, "Claim", "a", claimed}, {1, 1, "Complete", "b", lost}}, true},
		{"took effect at once", []call{{0, never, "Claim", "a", unknown}, {5, 5, "Claim", "b", held("a")}}, true},
		{"took effect late", []call{{0, never, "Claim", "a", unknown}, {500, 500, "Claim", "b", claimed}, {700, 700, "Claim", "b", held("a")}}, true},
		{"took no effect", []call{{0, never, "Claim", "a", unknown}, {5, 5, "Claim", "b", claimed}}, true},
		{"took effect twice", []call{{0, never, "Claim", "a", unknown}, {5, 5, "Claim", "b", held("a")}, {300, 300, "Claim", "c", claimed}, {500, 500, "Claim", "b", held("a")}}, false},
		{"took effect before it was called", []call{{5, 5, "Claim", "b", held("a")}, {9, never, "Claim", "a", unknown}}, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var history []porcupine.Operation
			for i, c := range test.history {
				in := input{verb: c.verb, claim: idempotency.Claim{Token: c.token}, life: lease, from: c.from, until: c.until}
				if c.verb == verbComplete {
					in.response = string(rune('1' + i))
				}
				history = append(history, porcupine.Operation{ClientId: i, Input: in, Output: c.output, Call: c.from, Return: c.until})
			}
			require.Equal(t, test.legal, porcupine.CheckOperations(Model(late*time.Nanosecond), history))
		})
	}
}
