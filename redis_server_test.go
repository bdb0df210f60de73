package idempotency_test

import (
	"bytes"
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

	"github.com/alicebob/miniredis/v2"
	"github.com/idempotency-go/idempotency"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/stretchr/testify/require"
)

func TestMain(m *testing.M) {
	logging.Disable() // go-redis says on stderr that a server is gone; some tests want it gone.
	code := m.Run()
	stopServers()
	os.Exit(code)
}

// forEachBackend runs test as a subtest for each backend: memory, miniredis,
// and a real Redis, which is skipped where there is none. newBackend gives a
// fresh and empty backend at each call.
func forEachBackend(t *testing.T, test func(t *testing.T, newBackend func(t *testing.T) idempotency.Backend)) {
	t.Helper()
	t.Run("memory", func(t *testing.T) {
		test(t, func(*testing.T) idempotency.Backend { return idempotency.NewMemory() })
	})
	forEachRedis(t, func(t *testing.T, newClient func(t *testing.T) *redis.Client) {
		test(t, func(t *testing.T) idempotency.Backend {
			client := newClient(t)
			return idempotency.NewRedis(client, idempotency.WithPrefix(freshPrefix(t, client)))
		})
	})
}

// forEachRedis runs test as a subtest for miniredis and for a real Redis, which
// is skipped where there is none.
func forEachRedis(t *testing.T, test func(t *testing.T, newClient func(t *testing.T) *redis.Client)) {
	t.Helper()
	t.Run("miniredis", func(t *testing.T) { test(t, miniRedis) })
	t.Run("redis", func(t *testing.T) {
		realRedis(t) // It skips the whole subtest where there is no Redis.
		test(t, realRedis)
	})
}

// freshPrefix returns a prefix that no other test uses, and deletes the keys
// that begin with it when the test is over. Tests may run against a database
// that has other keys in it, and leave those alone.
func freshPrefix(t *testing.T, client *redis.Client) string {
	t.Helper()
	prefix := "idempotency-test:" + rand.Text() + ":"
	t.Cleanup(func() {
		ctx := context.Background()
		keys := client.Scan(ctx, 0, prefix+"*", 1000).Iterator()
		for keys.Next(ctx) {
			client.Del(ctx, keys.Val())
		}
	})
	return prefix
}

// miniRedis returns a client on a miniredis of its own.
//
// Keys in miniredis do not age by themselves. They age by the time that has gone
// by whenever a command is about to be sent: no key is ever older than the call
// that wrote it, however slow the machine is, which a goroutine with a ticker
// could not promise.
func miniRedis(t *testing.T) *redis.Client {
	t.Helper()
	server := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { client.Close() })
	client.AddHook(&agingHook{server: server, last: time.Now()})
	return client
}

// agingHook lets the keys of a miniredis age before each command.
type agingHook struct {
	server *miniredis.Miniredis
	mu     sync.Mutex
	last   time.Time
}

func (h *agingHook) age() {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	h.server.FastForward(now.Sub(h.last))
	h.last = now
}

func (h *agingHook) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h *agingHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		h.age()
		return next(ctx, cmd)
	}
}

func (h *agingHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		h.age()
		return next(ctx, cmds)
	}
}

// redisVariable names a Redis to test against, as a redis:// URL.
const redisVariable = "IDEMPOTENCY_TEST_REDIS"

// realRedis returns a client on a real Redis: the one that the environment
// names, or else one that is started for all tests of this process. It skips
// the test where there is neither.
func realRedis(t *testing.T) *redis.Client {
	t.Helper()
	if url := os.Getenv(redisVariable); url != "" {
		opts, err := redis.ParseURL(url)
		require.NoError(t, err, redisVariable)
		client := redis.NewClient(opts)
		t.Cleanup(func() { client.Close() })
		require.NoError(t, client.Ping(t.Context()).Err(), "no Redis answers where %s points to", redisVariable)
		return client
	}
	opts := sharedServer(t)
	client := redis.NewClient(opts)
	t.Cleanup(func() { client.Close() })
	return client
}

// servers are the Redis servers that this process has started.
var servers struct {
	mu     sync.Mutex
	shared *redisServer
	err    error // why there is no shared one
	all    []*redisServer
}

func sharedServer(t *testing.T) *redis.Options {
	t.Helper()
	requireRedisServer(t)
	servers.mu.Lock()
	defer servers.mu.Unlock()
	if servers.shared == nil && servers.err == nil {
		servers.shared, servers.err = startServer()
	}
	require.NoError(t, servers.err)
	return servers.shared.options()
}

// ownServer starts a Redis for this test alone, with further lines for its
// configuration. It skips the test where there is no redis-server.
func ownServer(t *testing.T, config ...string) *redisServer {
	t.Helper()
	requireRedisServer(t)
	servers.mu.Lock()
	defer servers.mu.Unlock()
	server, err := startServer(config...)
	require.NoError(t, err)
	t.Cleanup(server.stop)
	return server
}

func requireRedisServer(t *testing.T) {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skipf("SKIPPED, NOT TESTED AGAINST A REAL REDIS: the tests cannot start one on Windows. Set %s to the URL of one.", redisVariable)
	}
	for _, program := range []string{"redis-server", "sh"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("SKIPPED, NOT TESTED AGAINST A REAL REDIS: there is no %s on the PATH. "+
				"Install Redis 7 or newer (Debian's package is redis-server), or set %s to the URL of one, "+
				"such as redis://127.0.0.1:6379/0; the tests delete the keys that they make, and no others.", program, redisVariable)
		}
	}
}

// stopServers stops what is still running when all tests are over.
func stopServers() {
	servers.mu.Lock()
	defer servers.mu.Unlock()
	for _, server := range servers.all {
		server.stop()
	}
}

// redisServer is a Redis that this process has started.
type redisServer struct {
	addr     string
	password string
	dir      string
	parent   *exec.Cmd
	output   bytes.Buffer  // what the server said; to be read when it is gone
	alive    *os.File      // The server is killed when this is closed.
	gone     chan struct{} // It is closed when the parent has ended, and the server before it.
	stopOnce sync.Once
}

// serverScript is the parent of a server. It kills the server when its standard
// input ends: when this process closes the other end of the pipe, or ends in
// whatever way. A signal to the whole process group, such as a Ctrl-C, does not
// keep it from doing so. The server has nothing to save.
const serverScript = `
trap '' HUP INT QUIT TERM
exec 3<&0
redis-server "$1/redis.conf" >"$1/output" 2>&1 3<&- &
server=$!
{ read -r line <&3; kill -KILL "$server"; } &
watcher=$!
wait "$server"
kill -KILL "$watcher"
cat "$1/output"
rm -rf "$1"
`

// startServer starts a Redis on a free port. Another process may take the port
// before the server does, so it tries more than once.
func startServer(config ...string) (*redisServer, error) {
	var failed error
	for range 5 {
		server, err := tryServer(config)
		if err == nil {
			servers.all = append(servers.all, server)
			return server, nil
		}
		failed = err
	}
	return nil, failed
}

func tryServer(config []string) (*redisServer, error) {
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	bus, err := freeAddr() // It is used with cluster-enabled.
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "idempotency-redis-")
	if err != nil {
		return nil, err
	}
	// With the password, no other server can be taken for this one.
	server := &redisServer{addr: addr.String(), password: rand.Text(), dir: dir, gone: make(chan struct{})}
	text := fmt.Sprintf("bind 127.0.0.1\nport %d\nrequirepass %s\ndir \"%s\"\nsave \"\"\nappendonly no\ndaemonize no\ncluster-port %d\n",
		addr.Port, server.password, dir, bus.Port)
	for _, line := range config {
		text += line + "\n"
	}
	if err := os.WriteFile(filepath.Join(dir, "redis.conf"), []byte(text), 0o600); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	// The server does not inherit this process's output: go test would wait for
	// its end.
	server.parent = exec.Command("sh", "-c", serverScript, "sh", dir)
	server.parent.Stdin = read
	server.parent.Stdout = &server.output
	server.alive = write
	err = server.parent.Start()
	read.Close()
	if err != nil {
		return nil, errors.Join(err, write.Close(), os.RemoveAll(dir))
	}
	go func() {
		_ = server.parent.Wait() // Its status is that of the script's last command.
		close(server.gone)
	}()
	if err := server.waitUntilUp(); err != nil {
		server.stop()
		return nil, fmt.Errorf("redis-server did not start: %w\n%s", err, server.output.String())
	}
	return server, nil
}

func freeAddr() (*net.TCPAddr, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	return listener.Addr().(*net.TCPAddr), listener.Close()
}

// waitUntilUp pings until the server answers, or has ended.
func (s *redisServer) waitUntilUp() error {
	client := redis.NewClient(s.options())
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
		case <-s.gone:
			return errors.Join(errors.New("it ended"), err)
		case <-ctx.Done():
			return err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (s *redisServer) options() *redis.Options {
	return &redis.Options{Addr: s.addr, Password: s.password}
}

// client returns a client that is closed when the test is over.
func (s *redisServer) client(t *testing.T) *redis.Client {
	t.Helper()
	client := redis.NewClient(s.options())
	t.Cleanup(func() { client.Close() })
	return client
}

// stop kills the server and waits for its end.
func (s *redisServer) stop() {
	s.stopOnce.Do(func() { s.alive.Close() })
	<-s.gone
}
