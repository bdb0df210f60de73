// Benchmarks measures the library beside others, and what its backends take for
// each record:
//
//	go run . compare
//	go run . scale
//
// Each writes its report to ../docs/performance, or where -out says, and tells
// on stderr how far it is. They start a Redis of their own on a free loopback
// port, and stop it, however they end.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"

	"github.com/idempotency-go/idempotency/benchmarks/internal/compare"
	"github.com/idempotency-go/idempotency/benchmarks/internal/scale"
	"github.com/idempotency-go/idempotency/internal/redistest"
)

const usage = `usage: go run . compare [-out directory] [-rounds n] [-time d] [-clients n]
       go run . scale [-out directory] [-records n] [-time d]
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	// What go-redis logs by itself repeats the errors that its calls return.
	logging.Disable()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run runs one command and returns the exit status: 1, after one line on stderr,
// for what keeps it from ending well.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	err := command(ctx, args, stdin, stdout, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	if err != nil {
		fmt.Fprintln(stderr, "benchmarks:", err)
		return 1
	}
	return 0
}

func command(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	name := ""
	if len(args) > 0 {
		name, args = args[0], args[1:]
	}
	switch name {
	case "compare":
		return runCompare(ctx, args, stdout, stderr)
	case "scale":
		return runScale(ctx, args, stdout, stderr)
	case measureCommand:
		return runMeasure(ctx, stdin, stdout)
	case "-h", "-help", "--help", "help":
		fmt.Fprint(stdout, usage)
		return flag.ErrHelp
	case "":
		return errors.New("no command: compare or scale")
	}
	return fmt.Errorf("no command %q: compare or scale", name)
}

func runCompare(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	config := compare.Config{Measure: measureInProcess, Progress: stderr}
	flags := newFlags("compare", &config.Out, &config.Time, 300*time.Millisecond)
	flags.IntVar(&config.Rounds, "rounds", 15, "how often each measurement is taken")
	flags.IntVar(&config.Clients, "clients", 8, "how many clients at once are many")
	if err := parse(flags, args, stdout); err != nil {
		return err
	}
	return withRedis(func(options *redis.Options) error {
		config.Redis = options
		return written(stdout, config.Out, compare.Run(ctx, config), "compare.md", "compare.svg")
	})
}

func runScale(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	config := scale.Config{Progress: stderr}
	flags := newFlags("scale", &config.Out, &config.Time, time.Second)
	flags.IntVar(&config.Records, "records", 1_000_000, "how many responses to fill the memory backend with")
	if err := parse(flags, args, stdout); err != nil {
		return err
	}
	return withRedis(func(options *redis.Options) error {
		config.Redis = options
		return written(stdout, config.Out, scale.Run(ctx, config), "scale.md")
	})
}

// newFlags returns the flags that all commands have.
func newFlags(command string, out *string, d *time.Duration, usual time.Duration) *flag.FlagSet {
	flags := flag.NewFlagSet(command, flag.ContinueOnError)
	flags.SetOutput(io.Discard) // The flag package would print the usage with each error.
	flags.StringVar(out, "out", filepath.Join("..", "docs", "performance"), "`directory` to write the report to")
	flags.DurationVar(d, "time", usual, "how long each measurement takes")
	return flags
}

func parse(flags *flag.FlagSet, args []string, stdout io.Writer) error {
	err := flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		flags.SetOutput(stdout)
		flags.PrintDefaults()
	}
	if err == nil && flags.NArg() > 0 {
		err = fmt.Errorf("unexpected argument %q; -h lists the flags", flags.Arg(0))
	}
	return err
}

// withRedis calls f while a Redis runs that has nothing to save.
func withRedis(f func(*redis.Options) error) error {
	server, err := redistest.Run()
	if err != nil {
		return err
	}
	defer server.Stop()
	return f(server.Options())
}

// written says where a report is, if there is one.
func written(stdout io.Writer, dir string, err error, files ...string) error {
	if err != nil {
		return err
	}
	for _, file := range files {
		fmt.Fprintln(stdout, "wrote", filepath.Join(dir, file))
	}
	return nil
}
