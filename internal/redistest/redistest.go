// Package redistest gives tests a real Redis: the one that the environment
// names, or one that is started on a free loopback port and ends with the test
// process, in whatever way that ends. With [Run] a program that is no test gets
// one too.
package redistest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/idempotency-go/idempotency/internal/leash"
)

// Variable names a Redis to test against, as a redis:// URL.
const Variable = "IDEMPOTENCY_TEST_REDIS"

// Client returns a client on a real Redis: the one that the environment names,
// or else one that is started for all tests of this process. It skips the test
// where there is neither. It is closed when the test is over.
func Client(t testing.TB) *redis.Client {
	t.Helper()
	url := os.Getenv(Variable)
	if url == "" {
		return sharedServer(t).Client(t)
	}
	opts, err := redis.ParseURL(url)
	if err != nil {
		t.Fatalf("%s: %v", Variable, err)
	}
	client := redis.NewClient(opts)
	t.Cleanup(func() { client.Close() })
	if err := client.Ping(t.Context()).Err(); err != nil {
		t.Fatalf("no Redis answers where %s points to: %v", Variable, err)
	}
	return client
}

// Start starts a Redis for this test alone, with further lines for its
// configuration, and stops it when the test is over. It skips the test where
// there is no redis-server.
func Start(t testing.TB, config ...string) *Server {
	t.Helper()
	requireRedisServer(t)
	server, err := startServer(config...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	return server
}

// Run starts a Redis for a program that is no test, with further lines for its
// configuration. The caller stops it; at the latest it ends with the process.
func Run(config ...string) (*Server, error) {
	if _, err := exec.LookPath("redis-server"); err != nil {
		return nil, fmt.Errorf("no Redis 7 or newer to start: %w", err)
	}
	return startServer(config...)
}

// shared is the server that Client has started.
var shared struct {
	mu     sync.Mutex
	server *Server
	err    error // why there is none
}

func sharedServer(t testing.TB) *Server {
	t.Helper()
	requireRedisServer(t)
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.server == nil && shared.err == nil {
		shared.server, shared.err = startServer()
	}
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.server
}

// Stop stops the server that Client has started, when all tests are over.
func Stop() {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.server != nil {
		shared.server.Stop()
	}
}

func requireRedisServer(t testing.TB) {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skipf("SKIPPED, NOT TESTED AGAINST A REAL REDIS: the tests cannot start one on Windows. Set %s to the URL of one.", Variable)
	}
	for _, program := range []string{"redis-server", "sh"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("SKIPPED, NOT TESTED AGAINST A REAL REDIS: there is no %s on the PATH. "+
				"Install Redis 7 or newer (Debian's package is redis-server), or set %s to the URL of one, "+
				"such as redis://127.0.0.1:6379/0; the tests delete the keys that they make, and no others.", program, Variable)
		}
	}
}

// Server is a Redis that this process has started.
type Server struct {
	addr     string
	password string
	process  *leash.Server
}

// startServer starts a Redis on a free port. Another process may take the port
// before the server does, so it tries more than once.
func startServer(config ...string) (*Server, error) {
	var failed error
	for range 5 {
		server, err := tryServer(config)
		if err == nil {
			return server, nil
		}
		failed = err
	}
	return nil, failed
}

func tryServer(config []string) (*Server, error) {
	addr, err := leash.FreeAddr()
	if err != nil {
		return nil, err
	}
	bus, err := leash.FreeAddr() // It is used with cluster-enabled.
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "idempotency-redis-")
	if err != nil {
		return nil, err
	}
	// With the password, no other server can be taken for this one.
	server := &Server{addr: addr.String(), password: rand.Text()}
	text := fmt.Sprintf("bind 127.0.0.1\nport %d\nrequirepass %s\ndir \"%s\"\nsave \"\"\nappendonly no\ndaemonize no\ncluster-port %d\n",
		addr.Port, server.password, dir, bus.Port)
	for _, line := range config {
		text += line + "\n"
	}
	settings := filepath.Join(dir, "redis.conf")
	if err := os.WriteFile(settings, []byte(text), 0o600); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	// The server has nothing to save.
	server.process, err = leash.Start(dir, "KILL", nil, "redis-server", settings)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err := server.waitUntilUp(); err != nil {
		server.Stop()
		return nil, fmt.Errorf("redis-server did not start: %w\n%s", err, server.process.Output())
	}
	return server, nil
}

// waitUntilUp pings until the server answers, or has ended.
func (s *Server) waitUntilUp() error {
	client := redis.NewClient(s.Options())
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	for {
		conn, err := net.Dial("tcp", s.addr)
		if err == nil {
			conn.Close()
			if err = client.Ping(ctx).Err(); err == nil {
				return nil
			}
		}
		select {
		case <-s.process.Gone():
			return errors.Join(errors.New("it ended"), err)
		case <-ctx.Done():
			return err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// Options returns what a client needs to reach the server.
func (s *Server) Options() *redis.Options {
	return &redis.Options{Addr: s.addr, Password: s.password}
}

// URL returns the same as a redis:// URL.
func (s *Server) URL() string { return fmt.Sprintf("redis://:%s@%s/0", s.password, s.addr) }

// Client returns a client that is closed when the test is over.
func (s *Server) Client(t testing.TB) *redis.Client {
	t.Helper()
	client := redis.NewClient(s.Options())
	t.Cleanup(func() { client.Close() })
	return client
}

// Stop kills the server and waits for its end. A second call does nothing.
func (s *Server) Stop() { s.process.Stop() }
