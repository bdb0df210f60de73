// Package pgtest gives tests a real PostgreSQL: the one that the environment
// names, or one that is started on a free loopback port and ends with the test
// process, in whatever way that ends. With [Run] a program that is no test gets
// one too. It needs PostgreSQL's programs and no client.
package pgtest

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/idempotency-go/idempotency/internal/leash"
)

// Variable names a PostgreSQL to test against, as a postgres:// URL.
const Variable = "IDEMPOTENCY_TEST_POSTGRES"

// URL returns the URL of a real PostgreSQL: the one that the environment names,
// or else one that is started for all tests of this process; see [Stop]. It skips
// the test where there is neither.
func URL(t testing.TB) string {
	t.Helper()
	if named := os.Getenv(Variable); named != "" {
		return named
	}
	require(t)
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.server == nil && shared.err == nil {
		shared.server, shared.err = Run()
	}
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.server.URL()
}

// shared is the server that URL has started.
var shared struct {
	mu     sync.Mutex
	server *Server
	err    error // why there is none
}

// Stop stops the server that URL has started, when all tests are over.
func Stop() {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.server != nil {
		shared.server.Stop()
	}
}

// Start starts a PostgreSQL for this test alone, and stops it when the test is
// over. It skips the test where PostgreSQL is not installed.
func Start(t testing.TB) *Server {
	t.Helper()
	require(t)
	server, err := Run()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	return server
}

func require(t testing.TB) {
	t.Helper()
	if err := Missing(); err != nil {
		t.Skipf("SKIPPED, NOT TESTED AGAINST A REAL POSTGRESQL: %v. Install it (Debian's package is postgresql), or set %s "+
			"to the URL of one, such as postgres://user:password@127.0.0.1:5432/database; the tests make tables of their own.", err, Variable)
	}
}

// Missing returns what keeps this machine from running a PostgreSQL, or nil.
func Missing() error {
	_, err := programs()
	return errors.Join(err, missingHere())
}

// programs returns where the server's programs are: Debian does not put them on
// the PATH.
func programs() (string, error) {
	if path, err := exec.LookPath("initdb"); err == nil {
		return filepath.Dir(path), nil
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb") // The pattern is not malformed.
	if len(found) == 0 {
		return "", errors.New("there is no initdb, neither on the PATH nor in /usr/lib/postgresql")
	}
	version := func(path string) int {
		n, _ := strconv.Atoi(strings.Split(path, "/")[4])
		return n
	}
	newest := slices.MaxFunc(found, func(a, b string) int { return version(a) - version(b) })
	return filepath.Dir(newest), nil
}

// Server is a PostgreSQL that this process has started.
type Server struct {
	dir      string
	programs string
	port     int
	password string
	process  *leash.Server
}

// Run starts a PostgreSQL for a program that is no test. The caller stops it; at
// the latest it ends with the process. What is committed outlives the server's
// process, as in any PostgreSQL, but not the machine's: it does not sync.
func Run() (*Server, error) {
	if err := Missing(); err != nil {
		return nil, err
	}
	programs, err := programs()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "idempotency-postgres-")
	if err != nil {
		return nil, err
	}
	s := &Server{dir: dir, programs: programs, password: rand.Text()}
	if err := s.initialize(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	// Another process may take the port before the server does.
	for range 5 {
		if err = s.newPort(); err != nil {
			break
		}
		if err = s.start(); err == nil {
			return s, nil
		}
	}
	return nil, errors.Join(err, os.RemoveAll(dir))
}

func (s *Server) newPort() error {
	addr, err := leash.FreeAddr()
	if err == nil {
		s.port = addr.Port
	}
	return err
}

// initialize makes the server's data folder.
func (s *Server) initialize() error {
	secret := filepath.Join(s.dir, "password")
	if err := os.WriteFile(secret, []byte(s.password), 0o600); err != nil {
		return err
	}
	initdb := exec.Command(filepath.Join(s.programs, "initdb"), "--pgdata", s.data(), "--username", "postgres",
		"--pwfile", secret, "--auth", "scram-sha-256", "--no-locale", "--encoding", "UTF8", "--no-sync")
	initdb.Dir = s.dir
	if err := own(s.dir); err != nil {
		return err
	}
	asOwner(initdb)
	if said, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, said)
	}
	return nil
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

// start starts the server on its port. Its folder is kept if that fails.
func (s *Server) start() error {
	if err := errors.Join(leash.Keep(s.dir, true), os.RemoveAll(s.output())); err != nil {
		return err
	}
	args := []string{"-D", s.data()}
	for _, setting := range []string{"listen_addresses=127.0.0.1", fmt.Sprintf("port=%d", s.port), "unix_socket_directories=",
		"fsync=off", "max_connections=300", "shared_buffers=64MB"} {
		args = append(args, "-c", setting)
	}
	// SIGQUIT is PostgreSQL's immediate shutdown.
	process, err := leash.Start(s.dir, "QUIT", func(cmd *exec.Cmd) { cmd.Dir = s.dir; asOwner(cmd) }, filepath.Join(s.programs, "postgres"), args...)
	if err != nil {
		return err
	}
	s.process = process
	if err := s.waitUntilUp(); err != nil {
		return err
	}
	return leash.Keep(s.dir, false)
}

// output is where the server says what it does.
func (s *Server) output() string { return filepath.Join(s.dir, "output") }

// waitUntilUp reads what the server says until it takes connections.
func (s *Server) waitUntilUp() error {
	for end := time.Now().Add(2 * time.Minute); ; {
		said, _ := os.ReadFile(s.output()) // It may not be there yet.
		if bytes.Contains(said, []byte("database system is ready to accept connections")) {
			return nil
		}
		select {
		case <-s.process.Gone():
			return fmt.Errorf("postgres ended:\n%s", s.process.Output())
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(end) {
			s.process.Stop()
			return fmt.Errorf("postgres did not start:\n%s", s.process.Output())
		}
	}
}

// URL returns what a client needs to reach the server, as its superuser.
func (s *Server) URL() string {
	u := url.URL{Scheme: "postgres", User: url.UserPassword("postgres", s.password), Host: s.Addr(), Path: "postgres", RawQuery: "sslmode=disable"}
	return u.String()
}

// Addr returns where the server listens.
func (s *Server) Addr() string { return fmt.Sprintf("127.0.0.1:%d", s.port) }

// Kill kills the server with SIGKILL, which it survives as after a crash: call
// Restart next.
func (s *Server) Kill() error {
	if err := leash.Keep(s.dir, true); err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(s.data(), "postmaster.pid"))
	if err != nil {
		return err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(line)
	if err != nil {
		return err
	}
	process, err := os.FindProcess(pid)
	if err != nil {
		return err
	}
	if err := process.Kill(); err != nil {
		return err
	}
	s.process.Stop()
	return nil
}

// Restart starts a server that was killed, on the same port.
func (s *Server) Restart() error {
	var err error
	// Its children hold its memory until they have ended by themselves, soon.
	for range 50 {
		if err = s.start(); err == nil {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return err
}

// Stop stops the server and waits for its end. A second call does nothing.
func (s *Server) Stop() {
	s.process.Stop()
	_ = os.RemoveAll(s.dir) // Its own user may not remove it from every folder.
}
