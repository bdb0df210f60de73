package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"
)

// node is a redis-server, or a sentinel, that can be killed and started again
// on the same port and with the same files.
type node struct {
	port    int
	dir     string
	args    []string
	process *process
	client  *redis.Client // for the harness, past any proxy
}

// startNode starts a redis-server with further lines for its configuration.
func startNode(dir string, args []string, config ...string) (*node, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	bus, err := freePort() // It is used with cluster-enabled.
	if err != nil {
		return nil, err
	}
	n := &node{port: port, dir: filepath.Join(dir, fmt.Sprint("redis-", port)), args: args}
	if err := os.Mkdir(n.dir, 0o700); err != nil {
		return nil, err
	}
	text := fmt.Sprintf("bind 127.0.0.1\nport %d\ndir \"%s\"\n", port, n.dir)
	if len(args) == 0 {
		text += fmt.Sprintf("save \"\"\ncluster-port %d\nrepl-diskless-sync-delay 0\nenable-debug-command local\n", bus)
	}
	for _, line := range config {
		text += line + "\n"
	}
	if err := os.WriteFile(n.config(), []byte(text), 0o600); err != nil {
		return nil, err
	}
	n.client = redis.NewClient(&redis.Options{Addr: n.addr(), MaxRetries: -1, DialerRetries: 1,
		DialTimeout: time.Second, ReadTimeout: 10 * time.Second, ContextTimeoutEnabled: true})
	return n, n.start()
}

func (n *node) addr() string   { return loopback(n.port) }
func (n *node) config() string { return filepath.Join(n.dir, "redis.conf") }

// start starts the process, with further arguments, and returns when it answers.
func (n *node) start(more ...string) error {
	log, err := os.OpenFile(filepath.Join(n.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close() // The child has its own.
	n.process, err = startProcess(log, "redis-server", slices.Concat([]string{n.config()}, n.args, more)...)
	if err != nil {
		return err
	}
	return eventually(20*time.Second, func(ctx context.Context) error {
		if n.process.ended() {
			return fmt.Errorf("redis-server on port %d ended", n.port)
		}
		return n.client.Ping(ctx).Err()
	})
}

// ping returns nil if the process answers.
func (n *node) ping(ctx context.Context) error { return n.client.Ping(ctx).Err() }

// stop kills the process and lets go of what the harness has of it.
func (n *node) stop() {
	if n.process != nil {
		n.process.kill()
	}
	n.client.Close()
}

// addrsOf returns the addresses of nodes.
func addrsOf(nodes []*node) []string {
	var addrs []string
	for _, n := range nodes {
		addrs = append(addrs, n.addr())
	}
	return addrs
}

// stopNodes stops nodes.
func stopNodes(nodes []*node) {
	for _, n := range nodes {
		n.stop()
	}
}

// eventually calls f until it returns nil, or returns its last error when the
// time is over.
func eventually(d time.Duration, f func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	for {
		err := f(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %v: %w", d, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
