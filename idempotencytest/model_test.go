package idempotencytest_test

import (
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
	wrapsErrors      = "errors are wrapped"
	roundsUp         = "times are rounded up"
	isSlow           = "calls take a while"
	ignoresContexts  = "contexts are ignored"
	extendsOwnClaim  = "a Claim repeated with its token renews it"
	swapsNilAndEmpty = "what is nil comes back empty, and what is empty nil"
)

// model is a small backend that keeps the contract, but for one fault. It is
// deliberately plain: one map, one lock, and a place for each fault.
type model struct {
	fault string // of faults, or none

	mu       sync.Mutex
	rows     map[string]*row
	former   map[string]bool                  // tokens that held their key once
	places   map[string]*idempotency.Response // where responses are written again
	refusals map[string]int
	refuses  bool
}

type row struct {
	rec idempotency.Record
	end time.Time // zero is for ever

	// Faults: the record is there only until one context ends, or only once
	// another one has. Nil is none.
	until, from context.Context
}

func newModel(fault string) *model {
	return &model{
		fault: fault, rows: make(map[string]*row),
		former: make(map[string]bool), places: make(map[string]*idempotency.Response), refusals: make(map[string]int),
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

// lost returns the error of a claim that lost its key.
func (m *model) lost() error {
	if m.has(wrapsErrors) {
		return fmt.Errorf("model: %w", idempotency.ErrClaimLost)
	}
	return idempotency.ErrClaimLost
}

// begin locks m, and returns an error where the context has ended.
func (m *model) begin(ctx context.Context, verb string) error {
	if m.has(isSlow) {
		time.Sleep(time.Duration(rand.IntN(5)) * time.Millisecond)
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
		return strings.EqualFold(a.Token, b.Token)
	case m.has("tokens are compared by their beginnings"):
		return strings.HasPrefix(a.Token, b.Token) || strings.HasPrefix(b.Token, a.Token)
	}
	return a.Token == b.Token
}

// name returns the name under which a key is kept.
func (m *model) name(key string) string {
	switch {
	case m.has("keys are cut"):
		return key[:len(key)-1]
	case m.has("keys are kept in lower case"):
		return strings.ToLower(key)
	case m.has("keys are file names"):
		return strings.ReplaceAll(key, "_", "-")
	case m.has("all keys are one"):
		return ""
	}
	return key
}

// live returns the row of a key, or nil.
func (m *model) live(key string) *row {
	r := m.rows[m.name(key)]
	if r != nil && (r.until != nil && r.until.Err() != nil || r.from != nil && r.from.Err() == nil) {
		return nil
	}
	if r == nil || r.end.IsZero() || time.Now().Before(r.end) {
		return r
	}
	if r.rec.Response == nil && m.has("leases never end") || r.rec.Response != nil && m.has("expiries never end") {
		return r
	}
	return nil
}

// write makes rec the record of a key.
func (m *model) write(key string, rec idempotency.Record, end time.Time) {
	m.rows[m.name(key)] = &row{rec: rec, end: end}
	m.former[rec.Claim.Token] = true
}

// after returns the time when d is over.
func (m *model) after(verb string, d time.Duration) (time.Time, error) {
	switch {
	case m.has("0 is over at once") && d == 0:
		return time.Now(), nil
	case m.has("0 is a short time") && d == 0:
		return time.Now().Add(5 * time.Millisecond), nil
	case m.has(verb+" refuses 0") && d == 0:
		return time.Time{}, errors.New("invalid expire time")
	case m.has(verb + " counts whole milliseconds, rounded down"):
		d = d.Truncate(time.Millisecond)
	case m.has(verb+" refuses less than a millisecond") && d > 0 && d < time.Millisecond:
		return time.Time{}, errors.New("invalid expire time")
	case m.has("times have 32 bits"):
		d = time.Duration(int32(d.Microseconds())) * time.Microsecond
	case m.has(verb+" takes a time of years for over") && d > 24*time.Hour:
		return time.Now(), nil
	case m.has(roundsUp) && d > 0 && d < time.Hour:
		// To a clock's next tick, in the way of a store that counts whole seconds.
		const tick = 50 * time.Millisecond
		return time.Now().Add(d).Truncate(tick).Add(tick), nil
	}
	if d == 0 {
		return time.Time{}, nil
	}
	return time.Now().Add(d), nil
}

// kind says what a row is to a claim.
func kind(r *row, claim idempotency.Claim) string {
	whose := "another's "
	if r.rec.Claim.Token == claim.Token {
		whose = "its own "
	}
	if r.rec.Response == nil {
		return whose + "lease"
	}
	return whose + "response"
}
