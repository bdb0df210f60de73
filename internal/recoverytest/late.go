package recoverytest

import (
	"context"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// latePoints are where an owner is cut off until its retry has recovered.
var latePoints = []struct {
	path, point string
	interrupted string // where a run died before, so that the late owner is a recovery
}{
	{pathPay, "claim-end", ""}, {pathPay, "begun", ""}, {pathPay, "charged", ""}, {pathPay, "returned", ""},
	{pathPay, "recovering", "begun"}, {pathPay, "asked", "charged"}, {pathPay, "asked", "begun"}, {pathPay, "charged", "begun"},
	{pathTrip, "before-flight", ""}, {pathTrip, "in-flight", ""}, {pathTrip, "did-flight", ""}, {pathTrip, "keep-start-flight", ""},
	{pathTrip, "did-hotel", ""}, {pathTrip, "keep-start-car", ""}, {pathTrip, "after-car", ""}, {pathTrip, "did-hotel", "after-flight"},
	{pathTrip, "keep-start-hotel", "did-hotel"},
}

// LateOwners cuts off owners of claims for longer than a lease, n times at each point, and
// lets them go on when their retry has recovered.
func (p *Proof) LateOwners(n int) {
	var next atomic.Int64
	more := func() bool { return int(next.Load()) < n*len(latePoints) }
	p.eachLane("late", more, func(victim *node, key string, random *rand.Rand) {
		at := int(next.Add(1) - 1)
		if at >= n*len(latePoints) {
			return
		}
		late := latePoints[at%len(latePoints)]
		r := request{path: late.path, key: key}
		p.downstream.with(key, func(o *order) { o.takesKeys = true })
		var all []answer
		if late.interrupted != "" {
			all, _ = p.killAt(victim, r, []string{late.interrupted}, true)
		}
		gate, first := p.downstream.gateOf(key, late.point), make(chan answer, 1)
		go func() { first <- p.late(victim, r, late.point, gate) }()
		select {
		case <-gate.reached:
		case a := <-first:
			p.violate("harness", "%s: the late owner did not come to %s: %d %s %v", key, late.point, a.status, a.body, a.err)
			return
		}
		all = append(all, p.crowd(p.steady, r)...)
		close(gate.open)
		a := <-first
		if a.err == nil && a.status != http.StatusCreated && a.status != http.StatusConflict && a.status != http.StatusServiceUnavailable {
			p.violate("status", "%s: the late owner got %d %s", key, a.status, a.body)
		}
		p.count(LateOwners, 1)
		p.check(victim, r, append(all, a), true)
	})
}

// late sends a request whose run is to wait at a gate, again until it does.
func (p *Proof) late(victim *node, r request, point string, g *gate) (a answer) {
	r.pause = point
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		a = p.send(context.Background(), victim, r)
		select {
		case <-g.reached:
			return a
		default: // It was refused: the lease of the run before is not over.
		}
		if a.err == nil && a.status == http.StatusCreated {
			return a
		}
	}
	return a
}

// Crowds has several clients retry while a recovery has asked, and has not yet done what it
// found missing, for n keys: none of them recovers beside it.
func (p *Proof) Crowds(n int) {
	var next atomic.Int64
	p.eachLane("crowd", func() bool { return int(next.Add(1)) <= n }, func(victim *node, key string, _ *rand.Rand) {
		r := request{path: pathPay, key: key}
		all, _ := p.killAt(victim, r, []string{"begun"}, true)
		gate, first := p.downstream.gateOf(key, "asked"), make(chan answer, 1)
		held := r
		held.holds = true
		go func() { first <- p.late(victim, held, "asked", gate) }()
		select {
		case <-gate.reached:
		case a := <-first:
			p.violate("harness", "%s: the recovery did not ask: %d %s %v", key, a.status, a.body, a.err)
			return
		}
		for i := range crowdSize {
			a := p.send(context.Background(), p.steady[i%len(p.steady)], r)
			if a.status != http.StatusConflict {
				p.violate("status", "%s: a retry beside a recovery got %d %s %v", key, a.status, a.body, a.err)
			}
			all = append(all, a)
		}
		close(gate.open)
		all = append(all, <-first)
		p.count("recoveries beside a crowd", 1)
		p.check(victim, r, append(all, p.crowd(p.steady, r)...), true)
	})
}

// Losses kills servers, and has lose let the store lose all its records at any time, at
// least n times. Whoever runs again gives the same keys downstream.
func (p *Proof) Losses(n int, lose func() error) {
	over := make(chan struct{})
	var loses sync.WaitGroup
	loses.Go(func() {
		defer close(over)
		random := rand.New(rand.NewPCG(p.settings.Seed, 1<<32))
		for range n {
			time.Sleep(time.Duration(random.Int64N(int64(2 * p.settings.Lease))))
			if err := lose(); err != nil {
				p.violate("harness", "the store does not come back: %v", err)
				return
			}
			p.count(Losses, 1)
		}
	})
	more := func() bool {
		select {
		case <-over:
			return false
		default:
			return true
		}
	}
	p.eachLane("lost", more, func(victim *node, key string, random *rand.Rand) {
		r, points := request{path: pathPay, key: key}, []string{pick(random, runPoints), pick(random, recoveryPoints)}
		if random.IntN(2) == 0 {
			r.path, points = pathTrip, []string{pick(random, stepPoints[:9]), pick(random, stepPoints[9:])}
		}
		p.downstream.with(key, func(o *order) { o.takesKeys = true })
		all, alive := p.killAt(victim, r, points, false)
		if alive {
			p.check(victim, r, append(all, p.crowd(append([]*node{victim}, p.steady...), r)...), false)
		}
	})
	loses.Wait()
}
