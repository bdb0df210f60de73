package main

import (
	"time"

	"github.com/idempotency-go/idempotency/internal/netfault"
)

// apart is one Redis, which each server reaches by a gate of its own.
type apart struct {
	*node
	gates []*netfault.Proxy
}

func startApart(dir string, servers int) (*apart, error) {
	n, err := startNode(dir, nil, "appendonly no")
	if err != nil {
		return nil, err
	}
	a := &apart{node: n}
	for range servers {
		port, err := freePort()
		if err == nil {
			var g *netfault.Proxy
			if g, err = netfault.Start(loopback(port), n.addr()); err == nil {
				a.gates = append(a.gates, g)
			}
		}
		if err != nil {
			a.stop()
			return nil, err
		}
	}
	return a, nil
}

// target implements [store]. The client is as it comes: a claim must hold with it.
func (a *apart) target(server int) redisTarget {
	return redisTarget{Kind: targetSingle, Addrs: []string{a.gates[server].Addr()}, AsItComes: true}
}

// stop implements [store].
func (a *apart) stop() {
	for _, g := range a.gates {
		g.Close()
	}
	a.node.stop()
}

// inject implements [store].
func (a *apart) inject(f planned) (func() (bool, error), error) {
	if f.kind == faultFull {
		return a.limit(f)
	}
	g, ways := a.gates[f.server], waysOf(f)
	if err := g.Shut(ways[0]); err != nil {
		return nil, err
	}
	stop, failed := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(failed)
		for _, way := range ways[1:] {
			select {
			case <-stop:
				return
			case <-time.After(f.lasts / time.Duration(len(ways))):
			}
			if err := g.Shut(way); err != nil {
				failed <- err
				return
			}
		}
	}()
	return func() (bool, error) {
		close(stop)
		if err := <-failed; err != nil {
			return false, err
		}
		return false, g.Open()
	}, nil
}

// waysOf returns the ways in which a fault shuts a gate, one after the other.
func waysOf(f planned) []netfault.Way {
	silent := []netfault.Way{netfault.Held, netfault.Dead, netfault.Stale}
	switch f.kind {
	case faultRefused:
		return []netfault.Way{netfault.Refused}
	case faultAnswers:
		return []netfault.Way{netfault.Late}
	case faultSilent:
		return silent[int(3*f.choice):][:1]
	}
	// From 2 to 4 parts, by turns refused and silent.
	n := int(6 * f.choice) // 0 to 5: how many, and which is first
	var ways []netfault.Way
	for i := range 2 + n/2 {
		if (i+n)%2 == 0 {
			ways = append(ways, netfault.Refused)
		} else {
			ways = append(ways, silent[(i+n)/2%2])
		}
	}
	return ways
}
