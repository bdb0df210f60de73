package idempotency

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/google/uuid"
)

// A Backend keeps one record for each key. [Memory] and [Redis] come with this
// package, and nested modules have others. The package idempotencytest has the
// conformance suite for any Backend.
//
// A key is free, or its record is in one of three states:
//
//   - outstanding: a claim in its lease,
//   - interrupted: a run that ended without an answer. Its lease ran out, or it
//     was released with a trace.
//   - completed: the stored response.
//
// The middleware calls a Backend from many goroutines at once. Its promise, that
// a handler runs once, rests on each verb being atomic across all of them, in
// every process that shares the store.
//
// "This very claim" is a record with the same [Token] that is outstanding or
// interrupted. A record is judged by the terms that it was made with, never by
// the terms of the claim that meets it. Leases, traces and expiries are counted
// from the call, by the store's clock. A lease or an expiry that is not positive
// and a negative trace are errors; [Forever] is for ever.
//
// A Backend may keep the slices that it is given. Neither side alters a response
// or a progress afterwards, and what a Backend returns is read-only.
//
// An error means that the outcome is unknown: the call may have taken effect all
// the same. Absence is a result, not an error. A store that has no room for what
// a call would write returns [ErrFull] and keeps what it holds. A record that
// the Backend cannot read is [ErrUnreadable] and stays as it is.
type Backend interface {
	// Claim claims the key for claim and returns true, or returns the record that
	// holds the key and false. It is atomic: of any number of calls for one key,
	// one claims it. It claims a key that
	//
	//   - is free,
	//   - holds this very claim, because a client library may send a command
	//     twice: the lease begins anew,
	//   - holds another claim that was interrupted, if terms say TakeOver and the
	//     fingerprints match.
	//
	// A claim that took over keeps the progress of the interrupted run, and the
	// longer of both traces. That it took over stays with the record until that
	// is completed. Such a Claim, first and repeated, returns true and a Record
	// with the caller's claim, StateInterrupted and the progress. Any other Claim
	// that returns true returns the zero Record.
	//
	// A Claim that fails because the store takes no writes, though it can be read,
	// returns the completed record of the same request. If another record holds the
	// key, its error wraps [ErrOutstanding]: nothing runs then, also with
	// [WithFailOpen].
	//
	// If the fingerprints do not match, the Record may come without its
	// progress and response.
	Claim(ctx context.Context, key Key, claim Claim, terms Terms) (held Record, claimed bool, err error)

	// Renew begins the lease anew if the key holds this very claim, or
	// nothing (the store was restarted, or it evicted the claim). It returns
	// [ErrClaimLost] if the key holds anything else; if that is this
	// claim's own response, it returns nil and changes nothing.
	//
	// A nil progress leaves the progress as it is. So does one that is not
	// longer than what the key holds: progress only grows. A Renew that neither
	// brings a record back nor carries more progress takes no room in the store.
	// A record that is brought back has the progress that Renew was given.
	// While one Renew of a claim hangs, another may be called.
	Renew(ctx context.Context, key Key, claim Claim, terms Terms, progress []byte) error

	// Complete replaces the claim by the response and keeps that for expiry. It
	// takes effect if the key holds this very claim, or nothing. It returns
	// [ErrClaimLost] if the key holds anything else. Repeated with its token
	// it returns nil and changes nothing.
	Complete(ctx context.Context, key Key, claim Claim, response []byte, expiry time.Duration) error

	// Release ends this very claim. It deletes the record. With a trace it makes
	// the record interrupted for that long instead, also if the key holds
	// nothing. The record of a claim that took over is never deleted: it becomes
	// interrupted for the longer of its own trace and the one given, and keeps
	// its progress. Release changes nothing if the key holds anything else,
	// and returns nil then too.
	Release(ctx context.Context, key Key, claim Claim, trace time.Duration) error
}

// An Inspector is a [Backend] that an operator can ask. [Memory], [Redis] and
// the backends of the nested modules are Inspectors. Look for one
// also in what the method Unwrap() Backend of a wrapper returns.
type Inspector interface {
	// Lookup returns the record of a key and how long it is until the record
	// ends: its lease and trace, or its expiry. It changes nothing. ok is false
	// if the key is free.
	Lookup(ctx context.Context, key Key) (rec Record, left time.Duration, ok bool, err error)

	// Forget deletes the record of a key, in any state, and returns true.
	// It is atomic: it deletes only while the record has the token and the state
	// of seen, which Lookup returned, and returns false otherwise.
	Forget(ctx context.Context, key Key, seen Record) (forgotten bool, err error)
}

// A Transactor is a [Backend] whose handlers write in a transaction that commits
// together with their response, or not at all: a request is processed exactly
// once, as far as what it does are those writes. [New] finds out by itself that
// its backend is one. The middleware then does some things differently:
//
//   - Complete, given a context with the values of Begin's, commits. It takes
//     effect only if the key holds this very claim. A response that could not
//     be completed is not sent: the client gets 503 ([ErrNotCommitted]), or 409
//     if the claim was lost. Complete returns an error that wraps
//     ErrNotCommitted, which is not retried, if it is certain that nothing was
//     committed, and one that wraps [ErrInterrupted] if the handler ended the
//     transaction itself. After an error that a retry may mend it is called again,
//     and looks up what became of the first call.
//   - Release, given such a context, undoes what the handler wrote, whether or
//     not the claim is still its own. It is called whenever the response is not
//     stored: by [NoStore] or [WithStoreIf], after a panic, and for every status
//     of 500 and more. If the writes may be there all the same, because the
//     handler ended the transaction itself, Release makes the key interrupted for
//     the expiry that Begin was given, not for its own trace.
//   - Every type of response is stored, unless [WithContentTypes] is given. A
//     response of a status below 400 that is not stored (a body over the limit,
//     trailers; another type, or what [WithStoreIf] refuses; one
//     whose handler had a request refused by middleware inside) is not sent,
//     because what it tells of was undone: the client gets 500. With NoStore it
//     is sent.
//   - A connection cannot be hijacked.
//   - The result of a [Step] is no part of the transaction: it stays if that is undone.
//   - Middleware inside the handler with a backend of its own stores on its own:
//     what it stored stays if the transaction around it is undone.
//
// A wrapper around a Transactor must be a Transactor itself. New panics if
// the method Unwrap() Backend of a wrapper that is not one shows a Transactor.
type Transactor interface {
	Backend

	// Begin is called once for each claim that was claimed, before its handler
	// runs. It returns ctx with what the handler needs to write in the
	// transaction, and what Complete and Release need to find it again. expiry
	// is how long the response would be stored. Begin does not wait: a
	// transaction begins when the handler first asks for it.
	Begin(ctx context.Context, key Key, claim Claim, expiry time.Duration) context.Context
}

// A Claim is what a request puts into a [Backend] before its handler runs.
type Claim struct {
	// Token is the claim's identity: two claims are the same if their tokens are.
	Token Token
	// Fingerprint tells one request from another under the same key. The zero
	// Fingerprint matches any, and any matches it, in the store too.
	Fingerprint [32]byte
}

// matches reports whether two claims may be of the same request.
func (c Claim) matches(other Claim) bool {
	return c.Fingerprint == other.Fingerprint || c.Fingerprint == [32]byte{} || other.Fingerprint == [32]byte{}
}

// A Token is the identity of a claim: a version 7 UUID (RFC 9562, section 5.7),
// which the middleware makes for each request. It leads from a record to the log
// lines of the process that claimed it.
type Token [16]byte

// make sets the token to a random one of a claim that is made now.
func (t *Token) make(now time.Time) {
	rand.Read(t[6:]) // It never fails.
	ms := now.UnixMilli()
	for i := range 6 {
		t[i] = byte(ms >> (40 - 8*i))
	}
	t[6] = t[6]&0x0F | 0x70 // the version
	t[8] = t[8]&0x3F | 0x80 // the variant
}

// String returns the token in the dashed form of a UUID.
func (t Token) String() string { return uuid.UUID(t).String() }

// Time returns when the claim was made, by the clock of its process, in whole
// milliseconds.
func (t Token) Time() time.Time {
	ms := int64(0)
	for _, b := range t[:6] {
		ms = ms<<8 | int64(b)
	}
	return time.UnixMilli(ms)
}

// Terms are how long a claim lasts, and what it may take over.
type Terms struct {
	// Lease is how long the claim holds the key unless it is renewed.
	Lease time.Duration
	// Trace is how long after the lease the key remembers that a run was
	// interrupted. With 0 it does not: the key is free once the lease is over.
	Trace time.Duration
	// TakeOver claims the key of an interrupted run, which Claim shows otherwise.
	TakeOver bool
}

// Forever is a trace or an expiry that does not end. Sums saturate at it.
const Forever time.Duration = math.MaxInt64

// add returns the sum of two times that are not negative. It saturates at Forever.
func add(a, b time.Duration) time.Duration {
	if a > Forever-b {
		return Forever
	}
	return a + b
}

// check returns an error if a Backend cannot have been meant to get these terms.
func (t Terms) check() error {
	if t.Lease <= 0 {
		return fmt.Errorf("idempotency: lease of %v: it must be positive", t.Lease)
	}
	return checkTrace(t.Trace)
}

func checkTrace(trace time.Duration) error {
	if trace < 0 {
		return fmt.Errorf("idempotency: trace of %v: it must not be negative", trace)
	}
	return nil
}

var errExpiry = errors.New("idempotency: expiry must be positive, and is for ever with Forever")

// A State is what the record of a key tells.
type State uint8

const (
	// StateOutstanding is a claim in its lease.
	StateOutstanding State = iota + 1
	// StateInterrupted is a run that ended without an answer.
	StateInterrupted
	// StateCompleted is a stored response.
	StateCompleted
)

// String returns "outstanding", "interrupted" or "completed"; the State of no
// record is "none".
func (s State) String() string {
	switch s {
	case 0:
		return "none"
	case StateOutstanding:
		return "outstanding"
	case StateInterrupted:
		return "interrupted"
	case StateCompleted:
		return "completed"
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// A Record is what a [Backend] holds for one key. Its slices are read-only.
type Record struct {
	// Claim is the claim that holds the key, or that was completed.
	Claim Claim
	State State
	// Progress is what Renew was given last; nil if that was nothing. It may
	// be nil if the fingerprints do not match.
	Progress []byte
	// Response is what Complete was given. It is nil if the state is not
	// StateCompleted, and may be nil if the fingerprints do not match.
	Response []byte
}
