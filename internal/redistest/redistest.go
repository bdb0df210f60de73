// Package redistest gives tests a real Redis: the one that the environment
// names, or one that is started on a free loopback port and ends with the test
// process, in whatever way that ends. With [Run] a program that is no test gets
// one too.
package redistest

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

	"github.com/redis/go-redis/v9"
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
	server := &Server{addr: addr.String(), password: rand.Text(), dir: dir, gone: make(chan struct{})}
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
		server.Stop()
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
		case <-s.gone:
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
func (s *Server) Stop() {
	s.stopOnce.Do(func() { s.alive.Close() })
	<-s.gone
}
