package idempotencytest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/idempotency-go/idempotency"
)

// What a model may do without breaking the contract.
const (
	wrapsErrors     = "errors are wrapped"
	roundsUp        = "times are rounded up"
	isSlow          = "calls take a while"
	ignoresContexts = "contexts are ignored"
	hidesOthers     = "progress and response of another request are left out"
	swapsEmpty      = "what is nil comes back empty, and what is empty nil"
	keepsProgress   = "a completed record keeps its progress"
)

const (
	outstanding = idempotency.StateOutstanding
	interrupted = idempotency.StateInterrupted
	completed   = idempotency.StateCompleted
)

// model is a small backend that keeps the contract, but for one fault. It is
// deliberately plain: one map, one lock, and a place for each fault.
type model struct {
	fault string // of faults, or none

	mu       sync.Mutex
	rows     map[idempotency.Key]*row
	former   map[idempotency.Token]bool // tokens that held their key once
	lost     map[idempotency.Token]bool // tokens whose key was taken over
	places   map[idempotency.Key][]byte // where responses are written again
	left     map[idempotency.Key][]byte // the last progress
	refusals map[idempotency.Key]int
	refuses  bool
}

// row is the record of a key.
type row struct {
	claim              idempotency.Claim
	completed          bool
	progress, response []byte
	tookOver           bool
	released           bool // with a trace
	trace              time.Duration
	leaseEnd           time.Time
	end                time.Time // zero is for ever

	// Faults: what it has forgotten; the record is there only until one context
	// ends, or only once another one has. Nil is none.
	told        bool
	formerClaim idempotency.Claim
	until, from context.Context
}

func newModel(fault string) *model {
	return &model{
		fault: fault, rows: make(map[idempotency.Key]*row),
		former: make(map[idempotency.Token]bool), lost: make(map[idempotency.Token]bool),
		places: make(map[idempotency.Key][]byte), left: make(map[idempotency.Key][]byte), refusals: make(map[idempotency.Key]int),
	}
}

func (m *model) has(fault string) bool { return m.fault == fault }

// pause lets others in between a read and a write.
func (m *model) pause(fault string) {
	if m.has(fault) {
		m.mu.Unlock()
		time.Sleep(rand.N(2 * time.Millisecond))
		m.mu.Lock()
	}
}

// claimLost returns the error of a claim that lost its key.
func (m *model) claimLost() error {
	if m.has(wrapsErrors) {
		return fmt.Errorf("model: %w", idempotency.ErrClaimLost)
	}
	return idempotency.ErrClaimLost
}

// begin locks m, and returns an error where the context has ended.
func (m *model) begin(ctx context.Context, verb string) error {
	if m.has(isSlow) {
		time.Sleep(time.Duration(rand.IntN(3)) * time.Millisecond)
	}
	if err := ctx.Err(); err != nil && !m.has(ignoresContexts) {
		switch {
		case m.has(verb + " panics when its context has ended"):
			panic(err)
		case m.has(verb + " hangs when its context has ended"):
			select {}
		}
		m.refuses = m.has("an ended context breaks the connection")
		return err
	}
	if m.has("calls at the same time are refused") {
		if !m.mu.TryLock() {
			return errors.New("busy")
		}
		time.Sleep(time.Millisecond)
		return nil
	}
	m.mu.Lock()
	if m.refuses {
		m.mu.Unlock()
		return errors.New("connection broken")
	}
	return nil
}

// same reports whether two claims are the same.
func (m *model) same(verb string, a, b idempotency.Claim) bool {
	switch {
	case m.has(verb + " compares claims whole"):
		return a == b
	case m.has("claims are compared by fingerprint too"):
		return a.Token == b.Token || a.Fingerprint == b.Fingerprint
	case m.has("tokens are compared without case"):
		return bytes.Equal(bytes.ToLower(a.Token[:]), bytes.ToLower(b.Token[:]))
	case m.has("tokens are compared without accents"):
		return bytes.Equal(bytes.ReplaceAll(a.Token[:], []byte{0xE1}, []byte("a")), bytes.ReplaceAll(b.Token[:], []byte{0xE1}, []byte("a")))
	case m.has("tokens are compared up to NUL"):
		a, _, _ := bytes.Cut(a.Token[:], []byte{0})
		b, _, _ := bytes.Cut(b.Token[:], []byte{0})
		return bytes.Equal(a, b)
	case m.has("tokens are compared without spaces at their ends"):
		return bytes.Equal(bytes.TrimSpace(a.Token[:]), bytes.TrimSpace(b.Token[:]))
	}
	return a.Token == b.Token
}

// matches reports whether two claims may be of the same request.
func (m *model) matches(held, asked idempotency.Claim) bool {
	zero := [32]byte{}
	switch {
	case m.has("Claim takes over from any request"):
		return true
	case m.has("fingerprints are compared but for the last byte"):
		held.Fingerprint[31] = asked.Fingerprint[31]
	case m.has("a zero fingerprint of the claim takes nothing over") && asked.Fingerprint == zero,
		m.has("a zero fingerprint of the record is not taken over") && held.Fingerprint == zero:
		return held.Fingerprint == asked.Fingerprint
	case m.has("two zero fingerprints do not match") && held.Fingerprint == zero && asked.Fingerprint == zero:
		return false
	}
	return held.Fingerprint == asked.Fingerprint || held.Fingerprint == zero || asked.Fingerprint == zero
}

// name returns the name under which a key is kept.
func (m *model) name(key idempotency.Key) idempotency.Key {
	fold := func(text string) idempotency.Key { return idempotency.NewKey("", text) }
	switch {
	case m.has("keys are cut at the end"):
		return fold(key.String()[:42])
	case m.has("keys are cut at NUL"):
		before, _, _ := bytes.Cut(key[:], []byte{0})
		return fold(string(before))
	case m.has("keys are trimmed"):
		return fold(strings.TrimSpace(string(key[:])))
	case m.has("keys are kept in lower case"):
		return fold(strings.ToLower(key.String()))
	case m.has("keys are file names"):
		return fold(strings.ReplaceAll(key.String(), "_", "-"))
	case m.has("keys have seven bits a byte"):
		for i := range key {
			key[i] &= 0x7f
		}
	case m.has("all keys are one"):
		return idempotency.Key{}
	}
	return key
}

// row returns what is kept for a key, its time over or not.
func (m *model) row(key idempotency.Key) *row { return m.rows[m.name(key)] }

// live returns the row of a key, or nil.
func (m *model) live(key idempotency.Key) *row {
	r := m.row(key)
	if r != nil && (r.until != nil && r.until.Err() != nil || r.from != nil && r.from.Err() == nil) {
		return nil
	}
	if r == nil || r.end.IsZero() || time.Now().Before(r.end) {
		return r
	}
	if !r.completed && (m.has("leases never end") || m.has("traces never end") && r.trace > 0 || m.has("traces of claims that took over never end") && r.tookOver) ||
		r.completed && m.has("expiries never end") {
		return r
	}
	return nil
}

// state returns the state of a row that is live.
func (m *model) state(r *row) idempotency.State {
	switch {
	case r.completed:
		return completed
	case m.has("leases never end"), time.Now().Before(r.leaseEnd), m.has("interrupted claims are outstanding"),
		m.has("claims whose lease is over are outstanding") && !r.released, m.has("Release with a trace leaves the claim outstanding") && r.released:
		return outstanding
	}
	return interrupted
}

// write makes r the row of a key.
func (m *model) write(key idempotency.Key, r *row) *row {
	m.rows[m.name(key)] = r
	m.former[r.claim.Token] = true
	return r
}

// check returns an error for terms that are none, and what is made of them else.
func (m *model) check(verb string, terms idempotency.Terms) (idempotency.Terms, error) {
	switch {
	case terms.Lease == 0 && m.has(verb+" takes a lease of 0 for ever"):
		terms.Lease = idempotency.Forever
	case terms.Lease == 0 && m.has(verb+" takes a lease of 0 for a default"):
		terms.Lease = time.Minute
	case terms.Lease <= 0 && m.has(verb+" takes a lease of 0 for over"):
		terms.Lease = 1
	case terms.Lease < 0 && m.has(verb+" takes a negative lease for its amount"):
		terms.Lease = -terms.Lease
	case terms.Lease <= 0:
		return terms, errors.New("lease not positive")
	}
	if terms.Trace < 0 {
		if !m.has(verb + " takes a negative trace for none") {
			return terms, errors.New("negative trace")
		}
		terms.Trace = 0
	}
	if m.has("leases end early") || m.has("leases before a trace end early") && terms.Trace > 0 {
		terms.Lease /= 10
	}
	if m.has("traces end early") {
		terms.Trace /= 10
	}
	if m.has("traces are ignored") {
		terms.Trace = 0
	}
	return terms, nil
}

// after returns the time when d is over, counted from another.
func (m *model) after(verb string, from time.Time, d time.Duration) (time.Time, error) {
	switch {
	case d == idempotency.Forever && m.has(verb+" takes Forever for over"), d == idempotency.Forever && m.has("Forever overflows"):
		return from, nil
	case d == idempotency.Forever && m.has(verb+" takes Forever for a short time"):
		return from.Add(5 * time.Millisecond), nil
	case d == idempotency.Forever && m.has(verb+" refuses Forever"):
		return time.Time{}, errors.New("invalid expire time")
	case d == idempotency.Forever:
		return time.Time{}, nil
	case m.has(verb+" counts whole milliseconds, and none is for ever") && d < time.Millisecond:
		return time.Time{}, nil
	case m.has(verb+" refuses less than a millisecond") && d > 0 && d < time.Millisecond:
		return time.Time{}, errors.New("invalid expire time")
	case m.has("times have 32 bits"):
		d = time.Duration(int32(d.Microseconds())) * time.Microsecond
	case m.has(verb+" takes a time of years for over") && d > 24*time.Hour:
		return from, nil
	case m.has(roundsUp) && d > 0 && d < time.Hour:
		// To a clock's next tick, in the way of a store that counts whole seconds.
		const tick = 50 * time.Millisecond
		return from.Add(d).Truncate(tick).Add(tick), nil
	}
	return from.Add(d), nil
}

// lease begins the lease of a row now.
func (m *model) lease(verb string, r *row, terms idempotency.Terms) error {
	trace := terms.Trace
	switch {
	case m.has("Renew leaves the trace") && verb == "Renew" && !r.leaseEnd.IsZero():
		trace = r.trace
	case m.has("Renew keeps the longer trace") && verb == "Renew":
		trace = max(trace, r.trace)
	case m.has("a Claim repeated leaves the trace") && verb == "Claim" && !r.leaseEnd.IsZero() && !r.tookOver:
		trace = r.trace
	case m.has("a claim that took over keeps the trace of its "+verb) && r.tookOver:
	case m.has("a claim that took over keeps the interrupted record's trace") && r.tookOver && !r.leaseEnd.IsZero():
		trace = r.trace
	case r.tookOver:
		trace = max(trace, r.trace)
	}
	leaseEnd, err := m.after(verb, time.Now(), terms.Lease)
	if err != nil {
		return err
	}
	end := leaseEnd
	if trace > 0 {
		from := leaseEnd
		if m.has("traces are counted from the beginning of the lease") {
			from = time.Now()
		}
		if end, err = m.after(verb, from, trace); err != nil {
			return err
		}
	}
	r.leaseEnd, r.end, r.trace, r.released = leaseEnd, end, trace, false
	return nil
}

// kind says what a row is to a claim.
func kind(r *row, claim idempotency.Claim) string {
	whose := "another's "
	if r.claim.Token == claim.Token {
		whose = "its own "
	}
	if !r.completed {
		return whose + "lease"
	}
	return whose + "response"
}
