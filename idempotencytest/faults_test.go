package idempotencytest_test

import (
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/idempotencytest"
)

// faultVariable has the fault of the model that TestFaulty runs the suite on.
const faultVariable = "IDEMPOTENCYTEST_FAULT"

// TestFaulty is run in processes of its own by TestFaults, where it fails, and by
// TestFreedoms.
func TestFaulty(t *testing.T) {
	fault, ok := os.LookupEnv(faultVariable)
	if !ok {
		t.Skip("run by other tests")
	}
	idempotencytest.RunFast(t, func(*testing.T) idempotency.Backend { return newFaulty(fault) })
}

var failedCase = regexp.MustCompile(`(?m)^ *--- FAIL: TestFaulty/(\S+)`)

// TestFaults runs the suite on a backend with each of the faults, and checks
// that it fails the cases that it should, with the clauses that are broken.
func TestFaults(t *testing.T) {
	if testing.Short() {
		t.Skip("runs the suite once for each fault")
	}
	executable, err := os.Executable()
	require.NoError(t, err)
	clauses := idempotencytest.Clauses()
	for _, f := range faults {
		t.Run(f.fault, func(t *testing.T) {
			t.Parallel()
			must, may, others := expected(f.fails)
			failed, output := runFaulty(t, executable, f.fault)
			require.NotEmpty(t, failed, "the suite passes a backend with this fault:\n%s", output)
			require.Subset(t, failed, must, "%s", output)
			// Where the machine stands still for long, what should be held is over:
			// another case fails too, but not time and again.
			for range 2 {
				if others || within(failed, must, may) {
					break
				}
				failed, output = runFaulty(t, executable, f.fault)
			}
			require.True(t, others || within(failed, must, may), "%v\n%s", failed, output)
			for _, name := range must {
				told := strings.Contains(string(output), "The contract: "+clauses[name])
				require.True(t, told, "the clause of %s is not told:\n%s", name, output)
			}
		})
	}
}

// TestFreedoms checks that the suite passes what the contract leaves free.
func TestFreedoms(t *testing.T) {
	executable, err := os.Executable()
	require.NoError(t, err)
	for _, freedom := range []string{
		"", // None is taken.
		wrapsErrors, roundsUp, isSlow, ignoresContexts, hidesOthers, swapsEmpty, keepsProgress, isBare, isWrapped, isTransactor, needsClaim,
	} {
		t.Run(freedom, func(t *testing.T) {
			t.Parallel()
			_, output := runFaulty(t, executable, freedom)
			require.Regexp(t, `(?m)^PASS$`, output)
			_, transactor := newFaulty(freedom).(idempotency.Transactor)
			require.Equal(t, transactor, strings.Contains(output, "--- PASS: TestFaulty/begin-nested"))
			require.Equal(t, freedom != isBare, strings.Contains(output, "--- PASS: TestFaulty/forget-seen"))
		})
	}
}

// runFaulty runs TestFaulty in a process of its own and returns the names of the
// cases that failed.
func runFaulty(t *testing.T, executable, fault string) (failed []string, output string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), executable, "-test.run=^TestFaulty$", "-test.v", "-test.parallel=64", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), faultVariable+"="+fault)
	told, _ := cmd.CombinedOutput()
	for _, match := range failedCase.FindAllStringSubmatch(string(told), -1) {
		failed = append(failed, match[1])
	}
	return failed, string(told)
}

// within reports whether nothing failed but what must or may.
func within(failed, must, may []string) bool {
	return !slices.ContainsFunc(failed, func(name string) bool {
		return !slices.Contains(must, name) && !slices.Contains(may, name)
	})
}

// expected reads what a fault should fail. The hammer does everything at random, and
// may meet any fault.
func expected(fails string) (must, may []string, others bool) {
	may = []string{"hammer"}
	for name := range strings.FieldsSeq(fails) {
		if name == "*" {
			others = true
		} else if optional, ok := strings.CutPrefix(name, "?"); ok {
			may = append(may, optional)
		} else {
			must = append(must, name)
		}
	}
	return must, may, others
}

// TestEveryCaseCanFail checks that for each case there is a fault whose clause
// it is, and that no fault is of a case that there is not.
func TestEveryCaseCanFail(t *testing.T) {
	clauses := idempotencytest.Clauses()
	proven := make(map[string]bool)
	for _, f := range faults {
		must, may, _ := expected(f.fails)
		proven[must[0]] = true
		for _, name := range slices.Concat(must, may) {
			require.Contains(t, clauses, name, "a fault is said to fail a case that there is not")
		}
	}
	for name, clause := range clauses {
		require.True(t, proven[name], "no backend fails the case %s", name)
		require.True(t, strings.HasSuffix(clause, "."), "the clause of %s is not a sentence", name)
	}
}
