package idempotency_test

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/internal/redistest"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// documentedACL returns the rules that the documentation of Redis tells.
func documentedACL(t *testing.T) []string {
	t.Helper()
	source, err := os.ReadFile("redis.go")
	require.NoError(t, err)
	line := regexp.MustCompile(`(?m)^//\t(~idempotency:\* .*)$`).FindSubmatch(source)
	require.NotNil(t, line, "the documentation has no ACL")
	return strings.Fields(string(line[1]))
}

// aclServer is a Redis whose user "app" has some rights.
type aclServer struct {
	server *redistest.Server
	admin  *redis.Client
}

func newACLServer(t *testing.T) aclServer {
	server := redistest.Start(t)
	return aclServer{server, server.Client(t)}
}

func (s aclServer) allow(t *testing.T, rules ...string) {
	t.Helper()
	args := []any{"acl", "setuser", "app", "reset", "on", ">secret"}
	for _, rule := range rules {
		args = append(args, rule)
	}
	require.NoError(t, s.admin.Do(t.Context(), args...).Err())
}

// client returns a client of the user. To change a user's rights ends none of its
// connections, but to reset a user does.
func (s aclServer) client(t *testing.T) *redis.Client {
	t.Helper()
	opts := s.server.Options()
	opts.Username, opts.Password = "app", "secret"
	client := redis.NewClient(opts)
	t.Cleanup(func() { client.Close() })
	return client
}

// The documented rights are enough for every verb, on a server that knows the
// scripts and on one that does not.
func TestRedisDocumentedACL(t *testing.T) {
	s := newACLServer(t)
	s.allow(t, documentedACL(t)...)
	client := s.client(t)
	mine := claimOf("mine")
	retry := retryOf(mine, "retry")
	key, ctx := keyOf("k"), t.Context()
	takeOver := idempotency.Terms{Lease: time.Hour, Trace: time.Hour, TakeOver: true}
	for _, known := range []bool{false, true} {
		b := idempotency.NewRedis(client)
		for i, step := range []func() error{
			func() error { mustClaim(t, b, key, mine, lease(time.Hour)); return nil },
			func() error { mustHold(t, b, key, retry, lease(time.Hour)); return nil },
			func() error { mustClaim(t, b, key, mine, traced(time.Hour, time.Hour)); return nil },
			func() error { mustHold(t, b, key, retry, lease(time.Hour)); return nil },
			func() error { return b.Renew(ctx, key, mine, traced(time.Hour, 2*time.Hour), nil) },
			func() error { return b.Renew(ctx, key, mine, traced(time.Hour, 2*time.Hour), []byte("step 1")) },
			func() error { return b.Release(ctx, key, mine, time.Hour) },
			func() error { mustClaim(t, b, key, retry, takeOver); return nil },
			func() error { mustClaim(t, b, key, retry, takeOver); return nil },
			func() error { return b.Release(ctx, key, retry, 0) },
			func() error { return b.Complete(ctx, key, retry, []byte("{}"), time.Hour) },
			func() error { mustHold(t, b, key, mine, lease(time.Hour)); return nil },
			func() error {
				seen, _, ok, err := b.Lookup(ctx, key)
				require.True(t, ok)
				if err == nil {
					ok, err = b.Forget(ctx, key, seen)
					require.True(t, ok)
				}
				return err
			},
			func() error { mustClaim(t, b, key, mine, lease(time.Hour)); return nil },
			func() error { return b.Release(ctx, key, mine, 0) },
			func() error { return b.Complete(ctx, key, mine, []byte("{}"), idempotency.Forever) },
			func() error { return s.admin.Del(ctx, "idempotency:"+key.String()).Err() },
		} {
			if !known {
				require.NoError(t, s.admin.ScriptFlush(ctx).Err())
			}
			require.NoError(t, step(), i)
		}
	}
	require.ErrorContains(t, client.Set(ctx, "other", "", 0).Err(), "NOPERM", "the user has no more rights than these")
	require.ErrorContains(t, client.Expire(ctx, "idempotency:k", time.Hour).Err(), "NOPERM", "the user has no more rights than these")
}

// A process whose user lacks a right that a later call needs claims nothing, from
// the first claim on.
func TestRedisMissingRightsFailTheFirstClaim(t *testing.T) {
	s := newACLServer(t)
	documented := documentedACL(t)
	byAdmin := idempotency.NewRedis(s.admin)
	held := keyOf("held")
	mustClaim(t, byAdmin, held, claimOf("admin"), lease(time.Hour))
	learnScripts(t, byAdmin)
	type lack struct {
		name  string
		rules []string
	}
	lacks := []lack{
		{"all rights", nil},
		{"keys", documented[1:]},
		{"these keys", append([]string{"~other:*"}, documented[1:]...)},
		{"writing keys", append([]string{"%R~idempotency:*"}, documented[1:]...)},
		{"reading keys", append([]string{"%W~idempotency:*"}, documented[1:]...)},
	}
	for i, rule := range documented {
		if strings.HasPrefix(rule, "+") {
			lacks = append(lacks, lack{rule[1:], slices.Delete(slices.Clone(documented), i, i+1)})
		}
	}
	require.Len(t, lacks, 5+10, "commands are named one by one")
	for _, known := range []bool{true, false} {
		for _, lack := range lacks {
			t.Run(fmt.Sprintf("%s, known scripts: %v", lack.name, known), func(t *testing.T) {
				s.allow(t, lack.rules...)
				if !known {
					require.NoError(t, s.admin.ScriptFlush(t.Context()).Err())
				}
				b := idempotency.NewRedis(s.client(t))
				key, mine := keyOf(t.Name()), claimOf("mine")
				terms := []idempotency.Terms{lease(time.Hour), traced(time.Hour, time.Hour), lease(time.Hour)}
				for _, terms := range terms {
					// A claim that meets a record uses less than one of a free key.
					for _, key := range []idempotency.Key{key, held} {
						rec, claimed, err := b.Claim(t.Context(), key, mine, terms)
						require.False(t, claimed)
						require.Zero(t, rec)
						require.Error(t, err)
						require.Regexp(t, "^idempotency: redis claim: .*(NOPERM|can't run this command)", err.Error())
						require.NotErrorIs(t, err, idempotency.ErrUnreadable)
					}
				}
				require.Zero(t, s.admin.Exists(t.Context(), "idempotency:"+key.String()).Val(), "a record was left behind")

				// Once the rights are there it goes on.
				s.allow(t, documented...)
				require.Eventually(t, func() bool { // The connection has to be made anew.
					_, claimed, err := b.Claim(t.Context(), key, mine, lease(time.Hour))
					return err == nil && claimed
				}, time.Minute, time.Millisecond)
			})
		}
	}
}

// The first claim that succeeds finds out that all commands may be used. The
// claims after it are plain.
func TestRedisFirstClaim(t *testing.T) {
	forEachRedis(t, func(t *testing.T, newClient func(t *testing.T) *redis.Client) {
		plain := newClient(t)
		client, wire := tapped(t, plain)
		prefix := freshPrefix(t, plain)
		learnScripts(t, idempotency.NewRedis(client, idempotency.WithPrefix(prefix)))
		mine := claimOf("mine")
		require.NoError(t, plain.Set(t.Context(), prefix+keyOf("garbage").String(), "garbage", time.Hour).Err())
		for _, test := range []struct {
			name  string
			first func(b *idempotency.Redis)
		}{
			{"claimed", func(b *idempotency.Redis) { mustClaim(t, b, keyOf("claimed"), mine, lease(time.Hour)) }},
			{"with a trace", func(b *idempotency.Redis) { mustClaim(t, b, keyOf("trace"), mine, traced(time.Hour, time.Hour)) }},
			{"held", func(b *idempotency.Redis) { mustHold(t, b, keyOf("claimed"), claimOf("other"), lease(time.Hour)) }},
		} {
			b := idempotency.NewRedis(client, idempotency.WithPrefix(prefix))
			require.Equal(t, []string{"EVALSHA"}, names(wire.during(func() { test.first(b) })), test.name)
			key := keyOf("after " + test.name)
			require.Equal(t, []string{"SET"}, names(wire.during(func() { mustClaim(t, b, key, mine, lease(time.Hour)) })), test.name)
		}
	})
}
