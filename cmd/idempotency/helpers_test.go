package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/internal/pgtest"
	"github.com/idempotency-go/idempotency/internal/redistest"
	"github.com/idempotency-go/idempotency/postgres"
)

// asProgram makes the process of the tests the program itself.
const asProgram = "IDEMPOTENCY_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
	}
	logging.Disable() // As main does.
	status := m.Run()
	redistest.Stop()
	pgtest.Stop()
	os.Exit(status)
}

// program returns the program as a process that is about to start. It sees no store in
// the environment but those in env.
func program(t *testing.T, env []string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, self, args...)
	for _, variable := range os.Environ() {
		if name, _, _ := strings.Cut(variable, "="); name != redisVariable && name != postgresVariable && !strings.HasPrefix(name, "PG") {
			cmd.Env = append(cmd.Env, variable)
		}
	}
	// The race detector would let each process wait for a second at its end.
	cmd.Env = append(append(cmd.Env, asProgram+"=1", "GORACE=atexit_sleep_ms=0"), env...)
	return cmd
}

// result is what a process came to.
type result struct {
	status         int
	stdout, stderr string
}

// execute runs the program.
func execute(t *testing.T, stdin string, env []string, args ...string) result {
	t.Helper()
	cmd := program(t, env, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		require.ErrorAs(t, err, new(*exec.ExitError))
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// requireFailed requires that the program failed with one line that says so much.
func (r result) requireFailed(t *testing.T, status int, says string) {
	t.Helper()
	require.Equal(t, status, r.status, r)
	require.Regexp(t, `(?s)^idempotency: [^\n]+\n$`, r.stderr)
	require.Contains(t, r.stderr, says)
	require.NotContains(t, r.stderr, "hunter2")
}

// backend is what a test needs of a store to fill it.
type backend interface {
	idempotency.Backend
	idempotency.Inspector
}

// testStore is a store that a test has to itself.
type testStore struct {
	backend
	flags []string // They name the store.
	// spoil makes the record of a key unreadable.
	spoil func(t *testing.T, key idempotency.Key)
}

// run runs a command on the store.
func (s testStore) run(t *testing.T, command string, args ...string) result {
	t.Helper()
	return execute(t, "", nil, append(append([]string{command}, s.flags...), args...)...)
}

// eachStore runs a test for each store, in parallel to others. The real ones are skipped
// where there are none.
func eachStore(t *testing.T, test func(t *testing.T, s testStore)) {
	t.Helper()
	t.Parallel()
	for name, newStore := range map[string]func(t *testing.T) testStore{
		"miniredis": func(t *testing.T) testStore { return miniredisStore(t, prefixFor()) },
		"redis":     func(t *testing.T) testStore { return realRedisStore(t, prefixFor()) },
		"cluster":   func(t *testing.T) testStore { return clusterStore(t, prefixFor()) },
		"postgres":  newPostgres,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, newStore(t))
		})
	}
}

// prefixFor returns a prefix that no other test uses, and that would match other keys
// than those that begin with it if it was taken for a pattern.
func prefixFor() string { return `test*[a-z]?\` + rand.Text() + ":" }

func miniredisStore(t *testing.T, prefix string) testStore {
	server := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { client.Close() })
	return onRedis(t, client, "redis://"+server.Addr(), prefix)
}

func realRedisStore(t *testing.T, prefix string) testStore {
	client := redistest.Client(t)
	if url := os.Getenv(redistest.Variable); url != "" {
		return onRedis(t, client, url, prefix)
	}
	return onRedis(t, client, urlOf(client.Options()), prefix)
}

func urlOf(opts *redis.Options) string {
	return fmt.Sprintf("redis://:%s@%s/%d", opts.Password, opts.Addr, opts.DB)
}

// clusterStore is a Redis Cluster of two masters.
func clusterStore(t *testing.T, prefix string) testStore {
	ctx := t.Context()
	first, second := redistest.Start(t, "cluster-enabled yes"), redistest.Start(t, "cluster-enabled yes")
	// A client has one password for all nodes.
	password := first.Options().Password
	secondAsIs := second.Client(t)
	require.NoError(t, secondAsIs.ConfigSet(ctx, "requirepass", password).Err())
	nodes := []*redis.Client{first.Client(t), redis.NewClient(&redis.Options{Addr: second.Options().Addr, Password: password})}
	t.Cleanup(func() { nodes[1].Close() })
	const slots = 16384
	for i, node := range nodes {
		require.NoError(t, node.ClusterAddSlotsRange(ctx, slots/2*i, slots/2*(i+1)-1).Err())
	}
	bus, err := nodes[1].ConfigGet(ctx, "cluster-port").Result()
	require.NoError(t, err)
	host, port, err := net.SplitHostPort(second.Options().Addr)
	require.NoError(t, err)
	require.NoError(t, nodes[0].Do(ctx, "cluster", "meet", host, port, bus["cluster-port"]).Err())
	for _, node := range nodes {
		require.Eventually(t, func() bool {
			info := node.ClusterInfo(ctx).Val()
			return strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_slots_ok:16384")
		}, time.Minute, 10*time.Millisecond)
	}
	client := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{first.Options().Addr}, Password: password})
	t.Cleanup(func() { client.Close() })
	return onRedis(t, client, urlOf(first.Options()), prefix)
}

func onRedis(t *testing.T, client redis.UniversalClient, url, prefix string) testStore {
	b := idempotency.NewRedis(client, idempotency.WithPrefix(prefix))
	return testStore{b, []string{"-redis", url, "-prefix", prefix}, func(t *testing.T, key idempotency.Key) {
		require.NoError(t, client.Set(t.Context(), prefix+key.String(), "broken", time.Hour).Err())
	}}
}

func newPostgres(t *testing.T) testStore {
	url := pgtest.URL(t)
	pool, err := pgxpool.New(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	table := "test_" + rand.Text()
	b := postgres.New(pool, postgres.WithTable(table))
	t.Cleanup(b.Close)
	require.NoError(t, b.Migrate(t.Context()))
	quoted := pgx.Identifier{table}.Sanitize()
	t.Cleanup(func() {
		_, err := pool.Exec(context.Background(), "DROP TABLE "+quoted)
		require.NoError(t, err)
	})
	return testStore{b, []string{"-postgres", url, "-table", table}, func(t *testing.T, key idempotency.Key) {
		_, err := pool.Exec(t.Context(), "INSERT INTO "+quoted+` (key, token, fingerprint, state, ends, trace, sweep_from)
			VALUES ($1, gen_random_uuid(), '', 9, now() + '1 hour', 0, now() + '1 hour')`, key[:])
		require.NoError(t, err)
	}}
}

// newToken returns the token of a claim that was made at that time.
func newToken(at time.Time) (token idempotency.Token) {
	rand.Read(token[:])
	for i, ms := 5, at.UnixMilli(); i >= 0; i, ms = i-1, ms>>8 {
		token[i] = byte(ms)
	}
	token[6] = token[6]&0x0F | 0x70
	return token
}

// put puts a record into a store. A response of a completed one is kept for an hour.
func put(t *testing.T, b idempotency.Backend, key idempotency.Key, state idempotency.State, response []byte) idempotency.Claim {
	t.Helper()
	claim := idempotency.Claim{Token: newToken(time.Now().Add(-3 * time.Hour)), Fingerprint: [32]byte{1}}
	_, claimed, err := b.Claim(t.Context(), key, claim, idempotency.Terms{Lease: time.Hour})
	require.NoError(t, err)
	require.True(t, claimed)
	switch state {
	case idempotency.StateInterrupted:
		require.NoError(t, b.Release(t.Context(), key, claim, time.Hour))
	case idempotency.StateCompleted:
		require.NoError(t, b.Complete(t.Context(), key, claim, response, time.Hour))
	}
	return claim
}

// timed are parts of what is printed that differ from run to run.
var timed = regexp.MustCompile(`\d{4}-\d\d-\d\dT[\d:.]+Z|\b\d[\dhm]*s\b`)

// timeless returns a text with T for each time, and for how long something takes.
func timeless(text string) string { return timed.ReplaceAllString(text, "T") }
