package main

import (
	"fmt"
	"strings"
	"time"
)

// faultKind names a fault.
type faultKind string

// The faults that a schedule can have.
const (
	faultKill       faultKind = "kill"        // SIGKILL of a server process, which is started again
	faultPause      faultKind = "pause"       // SIGSTOP of a server process, then SIGCONT
	faultRedisKill  faultKind = "redis-kill"  // SIGKILL of Redis, which is started again
	faultCut        faultKind = "cut"         // what is sent to Redis and what it answers is dropped
	faultRefuse     faultKind = "refuse"      // connections to Redis are closed and refused
	faultReset      faultKind = "reset"       // connections to Redis are reset as soon as they carry data
	faultSlow       faultKind = "slow"        // Redis answers late, within the client's time-out
	faultUneven     faultKind = "uneven"      // what Redis is asked arrives late, one call before another, within the client's time-out
	faultLate       faultKind = "late"        // Redis answers after the client's time-out
	faultFull       faultKind = "full"        // maxmemory, noeviction
	faultEvict      faultKind = "evict"       // maxmemory, with a policy that evicts
	faultFailover   faultKind = "failover"    // SIGKILL of the master that Sentinel watches
	faultMoveSlots  faultKind = "move-slots"  // slots of a Cluster migrate to another master
	faultMasterLoss faultKind = "master-loss" // SIGKILL of a master of a Cluster, which its replica replaces

	// Faults between one server and Redis, which the other servers reach.
	faultRefused faultKind = "refused" // connections are reset and refused
	faultSilent  faultKind = "silent"  // nothing gets through: it is held, or lost and its connections with it
	faultAnswers faultKind = "answers" // what Redis answers is held
	faultSwitch  faultKind = "switch"  // refused and silent by turns, two to four of them

	faultStall faultKind = "stall" // injected by nobody: a process, or Redis, stood still because the machine was busy
)

// scenario is a store, its faults, and what the clients do.
type scenario struct {
	name     string
	store    string
	faults   []faultKind
	hangUps  float64 // the share of requests whose client leaves before the answer
	unstored float64 // the share of runs whose answer is not to be stored

	family string // of scenarios that run side by side
	lease  span   // how long its faults last, in leases; the zero one is as paceOf has it
	brief  bool   // Handlers do not run for leases: it is about their claims.
}

// span is from the shortest to the longest time.
type span struct{ least, most float64 }

// longLived reports whether the scenario is about claims that must hold: most handlers
// run for leases, their duplicates look all the time, and each server has faults of
// its own, one at a time.
func (s scenario) longLived() bool { return s.lease != span{} }

// The stores of a scenario.
const (
	storeDurable  = "durable"  // one Redis, append-only file, fsync always
	storeVolatile = "volatile" // one Redis without persistence
	storeSentinel = "sentinel" // a master, two replicas and three sentinels
	storeCluster  = "cluster"  // three masters with a replica each
	storeApart    = "apart"    // one Redis without persistence, which each server reaches by a way of its own
)

// familyLease is the scenarios about claims that must hold.
const familyLease = "lease"

// A claim holds if the store is away for not longer than this share of a lease.
const holds = 0.9

// within is how long faults last that cost no claim, beyond some that may.
var within, beyond = span{0.3, holds}, span{holds, 2}

// someUnstored is the share of runs that panic or answer what is not to be stored.
const someUnstored = 0.04

// scenarios has each fault alone, and then mixed.
var scenarios = []scenario{
	{name: "none", store: storeDurable},
	{name: "unstored", store: storeDurable, faults: []faultKind{faultUneven}, unstored: 0.3},
	{name: "kill", store: storeDurable, faults: []faultKind{faultKill}, unstored: someUnstored},
	{name: "pause", store: storeDurable, faults: []faultKind{faultPause}, unstored: someUnstored},
	{name: "hang-up", store: storeDurable, hangUps: 0.3, unstored: someUnstored},
	{name: "redis-kill-aof", store: storeDurable, faults: []faultKind{faultRedisKill}, unstored: someUnstored},
	{name: "redis-kill-empty", store: storeVolatile, faults: []faultKind{faultRedisKill}, unstored: someUnstored},
	{name: "cut", store: storeDurable, faults: []faultKind{faultCut, faultRefuse, faultReset}, unstored: someUnstored},
	{name: "slow", store: storeDurable, faults: []faultKind{faultSlow, faultLate}, unstored: someUnstored},
	{name: "full", store: storeDurable, faults: []faultKind{faultFull}, unstored: someUnstored},
	{name: "evict", store: storeVolatile, faults: []faultKind{faultEvict}, unstored: someUnstored},
	{name: "sentinel", store: storeSentinel, faults: []faultKind{faultFailover}, unstored: someUnstored},
	{name: "cluster-move", store: storeCluster, faults: []faultKind{faultMoveSlots}, unstored: someUnstored},
	{name: "cluster-loss", store: storeCluster, faults: []faultKind{faultMasterLoss}, unstored: someUnstored},
	{name: "mixed", store: storeDurable, hangUps: 0.05, unstored: someUnstored,
		faults: []faultKind{faultKill, faultPause, faultRedisKill, faultCut, faultRefuse, faultReset, faultSlow, faultLate}},
	{name: "mixed-cluster", store: storeCluster, hangUps: 0.05, unstored: someUnstored,
		faults: []faultKind{faultKill, faultPause, faultMoveSlots, faultMasterLoss}},
	{name: "lease-refused", family: familyLease, lease: within, store: storeApart, faults: []faultKind{faultRefused}, unstored: someUnstored},
	{name: "lease-silent", family: familyLease, lease: within, store: storeApart, faults: []faultKind{faultSilent}, unstored: someUnstored},
	{name: "lease-answers", family: familyLease, lease: within, store: storeApart, faults: []faultKind{faultAnswers}, unstored: someUnstored},
	{name: "lease-mixed", family: familyLease, lease: within, store: storeApart, faults: []faultKind{faultSwitch}, unstored: someUnstored},
	{name: "lease-paused", family: familyLease, lease: within, store: storeApart, faults: []faultKind{faultPause}, unstored: someUnstored},
	{name: "lease-full", family: familyLease, lease: within, store: storeApart, faults: []faultKind{faultFull}, unstored: someUnstored},
	{name: "lease-late", family: familyLease, lease: beyond, store: storeApart, faults: []faultKind{faultAnswers}, brief: true},
	{name: "lease-full-over", family: familyLease, lease: beyond, store: storeApart, faults: []faultKind{faultFull}, unstored: someUnstored},
	{name: "lease-over", family: familyLease, lease: beyond, store: storeApart, unstored: someUnstored,
		faults: []faultKind{faultRefused, faultSilent, faultSwitch, faultPause}},
}

// allScenarios stands for all their names.
const allScenarios = "all"

// short is the names of the scenarios of the short form.
const short = "none,kill,pause,cut,mixed"

// findScenarios returns the scenarios of a comma-separated list of names and of
// families, or all of them.
func findScenarios(list string) ([]scenario, error) {
	if list == allScenarios {
		return scenarios, nil
	}
	var found []scenario
	for _, name := range strings.Split(list, ",") {
		known := len(found)
		var names []string
		for _, s := range scenarios {
			if s.name == name || s.family == name {
				found = append(found, s)
			}
			names = append(names, s.name)
		}
		if len(found) == known {
			return nil, fmt.Errorf("-scenario: no %q; there are all, %s, %s", name, familyLease, strings.Join(names, ", "))
		}
	}
	return found, nil
}

// planned is a fault of a schedule.
type planned struct {
	kind   faultKind
	at     time.Duration // since the run began
	lasts  time.Duration
	gap    time.Duration // before it, at least; 0 where faults come by their time alone
	server int           // that it befalls, where it befalls one
	choice float64       // from 0 to 1: what else there is to choose
}

// pace is how often a fault comes and how long it lasts.
type pace struct{ gapMin, gapMax, lastsMin, lastsMax time.Duration }

// paceOf returns the pace of a fault. What a fault does to the claims depends
// on how long it lasts, compared with the lease.
func paceOf(kind faultKind, lease time.Duration) pace {
	const ms = time.Millisecond
	switch kind {
	case faultKill:
		return pace{200 * ms, 900 * ms, 20 * ms, 300 * ms}
	case faultPause:
		return pace{100 * ms, 600 * ms, lease * 3 / 10, lease * 22 / 10}
	case faultRedisKill:
		return pace{lease, 3 * lease, 50 * ms, lease * 15 / 10}
	case faultFull, faultEvict:
		return pace{lease, 2 * lease, 100 * ms, lease * 15 / 10}
	case faultMoveSlots:
		return pace{200 * ms, 600 * ms, 100 * ms, 500 * ms}
	case faultFailover, faultMasterLoss:
		return pace{1500 * ms, 3 * time.Second, 0, lease}
	default:
		return pace{lease, 3 * lease, 100 * ms, lease * 17 / 10}
	}
}

// planFaults returns the schedule of a run, which follows from its arguments
// alone. Each kind of fault has a sequence of its own; sequences overlap.
func planFaults(seed uint64, s scenario, d, lease time.Duration, servers int) map[faultKind][]planned {
	if s.longLived() {
		return planForEach(seed, s, d, lease, servers)
	}
	plans := make(map[faultKind][]planned, len(s.faults))
	for _, kind := range s.faults {
		rng := seeded(seed, "faults "+s.name+" "+string(kind))
		between := func(least, most time.Duration) time.Duration {
			return least + time.Duration(rng.Int64N(int64(most-least)+1))
		}
		p := paceOf(kind, lease)
		stretch := time.Duration(1)
		if len(s.faults) > 3 {
			stretch = 3 // Many kinds at once leave no time in which anything works.
		}
		at := between(p.gapMin, p.gapMax)
		for at < d {
			f := planned{kind: kind, at: at, lasts: between(p.lastsMin, p.lastsMax), server: rng.IntN(servers), choice: rng.Float64()}
			plans[kind] = append(plans[kind], f)
			at += f.lasts + stretch*between(p.gapMin, p.gapMax)
		}
	}
	return plans
}

// planForEach is planFaults for a scenario in which each server has one fault after
// another. A fault of Redis itself befalls all: the first has those.
func planForEach(seed uint64, s scenario, d, lease time.Duration, servers int) map[faultKind][]planned {
	plans := make(map[faultKind][]planned, len(s.faults))
	gap := span{0.25, 0.6} // Claims are renewed in between.
	if s.brief {
		gap = span{1, 3} // Most of the time two servers have no fault.
	}
	for server := range servers {
		rng := seeded(seed, fmt.Sprint("faults ", s.name, " ", server))
		between := func(leases span) time.Duration {
			return time.Duration((leases.least + rng.Float64()*(leases.most-leases.least)) * float64(lease))
		}
		for at := time.Duration(0); ; {
			f := planned{kind: s.faults[rng.IntN(len(s.faults))], gap: between(gap), lasts: between(s.lease), server: server, choice: rng.Float64()}
			f.at = at + f.gap
			if f.at >= d || f.kind == faultFull && server > 0 {
				break
			}
			plans[f.kind] = append(plans[f.kind], f)
			at = f.at + f.lasts
		}
	}
	return plans
}
