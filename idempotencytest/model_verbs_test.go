package idempotencytest_test

import (
	"context"
	"errors"
	"time"

	"github.com/idempotency-go/idempotency"
)

func (m *model) Claim(ctx context.Context, key string, claim idempotency.Claim, lease time.Duration) (idempotency.Record, bool, error) {
	if ctx.Err() != nil {
		switch {
		case m.has("an ended context claims nothing and says nothing"):
			return idempotency.Record{}, false, nil
		case m.has("an ended context claims nothing and says it did"):
			return idempotency.Record{}, true, nil
		}
	}
	if err := m.begin(ctx, "Claim"); err != nil {
		return idempotency.Record{}, false, err
	}
	defer m.mu.Unlock()
	switch {
	case m.has("Claim takes 0 for over at once") && lease == 0:
		lease = 1
	case m.has("leases end early"):
		lease /= 10
	}
	end, err := m.after("Claim", lease)
	if err != nil {
		return idempotency.Record{}, false, err
	}
	if m.has("keys are cleared of what is over in a step of its own") && m.live(key) == nil && m.rows[m.name(key)] != nil {
		m.mu.Unlock()
		time.Sleep(time.Millisecond)
		m.mu.Lock()
		delete(m.rows, m.name(key))
	}
	if r := m.live(key); r != nil {
		own := m.same("Claim", r.rec.Claim, claim)
		m.refusals[key]++
		switch {
		case m.has(extendsOwnClaim) && own && r.rec.Response == nil:
			r.end = end
			return idempotency.Record{}, true, nil
		case m.has("every 20th Claim of a held key gets it") && m.refusals[key]%20 == 0:
			m.write(key, idempotency.Record{Claim: claim}, end)
			return idempotency.Record{}, true, nil
		case m.has("Claim refuses its own token"):
		case m.has("Claim takes its own response for its claim") && own, own && r.rec.Response == nil:
			return idempotency.Record{}, true, nil
		case m.has("Claim overwrites its own response") && own:
			m.write(key, idempotency.Record{Claim: claim}, end)
		case m.has("Claim prolongs a response") && r.rec.Response != nil && end.After(r.end):
			r.end = end
		case m.has("Claim sets the time of an outstanding record") && r.rec.Response == nil, m.has("Claim sets the time of a response") && r.rec.Response != nil:
			r.end = end
		}
		return m.shown(r.rec, claim), false, nil
	}
	m.pause("Claim is not atomic")
	m.write(key, idempotency.Record{Claim: claim}, end)
	if m.has("a claim ends with its context") {
		m.rows[m.name(key)].until = ctx
	}
	return idempotency.Record{}, true, nil
}

// shown returns a record as Claim shows it.
func (m *model) shown(rec idempotency.Record, claim idempotency.Claim) idempotency.Record {
	switch {
	case m.has("Claim shows its caller's claim"):
		rec.Claim = claim
	case m.has("Claim shows its caller's fingerprint"):
		rec.Claim.Fingerprint = claim.Fingerprint
	case m.has("Claim shows an empty response while outstanding") && rec.Response == nil:
		rec.Response = &idempotency.Response{Status: 200}
	case m.has("Claim shows its caller's claim only to the same request") && rec.Claim.Fingerprint == claim.Fingerprint:
		rec.Claim = claim
	}
	return rec
}

func (m *model) Renew(ctx context.Context, key string, claim idempotency.Claim, lease time.Duration) error {
	if ctx.Err() != nil && m.has("an ended context renews nothing and says it did") {
		return nil
	}
	if err := m.begin(ctx, "Renew"); err != nil {
		return err
	}
	defer m.mu.Unlock()
	if m.has("leases end early") {
		lease /= 10
	}
	end, err := m.after("Renew", lease)
	if err != nil {
		return err
	}
	r := m.live(key)
	if over := m.rows[m.name(key)]; r == nil && over != nil && m.has("Renew heeds "+kind(over, claim)+" that is over") {
		r = over
	}
	if r == nil {
		if m.has("Renew refuses a key that holds nothing") {
			return m.lost()
		}
		if m.has("Renew ignores a key that holds nothing") || m.has("Renew ignores a claim that lost its key") && m.former[claim.Token] {
			return nil
		}
		m.pause("Renew of nothing is not atomic")
		m.write(key, idempotency.Record{Claim: claim}, end)
		return nil
	}
	if !m.same("Renew", r.rec.Claim, claim) {
		switch {
		case m.has("Renew is not fenced from outstanding claims") && r.rec.Response == nil,
			m.has("Renew is not fenced from responses") && r.rec.Response != nil:
			m.write(key, idempotency.Record{Claim: claim}, end)
			return nil
		case m.has("Renew by another sets an outstanding record's time") && r.rec.Response == nil,
			m.has("Renew by another sets a response's time") && r.rec.Response != nil:
			r.end = end
		case m.has("Renew by another prolongs an outstanding record") && r.rec.Response == nil && end.After(r.end),
			m.has("Renew by another prolongs a response") && r.rec.Response != nil && end.After(r.end):
			r.end = end
		case m.has("Renew by another is silent"), m.has("Renew by a former holder is silent") && m.former[claim.Token]:
			return nil
		}
		return m.lost()
	}
	if r.rec.Response != nil {
		switch {
		case m.has("Renew of a response makes it outstanding"):
			m.write(key, idempotency.Record{Claim: claim}, end)
		case m.has("Renew of a response sets its time"), m.has("Renew of a response prolongs it") && end.After(r.end):
			r.end = end
		case m.has("Renew of a response is an error"):
			return m.lost()
		}
		return nil
	}
	switch {
	case m.has("Renew ignores its lease"):
		return nil
	case m.has("Renew only extends") && end.Before(r.end) && !end.IsZero():
		return nil
	case m.has("Renew takes 0 for over at once") && lease == 0:
		end = time.Now()
	case m.has("Renew loses the fingerprint"):
		claim.Fingerprint = [32]byte{}
	}
	m.pause("Renew of a claim is not atomic")
	m.write(key, idempotency.Record{Claim: claim}, end)
	if m.has("a renewal ends with its context") {
		m.rows[m.name(key)].until = ctx
	}
	return nil
}

func (m *model) Complete(ctx context.Context, key string, claim idempotency.Claim, resp *idempotency.Response, expiry time.Duration) error {
	if ctx.Err() != nil {
		switch {
		case m.has("an ended context completes nothing and says it did"):
			return nil
		case m.has("an ended context completes by half"):
			m.mu.Lock()
			defer m.mu.Unlock()
			m.write(key, idempotency.Record{Claim: claim, Response: &idempotency.Response{Status: resp.Status}}, time.Time{})
			return ctx.Err()
		}
	}
	if err := m.begin(ctx, "Complete"); err != nil {
		return err
	}
	defer m.mu.Unlock()
	switch {
	case m.has("expiries end early"):
		expiry /= 10
	case m.has("Complete takes 0 for over at once") && expiry == 0:
		expiry = 1
	}
	end, err := m.after("Complete", expiry)
	if err != nil {
		return err
	}
	r := m.live(key)
	if over := m.rows[m.name(key)]; r == nil && over != nil && m.has("Complete heeds "+kind(over, claim)+" that is over") {
		r = over
	}
	switch {
	case r == nil:
		if m.has("Complete refuses a key that holds nothing") {
			return m.lost()
		}
		if m.has("Complete ignores a key that holds nothing") || m.has("Complete ignores a claim that lost its key") && m.former[claim.Token] {
			return nil
		}
		m.pause("Complete is not atomic")
	case !m.same("Complete", r.rec.Claim, claim):
		switch {
		case m.has("Complete is not fenced from outstanding claims") && r.rec.Response == nil,
			m.has("Complete is not fenced from responses") && r.rec.Response != nil:
		case m.has("Complete by another is silent"), m.has("Complete compares claims whole") && r.rec.Claim.Token == claim.Token:
			return nil
		case m.has("Complete by a former holder takes effect") && m.former[claim.Token]:
		default:
			return m.lost()
		}
	case r.rec.Response != nil:
		switch {
		case m.has("Complete repeated replaces the response"):
		case m.has("Complete repeated replaces the mark") && r.rec.Response.Status == 0:
		case m.has("Complete repeated sets the time"), m.has("Complete repeated prolongs") && end.After(r.end):
			r.end = end
			return nil
		case m.has("Complete repeated is an error"):
			return m.lost()
		default:
			return nil
		}
	case m.has("Complete leaves the lease"):
		end = r.end
	case m.has("Complete keeps a lease of 0") && r.end.IsZero():
		end = r.end
	case m.has("Complete adds to the lease") && (r.end.IsZero() || end.Before(r.end) && !end.IsZero()):
		end = r.end
	case m.has("Complete takes the shorter time") && !r.end.IsZero() && (end.IsZero() || r.end.Before(end)):
		end = r.end
	}
	if m.has("Complete loses the fingerprint") {
		claim.Fingerprint = [32]byte{}
	}
	stored, err := m.stored(resp)
	if stored == nil || err != nil {
		return err
	}
	if m.has("a response is written over the last one") {
		if place := m.places[key]; place != nil {
			*place = *stored
			stored = place
		}
		m.places[key] = stored
	}
	m.write(key, idempotency.Record{Claim: claim, Response: stored}, end)
	if m.has("a response ends with its context") {
		m.rows[m.name(key)].until = ctx
	}
	return nil
}

func (m *model) Release(ctx context.Context, key string, claim idempotency.Claim) error {
	if ctx.Err() != nil && m.has("an ended context releases nothing and says it did") {
		return nil
	}
	if err := m.begin(ctx, "Release"); err != nil {
		return err
	}
	defer m.mu.Unlock()
	r := m.live(key)
	if r == nil {
		switch {
		case m.has("Release of nothing is an error"):
			return errors.New("not found")
		case m.has("Release repeated is an error") && m.former[claim.Token]:
			return errors.New("not found")
		case m.has("Release of nothing leaves a record"), m.has("Release repeated leaves a record") && m.former[claim.Token]:
			m.write(key, idempotency.Record{}, time.Time{})
		}
		return nil
	}
	outstanding, own := r.rec.Response == nil, m.same("Release", r.rec.Claim, claim)
	switch {
	case own && outstanding:
		m.pause("Release is not atomic")
		switch {
		case m.has("Release does nothing"):
			return nil
		case m.has("Release leaves a record"):
			m.write(key, idempotency.Record{}, time.Time{})
			return nil
		case m.has("Release frees all claims"):
			for name, r := range m.rows {
				if r.rec.Response == nil {
					delete(m.rows, name)
				}
			}
		}
	case own && m.has("Release deletes its response"):
	case own && m.has("Release of its response is an error"):
		return m.lost()
	case !own && outstanding && m.has("Release is not fenced from outstanding claims"):
	case !own && !outstanding && m.has("Release is not fenced from responses"):
	case !own && outstanding && m.has("Release of another's claim is an error"), !own && !outstanding && m.has("Release of another's response is an error"):
		return m.lost()
	case !own && m.has("Release by a former holder takes effect") && m.former[claim.Token]:
	default:
		return nil
	}
	delete(m.rows, m.name(key))
	if m.has("a release is undone when its context ends") {
		m.rows[m.name(key)] = &row{rec: r.rec, end: r.end, from: ctx}
	}
	return nil
}
