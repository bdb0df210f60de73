package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// store is the Redis under test, in one of its forms, and its faults.
type store interface {
	// target says how a server, by its number, reaches the store.
	target(server int) redisTarget
	// inject begins a fault and returns what ends it. heal returns when the
	// store works again, and whether data may have been lost.
	inject(f planned) (heal func() (lost bool, err error), err error)
	// stop kills all processes of the store.
	stop()
}

// startStore starts a store whose files are in dir.
func startStore(kind, dir string, servers int) (store, error) {
	switch kind {
	case storeSentinel:
		return startSentinel(dir)
	case storeCluster:
		return startCluster(dir)
	case storeApart:
		return startApart(dir, servers)
	default:
		return startSingle(kind, dir)
	}
}

// single is one Redis behind a proxy.
type single struct {
	*node
	proxy    *proxy
	volatile bool
}

func startSingle(kind, dir string) (*single, error) {
	s := &single{volatile: kind == storeVolatile}
	persistence := []string{"appendonly yes", "appendfsync always"}
	if s.volatile {
		persistence = []string{"appendonly no"}
	}
	var err error
	if s.node, err = startNode(dir, nil, persistence...); err != nil {
		return nil, err
	}
	if s.proxy, err = startProxy(s.addr()); err != nil {
		s.node.stop()
		return nil, err
	}
	return s, nil
}

// target implements [store].
func (s *single) target(int) redisTarget {
	return redisTarget{Kind: targetSingle, Addrs: []string{s.proxy.listen}}
}

// stop implements [store].
func (s *single) stop() {
	s.proxy.Stop()
	s.node.stop()
}

// inject implements [store].
func (s *single) inject(f planned) (func() (bool, error), error) {
	switch f.kind {
	case faultRedisKill:
		s.process.kill()
		return func() (bool, error) { return s.volatile, s.start() }, nil
	case faultFull, faultEvict:
		return s.limit(f)
	default:
		heal, err := s.proxy.inject(f)
		return func() (bool, error) { return false, heal() }, err
	}
}

// limit gives Redis less memory than it uses, and more again to heal.
func (n *node) limit(f planned) (func() (bool, error), error) {
	policy, share := "noeviction", 0.5
	if f.kind == faultEvict {
		policy, share = "allkeys-lru", 0.95
		if f.choice < 0.5 {
			policy = "allkeys-random"
		}
	}
	ctx := context.Background()
	used, err := n.info(ctx, "used_memory")
	if err != nil {
		return nil, err
	}
	evicted, err := n.info(ctx, "evicted_keys")
	if err != nil {
		return nil, err
	}
	set := func(name, value string) error { return n.client.ConfigSet(ctx, name, value).Err() }
	if err := set("maxmemory-policy", policy); err != nil {
		return nil, err
	}
	if err := set("maxmemory", strconv.Itoa(int(float64(used)*share))); err != nil {
		return nil, err
	}
	return func() (bool, error) {
		if err := set("maxmemory", "0"); err != nil {
			return true, err
		}
		now, err := n.info(ctx, "evicted_keys")
		return now > evicted, err
	}, nil
}

// info returns a number that Redis tells of itself.
func (n *node) info(ctx context.Context, field string) (int, error) {
	text, err := n.client.Info(ctx).Result()
	if err != nil {
		return 0, err
	}
	value, err := infoField(text, field)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(value)
}

// infoField returns the value of a "name:value" line.
func infoField(text, name string) (string, error) {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value), nil
		}
	}
	return "", fmt.Errorf("redis does not tell its %s", name)
}

// repair is how long a store may take to work again after a fault.
const repair = 30 * time.Second
