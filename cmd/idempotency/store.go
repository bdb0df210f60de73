package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/idempotency-go/idempotency"
)

// Variables of the environment that name a store in place of a flag. A command line,
// and a password in it, is seen by everybody on the machine.
const redisVariable, postgresVariable = "IDEMPOTENCY_REDIS", "IDEMPOTENCY_POSTGRES"

// callTime is how long one call to the store may take, unless -timeout says otherwise.
const callTime = 10 * time.Second

// store is a backend that an operator asks.
type store interface {
	idempotency.Inspector
	// count counts the records, and tells how far it is.
	count(c *command, t *tally) error
	close()
}

func (c *command) storeFlags() {
	c.flags.StringVar(&c.redis, "redis", "", "`URL` of a Redis, such as redis://user:password@127.0.0.1:6379/0; "+
		"of one node of a Cluster, which names the others (default $"+redisVariable+")")
	c.flags.StringVar(&c.postgres, "postgres", "", "`URL` of a PostgreSQL, such as postgres://user:password@127.0.0.1:5432/database "+
		"(default $"+postgresVariable+")")
	c.flags.StringVar(&c.prefix, "prefix", "idempotency:", "`prefix` of the Redis keys, as WithPrefix has it")
	c.flags.StringVar(&c.table, "table", "idempotency_records", "`name` of the table in PostgreSQL, as WithTable has it")
	c.flags.DurationVar(&c.timeout, "timeout", callTime, "how long one call to the store may take")
}

// withStore runs a command that needs a store, and so many arguments.
func (c *command) withStore(name string, args []string, arguments int, f func(store) error, define ...func()) error {
	if err := c.parse(name, args, arguments, append(define, c.storeFlags)...); err != nil {
		return err
	}
	s, err := c.open()
	if err != nil {
		return err
	}
	if err := f(s); err != nil {
		return err // A server that hangs would hold up close, too.
	}
	s.close()
	return nil
}

// open opens the store that the flags name, or else the environment.
func (c *command) open() (store, error) {
	given := make(map[string]bool)
	c.flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
	fromRedis, fromPostgres := "-redis", "-postgres"
	if c.redis == "" && c.postgres == "" {
		c.redis, c.postgres = os.Getenv(redisVariable), os.Getenv(postgresVariable)
		fromRedis, fromPostgres = redisVariable, postgresVariable
	}
	switch {
	case c.timeout <= 0:
		return nil, usageError("-timeout must be positive")
	case c.redis != "" && c.postgres != "":
		return nil, usageError(fmt.Sprintf("%s and %s name two stores: give -redis or -postgres", fromRedis, fromPostgres))
	case c.redis != "" && given["table"]:
		return nil, usageError("-table is for PostgreSQL, and the store is a Redis")
	case c.redis != "":
		return c.openRedis(fromRedis)
	case c.postgres != "" && given["prefix"]:
		return nil, usageError("-prefix is for Redis, and the store is a PostgreSQL")
	case c.postgres != "":
		return c.openPostgres(fromPostgres)
	}
	return nil, usageError(fmt.Sprintf("no store: give -redis or -postgres, or set %s or %s", redisVariable, postgresVariable))
}

// openRedis asks the server at the URL what it is: one server, or a node of a Cluster.
func (c *command) openRedis(from string) (store, error) {
	opts, err := redis.ParseURL(c.redis)
	if err != nil {
		// The cause may quote the URL, and with it a password.
		return nil, fmt.Errorf("%s is not a Redis URL, such as redis://user:password@127.0.0.1:6379/0", from)
	}
	opts.ContextTimeoutEnabled = true
	client := redis.NewClient(opts)
	hello := redis.NewMapStringInterfaceCmd(context.Background(), "hello", 3)
	err = c.within(func(ctx context.Context) error { return client.Process(ctx, hello) })
	// One that has no such command, or refuses, says more to the next.
	if refused := redis.Error(nil); err != nil && !errors.As(err, &refused) {
		client.Close()
		return nil, fmt.Errorf("no answer from Redis at %s: %w", opts.Addr, err)
	}
	if hello.Val()["mode"] != "cluster" {
		return newRedisStore(client, c.prefix), nil
	}
	client.Close()
	cluster, err := redis.ParseClusterURL(c.redis)
	if err != nil {
		return nil, fmt.Errorf("%s is not the URL of a Redis Cluster, such as redis://user:password@127.0.0.1:6379", from)
	}
	cluster.ContextTimeoutEnabled = true
	return newRedisStore(redis.NewClusterClient(cluster), c.prefix), nil
}

func (c *command) openPostgres(from string) (store, error) {
	config, err := pgxpool.ParseConfig(c.postgres)
	if err != nil {
		return nil, fmt.Errorf("%s is not a PostgreSQL URL, such as postgres://user:password@127.0.0.1:5432/database", from)
	}
	pool, err := pgxpool.NewWithConfig(context.Background(), config) // It makes no connection yet.
	if err != nil {
		return nil, err
	}
	return newPostgresStore(pool, c.table)
}
