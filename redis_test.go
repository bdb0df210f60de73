package idempotency_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/idempotencytest"
	"github.com/idempotency-go/idempotency/internal/redistest"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

func TestRedisConformance(t *testing.T) {
	forEachRedis(t, func(t *testing.T, newClient func(t *testing.T) *redis.Client) {
		client := newClient(t)
		idempotencytest.Run(t, func(t *testing.T) idempotency.Backend {
			return idempotency.NewRedis(client, idempotency.WithPrefix(freshPrefix(t, client)))
		})
	})
}

// A Redis Cluster refuses a command whose keys lie in several slots, and a
// script that reaches for a key that it did not name.
func TestRedisClusterConformance(t *testing.T) {
	server := redistest.Start(t, "cluster-enabled yes")
	ctx := t.Context()
	one := server.Client(t)
	require.NoError(t, one.ClusterAddSlotsRange(ctx, 0, 16383).Err())
	require.Eventually(t, func() bool {
		return strings.Contains(one.ClusterInfo(ctx).Val(), "cluster_state:ok")
	}, time.Minute, 10*time.Millisecond)
	client := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{server.Options().Addr}, Password: server.Options().Password})
	t.Cleanup(func() { client.Close() })
	idempotencytest.Run(t, func(t *testing.T) idempotency.Backend { return idempotency.NewRedis(client) })
}

// redisWire stands between a client and its server and keeps what the client
// sends.
type redisWire struct {
	addr string
	mu   sync.Mutex
	sent [][]string // command by command
	raw  strings.Builder
}

// tapped returns a client of one connection to the server of another client,
// and the wire between them. It has sent all that it sends of itself.
func tapped(t *testing.T, client *redis.Client) (*redis.Client, *redisWire) {
	t.Helper()
	opts := *client.Options()
	if opts.TLSConfig != nil {
		t.Skip("SKIPPED: the commands on a TLS connection cannot be counted")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	wire := &redisWire{addr: listener.Addr().String()}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			in, err := listener.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial(opts.Network, opts.Addr)
			if err != nil {
				in.Close()
				continue
			}
			wg.Go(func() {
				defer in.Close()
				_, _ = io.Copy(in, out)
			})
			wg.Go(func() {
				defer out.Close()
				wire.forward(out, in)
			})
		}
	})
	tap := redis.NewClient(&redis.Options{
		Addr: wire.addr, Username: opts.Username, Password: opts.Password, DB: opts.DB, Protocol: opts.Protocol, PoolSize: 1,
	})
	t.Cleanup(func() {
		tap.Close()
		listener.Close()
		wg.Wait()
	})
	require.NoError(t, tap.Ping(t.Context()).Err())
	return tap, wire
}

// forward passes on commands whole, and keeps each before it is sent.
func (w *redisWire) forward(out io.Writer, in io.Reader) {
	r := bufio.NewReader(in)
	var raw []byte
	number := func(kind byte) (int, error) {
		line, err := r.ReadBytes('\n')
		raw = append(raw, line...)
		if err != nil || line[0] != kind {
			return 0, errors.Join(err, errors.New("not a command"))
		}
		return strconv.Atoi(strings.TrimSpace(string(line[1:])))
	}
	for {
		raw = nil
		args, err := number('*')
		if err != nil {
			return
		}
		command := make([]string, args)
		for i := range command {
			size, err := number('$')
			if err != nil {
				return
			}
			text := make([]byte, size+2)
			if _, err := io.ReadFull(r, text); err != nil {
				return
			}
			raw = append(raw, text...)
			command[i] = string(text[:size])
		}
		w.mu.Lock()
		w.sent = append(w.sent, command)
		w.raw.Write(raw)
		w.mu.Unlock()
		if _, err := out.Write(raw); err != nil {
			return
		}
	}
}

// during returns the commands that are sent while f runs.
func (w *redisWire) during(f func()) [][]string {
	w.mu.Lock()
	before := len(w.sent)
	w.mu.Unlock()
	f()
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.sent[before:])
}

// names returns the names of commands, in capitals.
func names(commands [][]string) []string {
	list := []string{}
	for _, command := range commands {
		list = append(list, strings.ToUpper(command[0]))
	}
	return list
}

func TestRedisRoundTrips(t *testing.T) {
	claim := idempotency.Claim{Token: "mine", Fingerprint: [32]byte{1}}
	other := idempotency.Claim{Token: "other", Fingerprint: [32]byte{2}}
	resp := &idempotency.Response{Status: 200, Header: http.Header{"Content-Type": {"application/json"}}, Body: []byte("{}")}
	forEachRedis(t, func(t *testing.T, newClient func(t *testing.T) *redis.Client) {
		for _, d := range []time.Duration{time.Hour, 0} {
			t.Run(d.String(), func(t *testing.T) {
				plain := newClient(t)
				client, wire := tapped(t, plain)
				prefix := freshPrefix(t, plain)
				b := idempotency.NewRedis(client, idempotency.WithPrefix(prefix))
				ctx := t.Context()
				one, two := idempotency.StorageKey("", "one"), idempotency.StorageKey("", "two")

				// The server gets to know the scripts.
				require.NoError(t, b.Renew(ctx, "warm", claim, d))
				require.NoError(t, b.Release(ctx, "warm", claim))

				take := func(key string, c idempotency.Claim, claimed bool) func() {
					return func() {
						_, got, err := b.Claim(ctx, key, c, d)
						require.NoError(t, err)
						require.Equal(t, claimed, got)
					}
				}
				for _, step := range []struct {
					name, key string
					call      func()
					sent      string
				}{
					{"claim", one, take(one, claim, true), "SET"},
					{"claim again by its own token", one, take(one, claim, true), "SET"},
					{"refuse: outstanding", one, take(one, other, false), "SET"},
					{"renew", one, func() { require.NoError(t, b.Renew(ctx, one, claim, d)) }, "EVALSHA"},
					{"renew, lost", one, func() { require.ErrorIs(t, b.Renew(ctx, one, other, d), idempotency.ErrClaimLost) }, "EVALSHA"},
					{"complete, lost", one, func() {
						require.ErrorIs(t, b.Complete(ctx, one, other, resp, d), idempotency.ErrClaimLost)
					}, "EVALSHA"},
					{"release, not its own", one, func() { require.NoError(t, b.Release(ctx, one, other)) }, "EVALSHA"},
					{"complete", one, func() { require.NoError(t, b.Complete(ctx, one, claim, resp, d)) }, "EVALSHA"},
					{"complete again", one, func() { require.NoError(t, b.Complete(ctx, one, claim, resp, d)) }, "EVALSHA"},
					{"replay", one, take(one, other, false), "SET"},
					{"replay to its own token", one, take(one, claim, false), "SET"},
					{"renew a response", one, func() { require.NoError(t, b.Renew(ctx, one, claim, d)) }, "EVALSHA"},
					{"claim another", two, take(two, claim, true), "SET"},
					{"release", two, func() { require.NoError(t, b.Release(ctx, two, claim)) }, "EVALSHA"},
					{"release nothing", two, func() { require.NoError(t, b.Release(ctx, two, claim)) }, "EVALSHA"},
				} {
					commands := wire.during(step.call)
					require.Equal(t, []string{step.sent}, names(commands), step.name)
					requireOneKey(t, commands[0], prefix+step.key)
				}
			})
		}
	})
}

// requireOneKey checks that a command names one key and no other.
func requireOneKey(t *testing.T, command []string, key string) {
	t.Helper()
	switch strings.ToUpper(command[0]) {
	case "SET":
		require.Equal(t, key, command[1])
	case "EVAL", "EVALSHA":
		require.Equal(t, "1", command[2], "the number of keys")
		require.Equal(t, key, command[3])
	default:
		t.Fatalf("unknown command %q", command)
	}
}

// The server itself says which keys it sees in a command.
func TestRedisCommandGetKeys(t *testing.T) {
	plain := redistest.Client(t)
	client, wire := tapped(t, plain)
	prefix := freshPrefix(t, plain)
	b := idempotency.NewRedis(client, idempotency.WithPrefix(prefix))
	claim := idempotency.Claim{Token: "mine"}
	commands := wire.during(func() {
		_, _, err := b.Claim(t.Context(), "k", claim, time.Hour)
		require.NoError(t, err)
		require.NoError(t, b.Renew(t.Context(), "k", claim, time.Hour))
		require.NoError(t, b.Complete(t.Context(), "k", claim, &idempotency.Response{Status: 200}, time.Hour))
		require.NoError(t, b.Release(t.Context(), "k", claim))
	})
	require.GreaterOrEqual(t, len(commands), 4)
	for _, command := range commands {
		args := []any{"command", "getkeys"}
		for _, arg := range command {
			args = append(args, arg)
		}
		keys, err := plain.Do(t.Context(), args...).StringSlice()
		require.NoError(t, err)
		require.Equal(t, []string{prefix + "k"}, keys, command[0])
	}
}

// A server that was restarted does not know the scripts: each costs one command
// more, once.
func TestRedisScriptsForgotten(t *testing.T) {
	claim := idempotency.Claim{Token: "mine"}
	test := func(t *testing.T, plain *redis.Client) {
		client, wire := tapped(t, plain)
		prefix := freshPrefix(t, plain)
		b := idempotency.NewRedis(client, idempotency.WithPrefix(prefix))
		ctx := t.Context()
		known := []string{"EVALSHA"}
		forgotten := []string{"EVALSHA", "EVAL"}
		_, claimed, err := b.Claim(ctx, "k", claim, time.Hour)
		require.NoError(t, err)
		require.True(t, claimed)

		renew := func() { require.NoError(t, b.Renew(ctx, "k", claim, time.Hour)) }
		release := func() { require.NoError(t, b.Release(ctx, "k", claim)) }
		complete := func() { require.NoError(t, b.Complete(ctx, "k", claim, &idempotency.Response{Status: 200}, time.Hour)) }
		for _, call := range []func(){renew, release, complete} {
			require.NoError(t, plain.ScriptFlush(ctx).Err())
			commands := wire.during(call)
			require.Equal(t, forgotten, names(commands))
			for _, command := range commands {
				requireOneKey(t, command, prefix+"k")
			}
			require.Equal(t, known, names(wire.during(call)))
		}
		held, claimed, err := b.Claim(ctx, "k", idempotency.Claim{Token: "other"}, time.Hour)
		require.NoError(t, err)
		require.False(t, claimed)
		require.Equal(t, 200, held.Response.Status)
	}
	t.Run("miniredis", func(t *testing.T) { test(t, miniRedis(t)) })
	// The scripts of a server that is shared are not this test's to flush.
	t.Run("redis", func(t *testing.T) { test(t, redistest.Start(t).Client(t)) })
}

func TestRedisKeyNames(t *testing.T) {
	key := idempotency.StorageKey("tenant", "8e03978e-40d5-43dd-bc93-6894a57f9324 of "+t.Name())
	for _, test := range []struct {
		name, prefix string
		opts         []idempotency.RedisOption
	}{
		{"default", "idempotency:", nil},
		{"its own", "shop:", []idempotency.RedisOption{idempotency.WithPrefix("shop:")}},
		{"empty", "", []idempotency.RedisOption{idempotency.WithPrefix("")}},
		{"a hash tag", "{shop}:", []idempotency.RedisOption{idempotency.WithPrefix("{shop}:")}},
		{"the last of two", "b:", []idempotency.RedisOption{idempotency.WithPrefix("a:"), idempotency.WithPrefix("b:")}},
	} {
		t.Run(test.name, func(t *testing.T) {
			client := miniRedis(t)
			b := idempotency.NewRedis(client, test.opts...)
			claim := idempotency.Claim{Token: "mine"}
			require.Empty(t, client.Keys(t.Context(), "*").Val(), "NewRedis sends nothing")
			_, claimed, err := b.Claim(t.Context(), key, claim, time.Hour)
			require.NoError(t, err)
			require.True(t, claimed)
			require.Equal(t, []string{test.prefix + key}, client.Keys(t.Context(), "*").Val())
			require.NoError(t, b.Renew(t.Context(), key, claim, time.Hour))
			require.NoError(t, b.Complete(t.Context(), key, claim, &idempotency.Response{Status: 200}, time.Hour))
			require.Equal(t, []string{test.prefix + key}, client.Keys(t.Context(), "*").Val())
			require.Equal(t, "string", client.Type(t.Context(), test.prefix+key).Val())
			other := idempotency.StorageKey("tenant", "other")
			_, _, err = b.Claim(t.Context(), other, claim, time.Hour)
			require.NoError(t, err)
			require.NoError(t, b.Release(t.Context(), other, claim))
			require.Equal(t, []string{test.prefix + key}, client.Keys(t.Context(), "*").Val())
		})
	}
}

// Nothing of what a client sends is sent on to Redis: neither its key, nor what
// it is scoped by, nor its path, query, headers or body.
func TestRedisSeesNoClientText(t *testing.T) {
	forEachRedis(t, func(t *testing.T, newClient func(t *testing.T) *redis.Client) {
		plain := newClient(t)
		client, wire := tapped(t, plain)
		prefix := freshPrefix(t, plain)
		status := http.StatusCreated
		h := idempotency.New(idempotency.NewRedis(client, idempotency.WithPrefix(prefix)),
			idempotency.WithScope(func(r *http.Request) string { return r.Header.Get("Tenant") }),
		)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			_, _ = io.WriteString(w, `{"id":1}`)
		}))
		send := func(key, body string) int {
			r := httptest.NewRequest(http.MethodPost, "/client-path?q=client-query", strings.NewReader(body))
			r.Header.Set("Tenant", "client-tenant")
			r.Header.Set("X-Other", "client-header")
			r.Header.Set("Idempotency-Key", key)
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			return w.Code
		}
		commands := wire.during(func() {
			require.Equal(t, 201, send("client-key", "client-body"))
			require.Equal(t, 201, send(`"client-key"`, "client-body"))
			require.Equal(t, 422, send("client-key", "client-other-body"))
		})
		require.GreaterOrEqual(t, len(commands), 4)
		name := prefix + idempotency.StorageKey("client-tenant", "client-key")
		for _, command := range commands {
			requireOneKey(t, command, name)
		}
		wire.mu.Lock()
		defer wire.mu.Unlock()
		require.NotContains(t, wire.raw.String(), "client-")
		require.Contains(t, wire.raw.String(), `{"id":1}`, "the answer is stored")
	})
}

// Times are sent in whole milliseconds, rounded up: nothing is let go of before
// its time.
func TestRedisTimesOnTheWire(t *testing.T) {
	client, wire := tapped(t, miniRedis(t))
	b := idempotency.NewRedis(client)
	claim := idempotency.Claim{Token: "mine"}
	for _, test := range []struct {
		d    time.Duration
		want string
	}{
		{0, "0"}, // for ever
		{1, "1"},
		{time.Microsecond, "1"},
		{time.Millisecond - 1, "1"},
		{time.Millisecond, "1"},
		{time.Millisecond + 1, "2"},
		{1500 * time.Microsecond, "2"},
		{2 * time.Millisecond, "2"},
		{30 * time.Second, "30000"},
		{30*time.Second + 1, "30001"},
		{24 * time.Hour, "86400000"},
		{100 * 365 * 24 * time.Hour, "3153600000000"},
	} {
		t.Run(test.d.String(), func(t *testing.T) {
			ctx := t.Context()
			claimed := wire.during(func() {
				_, _, err := b.Claim(ctx, test.d.String(), claim, test.d)
				require.NoError(t, err)
			})
			require.Len(t, claimed, 1)
			if test.d == 0 {
				require.NotContains(t, strings.ToLower(strings.Join(claimed[0], " ")), "px")
			} else {
				require.Equal(t, []string{"px", test.want}, claimed[0][len(claimed[0])-2:])
			}
			for _, commands := range [][][]string{
				wire.during(func() { require.NoError(t, b.Renew(ctx, test.d.String(), claim, test.d)) }),
				wire.during(func() {
					require.NoError(t, b.Complete(ctx, test.d.String(), claim, &idempotency.Response{}, test.d))
				}),
			} {
				last := commands[len(commands)-1]
				require.Equal(t, test.want, last[len(last)-1])
			}
		})
	}
}

// The longest duration there is: Redis takes it.
func TestRedisLongestTimes(t *testing.T) {
	client := redistest.Client(t)
	prefix := freshPrefix(t, client)
	b := idempotency.NewRedis(client, idempotency.WithPrefix(prefix))
	claim := idempotency.Claim{Token: "mine"}
	_, claimed, err := b.Claim(t.Context(), "k", claim, math.MaxInt64)
	require.NoError(t, err)
	require.True(t, claimed)
	require.NoError(t, b.Renew(t.Context(), "k", claim, math.MaxInt64))
	require.NoError(t, b.Complete(t.Context(), "k", claim, &idempotency.Response{Status: 200}, math.MaxInt64))
	left, err := client.Do(t.Context(), "pttl", prefix+"k").Int64() // It does not fit PTTL's time.Duration.
	require.NoError(t, err)
	require.InDelta(t, int64(math.MaxInt64/1_000_000), left, 3_600_000)
}

func TestRedisTimesToLive(t *testing.T) {
	const forEver = -1 // as PTTL has it
	forEachRedis(t, func(t *testing.T, newClient func(t *testing.T) *redis.Client) {
		client := newClient(t)
		prefix := freshPrefix(t, client)
		b := idempotency.NewRedis(client, idempotency.WithPrefix(prefix))
		ctx := t.Context()
		mine := idempotency.Claim{Token: "mine"}
		claim := func(t *testing.T, key string, lease time.Duration) {
			_, claimed, err := b.Claim(ctx, key, mine, lease)
			require.NoError(t, err)
			require.True(t, claimed)
		}
		renew := func(t *testing.T, key string, lease time.Duration) {
			require.NoError(t, b.Renew(ctx, key, mine, lease))
		}
		complete := func(t *testing.T, key string, expiry time.Duration) {
			require.NoError(t, b.Complete(ctx, key, mine, &idempotency.Response{Status: 200}, expiry))
		}
		// The times of two steps are far apart, so that no slow machine
		// makes one look like the other.
		for _, test := range []struct {
			name string
			do   func(t *testing.T, key string)
			want time.Duration
		}{
			{"claim", func(t *testing.T, key string) { claim(t, key, time.Hour) }, time.Hour},
			{"claim for ever", func(t *testing.T, key string) { claim(t, key, 0) }, forEver},
			{"claim again: the first lease stands", func(t *testing.T, key string) {
				claim(t, key, time.Hour)
				claim(t, key, 9*time.Hour)
			}, time.Hour},
			{"claim by another: the first lease stands", func(t *testing.T, key string) {
				claim(t, key, time.Hour)
				_, claimed, err := b.Claim(ctx, key, idempotency.Claim{Token: "other"}, 9*time.Hour)
				require.NoError(t, err)
				require.False(t, claimed)
			}, time.Hour},
			{"renew for longer", func(t *testing.T, key string) { claim(t, key, time.Hour); renew(t, key, 9*time.Hour) }, 9 * time.Hour},
			{"renew for less", func(t *testing.T, key string) { claim(t, key, 9*time.Hour); renew(t, key, time.Hour) }, time.Hour},
			{"renew for ever", func(t *testing.T, key string) { claim(t, key, time.Hour); renew(t, key, 0) }, forEver},
			{"renew what was for ever", func(t *testing.T, key string) { claim(t, key, 0); renew(t, key, time.Hour) }, time.Hour},
			{"renew where nothing is held", func(t *testing.T, key string) { renew(t, key, time.Hour) }, time.Hour},
			{"renew by another: nothing changes", func(t *testing.T, key string) {
				claim(t, key, time.Hour)
				require.ErrorIs(t, b.Renew(ctx, key, idempotency.Claim{Token: "other"}, 9*time.Hour), idempotency.ErrClaimLost)
			}, time.Hour},
			{"complete", func(t *testing.T, key string) { claim(t, key, time.Hour); complete(t, key, 9*time.Hour) }, 9 * time.Hour},
			{"complete for ever", func(t *testing.T, key string) { claim(t, key, time.Hour); complete(t, key, 0) }, forEver},
			{"complete what was for ever", func(t *testing.T, key string) { claim(t, key, 0); complete(t, key, time.Hour) }, time.Hour},
			{"complete where nothing is held", func(t *testing.T, key string) { complete(t, key, time.Hour) }, time.Hour},
			{"complete again: the first expiry stands", func(t *testing.T, key string) {
				complete(t, key, time.Hour)
				complete(t, key, 9*time.Hour)
			}, time.Hour},
			{"complete again, for ever: the first expiry stands", func(t *testing.T, key string) {
				complete(t, key, time.Hour)
				complete(t, key, 0)
			}, time.Hour},
			{"renew a response: its expiry stands", func(t *testing.T, key string) {
				complete(t, key, time.Hour)
				renew(t, key, 9*time.Hour)
			}, time.Hour},
			{"renew a response for less: its expiry stands", func(t *testing.T, key string) {
				complete(t, key, 9*time.Hour)
				renew(t, key, time.Hour)
			}, 9 * time.Hour},
			{"renew a response that is for ever", func(t *testing.T, key string) {
				complete(t, key, 0)
				renew(t, key, time.Hour)
			}, forEver},
			{"release a response: its expiry stands", func(t *testing.T, key string) {
				complete(t, key, time.Hour)
				require.NoError(t, b.Release(ctx, key, mine))
			}, time.Hour},
		} {
			t.Run(test.name, func(t *testing.T) {
				key := idempotency.StorageKey("", test.name)
				test.do(t, key)
				got := client.PTTL(ctx, prefix+key).Val()
				if test.want == forEver {
					require.EqualValues(t, forEver, got)
					return
				}
				require.LessOrEqual(t, got, test.want)
				require.Greater(t, got, test.want-30*time.Minute)
			})
		}
	})
}

// A record that cannot be read is an error to every verb, and stays as it is:
// another release may be able to read it, and a person may look at it.
// A header that the handler took away is stored in its place among the others.
func TestRedisStoresHeadersTakenAway(t *testing.T) {
	forEachRedis(t, func(t *testing.T, newClient func(t *testing.T) *redis.Client) {
		client := newClient(t)
		prefix := idempotency.WithPrefix(freshPrefix(t, client))
		inner := idempotency.New(idempotency.NewRedis(client, prefix))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Del("A-Outer")
			w.Header().Set("Location", "/1")
			w.Header().Del("Server")
			io.WriteString(w, "{}")
		}))
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("A-Outer", "1")
			w.Header().Set("Server", "2")
			inner.ServeHTTP(w, r)
		})
		for _, replayed := range []string{"", "true"} {
			w := send(h, request("k", "b"))
			require.Equal(t, http.StatusOK, w.Code)
			require.Equal(t, replayed, w.Header().Get("Idempotent-Replayed"))
			require.Equal(t, "/1", w.Header().Get("Location"))
			require.Empty(t, w.Header()["A-Outer"])
			require.Empty(t, w.Header()["Server"])
		}
	})
}

// A claim whose answer is lost is released by its token.
func TestRedisClaimThatFailedMayHaveLanded(t *testing.T) {
	forEachRedis(t, func(t *testing.T, newClient func(t *testing.T) *redis.Client) {
		client := newClient(t)
		prefix := idempotency.WithPrefix(freshPrefix(t, client))
		client.AddHook(&loseFirst{verb: "set"})
		h := idempotency.New(idempotency.NewRedis(client, prefix), quiet)(&payments{})
		requireProblem(t, send(h, request("k", "b")), http.StatusServiceUnavailable, "ErrUnavailable")
		require.Equal(t, http.StatusCreated, send(h, request("k", "b")).Code, "the claim that landed was released")
	})
}

// loseFirst loses the answer to the first command of a name.
type loseFirst struct {
	verb string
	lost atomic.Bool
}

func (h *loseFirst) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h *loseFirst) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if cmd.Name() == h.verb && !h.lost.Swap(true) {
			cmd.SetErr(errDown)
			return errDown
		}
		return err
	}
}

func (h *loseFirst) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func TestRedisUnreadableRecords(t *testing.T) {
	mine := idempotency.Claim{Token: "mine", Fingerprint: [32]byte{1, 2, 3}}
	resp := &idempotency.Response{Status: 201, Header: http.Header{"Link": {"a", "b"}}, Body: []byte("body")}
	verbs := map[string]func(b idempotency.Backend, key string) error{
		"claim": func(b idempotency.Backend, key string) error {
			rec, claimed, err := b.Claim(context.Background(), key, mine, time.Hour)
			if claimed || rec.Response != nil || rec.Claim != (idempotency.Claim{}) {
				return fmt.Errorf("it gave a record: %v, %v, %v", rec, claimed, err) // It is not the error that is looked for.
			}
			return err
		},
		"renew": func(b idempotency.Backend, key string) error {
			return b.Renew(context.Background(), key, mine, time.Hour)
		},
		"complete": func(b idempotency.Backend, key string) error {
			return b.Complete(context.Background(), key, mine, resp, time.Hour)
		},
		"release": func(b idempotency.Backend, key string) error { return b.Release(context.Background(), key, mine) },
	}
	forEachRedis(t, func(t *testing.T, newClient func(t *testing.T) *redis.Client) {
		client := newClient(t)
		prefix := freshPrefix(t, client)
		b := idempotency.NewRedis(client, idempotency.WithPrefix(prefix))
		ctx := t.Context()

		// Two good records to damage, under the very token that is used.
		require.NoError(t, b.Renew(ctx, "outstanding", mine, time.Hour))
		require.NoError(t, b.Complete(ctx, "completed", mine, resp, time.Hour))
		outstanding := client.Get(ctx, prefix+"outstanding").Val()
		completed := client.Get(ctx, prefix+"completed").Val()
		require.NotEmpty(t, outstanding)
		require.NotEmpty(t, completed)

		damaged := map[string]string{
			"nothing at all":                "",
			"garbage":                       "an answer that somebody else stored",
			"JSON":                          `{"status":200}`,
			"zeros":                         strings.Repeat("\x00", 100),
			"ones":                          strings.Repeat("\xff", 100),
			"outstanding, later version":    "\x02" + outstanding[1:],
			"completed, later version":      "\x02" + completed[1:],
			"outstanding, version 0":        "\x00" + outstanding[1:],
			"outstanding, unknown state":    outstanding[:1] + "\x02" + outstanding[2:],
			"outstanding, called completed": outstanding[:1] + "\x01" + outstanding[2:],
			"completed, called outstanding": completed[:1] + "\x00" + completed[2:],
			"outstanding, lengthened":       outstanding + "\x00",
			"completed, lengthened":         completed + "\x00",
			"completed, lengthened by text": completed + "more",
			"both":                          outstanding + completed,
		}
		for n := range outstanding { // The first is the empty string.
			damaged[fmt.Sprintf("outstanding, cut to %d bytes", n)] = outstanding[:n]
		}
		for n := range completed {
			damaged[fmt.Sprintf("completed, cut to %d bytes", n)] = completed[:n]
		}
		for name, value := range damaged {
			for verb, call := range verbs {
				key := verb + ": " + name
				require.NoError(t, client.Set(ctx, prefix+key, value, time.Hour).Err())
				err := call(b, key)
				require.ErrorContains(t, err, "idempotency: unreadable record", key)
				require.NotErrorIs(t, err, idempotency.ErrClaimLost, key)
				got, err := client.Get(ctx, prefix+key).Result()
				require.NoError(t, err, key)
				require.Equal(t, value, got, key)
				require.Greater(t, client.PTTL(ctx, prefix+key).Val(), 30*time.Minute, key)
			}
		}

		// A key of another Redis type.
		for verb, call := range verbs {
			list, hash := verb+": list", verb+": hash"
			require.NoError(t, client.RPush(ctx, prefix+list, "a", "b").Err())
			require.NoError(t, client.HSet(ctx, prefix+hash, "f", "v").Err())
			for _, key := range []string{list, hash} {
				err := call(b, key)
				require.ErrorContains(t, err, "WRONGTYPE", key)
				require.ErrorContains(t, err, "idempotency: redis", key)
			}
			require.Equal(t, []string{"a", "b"}, client.LRange(ctx, prefix+list, 0, -1).Val())
			require.Equal(t, map[string]string{"f": "v"}, client.HGetAll(ctx, prefix+hash).Val())
		}
	})
}

// To the client, a record that cannot be read is a store that is unavailable.
func TestRedisUnreadableRecordIsUnavailable(t *testing.T) {
	client := miniRedis(t)
	name := "idempotency:" + idempotency.StorageKey("", "k")
	require.NoError(t, client.Set(t.Context(), name, "garbage", 0).Err())
	teller := new(keyTeller)
	var seen []idempotency.Event
	w := teller.post(idempotency.New(idempotency.NewRedis(client), eventsInto(&seen), silent())(teller), "k")
	require.Equal(t, http.StatusServiceUnavailable, w.Code)
	require.Zero(t, teller.runs)
	require.Equal(t, "garbage", client.Get(t.Context(), name).Val())
	require.Len(t, seen, 1)
	require.ErrorIs(t, seen[0].Err, idempotency.ErrUnavailable)
	require.NotContains(t, w.Body.String(), "garbage")
	require.NotContains(t, w.Body.String(), "record")
}

// silent keeps faults that a test makes out of its output.
func silent() idempotency.Option { return idempotency.WithLogger(slog.New(slog.DiscardHandler)) }

// calls makes each of a backend's four calls and returns their errors by name.
func calls(ctx context.Context, b idempotency.Backend, key string) map[string]error {
	claim := idempotency.Claim{Token: "mine"}
	_, claimed, err := b.Claim(ctx, key, claim, time.Hour)
	if claimed && err != nil {
		err = errors.Join(errors.New("claimed, in spite of an error"), err)
	}
	return map[string]error{
		"claim":    err,
		"renew":    b.Renew(ctx, key, claim, time.Hour),
		"complete": b.Complete(ctx, key, claim, &idempotency.Response{Status: 200}, time.Hour),
		"release":  b.Release(ctx, key, claim),
	}
}

func TestRedisFaults(t *testing.T) {
	key := idempotency.StorageKey("tenant", "client-key")
	// Each call of the client tries once.
	connect := func(t *testing.T, addr string, readTimeout time.Duration) *redis.Client {
		client := redis.NewClient(&redis.Options{
			Addr: addr, MaxRetries: -1, DialerRetries: 1, DialTimeout: time.Minute,
			ReadTimeout: readTimeout, WriteTimeout: time.Minute, ContextTimeoutEnabled: true,
		})
		t.Cleanup(func() { client.Close() })
		return client
	}
	check := func(t *testing.T, ctx context.Context, client *redis.Client, want func(error) bool) {
		t.Helper()
		for verb, err := range calls(ctx, idempotency.NewRedis(client), key) {
			require.Error(t, err, verb)
			require.True(t, want(err), "%s: the cause is not wrapped: %#v", verb, err)
			require.True(t, strings.HasPrefix(err.Error(), "idempotency: redis"), "%s: %v", verb, err)
			require.NotContains(t, err.Error(), key, verb)
			for _, sentinel := range []error{idempotency.ErrClaimLost, idempotency.ErrFull} {
				require.NotErrorIs(t, err, sentinel, "%s: a fault that a retry may mend", verb)
			}
		}
	}
	t.Run("server gone", func(t *testing.T) {
		server := miniredis.RunT(t)
		client := connect(t, server.Addr(), time.Minute)
		require.NoError(t, client.Ping(t.Context()).Err())
		server.Close()
		check(t, t.Context(), client, func(err error) bool {
			var network net.Error
			return errors.As(err, &network) || errors.Is(err, io.EOF)
		})
		// It recovers when the server is back, and has lost nothing of its own.
		require.NoError(t, server.Restart())
		for verb, err := range calls(t.Context(), idempotency.NewRedis(client), key) {
			require.NoError(t, err, verb)
		}
	})
	t.Run("server does not answer", func(t *testing.T) {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer listener.Close()
		check(t, t.Context(), connect(t, listener.Addr().String(), 50*time.Millisecond), func(err error) bool {
			var network net.Error
			return errors.As(err, &network) && network.Timeout()
		})
	})
	t.Run("server does not speak Redis", func(t *testing.T) {
		web := httptest.NewServer(http.NotFoundHandler())
		defer web.Close()
		check(t, t.Context(), connect(t, web.Listener.Addr().String(), time.Minute), func(error) bool { return true })
	})
	t.Run("server refuses commands", func(t *testing.T) {
		server := miniredis.RunT(t)
		client := connect(t, server.Addr(), time.Minute)
		server.SetError("LOADING Redis is loading the dataset in memory")
		check(t, t.Context(), client, func(err error) bool { return redis.HasErrorPrefix(err, "LOADING") })
	})
	t.Run("client closed", func(t *testing.T) {
		client := connect(t, miniredis.RunT(t).Addr(), time.Minute)
		client.Close()
		check(t, t.Context(), client, func(err error) bool { return errors.Is(err, redis.ErrClosed) })
	})
	t.Run("context cancelled", func(t *testing.T) {
		server := miniredis.RunT(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		check(t, ctx, connect(t, server.Addr(), time.Minute), func(err error) bool { return errors.Is(err, context.Canceled) })
		require.Empty(t, server.Keys())
	})
	t.Run("deadline passed", func(t *testing.T) {
		server := miniredis.RunT(t)
		ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
		defer cancel()
		check(t, ctx, connect(t, server.Addr(), time.Minute), func(err error) bool { return errors.Is(err, context.DeadlineExceeded) })
		require.Empty(t, server.Keys())
	})
	t.Run("deadline while the server does not answer", func(t *testing.T) {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer listener.Close()
		client := redis.NewClient(&redis.Options{
			Addr: listener.Addr().String(), ReadTimeout: time.Hour, DialTimeout: time.Hour, ContextTimeoutEnabled: true,
		})
		defer client.Close()
		for verb := range 4 {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			b := idempotency.NewRedis(client)
			claim := idempotency.Claim{Token: "mine"}
			var err error
			switch verb {
			case 0:
				_, _, err = b.Claim(ctx, key, claim, time.Hour)
			case 1:
				err = b.Renew(ctx, key, claim, time.Hour)
			case 2:
				err = b.Complete(ctx, key, claim, &idempotency.Response{Status: 200}, time.Hour)
			case 3:
				err = b.Release(ctx, key, claim)
			}
			cancel()
			// With time-outs of an hour, only the deadline can have ended it.
			require.True(t, errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded), "%v", err)
		}
	})
}

// Faults of the store, all the way to the answer.
func TestRedisGoneIsUnavailable(t *testing.T) {
	server := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr(), MaxRetries: -1, DialerRetries: 1})
	t.Cleanup(func() { client.Close() })
	addr := server.Addr()
	server.Close()
	teller := new(keyTeller)
	w := teller.post(idempotency.New(idempotency.NewRedis(client), silent())(teller), "client-key")
	require.Equal(t, http.StatusServiceUnavailable, w.Code)
	require.Equal(t, "1", w.Header().Get("Retry-After"))
	require.NotContains(t, w.Body.String(), addr)
	require.NotContains(t, w.Body.String(), "client-key")
	require.Zero(t, teller.runs)
}

// A Redis without memory takes nothing new, and still lets go of what it has.
func TestRedisOutOfMemory(t *testing.T) {
	client := redistest.Start(t, "maxmemory-policy noeviction").Client(t)
	b := idempotency.NewRedis(client)
	ctx := t.Context()
	mine := idempotency.Claim{Token: "mine"}
	resp := &idempotency.Response{Status: 200, Body: []byte("{}")}
	for _, key := range []string{"released", "completed", "renewed"} {
		_, claimed, err := b.Claim(ctx, key, mine, time.Hour)
		require.NoError(t, err)
		require.True(t, claimed)
	}
	require.NoError(t, client.ConfigSet(ctx, "maxmemory", "1").Err())

	_, claimed, err := b.Claim(ctx, "new", mine, time.Hour)
	require.ErrorContains(t, err, "OOM")
	require.False(t, claimed)
	require.ErrorContains(t, b.Complete(ctx, "completed", mine, resp, time.Hour), "OOM")
	require.NoError(t, b.Release(ctx, "released", mine))
	require.NoError(t, b.Release(ctx, "nothing", mine))
	require.EqualValues(t, 0, client.Exists(ctx, "idempotency:released", "idempotency:new").Val())

	// What could not be completed is still claimed, and completed later.
	require.NoError(t, client.ConfigSet(ctx, "maxmemory", "0").Err())
	held, claimed, err := b.Claim(ctx, "completed", idempotency.Claim{Token: "other"}, time.Hour)
	require.NoError(t, err)
	require.False(t, claimed)
	require.Equal(t, idempotency.Record{Claim: mine}, held)
	require.NoError(t, b.Complete(ctx, "completed", mine, resp, time.Hour))
}

// Two processes on one server share their claims; those of several prefixes are
// apart.
func TestRedisShared(t *testing.T) {
	forEachRedis(t, func(t *testing.T, newClient func(t *testing.T) *redis.Client) {
		client := newClient(t)
		prefix := freshPrefix(t, client)
		ctx := t.Context()
		one := idempotency.NewRedis(client, idempotency.WithPrefix(prefix))
		secondClient, _ := tapped(t, client) // another connection to the same server
		two := idempotency.NewRedis(secondClient, idempotency.WithPrefix(prefix))
		apart := idempotency.NewRedis(client, idempotency.WithPrefix(prefix+"apart:"))
		first, second := idempotency.Claim{Token: "first", Fingerprint: [32]byte{1}}, idempotency.Claim{Token: "second"}

		_, claimed, err := one.Claim(ctx, "k", first, time.Hour)
		require.NoError(t, err)
		require.True(t, claimed)
		held, claimed, err := two.Claim(ctx, "k", second, time.Hour)
		require.NoError(t, err)
		require.False(t, claimed)
		require.Equal(t, idempotency.Record{Claim: first}, held)
		_, claimed, err = apart.Claim(ctx, "k", second, time.Hour)
		require.NoError(t, err)
		require.True(t, claimed)

		require.ErrorIs(t, two.Complete(ctx, "k", second, &idempotency.Response{Status: 500}, time.Hour), idempotency.ErrClaimLost)
		require.NoError(t, one.Complete(ctx, "k", first, &idempotency.Response{Status: 201, Body: []byte("{}")}, time.Hour))
		held, claimed, err = two.Claim(ctx, "k", second, time.Hour)
		require.NoError(t, err)
		require.False(t, claimed)
		require.Equal(t, first, held.Claim)
		require.Equal(t, 201, held.Response.Status)
		require.NoError(t, apart.Release(ctx, "k", second))
		require.EqualValues(t, 0, client.Exists(ctx, prefix+"apart:k").Val())
		require.EqualValues(t, 1, client.Exists(ctx, prefix+"k").Val())
	})
}

// A store that lost a claim, by a restart or an eviction, takes what its owner
// does as if it were still there.
func TestRedisLostClaimIsRestored(t *testing.T) {
	forEachRedis(t, func(t *testing.T, newClient func(t *testing.T) *redis.Client) {
		client := newClient(t)
		prefix := freshPrefix(t, client)
		b := idempotency.NewRedis(client, idempotency.WithPrefix(prefix))
		ctx := t.Context()
		mine, other := idempotency.Claim{Token: "mine", Fingerprint: [32]byte{9}}, idempotency.Claim{Token: "other"}
		lose := func() { require.NoError(t, client.Del(ctx, prefix+"k").Err()) }
		_, claimed, err := b.Claim(ctx, "k", mine, time.Hour)
		require.NoError(t, err)
		require.True(t, claimed)

		lose()
		require.NoError(t, b.Renew(ctx, "k", mine, time.Hour))
		held, claimed, err := b.Claim(ctx, "k", other, time.Hour)
		require.NoError(t, err)
		require.False(t, claimed)
		require.Equal(t, idempotency.Record{Claim: mine}, held)

		lose()
		require.NoError(t, b.Complete(ctx, "k", mine, &idempotency.Response{Status: 200}, time.Hour))
		held, claimed, err = b.Claim(ctx, "k", other, time.Hour)
		require.NoError(t, err)
		require.False(t, claimed)
		require.Equal(t, 200, held.Response.Status)

		lose()
		_, claimed, err = b.Claim(ctx, "k", other, time.Hour)
		require.NoError(t, err)
		require.True(t, claimed)
		require.ErrorIs(t, b.Renew(ctx, "k", mine, time.Hour), idempotency.ErrClaimLost)
		require.ErrorIs(t, b.Complete(ctx, "k", mine, &idempotency.Response{Status: 200}, time.Hour), idempotency.ErrClaimLost)
		require.NoError(t, b.Release(ctx, "k", mine))
		held, claimed, err = b.Claim(ctx, "k", mine, time.Hour)
		require.NoError(t, err)
		require.False(t, claimed)
		require.Equal(t, idempotency.Record{Claim: other}, held)
	})
}

// A claim's token is its identity: its fingerprint is not a part of it.
func TestTokenIsTheClaim(t *testing.T) {
	forEachBackend(t, func(t *testing.T, newBackend func(t *testing.T) idempotency.Backend) {
		claim := idempotency.Claim{Token: "mine", Fingerprint: [32]byte{1}}
		same := idempotency.Claim{Token: "mine", Fingerprint: [32]byte{2}}
		other := idempotency.Claim{Token: "other", Fingerprint: [32]byte{1}}
		start := func(t *testing.T) idempotency.Backend {
			b := newBackend(t)
			_, claimed, err := b.Claim(t.Context(), "k", claim, time.Hour)
			require.NoError(t, err)
			require.True(t, claimed)
			return b
		}
		t.Run("claim", func(t *testing.T) {
			_, claimed, err := start(t).Claim(t.Context(), "k", same, time.Hour)
			require.NoError(t, err)
			require.True(t, claimed)
		})
		t.Run("complete", func(t *testing.T) {
			b := start(t)
			require.NoError(t, b.Complete(t.Context(), "k", same, &idempotency.Response{Status: 201}, time.Hour))
			held, claimed, err := b.Claim(t.Context(), "k", other, time.Hour)
			require.NoError(t, err)
			require.False(t, claimed)
			require.NotNil(t, held.Response, "Complete returned nil and did not store the response")
		})
		t.Run("release", func(t *testing.T) {
			b := start(t)
			require.NoError(t, b.Release(t.Context(), "k", same))
			_, claimed, err := b.Claim(t.Context(), "k", other, time.Hour)
			require.NoError(t, err)
			require.True(t, claimed, "Release returned nil and did not release the claim")
		})
		t.Run("another with the same fingerprint", func(t *testing.T) {
			b := start(t)
			require.ErrorIs(t, b.Renew(t.Context(), "k", other, time.Hour), idempotency.ErrClaimLost)
			require.ErrorIs(t, b.Complete(t.Context(), "k", other, &idempotency.Response{Status: 201}, time.Hour), idempotency.ErrClaimLost)
			require.NoError(t, b.Release(t.Context(), "k", other))
			held, claimed, err := b.Claim(t.Context(), "k", other, time.Hour)
			require.NoError(t, err)
			require.False(t, claimed)
			require.Equal(t, idempotency.Record{Claim: claim}, held)
		})
	})
	t.Run("renew", func(t *testing.T) {
		client := miniRedis(t)
		b := idempotency.NewRedis(client)
		_, _, err := b.Claim(t.Context(), "k", idempotency.Claim{Token: "mine", Fingerprint: [32]byte{1}}, time.Minute)
		require.NoError(t, err)
		require.NoError(t, b.Renew(t.Context(), "k", idempotency.Claim{Token: "mine"}, time.Hour))
		require.Greater(t, client.PTTL(t.Context(), "idempotency:k").Val(), 30*time.Minute, "Renew returned nil and did not renew")
	})
}

func TestNewRedisPanics(t *testing.T) {
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:0"})
	defer client.Close()
	for _, test := range []struct {
		name, text string
		call       func()
	}{
		{"nil", "idempotency: NewRedis: nil client", func() { idempotency.NewRedis(nil) }},
		{"nil *Client", "idempotency: NewRedis: nil client", func() { idempotency.NewRedis((*redis.Client)(nil)) }},
		{"nil *ClusterClient", "idempotency: NewRedis: nil client", func() { idempotency.NewRedis((*redis.ClusterClient)(nil)) }},
		{"nil *Ring", "idempotency: NewRedis: nil client", func() { idempotency.NewRedis((*redis.Ring)(nil)) }},
		{"nil option", "idempotency: NewRedis: nil option", func() { idempotency.NewRedis(client, nil) }},
		{"nil option after another", "idempotency: NewRedis: nil option", func() {
			idempotency.NewRedis(client, idempotency.WithPrefix("p"), nil)
		}},
	} {
		t.Run(test.name, func(t *testing.T) { requirePanics(t, test.text, test.call) })
	}
	require.NotPanics(t, func() { idempotency.NewRedis(client) }, "it sends nothing, so that nobody needs to answer")
}
