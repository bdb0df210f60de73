package main

import (
	"context"
	"strings"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/idempotency-go/idempotency"
)

const (
	scanBatch   = 1000 // how many keys Redis looks at for one SCAN
	scanLookups = 32   // how many records are looked up at once
)

// redisStore is a Redis, or a Redis Cluster.
type redisStore struct {
	*idempotency.Redis
	client redis.UniversalClient
	prefix string
}

func newRedisStore(client redis.UniversalClient, prefix string) *redisStore {
	return &redisStore{idempotency.NewRedis(client, idempotency.WithPrefix(prefix)), client, prefix}
}

func (s *redisStore) close() { s.client.Close() }

// count scans the keys of the server, or of every master.
func (s *redisStore) count(c *command, t *tally) error {
	if cluster, ok := s.client.(*redis.ClusterClient); ok {
		return cluster.ForEachMaster(context.Background(), func(_ context.Context, master *redis.Client) error {
			return s.scan(c, master, t)
		})
	}
	return s.scan(c, s.client, t)
}

// literal makes of a prefix a pattern that matches it alone.
var literal = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`)

// scan counts the records of one server. A record that was there all the time is counted,
// and if Redis makes its table smaller meanwhile, perhaps twice.
func (s *redisStore) scan(c *command, server redis.Cmdable, t *tally) error {
	pattern := literal.Replace(s.prefix) + "*"
	for cursor := uint64(0); ; {
		var names []string
		err := c.within(func(ctx context.Context) (err error) {
			names, cursor, err = server.Scan(ctx, cursor, pattern, scanBatch).Result()
			return err
		})
		if err != nil {
			return err
		}
		var lookups errgroup.Group
		lookups.SetLimit(scanLookups)
		foreign := 0
		for _, name := range names {
			key, ok := parseStorageKey(strings.TrimPrefix(name, s.prefix))
			if !ok {
				foreign++
				continue
			}
			lookups.Go(func() error {
				return c.within(func(ctx context.Context) error {
					rec, _, ok, err := s.Lookup(ctx, key)
					return t.add(key, rec, ok, err)
				})
			})
		}
		if err := lookups.Wait(); err != nil {
			return err
		}
		t.step(len(names), foreign)
		if cursor == 0 {
			return nil
		}
	}
}
