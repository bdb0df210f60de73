package model

import (
	"fmt"
	"math/bits"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
)

// real is a backend that gets the messages of a model.
type real struct {
	Config
	*idempotency.Memory
}

const lease, trace, expiry = time.Second, time.Hour, 2 * time.Hour

func (b real) claimOf(i int) idempotency.Claim {
	c := idempotency.Claim{Token: idempotency.Token{byte(i + 1)}, Fingerprint: [32]byte{1}}
	if !b.match(i, 0) {
		c.Fingerprint[0] = 2
	}
	return c
}

func (b real) terms(i int) idempotency.Terms {
	terms := idempotency.Terms{Lease: lease, TakeOver: b.takesOver(i)}
	if b.trace(i) {
		terms.Trace = trace
	}
	return terms
}

// send sends a message of a request. It returns what a Claim is told, and whether a
// Renew or Complete is told that its claim was lost.
func (b real) send(t *testing.T, i int, m message) (told answer, lost bool) {
	var err error
	claimed := b.claimOf(i)
	switch m {
	case claim:
		held, ok, err := b.Claim(t.Context(), idempotency.Key{}, claimed, b.terms(i))
		require.NoError(t, err)
		switch {
		case ok && held.State == idempotency.StateInterrupted:
			require.Equal(t, claimed, held.Claim)
			return recovery, false
		case ok:
			require.Zero(t, held)
			return run, false
		case held.Claim.Fingerprint != claimed.Fingerprint:
			return isReused, false
		}
		return map[idempotency.State]answer{
			idempotency.StateOutstanding: isOutstanding, idempotency.StateInterrupted: isInterrupted, idempotency.StateCompleted: isCompleted,
		}[held.State], false
	case renew:
		err = b.Renew(t.Context(), idempotency.Key{}, claimed, b.terms(i), nil)
	case keepOf(1), keepOf(3):
		err = b.Renew(t.Context(), idempotency.Key{}, claimed, b.terms(i), progressOf(resultsOf(m)))
	case complete:
		err = b.Complete(t.Context(), idempotency.Key{}, claimed, []byte("response"), expiry)
	case release:
		err = b.Release(t.Context(), idempotency.Key{}, claimed, 0)
	case releaseTrace:
		err = b.Release(t.Context(), idempotency.Key{}, claimed, trace)
	}
	if err != nil {
		require.ErrorIs(t, err, idempotency.ErrClaimLost)
	}
	return none, err != nil
}

// progressOf is a progress with the results of these steps.
func progressOf(results uint8) []byte { return []byte("12")[:bits.OnesCount8(results)] }

// make brings the key from free to a record.
func (b real) make(t *testing.T, r record) {
	if r.tookOver {
		before := b.claimOf(int(r.owner))
		before.Token = idempotency.Token{9}
		require.NoError(t, b.Release(t.Context(), idempotency.Key{}, before, trace))
	}
	i := int(r.owner)
	switch r.kind {
	case outstanding:
		b.send(t, i, claim)
	case interrupted:
		b.send(t, i, claim)
		b.send(t, i, releaseTrace)
	case completed:
		b.send(t, i, complete)
	}
	require.Equal(t, record{r.kind, r.owner, false}, b.look(t))
}

// look returns the record, but for whether its claim took over.
func (b real) look(t *testing.T) record {
	rec, _, ok, err := b.Lookup(t.Context(), idempotency.Key{})
	require.NoError(t, err)
	if !ok {
		return record{}
	}
	return record{kind(rec.State), rec.Claim.Token[0] - 1, false}
}

// requireRecord compares the record of the model with the real one. It alters the
// real one: that a claim took over is seen where it is repeated.
func (b real) requireRecord(t *testing.T, want state) {
	t.Helper()
	require.Equal(t, record{want.record.kind, want.record.owner, false}, b.look(t))
	if want.record.kind == outstanding {
		time.Sleep(lease)
		ended := b.leaseEnds(want).record
		require.Equal(t, record{ended.kind, ended.owner, false}, b.look(t), "once the lease ended")
		want.record = ended
	}
	if want.record.kind == interrupted {
		owner := int(want.record.owner)
		told, _ := b.send(t, owner, claim)
		require.Equal(t, want.record.tookOver, told == recovery, "whether it took over")
		require.Equal(t, record{outstanding, want.record.owner, false}, b.look(t))
	}
}

// records are all that there can be in a configuration.
func (c Config) records() []record {
	records := []record{{}}
	for i := range uint8(c.Requests) {
		records = append(records, record{outstanding, i, false}, record{interrupted, i, false}, record{completed, i, false})
		if c.takesOver(int(i)) {
			records = append(records, record{outstanding, i, true}, record{interrupted, i, true})
		}
	}
	return records
}

// TestStore checks that a message does in the model what it does in a backend: each
// one, on each record that there can be, by its owner, by another with the same
// fingerprint, and by one with another fingerprint or other terms.
func TestStore(t *testing.T) {
	configs := []Config{
		{}, {AtMostOnce: true}, {Recovery: true}, {AtMostOnce: true, Mixed: true}, {Recovery: true, Mixed: true},
		{Reused: true}, {AtMostOnce: true, Reused: true}, {Recovery: true, Reused: true}, {Recovery: true, Mixed: true, Reused: true},
	}
	checked := 0
	for _, c := range configs {
		c.Requests = 3
		for _, before := range c.records() {
			for _, m := range []message{claim, renew, keepOf(1), keepOf(3), complete, release, releaseTrace} {
				for i := range c.Requests {
					checked++
					title := fmt.Sprintf("%s, mixed %t, reused %t: message %d of %s, %s", c.Mode(), c.Mixed, c.Reused, m, name(i), before)
					t.Run(title, func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) { c.compare(t, before, i, m) })
					})
				}
			}
		}
	}
	t.Logf("%d messages compared", checked)
}

// compare sends a message to the model's record and to the real one.
func (c Config) compare(t *testing.T, before record, i int, m message) {
	b := real{c, idempotency.NewMemory()}
	b.make(t, before)
	told, lost := b.send(t, i, m)
	want := state{record: before}
	switch m {
	case claim:
		require.Equal(t, answers[c.claim(&want, i, m)], answers[told])
	case renew:
		require.Equal(t, c.renew(&want, i), lost)
	case keepOf(1), keepOf(3):
		require.Equal(t, c.keep(&want, i, resultsOf(m)), lost)
		rec, _, _, err := b.Lookup(t.Context(), idempotency.Key{})
		require.NoError(t, err)
		require.Equal(t, string(progressOf(want.progress)), string(rec.Progress))
	case complete:
		c.complete(&want, i)
		require.Equal(t, want.record != record{completed, uint8(i), false}, lost)
	case release, releaseTrace:
		c.release(&want, i, m == releaseTrace)
	}
	b.requireRecord(t, want)
}
