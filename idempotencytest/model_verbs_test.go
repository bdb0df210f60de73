package idempotencytest_test

import (
	"context"
	"errors"
	"time"

	"github.com/idempotency-go/idempotency"
)

func (m *model) Claim(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
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
	terms, err := m.check("Claim", terms)
	if err != nil {
		return idempotency.Record{}, false, err
	}
	if m.has("keys are cleared of what is over in a step of its own") && m.live(key) == nil && m.row(key) != nil {
		m.mu.Unlock()
		time.Sleep(time.Millisecond)
		m.mu.Lock()
		delete(m.rows, m.name(key))
	}
	r := m.live(key)
	switch {
	case r == nil && m.has("Claim judges a record by its own trace") && m.row(key) != nil && terms.Trace > 0:
		if over := m.row(key); !over.completed && time.Since(over.leaseEnd) < terms.Trace {
			return idempotency.Record{Claim: over.claim, State: interrupted}, false, nil
		}
	case r != nil && m.has("Claim without a trace clears interrupted records") && m.state(r) == interrupted && terms.Trace == 0 && !terms.TakeOver &&
		r.claim.Token != claim.Token:
		r = nil
	}
	if r != nil {
		return m.claimHeld(ctx, key, r, claim, terms)
	}
	m.pause("Claim is not atomic")
	r = &row{claim: claim}
	if m.has("progress outlives its record") {
		r.progress = m.left[key]
	}
	if m.has("TakeOver of a free key counts") {
		r.tookOver = terms.TakeOver
	}
	if err := m.lease("Claim", r, terms); err != nil {
		return idempotency.Record{}, false, err
	}
	m.write(key, r)
	if m.has("a claim ends with its context") {
		r.until = ctx
	}
	if m.has("Claim of a free key returns its record") {
		return m.shown(r, claim), true, nil
	}
	return idempotency.Record{}, true, nil
}

// claimHeld is Claim of a key that holds a record.
func (m *model) claimHeld(ctx context.Context, key idempotency.Key, r *row, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
	own, state := m.same("Claim", r.claim, claim), m.state(r)
	if m.has("the claim that was taken over may claim still") && m.lost[claim.Token] {
		return idempotency.Record{}, true, nil
	}
	m.refusals[key]++
	switch {
	case m.has("every 20th Claim of a held key gets it") && m.refusals[key]%20 == 0:
		r = m.write(key, &row{claim: claim})
		return idempotency.Record{}, true, m.lease("Claim", r, terms)
	case state == completed && own && m.has("Claim takes its own response for its claim"):
		return idempotency.Record{}, true, nil
	case state == completed && own && m.has("Claim overwrites its own response"):
		r = m.write(key, &row{claim: claim})
		return m.shown(r, claim), false, m.lease("Claim", r, terms)
	case state == completed && terms.TakeOver && m.has("Claim takes responses over"):
	case state == completed, m.has("Claim refuses its own token"), state == interrupted && m.has("Claim refuses its own interrupted claim") && own:
		return m.refused(r, claim, terms), false, nil
	case own:
		return m.claimOwn(r, claim, terms, state)
	case state == outstanding && !(m.has("Claim takes outstanding claims over") && terms.TakeOver),
		!terms.TakeOver && !m.has("Claim takes over unasked") && !(m.has("Claim takes the same request over unasked") && r.claim.Fingerprint == claim.Fingerprint),
		!m.matches(r.claim, claim), m.has("Claim ignores TakeOver"), m.has("a claim that took over is not taken over") && r.tookOver:
		return m.refused(r, claim, terms), false, nil
	}
	m.pause("Claim takes over in two steps")
	next := &row{claim: claim, progress: r.progress, tookOver: true, trace: r.trace, formerClaim: r.claim, leaseEnd: r.leaseEnd}
	m.lost[r.claim.Token] = true
	switch {
	case m.has("Claim that takes over drops the progress"), m.has("a second Claim that takes over drops the progress") && r.tookOver:
		next.progress = nil
	case m.has("Claim that takes over keeps the former claim"):
		next.claim = r.claim
	case m.has("Claim that takes over keeps the former fingerprint"):
		next.claim.Fingerprint = r.claim.Fingerprint
	case m.has("a claim that took over does not know it"):
		next.tookOver = false
	}
	if err := m.lease("Claim", next, terms); err != nil {
		return idempotency.Record{}, false, err
	}
	if m.has("Claim that takes over leaves the lease") {
		next.leaseEnd, next.end = r.leaseEnd, r.end
	}
	m.write(key, next)
	if m.has("a claim that took over ends with its context") {
		next.until = ctx
	}
	switch {
	case m.has("Claim that takes over returns the zero Record"):
		return idempotency.Record{}, true, nil
	case m.has("Claim that takes over returns the former claim"):
		return idempotency.Record{Claim: r.claim, State: interrupted, Progress: next.progress}, true, nil
	case m.has("Claim that takes over returns StateOutstanding"):
		return m.shown(next, claim), true, nil
	case m.has("Claim that takes over returns no progress"):
		return idempotency.Record{Claim: claim, State: interrupted}, true, nil
	}
	return idempotency.Record{Claim: claim, State: interrupted, Progress: next.progress}, true, nil
}

// claimOwn is Claim of a key that holds this very claim.
func (m *model) claimOwn(r *row, claim idempotency.Claim, terms idempotency.Terms, state idempotency.State) (idempotency.Record, bool, error) {
	was := *r
	switch {
	case m.has("a Claim repeated leaves the lease"), m.has("a Claim repeated leaves the lease of an interrupted claim") && state == interrupted,
		m.has("a Claim repeated leaves the lease of a claim that took over") && r.tookOver:
	default:
		if err := m.lease("Claim", r, terms); err != nil {
			return idempotency.Record{}, false, err
		}
	}
	switch {
	case m.has("a Claim repeated only extends the lease") && r.end.Before(was.end):
		*r = was
	case m.has("a Claim repeated drops the progress"), m.has("a Claim of an interrupted claim drops the progress") && state == interrupted:
		r.progress = nil
	case m.has("a Claim repeated returns its record") && !r.tookOver, m.has("a Claim of its own interrupted claim returns its record") && state == interrupted && !r.tookOver:
		return idempotency.Record{Claim: claim, State: state, Progress: r.progress}, true, nil
	}
	told := r.told
	r.told = true
	if !r.tookOver || m.has("a Claim that took over is told so once") || m.has("a Claim that took over is told so with TakeOver only") && !terms.TakeOver ||
		m.has("a claim that was interrupted again is not told that it took over") && state == interrupted || told && m.has("a Claim that took over is told so twice") {
		return idempotency.Record{}, true, nil
	}
	return idempotency.Record{Claim: claim, State: interrupted, Progress: r.progress}, true, nil
}

// refused returns what Claim shows of a row that it does not claim.
func (m *model) refused(r *row, claim idempotency.Claim, terms idempotency.Terms) idempotency.Record {
	shown := m.shown(r, claim)
	end, _ := m.after("Claim", time.Now(), terms.Lease)
	name := map[idempotency.State]string{outstanding: "an outstanding record", interrupted: "an interrupted record", completed: "a response"}[shown.State]
	later := end.After(r.end) && !r.end.IsZero()
	if m.has("Claim sets the time of "+name) || m.has("Claim prolongs "+name) && later {
		r.end = end
		if shown.State == outstanding {
			r.leaseEnd = end
		}
	}
	return shown
}

func (m *model) Renew(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms, progress []byte) error {
	if ctx.Err() != nil && m.has("an ended context renews nothing and says it did") {
		return nil
	}
	if err := m.begin(ctx, "Renew"); err != nil {
		return err
	}
	defer m.mu.Unlock()
	terms, err := m.check("Renew", terms)
	if err != nil {
		return err
	}
	r := m.live(key)
	if over := m.row(key); r == nil && over != nil && m.has("Renew heeds "+kind(over, claim)+" that is over") {
		r = over
	}
	if r == nil {
		if m.has("Renew refuses a key that holds nothing") {
			return m.claimLost()
		}
		if m.has("Renew ignores a key that holds nothing") || m.has("Renew ignores a claim that lost its key") && m.former[claim.Token] {
			return nil
		}
		m.pause("Renew of nothing is not atomic")
		r = &row{claim: claim, progress: m.kept("progress", progress)}
		if m.has("Renew restores without progress") {
			r.progress = nil
		}
		if m.has("Renew restores the last progress") && len(m.left[key]) > len(progress) {
			r.progress = m.left[key]
		}
		if m.has("Renew restores without a trace") {
			terms.Trace = 0
		}
		m.write(key, r)
		return m.lease("Renew", r, terms)
	}
	state := m.state(r)
	if !m.same("Renew", r.claim, claim) {
		return m.renewOther(key, r, claim, terms, progress, state)
	}
	if state == completed {
		end, _ := m.after("Renew", time.Now(), terms.Lease)
		switch {
		case m.has("Renew of a response makes it outstanding"):
			r = m.write(key, &row{claim: claim})
			return m.lease("Renew", r, terms)
		case m.has("Renew of a response sets its time"), m.has("Renew of a response prolongs it") && end.After(r.end):
			r.end = end
		case m.has("Renew of a response is an error"):
			return m.claimLost()
		case m.has("Renew of a response writes the progress over it") && len(progress) > 0:
			r.response = progress
		}
		return nil
	}
	was := *r
	if state == interrupted {
		switch {
		case m.has("Renew refuses its own interrupted claim"):
			return m.claimLost()
		case m.has("Renew ignores its own interrupted claim"):
			return nil
		case m.has("Renew drops the progress of an interrupted claim"):
			was.progress = nil
		}
	}
	next := was
	m.pause("Renew of a claim is not atomic")
	if err := m.lease("Renew", &next, terms); err != nil {
		return err
	}
	switch {
	case m.has("Renew ignores its lease"), m.has("Renew only extends") && next.end.Before(was.end):
		next = was
	case m.has("Renew loses the fingerprint"):
		next.claim.Fingerprint = [32]byte{}
	case m.has("Renew forgets that the claim took over"):
		next.tookOver = false
	case m.has("Renew without progress leaves the lease") && len(progress) == 0,
		m.has("Renew with progress that is not longer leaves the lease") && len(progress) > 0 && len(progress) <= len(was.progress):
		return nil
	}
	next.progress = m.renewed(was.progress, progress)
	m.left[key] = next.progress
	m.pause("Renew compares the progress in a step of its own")
	m.write(key, &next)
	if m.has("a renewal ends with its context") {
		next.until = ctx
	}
	return nil
}

// renewed returns the progress after a Renew.
func (m *model) renewed(was, given []byte) []byte {
	switch {
	case m.has("Renew ignores the progress"), m.has("the first progress stays") && len(was) > 0:
		return was
	case m.has("a nil progress clears it") && given == nil, m.has("an empty progress clears it") && given != nil && len(given) == 0:
		return nil
	case m.has("a shorter progress replaces it") && len(given) > 0 && len(given) < len(was), m.has("a progress that is as long replaces it") && len(given) == len(was):
		return m.kept("progress", given)
	case m.has("progress is appended"):
		return append(was[:len(was):len(was)], given...)
	case len(given) <= len(was):
		return was
	case m.has("progress is written over the last one") && len(was) > 0:
		copy(was, given)
	}
	return m.kept("progress", given)
}

// renewOther is Renew of a key that holds another claim.
func (m *model) renewOther(key idempotency.Key, r *row, claim idempotency.Claim, terms idempotency.Terms, progress []byte, state idempotency.State) error {
	end, _ := m.after("Renew", time.Now(), terms.Lease)
	later := end.After(r.end) && !r.end.IsZero()
	name := map[idempotency.State]string{outstanding: "an outstanding record", interrupted: "an interrupted record", completed: "a response"}[state]
	switch {
	case m.has("Renew is not fenced from " + name), m.has("Renew is not fenced from claims whose lease is over") && state == interrupted && !r.released,
		m.has("the claim that was taken over renews still") && m.lost[claim.Token] && state != completed:
		r = m.write(key, &row{claim: claim})
		return m.lease("Renew", r, terms)
	case m.has("Renew by another sets the time of " + name), m.has("Renew by another prolongs "+name) && later:
		r.end = end
		if state == outstanding {
			r.leaseEnd = end
		}
	case m.has("Renew by another leaves its progress") && len(progress) > len(r.progress):
		r.progress = progress
	case m.has("Renew by another is silent"), m.has("Renew by a former holder is silent") && m.former[claim.Token]:
		return nil
	}
	return m.claimLost()
}

func (m *model) Complete(ctx context.Context, key idempotency.Key, claim idempotency.Claim, response []byte, expiry time.Duration) error {
	if ctx.Err() != nil {
		switch {
		case m.has("an ended context completes nothing and says it did"):
			return nil
		case m.has("an ended context completes by half"):
			m.mu.Lock()
			defer m.mu.Unlock()
			m.write(key, &row{claim: claim, completed: true})
			return ctx.Err()
		}
	}
	if err := m.begin(ctx, "Complete"); err != nil {
		return err
	}
	defer m.mu.Unlock()
	r := m.live(key)
	switch {
	case expiry == 0 && m.has("Complete takes an expiry of 0 for ever"):
		expiry = idempotency.Forever
	case expiry <= 0 && m.has("Complete takes an expiry of 0 for over"):
		expiry = 1
	case expiry <= 0 && m.has("Complete with an expiry of 0 deletes the claim, and is an error") && r != nil && r.claim.Token == claim.Token:
		delete(m.rows, m.name(key))
		return errors.New("expiry not positive")
	case expiry <= 0 && !(m.has("a negative expiry is stored for ever") && expiry < 0):
		return errors.New("expiry not positive")
	case m.has("expiries end early"):
		expiry /= 10
	}
	end, err := m.after("Complete", time.Now(), expiry)
	if err != nil {
		return err
	}
	if m.has("a negative expiry is stored for ever") && expiry < 0 {
		end = time.Time{}
	}
	if over := m.row(key); r == nil && over != nil && m.has("Complete heeds "+kind(over, claim)+" that is over") {
		r = over
	}
	switch {
	case r == nil:
		if m.has("Complete refuses a key that holds nothing") {
			return m.claimLost()
		}
		if m.has("Complete ignores a key that holds nothing") || m.has("Complete ignores a claim that lost its key") && m.former[claim.Token] {
			return nil
		}
		m.pause("Complete is not atomic")
	case !m.same("Complete", r.claim, claim):
		state := m.state(r)
		switch {
		case m.has("Complete is not fenced from outstanding claims") && state == outstanding,
			m.has("Complete is not fenced from interrupted claims") && state == interrupted,
			m.has("Complete is not fenced from claims whose lease is over") && state == interrupted && !r.released,
			m.has("Complete is not fenced from responses") && state == completed,
			m.has("the claim that was taken over completes still") && m.lost[claim.Token]:
		case m.has("Complete by another is silent"), m.has("Complete compares claims whole") && r.claim.Token == claim.Token:
			return nil
		case m.has("Complete by a former holder takes effect") && m.former[claim.Token]:
		default:
			return m.claimLost()
		}
	case r.completed:
		switch {
		case m.has("Complete repeated replaces the response"):
		case m.has("Complete repeated replaces an empty response") && len(r.response) == 0:
		case m.has("Complete repeated sets the time"), m.has("Complete repeated prolongs") && end.After(r.end):
			r.end = end
			return nil
		case m.has("Complete repeated is an error"):
			return m.claimLost()
		default:
			return nil
		}
	case m.has("Complete refuses its own interrupted claim") && m.state(r) == interrupted, m.has("Complete refuses a claim that took over") && r.tookOver:
		return m.claimLost()
	case m.has("Complete of an interrupted claim keeps its time") && m.state(r) == interrupted,
		m.has("Complete leaves the lease"),
		m.has("Complete adds to the lease") && (r.end.IsZero() || end.Before(r.end) && !end.IsZero()),
		m.has("Complete keeps a trace that does not end") && r.end.IsZero(),
		m.has("Complete takes the shorter time") && !r.end.IsZero() && (end.IsZero() || r.end.Before(end)):
		end = r.end
	}
	if m.has("Complete loses the fingerprint") {
		claim.Fingerprint = [32]byte{}
	}
	stored, ok, err := m.stored(response)
	if !ok || err != nil {
		return err
	}
	if m.has("a response is written over the last one") {
		if place := m.places[key]; len(place) == len(stored) {
			copy(place, stored)
			stored = place
		}
		m.places[key] = stored
	}
	next := &row{claim: claim, completed: true, response: stored, end: end}
	if r != nil {
		next.progress, next.tookOver = r.progress, r.tookOver
	}
	m.write(key, next)
	if m.has("a response ends with its context") {
		next.until = ctx
	}
	return nil
}
