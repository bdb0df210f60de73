// Idempotency lets an operator look at the records of package idempotency in Redis
// and PostgreSQL: show one, forget one, count them.
//
//	idempotency show -redis redis://127.0.0.1:6379/0 -scope tenant-1 8e03978e
//
// The exit status is 0 if it did what it was asked, 2 after a usage error, and 1
// after anything else, with one line on standard error.
package main

import (
	"context"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/redis/go-redis/v9/logging"

	"github.com/idempotency-go/idempotency"
)

const usage = `usage: idempotency command [flags] [KEY]

  show    show the record of a key
  forget  show it, ask, and delete it
  stats   count the records
  key     print the storage key of a key

KEY is the client's key, without the quotes that it may be sent in. Flags stand
before it. "idempotency show -h" lists the flags of show.
`

func main() {
	logging.Disable() // What go-redis logs by itself repeats the errors that its calls return.
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// usageError is a command line that cannot be meant.
type usageError string

func (e usageError) Error() string { return string(e) }

// run runs one command and returns the exit status.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	c := &command{stdin: stdin, stdout: stdout, stderr: stderr}
	err := c.run(args)
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return 0
	}
	// Errors of the library begin with its name too, and some of PostgreSQL's have more
	// lines than one.
	text := strings.Join(strings.Fields(err.Error()), " ")
	fmt.Fprintln(stderr, "idempotency:", strings.TrimPrefix(text, "idempotency: "))
	if misused := usageError(""); errors.As(err, &misused) {
		return 2
	}
	return 1
}

// command is a command line.
type command struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	flags          *flag.FlagSet

	redis, postgres, prefix, table string
	timeout                        time.Duration
	scope                          string
	byStorageKey                   bool
	key                            idempotency.Key
	secrets                        [][]byte
	json, body, yes, force         bool
}

func (c *command) run(args []string) error {
	if len(args) == 0 {
		return usageError("give a command: show, forget, stats or key; idempotency -h says more")
	}
	switch name := args[0]; name {
	case "show":
		return c.withStore(name, args[1:], 1, c.show, c.keyFlags, func() {
			c.flags.BoolVar(&c.json, "json", false, "print JSON")
			c.flags.BoolVar(&c.body, "body", false, "print the body of the response too")
		})
	case "forget":
		return c.withStore(name, args[1:], 1, c.forget, c.keyFlags, func() {
			c.flags.BoolVar(&c.yes, "yes", false, "do not ask")
			c.flags.BoolVar(&c.force, "force", false, "forget an outstanding record too, whose handler may still run")
		})
	case "stats":
		return c.withStore(name, args[1:], 0, c.stats, func() {
			c.flags.BoolVar(&c.json, "json", false, "print JSON")
		})
	case "key":
		if err := c.parse(name, args[1:], 1, c.scopeFlag); err != nil {
			return err
		}
		_, err := fmt.Fprintln(c.stdout, c.key)
		return err
	case "help", "-h", "-help", "--help":
		fmt.Fprint(c.stdout, usage)
		return nil
	default:
		return usageError(fmt.Sprintf("there is no command %q; idempotency -h lists them", name))
	}
}

func (c *command) scopeFlag() {
	c.flags.StringVar(&c.scope, "scope", "", "`scope` of the key, as WithScope returned it")
}

func (c *command) keyFlags() {
	c.scopeFlag()
	c.flags.BoolVar(&c.byStorageKey, "storage-key", false, "KEY is the storage key, as the log has it")
}

// parse reads the flags of a command, and the KEY if there is to be one argument.
func (c *command) parse(name string, args []string, arguments int, define ...func()) error {
	c.flags = flag.NewFlagSet(name, flag.ContinueOnError)
	c.flags.SetOutput(io.Discard) // The flag package would print the usage with each error.
	for _, f := range define {
		f()
	}
	err := c.flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		key := [...]string{"", " KEY"}[arguments]
		fmt.Fprintf(c.stdout, "usage: idempotency %s [flags]%s\n", name, key)
		c.flags.SetOutput(c.stdout)
		c.flags.PrintDefaults()
		return err
	case err != nil:
		return usageError(fmt.Sprintf("%s: %v", name, err))
	case c.flags.NArg() != arguments || arguments == 1 && c.flags.Arg(0) == "":
		// What was given is not shown: it may be a URL with a password.
		want := [...]string{"no argument but the flags", "one KEY, after the flags"}[arguments]
		return usageError(fmt.Sprintf("%s: give %s", name, want))
	case c.byStorageKey && c.scope != "":
		return usageError(name + ": -storage-key has the scope in it: give no -scope")
	}
	c.key = idempotency.NewKey(c.scope, c.flags.Arg(0))
	if c.byStorageKey {
		var ok bool
		if c.key, ok = parseStorageKey(c.flags.Arg(0)); !ok {
			return usageError(name + ": a storage key is 43 characters of URL-safe base64")
		}
	}
	return nil
}

// secretsVariable is the environment variable that has the secrets of WithEncryption, in
// base64, with commas between them.
const secretsVariable = "IDEMPOTENCY_SECRETS"

// readSecrets reads the secrets.
func (c *command) readSecrets() error {
	given := os.Getenv(secretsVariable)
	if given == "" {
		return nil
	}
	for text := range strings.SplitSeq(given, ",") {
		secret, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text))
		if err != nil || len(secret) == 0 {
			return usageError(secretsVariable + " is not base64, with commas between secrets")
		}
		c.secrets = append(c.secrets, secret)
	}
	return nil
}

// parseStorageKey reads what [idempotency.Key.String] has written.
func parseStorageKey(text string) (key idempotency.Key, ok bool) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	return key, err == nil && copy(key[:], b) == len(key) && len(b) == len(key)
}

// within calls f, which asks the store once, for as long as one call may take.
func (c *command) within(f func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), c.timeout)
	defer cancel()
	err := f(ctx)
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("no answer within %v (-timeout): %w", c.timeout, err)
	}
	return err
}
