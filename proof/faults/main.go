// Faults proves the idempotency middleware under faults. It runs several
// processes of a real HTTP server with the middleware over a real Redis, and
// clients that retry with the same key; it kills, pauses and cuts off processes
// and Redis by a seeded schedule; and it checks that what the clients saw and
// what the servers' ledgers say is what the library promises.
//
//	go run . -seed 1 -for 30s -scenario all
//	go run . -seed 1 -scenario lease -for 215s
//	go run . -short
//	go run . selftest
//	go run . wait
//	go run . recovery -kills 2000
//
// It needs Linux and redis-server on the PATH.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9/logging"

	"github.com/idempotency-go/idempotency/internal/recoverytest"
)

// serverCommand is the hidden command of a server process.
const serverCommand = "server"

func main() {
	logging.Disable() // What go-redis logs repeats the errors that its calls return.
	recoverytest.ServeIfAsked(openRecoveryStore)
	if len(os.Args) == 3 && os.Args[1] == serverCommand {
		fail(serve(os.Args[2]))
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // A second signal ends the process at once.
	fail(execute(ctx, os.Args[1:], os.Stdout))
}

// fail ends the process with status 1 where there is an error.
func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "faults:", err)
		os.Exit(1)
	}
}

// options is the command line.
type options struct {
	settings
	command   string // "", commandSelfTest, commandWait or commandRecovery
	kills     int    // of the proof of recovery
	scenarios []scenario
	modes     []string
	waits     bool // measure the waits too: with all scenarios
	markdown  string
}

// The commands beside the default one, which runs scenarios.
const (
	commandSelfTest = "selftest"
	commandWait     = "wait"
	commandRecovery = "recovery"
)

// execute does what the command line says.
func execute(ctx context.Context, args []string, stdout io.Writer) error {
	o, err := parse(args, stdout)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := supported(); err != nil {
		return err
	}
	if _, err := exec.LookPath("redis-server"); err != nil {
		return errors.New("there is no redis-server on the PATH (Debian's package is redis-server)")
	}
	switch o.command {
	case commandSelfTest:
		return selfTest(ctx, o.settings, stdout)
	case commandRecovery:
		return proveRecovery(ctx, o.kills, o.clients, o.seed, o.markdown, stdout)
	case commandWait:
		t, err := measureWaits(ctx, stdout)
		if err != nil {
			return err
		}
		return writeTables(stdout, o.markdown, t)
	}
	var results []*result
	for _, together := range sideBySide(o.scenarios) {
		for _, mode := range o.modes {
			of, err := runTogether(ctx, together, mode, o.settings, stdout)
			if err != nil {
				return err
			}
			results = append(results, of...)
		}
	}
	var waits []*table
	if o.waits {
		t, err := measureWaits(ctx, stdout)
		if err != nil {
			return err
		}
		waits = append(waits, t)
	}
	return report(stdout, o.markdown, results, waits...)
}

// mostTogether is how many scenarios of a family run at once.
const mostTogether = 3

// sideBySide parts scenarios into those that run at once. Claims that must hold need a
// machine that is not busy; their scenarios need little of it.
func sideBySide(all []scenario) (parts [][]scenario) {
	for _, s := range all {
		if last := len(parts) - 1; s.family != "" && last >= 0 && parts[last][0].family == s.family && len(parts[last]) < mostTogether {
			parts[last] = append(parts[last], s)
			continue
		}
		parts = append(parts, []scenario{s})
	}
	return parts
}

// runTogether runs scenarios in a mode, all at once.
func runTogether(ctx context.Context, together []scenario, mode string, set settings, stdout io.Writer) ([]*result, error) {
	results, errs := make([]*result, len(together)), make([]error, len(together))
	var wg sync.WaitGroup
	for i, s := range together {
		fmt.Fprintf(stdout, "%s, %s: seed %d, %v\n", s.name, mode, set.seed, set.duration)
		wg.Go(func() { results[i], errs[i] = runScenario(ctx, s, mode, set) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	for _, r := range results {
		printViolations(stdout, r)
	}
	return results, nil
}

// parse reads the command line.
func parse(args []string, stdout io.Writer) (*options, error) {
	o := &options{}
	if len(args) > 0 && slices.Contains([]string{commandSelfTest, commandWait, commandRecovery}, args[0]) {
		o.command, args = args[0], args[1:]
	}
	flags := flag.NewFlagSet("faults", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // The flag package would print the usage with each error.
	flags.Uint64Var(&o.seed, "seed", 1, "`number` that the schedule of faults and the clients' and handlers' choices follow from")
	flags.DurationVar(&o.duration, "for", 30*time.Second, "how `long` faults are injected, for each scenario and mode")
	names := flags.String("scenario", allScenarios, "comma-separated `names` of scenarios, lease for all about claims that must hold, or all, which measures the waits too")
	mode := flags.String("mode", "both", "`mode`: again (the default of the middleware), at-most-once, or both")
	flags.DurationVar(&o.lease, "lease", time.Second, "`lease` of a claim")
	flags.IntVar(&o.servers, "servers", 3, "`number` of server processes")
	flags.IntVar(&o.clients, "clients", 48, "`number` of clients")
	flags.IntVar(&o.kills, "kills", 2000, "how `often` servers are killed in the proof of recovery, about; -clients is how many at once")
	flags.StringVar(&o.broken, "break", "", "`name` of a deliberately broken build of the servers, to see a check fail")
	flags.StringVar(&o.markdown, "markdown", "", "`file` to write the table to, as Markdown")
	flags.BoolVar(&o.keep, "keep", false, "keep the ledgers, also where no check fails")
	brief := flags.Bool("short", false, "the short form: one Redis, kills, pauses and cuts, both modes, in about 75 s")
	err := flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(stdout, "usage: faults [flags]            run scenarios, and check their histories\n"+
			"       faults selftest [flags]   run broken builds, and demand that the checks find them\n"+
			"       faults recovery [flags]   kill servers that recover and take steps\n"+
			"       faults wait [flags]       measure how long a request waits where Redis is gone")
		flags.SetOutput(stdout)
		flags.PrintDefaults()
		return nil, err
	}
	if err != nil {
		return nil, err
	}
	o.progress = stdout
	if *brief {
		o.duration, o.clients = 4*time.Second, 24
		*names, *mode = short, "both"
	}
	switch {
	case flags.NArg() > 0:
		return nil, fmt.Errorf("unexpected argument %q; -h lists the flags", flags.Arg(0))
	case o.duration < time.Second:
		return nil, errors.New("-for: it must be at least 1s")
	case o.lease < 200*time.Millisecond || o.lease > time.Minute:
		return nil, errors.New("-lease: it must be from 200ms to 1m")
	case o.servers < 1 || o.servers > 20:
		return nil, errors.New("-servers: it must be from 1 to 20")
	case o.kills < 1:
		return nil, errors.New("-kills: it must be at least 1")
	case o.clients < 1 || o.clients > 1000:
		return nil, errors.New("-clients: it must be from 1 to 1000")
	}
	switch *mode {
	case "both":
		o.modes = []string{modeAgain, modeAtMostOnce}
	case modeAgain, modeAtMostOnce:
		o.modes = []string{*mode}
	default:
		return nil, fmt.Errorf("-mode: no %q; there are again, at-most-once and both", *mode)
	}
	if o.broken != "" {
		if err := checkBreakage(o.broken); err != nil {
			return nil, err
		}
	}
	o.waits = *names == allScenarios
	o.scenarios, err = findScenarios(*names)
	return o, err
}
