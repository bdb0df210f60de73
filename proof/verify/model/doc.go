// Package model is the protocol of the middleware as a small state machine: up to
// three requests with one key, one record, and a network between them. It is
// explored completely: every order of every step, with a crash, the end of a
// lease, or a lost, late or repeated message at every point.
//
// # What is checked
//
// In every state that can be reached, in each of the three modes:
//
//   - At most one owner completes: a response takes effect only where the key is its
//     request's or nobody's, no second one ever does, and what is stored is neither
//     replaced nor deleted. So a late Complete by the first owner of a key that was
//     taken over is refused.
//   - A second run begins only after the claim of one of the two ended: by its lease,
//     which is how a crash ends it, or by its Release.
//   - With at-most-once no second run begins, but for one after a handler that
//     called NoStore has released its claim.
//   - With recovery a second run knows that it is one, also after a repeated Claim, and
//     a recovery that dies is recovered in turn. Only a request with the same
//     fingerprint takes over.
//   - A step of which somebody was told that its result is kept is not done again by a
//     request that claims later. It is kept only with the claim of the request that did it.
//   - An interrupted key is never forgotten: only its own Release deletes it, and that
//     of a claim that took over does not.
//   - A retry is told the truth: that the key is outstanding during a lease, and
//     interrupted after it. So it is never told for a whole trace that a request which
//     died is outstanding.
//   - Where renewals reach the store in time, no two run at once.
//
// A store that loses data is an action of its own, and breaks what it must.
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
// again, as with WithWait; one that was answered late renews its claim first, or
// sends it again if it may take over; a handler runs and is renewed; its response
// completes the claim, tried until it is answered or given up; a panic or a response that is not to be stored releases it,
// with a trace or without one, as the mode has it. What a message does is the contract
// of [idempotency.Backend].
//
// # What is abstracted away
//
//   - Time: a lease may end at any moment, renewed or not, which covers a process
//     that is paused, a clock that is off and a renewal that fails. With Timely it ends
//     only after its time: while its owner runs it is renewed, and a request knows
//     that its claim was answered late. Whether renewals reach the store in time is what
//     [Lease] explores. A trace never ends, and a stored response never
//     does: all happens within the expiry.
//   - The network: a message is on its way from when it was sent, and arrives at
//     any time later or never, whatever became of its sender; its answer arrives
//     or is lost. A claim that has failed is one whose sender gave it up, which is
//     possible at any time. With Resent it arrives any number of times. With Answered
//     no sender gives up, and a release waits for the renewal before it.
//   - A process that waits between an answer and what it does next is one that is
//     still claimed, or running; all others may move meanwhile.
//   - A crash ends its request, and its messages may still arrive. A client that
//     leaves changes nothing. A client that retries is the next request, with a token
//     of its own.
//   - After it has released its claim, or sent its last message, a request has ended:
//     what it then answers has no bearing on the record.
//   - One key, one scope, a progress of two steps at most, and a store that is never
//     full. All requests have one fingerprint; with Reused the last one has another. A
//     response is who made it. WithFailOpen is one of the mutants.
//   - Requests are alike: the first to be sent is a. With Mixed the last one is of a
//     process without a mode.
package model
