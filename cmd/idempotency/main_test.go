package main

import (
	"context"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/internal/netfault"
	"github.com/idempotency-go/idempotency/internal/pgtest"
	"github.com/idempotency-go/idempotency/internal/redistest"
)

func TestUsage(t *testing.T) {
	const url, pg = "redis://:hunter2@127.0.0.1:1/0", "postgres://u:hunter2@127.0.0.1:1/d"
	for name, tt := range map[string]struct {
		args, env []string
		says      string
	}{
		"no command":               {nil, nil, "give a command"},
		"unknown command":          {[]string{"list"}, nil, `there is no command "list"`},
		"unknown flag":             {[]string{"show", "-nope", "k"}, nil, "show: flag provided but not defined: -nope"},
		"a flag of another":        {[]string{"stats", "-scope", "s"}, nil, "stats: flag provided but not defined: -scope"},
		"no key":                   {[]string{"show", "-redis", url}, nil, "show: give one KEY, after the flags"},
		"empty key":                {[]string{"show", "-redis", url, ""}, nil, "show: give one KEY"},
		"flags after the key":      {[]string{"show", "k", "-redis", url}, nil, "show: give one KEY, after the flags"},
		"no key to name":           {[]string{"key", "-scope", "s"}, nil, "key: give one KEY"},
		"argument of stats":        {[]string{"stats", url}, nil, "stats: give no argument but the flags"},
		"no store":                 {[]string{"show", "k"}, nil, "no store: give -redis or -postgres, or set IDEMPOTENCY_REDIS or IDEMPOTENCY_POSTGRES"},
		"two stores":               {[]string{"show", "-redis", url, "-postgres", pg, "k"}, nil, "-redis and -postgres name two stores"},
		"two in the environment":   {[]string{"show", "k"}, []string{"IDEMPOTENCY_REDIS=" + url, "IDEMPOTENCY_POSTGRES=" + pg}, "IDEMPOTENCY_REDIS and IDEMPOTENCY_POSTGRES name two stores"},
		"a table in Redis":         {[]string{"stats", "-redis", url, "-table", "t"}, nil, "-table is for PostgreSQL"},
		"a prefix in PostgreSQL":   {[]string{"stats", "-postgres", pg, "-prefix", "p"}, nil, "-prefix is for Redis"},
		"no name of a table":       {[]string{"stats", "-postgres", pg, "-table", "a.b.c"}, nil, "-table: "},
		"no time":                  {[]string{"stats", "-redis", url, "-timeout", "0"}, nil, "-timeout must be positive"},
		"scope of a storage key":   {[]string{"show", "-redis", url, "-scope", "s", "-storage-key", "k"}, nil, "give no -scope"},
		"no storage key":           {[]string{"show", "-redis", url, "-storage-key", "8e03978e"}, nil, "43 characters"},
		"storage key with padding": {[]string{"show", "-redis", url, "-storage-key", idempotency.Key{}.String() + "="}, nil, "43 characters"},
		"storage key of too much":  {[]string{"show", "-redis", url, "-storage-key", idempotency.Key{}.String() + "AA"}, nil, "43 characters"},
		"storage key spelled else": {[]string{"show", "-redis", url, "-storage-key", idempotency.Key{}.String()[:42] + "B"}, nil, "43 characters"},
	} {
		t.Run(name, func(t *testing.T) {
			r := execute(t, "", tt.env, tt.args...)
			r.requireFailed(t, 2, tt.says)
			require.Empty(t, r.stdout)
		})
	}
}

func TestHelp(t *testing.T) {
	for command, says := range map[string]string{
		"help": "storage key", "-h": "storage key", "show": "-body", "forget": "-force", "stats": "-json", "key": "-scope",
	} {
		t.Run(command, func(t *testing.T) {
			args := []string{command}
			if says[0] == '-' {
				args = append(args, "-h")
			}
			r := execute(t, "", []string{"IDEMPOTENCY_REDIS=redis://:hunter2@127.0.0.1:1/0"}, args...)
			require.Equal(t, 0, r.status)
			require.Contains(t, r.stdout, "usage: idempotency ")
			require.Contains(t, r.stdout, says)
			require.NotContains(t, r.stdout, "hunter2")
			require.Empty(t, r.stderr)
		})
	}
}

// A store that is not there, or is not what its URL says, is one line, without the
// password.
func TestWrongURL(t *testing.T) {
	locked := miniredis.RunT(t)
	locked.RequireAuth("other")
	for name, tt := range map[string]struct {
		flag, url, says string
	}{
		"not a Redis URL":           {"-redis", "http://:hunter2@127.0.0.1", "-redis is not a Redis URL"},
		"not a URL":                 {"-redis", "redis://:hunter2/x@127.0.0.1", "-redis is not a Redis URL"},
		"no Redis there":            {"-redis", "redis://:hunter2@127.0.0.1:1/0", "no answer from Redis at 127.0.0.1:1: "},
		"wrong password":            {"-redis", "redis://:hunter2@" + locked.Addr(), "WRONGPASS"},
		"not a PostgreSQL URL":      {"-postgres", "postgres://u:hunter2@127.0.0.1:x/d", "-postgres is not a PostgreSQL URL"},
		"no PostgreSQL there":       {"-postgres", "postgres://u:hunter2@127.0.0.1:1/d", "127.0.0.1:1"},
		"a PostgreSQL is no Redis":  {"-postgres", "redis://:hunter2@127.0.0.1:1/0", "-postgres is not a PostgreSQL URL"},
		"a PostgreSQL given as one": {"-redis", "postgres://u:hunter2@127.0.0.1:1/d", "-redis is not a Redis URL"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, command := range []string{"show", "forget", "stats"} {
				args := []string{command, "-timeout", "20s", tt.flag, tt.url}
				if command != "stats" {
					args = append(args, "k")
				}
				r := execute(t, "", nil, args...)
				r.requireFailed(t, 1, tt.says)
				require.Empty(t, r.stdout)
			}
		})
	}
	t.Run("in the environment", func(t *testing.T) {
		execute(t, "", []string{"IDEMPOTENCY_REDIS=http://:hunter2@127.0.0.1"}, "stats").
			requireFailed(t, 1, "IDEMPOTENCY_REDIS is not a Redis URL")
		execute(t, "", []string{"IDEMPOTENCY_POSTGRES=postgres://:hunter2@x:y"}, "stats").
			requireFailed(t, 1, "IDEMPOTENCY_POSTGRES is not a PostgreSQL URL")
	})
}

// The environment names a store in place of a flag, which goes first.
func TestEnvironment(t *testing.T) {
	eachStore(t, func(t *testing.T, s testStore) {
		put(t, s, idempotency.NewKey("", "k"), idempotency.StateOutstanding, nil)
		variable := map[string]string{"-redis": redisVariable, "-postgres": postgresVariable}[s.flags[0]]
		args := append([]string{"show"}, append(s.flags[2:], "k")...)
		r := execute(t, "", []string{variable + "=" + s.flags[1]}, args...)
		require.Equal(t, 0, r.status, r)
		require.Contains(t, r.stdout, "outstanding")

		args = append([]string{"show"}, append(s.flags, "k")...)
		r = execute(t, "", []string{redisVariable + "=redis://127.0.0.1:1", postgresVariable + "=postgres://127.0.0.1:1/d"}, args...)
		require.Equal(t, 0, r.status, r)
	})
}

func TestKey(t *testing.T) {
	for _, tt := range []struct{ scope, key string }{
		{"", "8e03978e"}, {"tenant-1", "8e03978e"}, {"é", "with spaces and \"quotes\""},
	} {
		r := execute(t, "", nil, "key", "-scope", tt.scope, tt.key)
		require.Equal(t, result{0, idempotency.NewKey(tt.scope, tt.key).String() + "\n", ""}, r)
	}
	r := execute(t, "", nil, "key", "--", "-begins-with-a-dash")
	require.Equal(t, result{0, idempotency.NewKey("", "-begins-with-a-dash").String() + "\n", ""}, r)
}

// A server that takes a connection and says nothing holds the program up for no longer
// than -timeout.
func TestServerThatHangs(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { silent.Close() })
	for name, flags := range map[string][]string{
		"redis":    {"-redis", "redis://:hunter2@" + silent.Addr().String()},
		"postgres": {"-postgres", "postgres://u:hunter2@" + silent.Addr().String() + "/d?sslmode=disable"},
	} {
		for command, key := range map[string][]string{"show": {"k"}, "forget": {"k"}, "stats": nil} {
			t.Run(name+" "+command, func(t *testing.T) {
				began := time.Now()
				args := append([]string{command, "-timeout", "150ms"}, append(flags, key...)...)
				execute(t, "", nil, args...).requireFailed(t, 1, "no answer within 150ms (-timeout)")
				require.Less(t, time.Since(began), time.Minute)
			})
		}
	}
}

// Nor does one that falls silent after it has answered.
func TestServerThatFallsSilent(t *testing.T) {
	for flag, newURL := range map[string]func(t *testing.T) string{
		"-redis":    func(t *testing.T) string { return redistest.Start(t).URL() },
		"-postgres": func(t *testing.T) string { return pgtest.Start(t).URL() },
	} {
		t.Run(flag, func(t *testing.T) {
			direct, err := url.Parse(newURL(t))
			require.NoError(t, err)
			proxy, err := netfault.Start("127.0.0.1:0", direct.Host)
			require.NoError(t, err)
			t.Cleanup(proxy.Close)
			direct.Host = proxy.Addr()
			c, began := new(command), time.Time{}
			err = c.withStore("stats", []string{flag, direct.String(), "-timeout", "1m"}, 0, func(s store) error {
				lookup := func() error {
					return c.within(func(ctx context.Context) error {
						_, _, _, err := s.Lookup(ctx, idempotency.Key{})
						return err
					})
				}
				if err := lookup(); err != nil {
					require.ErrorContains(t, err, "does not exist", "it has no table")
				}
				require.NoError(t, proxy.Shut(netfault.Dead))
				c.timeout, began = 150*time.Millisecond, time.Now()
				require.ErrorContains(t, lookup(), "no answer within 150ms")
				return s.count(c, &tally{})
			})
			require.ErrorContains(t, err, "no answer within 150ms")
			require.Less(t, time.Since(began), 12*time.Second, "to close takes pgx 15 s")
		})
	}
}
