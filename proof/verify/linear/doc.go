// Package linear checks that a [idempotency.Backend] is linearizable: that what
// many clients saw of its four verbs, called at the same time and with calls
// whose outcome nobody knows, is what one record for each key could have shown
// them if each call had taken effect at one moment while it was under way.
//
// A [Workload] makes a history, [Model] is the record that the history is
// checked against with porcupine, and [Lossy] loses and delays the calls on
// their way to a backend.
//
// # Time
//
// A lease that ends is a change that no call makes, and nobody sees when it
// happens. The model therefore does not guess at the moment: it keeps the bounds
// of it. Every call has the time before it began and the time after it returned,
// so that the moment at which it took effect lies between the two; moments of
// calls that took effect one after the other do not go back. A record that was set at
// moment s for a lease l and a trace t is outstanding before s+l, interrupted from s+l
// on, and gone from s+l+t on; one that was completed for an expiry e is gone from s+e
// on. These are inequalities between moments, and a state of the model is the bounds
// that they leave: the earliest that it can be now, and the earliest and the latest
// that the record was set. A call that finds the record in a state, or the key free,
// narrows them; one for which they leave no moment did not happen in this order. So a
// lease or a trace that ends too early is found, and so is one that ends too late.
//
// # What a Claim shows
//
// Who holds the key, its state, its progress or response, and whether the claim took
// the key over, all must be those of the record. The progress and the response of
// another fingerprint's record, and the progress of a completed one, may be missing:
// they are not compared.
//
// # Calls that failed
//
// A call that returned an error other than [idempotency.ErrClaimLost] may have
// taken effect, may yet take effect at any time until the end of the history, or
// never. It is in the history as a call that has not returned.
//
// # Long runs
//
//	go test ./linear -run 'TestMemory|TestRedis' -v -timeout 0 -rounds 10000 -seed 7
//
// makes that many histories of each kind. A history that is not linearizable is
// drawn as a page of HTML, and the test says where.
//
// # What is left out
//
// A history has short lives only, and no store that is full. A call is sent
// once: a client library that sends a command twice on its own, such as go-redis
// with retries, can be refused by a second try where its first one had claimed,
// which no single moment explains.
package linear
