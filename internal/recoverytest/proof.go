// Package recoverytest proves recovery and steps by kills. Server processes with
// [idempotency.WithRecovery] are told by each request at which point of it to kill
// themselves. What their handlers do downstream is done in this process, which keeps it by
// the key that it is given. Several clients at once retry until they have their answer; then
// what was done is counted.
//
// The program that runs a proof is its servers too: it calls [ServeIfAsked] first.
package recoverytest

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/idempotency-go/idempotency/internal/leash"
)

// What the servers serve.
const (
	pathPay  = "/pay"
	pathTrip = "/trip"
)

// Settings are what a proof is made with.
type Settings struct {
	Target string        // what leads the servers to the store
	Lease  time.Duration // A server that stands still for nearly as long loses its claims.
	Lanes  int           // how many keys are under way at once, each with a server of its own to kill
	Seed   uint64        // what the points at which servers die follow from
	Broken string        // names a deliberately broken build of the servers; "" is none
	Repeat bool          // The servers send every claim twice.
}

// A Proof has servers, their downstream and their clients.
type Proof struct {
	Verdict
	settings   Settings
	client     *http.Client
	downstream *downstream
	steady     []*node // They are not killed.
	lanes      []*node
}

// node is a server process.
type node = leash.Node[config]

// New starts the servers of a proof.
func New(s Settings) (*Proof, error) {
	p := &Proof{settings: s, client: &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}} // Servers die.
	var err error
	if p.downstream, err = newDownstream(); err != nil {
		return nil, err
	}
	for i := range 2 + s.Lanes {
		n := &node{Variable: serverVariable, Config: config{Target: s.Target, Downstream: "http://" + p.downstream.listener.Addr().String(),
			Lease: s.Lease, Broken: s.Broken, Repeat: s.Repeat}}
		if err := n.Start(); err != nil {
			p.Stop()
			return nil, err
		}
		if i < 2 {
			p.steady = append(p.steady, n)
		} else {
			p.lanes = append(p.lanes, n)
		}
	}
	return p, nil
}

// Stop stops the servers.
func (p *Proof) Stop() {
	for _, n := range slices.Concat(p.steady, p.lanes) {
		n.Stop()
	}
	p.downstream.listener.Close()
}

// Points at which a server may die, in their order.
var (
	runPoints      = []string{"claim-start", "claim-end", "begun", "charged", "returned", "completed", "answer"}
	recoveryPoints = []string{"claim-start", "claim-end", "recovering", "asked", "charged", "returned"}
	stepPoints     = func() (all []string) {
		for _, name := range []string{"flight", "hotel", "car"} {
			for _, at := range []string{"before-", "in-", "did-", "keep-start-", "keep-end-", "after-"} {
				all = append(all, at+name)
			}
		}
		return append(all, "returned", "completed", "answer")
	}()
)

// Names of what is counted.
const (
	Kills      = "kills"
	LateOwners = "late owners"
	Losses     = "losses of the store"
	killsAt    = "kills at "
)

// Payments kills servers at every point of payments and of their recoveries, at least n
// times.
func (p *Proof) Payments(n int) {
	first := p.withRepeated(runPoints)
	p.kills(n, pathPay, func(i int, random *rand.Rand) []string {
		points := []string{first[i%len(first)]}
		for range random.IntN(4) {
			points = append(points, pick(random, p.withRepeated(recoveryPoints)))
		}
		return points
	})
}

func (p *Proof) withRepeated(points []string) []string {
	if p.settings.Repeat {
		return append(slices.Clip(points), "repeated", "repeated")
	}
	return points
}

// Trips kills servers before, in and after each of three steps, at least n times.
func (p *Proof) Trips(n int) {
	p.kills(n, pathTrip, func(i int, random *rand.Rand) (points []string) {
		at := i % len(stepPoints)
		for range 1 + random.IntN(4) {
			points = append(points, stepPoints[at])
			at += random.IntN(len(stepPoints) - at) // What a run has kept no later one comes to.
		}
		return points
	})
}

func pick(random *rand.Rand, points []string) string { return points[random.IntN(len(points))] }

// eachLane calls f for one key after another in each lane, until more returns false.
func (p *Proof) eachLane(purpose string, more func() bool, f func(victim *node, key string, random *rand.Rand)) {
	var lanes sync.WaitGroup
	for i, victim := range p.lanes {
		random := rand.New(rand.NewPCG(p.settings.Seed, uint64(i)))
		lanes.Go(func() {
			for n := 0; more(); n++ {
				f(victim, fmt.Sprintf("%s-%d.%d", purpose, i, n), random)
			}
		})
	}
	lanes.Wait()
}

// kills kills servers at the points that choose returns for one key after another.
func (p *Proof) kills(n int, path string, choose func(i int, random *rand.Rand) []string) {
	before, next := p.Count(Kills), atomic.Int64{}
	p.eachLane(path, func() bool { return p.Count(Kills) < before+n && p.Found("") < 100 }, func(victim *node, key string, random *rand.Rand) {
		r := request{path: path, key: key}
		// A step's function gives its key to what it calls: what it did may come again.
		p.downstream.with(key, func(o *order) { o.takesKeys = path == pathTrip })
		all, alive := p.killAt(victim, r, choose(int(next.Add(1)-1), random), true)
		if !alive {
			return
		}
		all = append(all, p.crowd(append([]*node{victim}, p.steady...), r)...)
		p.check(victim, r, all, true)
	})
}

// killAt has a server die at one point after another, in run after run of a request, unless
// that is answered before. If others is true, another request comes after each. It returns
// false if the server does not come back.
func (p *Proof) killAt(victim *node, r request, points []string, others bool) (all []answer, alive bool) {
	claimed := false
	for _, point := range points {
		r.die = point
		got := p.crowd([]*node{victim}, r)
		all = append(all, got...)
		if failed(got) {
			err := victim.Await(patience)
			if err == nil {
				p.count(Kills, 1)
				p.count(killsAt+point, 1)
				err = victim.Start()
			} else {
				victim.Stop()
				_ = victim.Start() // The next key needs one.
			}
			if err != nil {
				p.violate("harness", "%s at %s: %v", r.key, point, err)
				return all, false
			}
		}
		if answered(got) {
			break
		}
		if claimed = claimed || point != "claim-start"; claimed && others {
			p.another(p.steady[0], r)
		}
	}
	return all, true
}

// expectedAnswer is what the handlers answer.
func expectedAnswer(path string, done []deed) []byte {
	if path == pathPay {
		if len(done) == 0 {
			return nil
		}
		text, _ := json.Marshal(done[0])
		return text
	}
	var booked []deed
	for _, name := range []string{"flight", "hotel", "car"} {
		if i := slices.IndexFunc(done, func(d deed) bool { return d.Name == name }); i >= 0 {
			booked = append(booked, done[i])
		}
	}
	text, _ := json.Marshal(booked)
	return text
}
