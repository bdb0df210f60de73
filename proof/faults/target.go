package main

import (
	"time"

	"github.com/redis/go-redis/v9"
)

// redisTarget says how a server process reaches its Redis.
type redisTarget struct {
	Kind  string   `json:"kind"` // targetSingle, targetSentinel or targetCluster
	Addrs []string `json:"addrs"`

	AsItComes bool `json:"asItComes"` // with go-redis's own settings
}

// The kinds of a Redis.
const (
	targetSingle   = "single"
	targetSentinel = "sentinel"
	targetCluster  = "cluster"

	masterName = "payments" // as the sentinels call the master
)

// client returns a client as it comes, or one whose every call ends soon: the
// settings that the wait table shows to bound it.
func (t redisTarget) client() redis.UniversalClient {
	if t.AsItComes {
		return redis.NewUniversalClient(&redis.UniversalOptions{Addrs: t.Addrs})
	}
	options := &redis.UniversalOptions{
		Addrs:                 t.Addrs,
		IsClusterMode:         t.Kind == targetCluster,
		DialTimeout:           300 * time.Millisecond,
		DialerRetries:         1,
		ReadTimeout:           300 * time.Millisecond,
		WriteTimeout:          300 * time.Millisecond,
		PoolTimeout:           300 * time.Millisecond,
		MaxRetries:            1,
		ContextTimeoutEnabled: true,
	}
	if t.Kind == targetSentinel {
		options.MasterName = masterName
	}
	return redis.NewUniversalClient(options)
}
