package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
)

// sentinels is a master with two replicas, watched by three sentinels.
type sentinels struct {
	data, watchers []*node
}

func startSentinel(dir string) (_ *sentinels, err error) {
	s := &sentinels{}
	defer func() {
		if err != nil {
			s.stop()
		}
	}()
	for i := range 3 {
		lines := []string{"appendonly no"}
		if i > 0 {
			lines = append(lines, fmt.Sprint("replicaof 127.0.0.1 ", s.data[0].port))
		}
		n, err := startNode(dir, nil, lines...)
		if err != nil {
			return nil, err
		}
		s.data = append(s.data, n)
	}
	for range 3 {
		n, err := startNode(dir, []string{"--sentinel"},
			fmt.Sprintf("sentinel monitor %s 127.0.0.1 %d 2", masterName, s.data[0].port),
			"sentinel down-after-milliseconds "+masterName+" 1500",
			"sentinel failover-timeout "+masterName+" 3000")
		if err != nil {
			return nil, err
		}
		s.watchers = append(s.watchers, n)
		// They look at the servers every 10 s otherwise.
		if err := n.client.Do(context.Background(), "sentinel", "debug", "info-period", 500).Err(); err != nil {
			return nil, err
		}
	}
	return s, eventually(repair, s.whole)
}

// target implements [store].
func (s *sentinels) target(int) redisTarget {
	return redisTarget{Kind: targetSentinel, Addrs: addrsOf(s.watchers)}
}

// stop implements [store].
func (s *sentinels) stop() {
	stopNodes(s.watchers)
	stopNodes(s.data)
}

// master returns the node that a sentinel takes for the master.
func (s *sentinels) master(ctx context.Context, watcher *node) (*node, error) {
	addr, err := watcher.client.Do(ctx, "sentinel", "get-master-addr-by-name", masterName).StringSlice()
	if err != nil {
		return nil, err
	}
	for _, n := range s.data {
		if len(addr) == 2 && net.JoinHostPort(addr[0], addr[1]) == n.addr() {
			return n, nil
		}
	}
	return nil, fmt.Errorf("the sentinels name no master: %q", addr)
}

// inject implements [store]: it kills the master.
func (s *sentinels) inject(planned) (func() (bool, error), error) {
	old, err := s.master(context.Background(), s.watchers[0])
	if err != nil {
		return nil, err
	}
	old.process.kill()
	return func() (bool, error) {
		var master *node
		err := eventually(repair, func(ctx context.Context) (err error) {
			for _, w := range s.watchers {
				if master, err = s.master(ctx, w); err == nil && master == old {
					err = errors.New("no new master")
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return true, err
		}
		// As a master it would be empty, and clients might find it.
		if err := old.start("--replicaof", "127.0.0.1", strconv.Itoa(master.port)); err != nil {
			return true, err
		}
		return true, eventually(repair, s.whole)
	}, nil
}

// whole returns nil where all sentinels name one master, and it has two
// replicas that are up to date.
func (s *sentinels) whole(ctx context.Context) error {
	first, err := s.master(ctx, s.watchers[0])
	if err != nil {
		return err
	}
	for _, w := range s.watchers {
		master, err := s.master(ctx, w)
		if err != nil {
			return err
		}
		text, err := w.client.Do(ctx, "info", "sentinel").Text()
		if err != nil {
			return err
		}
		status, err := infoField(text, "master0")
		if err != nil {
			return err
		}
		want := fmt.Sprintf("name=%s,status=ok,address=%s,slaves=2,sentinels=3", masterName, first.addr())
		if master != first || status != want {
			return fmt.Errorf("sentinel says %s", status)
		}
	}
	return first.inSync(ctx, 2)
}

// inSync returns nil where the node is a master with as many replicas as wanted,
// all of them up to date.
func (n *node) inSync(ctx context.Context, replicas int) error {
	text, err := n.client.Info(ctx, "replication").Result()
	if err != nil {
		return err
	}
	role, err := infoField(text, "role")
	if err != nil {
		return err
	}
	if role != "master" {
		return fmt.Errorf("port %d is a %s", n.port, role)
	}
	for i := range replicas {
		status, err := infoField(text, "slave"+strconv.Itoa(i))
		if err != nil {
			return err
		}
		if !strings.Contains(status, "state=online") {
			return fmt.Errorf("replica %s", status)
		}
	}
	return nil
}
