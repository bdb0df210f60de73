package main

import (
	"time"

	"github.com/redis/go-redis/v9"
)

// redisTarget says how a server process reaches its Redis.
type redisTarget struct {
	Kind  string   `json:"kind"` // targetSingle, targetSentinel or targetCluster
	Addrs []string `json:"addrs"`
}

// The kinds of a Redis.
const (
	targetSingle   = "single"
	targetSentinel = "sentinel"
	targetCluster  = "cluster"

	masterName = "payments" // as the sentinels call the master
)

// claimPatience is how long a claim may take with the client below, retries
// included, and still succeed: its lease began when it landed.
const claimPatience = 700 * time.Millisecond

// client returns a client whose every call ends soon: the settings that the
// wait table shows to bound it.
func (t redisTarget) client() redis.UniversalClient {
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
