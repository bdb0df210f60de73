package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"
)

// cluster is a Redis Cluster of three masters with a replica each.
type cluster struct {
	nodes []*node
	ids   map[*node]string
}

const (
	clusterMasters = 3
	clusterSlots   = 16384
	movedAtOnce    = 500 // slots
)

func startCluster(dir string) (_ *cluster, err error) {
	c := &cluster{ids: make(map[*node]string)}
	defer func() {
		if err != nil {
			c.stop()
		}
	}()
	ctx := context.Background()
	for range 2 * clusterMasters {
		n, err := startNode(dir, nil, "appendonly no", "cluster-enabled yes", "cluster-node-timeout 2000",
			"cluster-require-full-coverage no", "cluster-allow-replica-migration no")
		if err != nil {
			return nil, err
		}
		c.nodes = append(c.nodes, n)
		if c.ids[n], err = n.client.ClusterMyID(ctx).Result(); err != nil {
			return nil, err
		}
	}
	first := c.nodes[0]
	for i, n := range c.nodes {
		bus, err := n.client.ConfigGet(ctx, "cluster-port").Result()
		if err != nil {
			return nil, err
		}
		if err := first.client.Do(ctx, "cluster", "meet", "127.0.0.1", n.port, bus["cluster-port"]).Err(); err != nil {
			return nil, err
		}
		if i < clusterMasters {
			from, to := clusterSlots*i/clusterMasters, clusterSlots*(i+1)/clusterMasters-1
			if err := n.client.ClusterAddSlotsRange(ctx, from, to).Err(); err != nil {
				return nil, err
			}
		}
	}
	for i, n := range c.nodes[clusterMasters:] {
		// A node that has not yet heard of the other says that it is unknown.
		err := eventually(repair, func(ctx context.Context) error {
			return n.client.ClusterReplicate(ctx, c.ids[c.nodes[i]]).Err()
		})
		if err != nil {
			return nil, err
		}
	}
	return c, eventually(repair, c.whole)
}

// target implements [store].
func (c *cluster) target(int) redisTarget {
	return redisTarget{Kind: targetCluster, Addrs: addrsOf(c.nodes)}
}

// stop implements [store].
func (c *cluster) stop() {
	stopNodes(c.nodes)
}

// whole returns nil where every slot is served, every node agrees, and each
// master has a replica that is up to date.
func (c *cluster) whole(ctx context.Context) error {
	for _, n := range c.nodes {
		text, err := n.client.ClusterInfo(ctx).Result()
		if err != nil {
			return err
		}
		if !strings.Contains(text, "cluster_state:ok") || !strings.Contains(text, fmt.Sprint("cluster_known_nodes:", len(c.nodes))) ||
			!strings.Contains(text, fmt.Sprint("cluster_slots_ok:", clusterSlots)) {
			return errors.New("the cluster is not whole")
		}
	}
	masters, err := c.masters(ctx)
	if err != nil {
		return err
	}
	if len(masters) != clusterMasters {
		return fmt.Errorf("%d masters", len(masters))
	}
	for _, n := range masters {
		if err := n.inSync(ctx, 1); err != nil {
			return err
		}
	}
	return nil
}

// masters returns the nodes that serve slots, in the order of the nodes.
func (c *cluster) masters(ctx context.Context) ([]*node, error) {
	var masters []*node
	for _, n := range c.nodes {
		if n.process.ended() {
			continue
		}
		role, err := n.client.Do(ctx, "role").Slice()
		if err != nil {
			return nil, err
		}
		if role[0] == "master" {
			masters = append(masters, n)
		}
	}
	return masters, nil
}

// inject implements [store].
func (c *cluster) inject(f planned) (func() (bool, error), error) {
	ctx := context.Background()
	masters, err := c.masters(ctx)
	if err != nil {
		return nil, err
	}
	if len(masters) < 2 {
		return nil, errors.New("fewer than two masters are left")
	}
	from := int(f.choice * float64(len(masters)))
	if f.kind == faultMasterLoss {
		return c.kill(masters[from])
	}
	return c.move(ctx, masters[from], masters[(from+1)%len(masters)], masters)
}

// kill kills a master. To heal, it waits for its replica to take over and
// starts it again, as the replica.
func (c *cluster) kill(lost *node) (func() (bool, error), error) {
	lost.process.kill()
	return func() (bool, error) {
		err := eventually(repair, func(ctx context.Context) error {
			masters, err := c.masters(ctx)
			if err == nil && len(masters) != clusterMasters {
				err = errors.New("no replica took over")
			}
			return err
		})
		if err != nil {
			return true, err
		}
		if err := lost.start(); err != nil {
			return true, err
		}
		return true, eventually(repair, c.whole)
	}, nil
}

// move begins to migrate some slots with keys. Until it is healed, a key that
// is not yet there is made at the new place (ASK); then the keys are moved.
func (c *cluster) move(ctx context.Context, from, to *node, masters []*node) (func() (bool, error), error) {
	slots, err := c.slotsOf(ctx, from)
	if err != nil {
		return nil, err
	}
	slots = slots[:min(movedAtOnce, len(slots))]
	err = errors.Join(
		setSlots(ctx, to, slots, "importing", c.ids[from]),
		setSlots(ctx, from, slots, "migrating", c.ids[to]))
	if err != nil {
		return nil, err
	}
	return func() (bool, error) {
		for _, slot := range slots {
			if err := moveKeys(ctx, from, to, slot); err != nil {
				return false, err
			}
		}
		// The new owner is told first: what it serves it answers for.
		for _, n := range append([]*node{to, from}, masters...) {
			if err := setSlots(ctx, n, slots, "node", c.ids[to]); err != nil {
				return false, err
			}
		}
		return false, nil
	}, nil
}

// slotsOf returns the slots that a master serves.
func (c *cluster) slotsOf(ctx context.Context, n *node) ([]int, error) {
	shards, err := n.client.ClusterShards(ctx).Result()
	if err != nil {
		return nil, err
	}
	var slots []int
	for _, shard := range shards {
		if !slices.ContainsFunc(shard.Nodes, func(other redis.Node) bool { return other.ID == c.ids[n] }) {
			continue
		}
		for _, served := range shard.Slots {
			for slot := served.Start; slot <= served.End; slot++ {
				slots = append(slots, int(slot))
			}
		}
	}
	slices.Sort(slots)
	return slots, nil
}

// setSlots tells a node of the state of some slots.
func setSlots(ctx context.Context, n *node, slots []int, state, id string) error {
	_, err := n.client.Pipelined(ctx, func(p redis.Pipeliner) error {
		for _, slot := range slots {
			p.Do(ctx, "cluster", "setslot", slot, state, id)
		}
		return nil
	})
	return err
}

// moveKeys moves all keys of a slot.
func moveKeys(ctx context.Context, from, to *node, slot int) error {
	for {
		keys, err := from.client.ClusterGetKeysInSlot(ctx, slot, 100).Result()
		if err != nil || len(keys) == 0 {
			return err
		}
		args := []any{"migrate", "127.0.0.1", to.port, "", 0, 5000, "keys"}
		for _, key := range keys {
			args = append(args, key)
		}
		if err := from.client.Do(ctx, args...).Err(); err != nil {
			return err
		}
	}
}
