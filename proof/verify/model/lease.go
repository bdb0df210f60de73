package model

import "fmt"

// Lease is the renewing of one claim in time, which passes in fortieths of the lease. It is
// explored completely: every moment at which the store goes down, each length up to the
// longest, and at each try whether it is refused or hangs.
type Lease struct {
	Renewed    int  // how long after a renewal that landed the next is sent
	Tried      int  // how long after a try that did not land the next is sent
	Outage     int  // how long the store is down at most, until a renewal lands again
	HangsBlock bool // No try is sent while one hangs.
	GivesUp    bool // After a try that was refused none is sent.
}

const (
	leaseTime = 40
	hangTime  = leaseTime / 3 // how long a try that hangs lasts
	never     = -1
)

// held is a claim at some time.
type held struct {
	left int  // of the lease
	due  int  // until the next try; or never
	down int  // how long the store was down since a renewal landed
	up   bool // It is up again, and stays so until a renewal lands.
}

// Explore returns how many states there are, and what led to the loss of the claim, if it
// can be lost: a line for each fortieth of the lease.
func (c Lease) Explore() (states int, lost []string) {
	type visit struct {
		held
		what string
		from int
	}
	// The answer to the claim may come late: that is part of the first outage.
	var visits []visit
	for late := range leaseTime/2 + 1 {
		begin := held{left: leaseTime - late, due: max(c.Renewed-late, 0), down: late}
		visits = append(visits, visit{begin, fmt.Sprintf("the claim is answered after %d", late), -1})
	}
	seen := make(map[held]bool)
	for at := 0; at < len(visits); at++ {
		for _, next := range c.next(visits[at].held) {
			if next.left == 0 {
				lost = append(lost, next.what)
				for i := at; i >= 0; i = visits[i].from {
					lost = append([]string{visits[i].what}, lost...)
				}
				return len(visits), lost
			}
			if !seen[next.held] {
				seen[next.held] = true
				visits = append(visits, visit{next.held, next.what, at})
			}
		}
	}
	return len(visits), nil
}

// passed is what a claim is a fortieth of a lease later.
type passed struct {
	held
	what string
}

// next returns all that can happen in a fortieth of the lease.
func (c Lease) next(l held) []passed {
	var all []passed
	pass := func(l held, what string) {
		l.left--
		if l.due > 0 {
			l.due--
		}
		all = append(all, passed{l, what})
	}
	sends := l.due == 0
	if !sends {
		pass(c.inUpTime(l), "the store is up")
	} else {
		pass(held{left: leaseTime, due: c.Renewed}, "a renewal lands")
	}
	if l.up || l.down == c.Outage {
		return all
	}
	l.down++
	if !sends {
		pass(l, "the store is down")
		return all
	}
	refused, hangs := l, l
	refused.due, hangs.due = c.Tried, c.Tried
	if c.GivesUp {
		refused.due = never
	}
	if c.HangsBlock {
		hangs.due = hangTime + c.Tried
	}
	pass(refused, "a try is refused")
	pass(hangs, "a try hangs")
	return all
}

// inUpTime returns a claim in a time in which the store is up. After an outage it stays up
// until a renewal lands.
func (c Lease) inUpTime(l held) held {
	l.up = l.down > 0
	return l
}
