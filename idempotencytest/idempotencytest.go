// Package idempotencytest tests that an [idempotency.Backend] keeps its
// contract. The author of a backend calls [Run] from a test:
//
//	func TestBackend(t *testing.T) {
//		idempotencytest.Run(t, func(t *testing.T) idempotency.Backend {
//			db := openDatabase(t) // Closes it in t.Cleanup.
//			return mybackend.New(db)
//		})
//	}
//
// Run it with the race detector (go test -race) as well.
//
// # What a failure says
//
// Each case is a subtest with a name of its own, such as claim-atomic. It fails
// with what was seen, and with the clause of the contract that was broken:
//
//	--- FAIL: TestBackend/claim-atomic
//	    Of 64 concurrent claims of one key 3 were told that they have it.
//	    The contract: Claim is atomic: of any number of concurrent calls for one
//	    key, one gets it, and the others are shown its claim. Use one atomic
//	    command (insert if absent), not a read and a write.
//
// One fault can fail several cases; the one whose clause names the fault is
// among them.
//
// # Time
//
// The suite works in real time, because a store has its own clock. It asks for
// leases, traces and expiries of 50 ms and waits up to 10 s for the end of each,
// so that neither a slow machine nor a backend that rounds up to whole seconds
// fails. What must not end during a test lasts for an hour. A case that asks what
// happens before a short time is over is tried again with a longer one if the
// calls took too long to tell, and is skipped after several such tries. A store
// whose clock stands still, such as miniredis, needs someone to advance it.
//
// # Inspectors and Transactors
//
// A backend that is an [idempotency.Inspector], itself or through its method
// Unwrap() Backend, has further cases. Their names begin with "lookup" and
// "forget". A backend that is an [idempotency.Transactor] has further cases too,
// and their names begin with "begin". That what its handlers write commits
// together with their response, or not at all, is for its own tests.
//
// # What is not tested
//
// The suite cannot fill a store, restart it or cut its network. That a full
// store returns [idempotency.ErrFull], that records outlive a restart and that
// several processes share them is for the backend's own tests. So is a record
// that cannot be read ([idempotency.ErrUnreadable]).
package idempotencytest

import (
	"crypto/rand"
	"slices"
	"testing"
	"time"

	"github.com/idempotency-go/idempotency"
)

// testCase is one clause of the contract and its test.
type testCase struct {
	name   string // of the subtest
	clause string // what an implementer has broken if the test fails
	run    func(*tester)
}

// cases is what [Run] runs.
var cases = slices.Concat(claimCases, renewCases, completeCases, releaseCases, interruptedCases, takeOverCases, progressCases,
	timeCases, recordCases, keyCases, contextCases, concurrentCases)

// timing is how long the suite asks for and waits.
type timing struct {
	soon     time.Duration // a lease, trace or expiry whose end is waited for
	patience time.Duration // how long after its time a record may still be held
	prompt   time.Duration // how long a call with a context that has ended may take
}

// Run tests that a backend keeps the contract of [idempotency.Backend]. Each
// clause is a subtest with a backend of its own, which newBackend makes; it may
// call t.Cleanup, t.Skip and t.Fatal. The subtests run one after another, so
// that newBackend may clear a store that they share; it need not, because every
// subtest of every run has keys of its own. Some of the records are to be kept
// for ever: use a store for tests.
//
// On a store in memory Run takes about two seconds, most of it spent waiting.
func Run(t *testing.T, newBackend func(t *testing.T) idempotency.Backend) {
	t.Helper()
	timing := timing{soon: 50 * time.Millisecond, patience: 10 * time.Second, prompt: 30 * time.Second}
	var backend idempotency.Backend
	run := func(cases []testCase) {
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				backend = newBackend(t)
				c.test(t, backend, timing)
			})
		}
	}
	run(cases)
	if backend == nil { // Not one of these cases was asked for.
		backend = newBackend(t)
	}
	run(furtherCases(backend))
}

// furtherCases returns the cases for what a backend is besides.
func furtherCases(backend idempotency.Backend) []testCase {
	var further []testCase
	if inspector(backend) != nil {
		further = append(further, inspectorCases...)
	}
	if _, ok := backend.(idempotency.Transactor); ok {
		further = append(further, transactorCases...)
	}
	return further
}

// test runs the case on a backend that nothing else uses.
func (c testCase) test(t *testing.T, backend idempotency.Backend, timing timing) {
	t.Helper()
	if backend == nil {
		t.Fatal("idempotencytest: newBackend returned nil")
	}
	c.run(&tester{T: t, timing: timing, Backend: backend, clause: c.clause, scope: rand.Text()})
}
