// Package model is the protocol of the middleware as a small state machine: two
// or three requests with one key, one record, and a network between them. It is
// explored completely: every order of every step, with a crash, the end of a
// lease, or a lost, late or repeated message at every point.
//
// # What is checked
//
// In every state that can be reached:
//
//   - At most one owner completes: a response or mark takes effect only where the
//     key is its request's or nobody's, no second one ever does, and what is stored
//     is neither replaced nor deleted.
//   - By default a second run begins only after the claim of one of the two ended:
//     by its lease, which is how a crash ends it, or by its owner's letting go.
//   - With at-most-once no second run begins, but for one after a handler that
//     called NoStore let go of its claim.
//
// A store that loses data is an action of its own, and breaks the last.
//
// # What a step is
//
// A request is a process that sends the store messages and waits for answers:
//
//	fresh → claiming → claimed → running → completing → ended
//	                 ↘ refused → claiming, or ended
//
// It does here what [idempotency.New] makes it do: a claim that failed is
// released, once, and answered with 503; a request that is refused may look
// again, as with WithWait; a handler runs and is renewed; its response completes
// the claim, tried until it is answered or given up; a panic or a response that
// is not to be stored lets go, by Release or by the mark, after the last renewal.
// What a message does is the contract of [idempotency.Backend].
//
// # What is abstracted away
//
//   - Time: a lease may end at any moment, renewed or not, which covers a process
//     that is paused, a clock that is off and a renewal that fails. With
//     at-most-once no claim ends, and a stored response never does: all happens
//     within the expiry.
//   - The network: a message is on its way from when it was sent, and arrives at
//     any time later or never, whatever became of its sender; its answer arrives
//     or is lost. A claim that has failed is one whose sender gave it up, which is
//     possible at any time. With Resent it arrives any number of times.
//   - A process that waits between an answer and what it does next is one that is
//     still claimed, or running; all others may move meanwhile.
//   - A crash ends its request, and its messages may still arrive. A client that
//     leaves gives up the claim, and nothing later. A client that retries is the
//     next request, with a token of its own.
//   - After it has let go, or sent its last message, a request has ended: what it
//     then answers has no bearing on the record.
//   - One key, one fingerprint, one scope, and a store that is never full. A
//     response is who made it. WithFailOpen is one of the mutants.
//   - Requests are alike: the first to be sent is a.
package model
