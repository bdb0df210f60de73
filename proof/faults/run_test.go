package main

import (
	"bytes"
	"flag"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency/internal/recoverytest"
)

// TestMain is also the server processes of the tests.
func TestMain(m *testing.M) {
	logging.Disable()
	recoverytest.ServeIfAsked(openRecoveryStore)
	if len(os.Args) == 3 && os.Args[1] == serverCommand {
		fail(serve(os.Args[2]))
		return
	}
	flag.Parse()
	os.Exit(m.Run())
}

// requireHarness skips a test where the harness cannot run.
func requireHarness(t *testing.T) {
	t.Helper()
	if err := supported(); err != nil {
		t.Skip("SKIPPED: ", err)
	}
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Skip("SKIPPED, NOT TESTED AGAINST A REAL REDIS: there is no redis-server on the PATH")
	}
}

// brief returns the settings of a run that is over soon.
func brief() settings {
	return settings{seed: 1, duration: 4 * time.Second, lease: time.Second, servers: 2, clients: 12, progress: io.Discard}
}

// TestScenarios runs kills, pauses and cuts against the library.
func TestScenarios(t *testing.T) {
	requireHarness(t)
	s := scenario{name: "test", store: storeDurable, hangUps: 0.05, unstored: someUnstored,
		faults: []faultKind{faultKill, faultPause, faultRefuse}}
	for _, mode := range []string{modeAgain, modeAtMostOnce} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			r, err := runScenario(t.Context(), s, mode, brief())
			require.NoError(t, err)
			require.Empty(t, r.verdict.violations)
			require.False(t, r.noEffect)
			for _, kind := range s.faults {
				require.NotZero(t, r.faults[kind], kind)
			}
		})
	}
}

// TestClaimsHold cuts off and pauses servers for less than a lease: no handler is
// started again.
func TestClaimsHold(t *testing.T) {
	requireHarness(t)
	t.Parallel()
	s := scenario{name: "test", store: storeApart, lease: within, unstored: someUnstored,
		faults: []faultKind{faultRefused, faultSilent, faultAnswers, faultSwitch, faultPause}}
	r, err := runScenario(t.Context(), s, modeAgain, brief())
	require.NoError(t, err)
	require.Empty(t, r.verdict.violations)
	require.NotZero(t, r.longLived[0].runs)
	var text bytes.Buffer
	require.NoError(t, report(&text, "", []*result{r}))
	require.Regexp(t, `(?m)^\| test +\| again \| 1s +\| 0.3 to 0.9 +\| \d+ +\| \d+ +\| 0 +\| \d+ +\|$`, text.String())
}

// TestBrokenBuild runs a broken build and demands that its check fails.
func TestBrokenBuild(t *testing.T) {
	requireHarness(t)
	t.Parallel()
	set := brief()
	set.broken = "release-anything"
	r, err := runScenario(t.Context(), scenarios[0], modeAgain, set)
	require.NoError(t, err)
	require.Contains(t, r.verdict.failed(), "c")
	require.NoError(t, os.RemoveAll(r.kept))
}

// TestWait measures one wait that the client's settings bound.
func TestWait(t *testing.T) {
	requireHarness(t)
	t.Parallel()
	n, err := startNode(t.TempDir(), nil)
	require.NoError(t, err)
	defer n.stop()
	for _, how := range []absence{absenceRefused, absenceSilent, absenceUnreachable} {
		settings := clientSettings{name: "bounded", apply: func(o *redis.Options) { shortTimeouts(o); noRetries(o) }}
		text, err := measure(t.Context(), n.addr(), settings, how, false)
		require.NoError(t, err)
		require.Regexp(t, `^0\.\d\d s \(503\)$`, text, how)
	}
}

// TestLedger holds that all records of many writers are read again, and that a
// line which was cut is not.
func TestLedger(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s0.1.ledger")
	book, err := openLedger(path)
	require.NoError(t, err)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 10 {
				if err := book.append(record{Kind: recordStart, Run: "r", Key: "k"}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	_, err = book.file.WriteString(`{"kind":"sta`)
	require.NoError(t, err)
	ledgers, err := readLedgers(dir)
	require.NoError(t, err)
	require.Len(t, ledgers["s0.1"], 200)

	_, err = book.file.WriteString("\n")
	require.NoError(t, err)
	_, err = readLedgers(dir)
	require.ErrorContains(t, err, "ledger s0.1")
	require.NoError(t, book.file.Close())
	require.Error(t, book.append(record{}))
}

// TestSchedule holds that a schedule follows from its seed, and that every
// scenario with faults has one of each kind.
func TestSchedule(t *testing.T) {
	for _, s := range scenarios {
		plan := func(seed uint64) map[faultKind][]planned {
			return planFaults(seed, s, 10*time.Second, time.Second, 3)
		}
		require.Equal(t, plan(1), plan(1), s.name)
		for _, kind := range s.faults {
			require.NotEmpty(t, plan(1)[kind], "%s: %s", s.name, kind)
			require.NotEqual(t, plan(1), plan(2), s.name)
		}
	}
	family, err := findScenarios(familyLease)
	require.NoError(t, err)
	require.Len(t, family, 9)
	for _, s := range family {
		for kind, faults := range planFaults(1, s, time.Minute, time.Second, 3) {
			require.True(t, kind == faultFull || len(faults) > 20, "%s: %s", s.name, kind)
			for _, f := range faults {
				require.GreaterOrEqual(t, f.lasts, time.Duration(s.lease.least*float64(time.Second)))
				require.LessOrEqual(t, f.lasts, time.Duration(s.lease.most*float64(time.Second)))
				require.GreaterOrEqual(t, f.gap, time.Second/4)
			}
		}
	}
	c := &crowd{seed: 1}
	require.Equal(t, c.newOrder(7), c.newOrder(7))
	require.Equal(t, planRun(1, "7.0-0", time.Second, someUnstored), planRun(1, "7.0-0", time.Second, someUnstored))
}

// TestFlags holds that a bad command line is refused with what is wrong.
func TestFlags(t *testing.T) {
	tests := []struct {
		args []string
		want string
	}{
		{[]string{"-for", "1ms"}, "-for: it must be at least 1s"},
		{[]string{"-lease", "1ms"}, "-lease: it must be from 200ms to 1m"},
		{[]string{"-servers", "0"}, "-servers: it must be from 1 to 20"},
		{[]string{"recovery", "-kills", "0"}, "-kills: it must be at least 1"},
		{[]string{"-clients", "0"}, "-clients: it must be from 1 to 1000"},
		{[]string{"-mode", "twice"}, `-mode: no "twice"`},
		{[]string{"-break", "nothing"}, `-break: no "nothing"`},
		{[]string{"-scenario", "flood"}, `-scenario: no "flood"`},
		{[]string{"more"}, `unexpected argument "more"`},
		{[]string{"-nope"}, "flag provided but not defined"},
	}
	for _, test := range tests {
		_, err := parse(test.args, io.Discard)
		require.ErrorContains(t, err, test.want)
	}
	o, err := parse([]string{"-short"}, io.Discard)
	require.NoError(t, err)
	require.Len(t, o.scenarios, 5)
	require.Len(t, o.modes, 2)
	var help bytes.Buffer
	_, err = parse([]string{"-h"}, &help)
	require.ErrorIs(t, err, flag.ErrHelp)
	require.Contains(t, help.String(), "selftest")
}

// TestTable holds that a table is Markdown, and that a failed check is an error.
func TestTable(t *testing.T) {
	var text bytes.Buffer
	bad := &verdict{}
	bad.fail("d", "a second run")
	err := report(&text, "", []*result{{scenario: "kill", mode: modeAtMostOnce, verdict: bad, faults: map[faultKind]int{faultKill: 3}}})
	require.ErrorContains(t, err, "checks failed in 1 of 1 runs")
	require.Regexp(t, `(?m)^\| kill +\| at-most-once .*\| d +\|$`, text.String())
	require.Regexp(t, `(?m)^\| kill +\| 3 +\|$`, text.String())
}
