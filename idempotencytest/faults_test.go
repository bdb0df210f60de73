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

// afterStall are the cases that set a short lease and then complete or renew the
// claim: where the machine stalls in between, the key holds nothing.
const afterStall = "?identity-same-token ?lease-zero ?renew-lease ?expiry-zero ?expiry-replaces-lease"

// The cases beside lease-ends and expiry-ends that wait for the end of a lease
// or of an expiry.
const (
	afterLease = "identity-same-token renew-lost takeover complete-repeated renew-completed lease-zero renew-lease expiry-zero " +
		"expiry-replaces-lease time-over time-fractions time-long status-zero keys-independent context-ends-later claim-atomic-over"
	afterExpiry = "renew-lost complete-repeated renew-completed time-fractions records-stay claim-atomic-over"
)

// faults are the faults that a model can have, each with the cases that fail
// for it. The first is the one whose clause names the fault. A case with a
// question mark may fail: it depends on what happens at the same time. Where the
// fault shows almost everywhere, an asterisk stands for any others.
var faults = []struct{ fault, fails string }{
	{"Claim shows its caller's claim", "claim-held *"},
	{"Claim shows its caller's fingerprint", "claim-held *"},
	{"Claim shows an empty response while outstanding", "claim-held *"},
	{"Claim shows its caller's claim only to the same request", "claim-held identity-other-token"},
	{"Claim refuses its own token", "claim-own-token identity-same-token"},
	{"Claim takes its own response for its claim", "claim-completed status-zero"},
	{"Claim overwrites its own response", "claim-completed status-zero"},
	{"Claim sets the time of an outstanding record", "claim-refused *"},
	{"Claim sets the time of a response", "claim-refused *"},
	{"Claim prolongs a response", "claim-refused *"},
	{"Claim compares claims whole", "identity-same-token"},
	{"Renew compares claims whole", "identity-same-token"},
	{"Complete compares claims whole", "identity-same-token"},
	{"Release compares claims whole", "identity-same-token"},
	{"claims are compared by fingerprint too", "identity-other-token claim-held"},
	{"tokens are compared without case", "identity-other-token"},
	{"tokens are compared by their beginnings", "identity-other-token"},
	{"Complete is not fenced from outstanding claims", "complete-lost identity-other-token takeover ?hammer"},
	{"Complete is not fenced from responses", "complete-lost status-zero complete-atomic"},
	{"Complete by another is silent", "complete-lost identity-other-token takeover status-zero complete-atomic"},
	{"Renew is not fenced from outstanding claims", "renew-lost identity-other-token takeover renew-atomic ?hammer"},
	{"Renew is not fenced from responses", "renew-lost"},
	{"Renew by another sets an outstanding record's time", "renew-lost ?hammer"},
	{"Renew by another sets a response's time", "renew-lost"},
	{"Renew by another prolongs an outstanding record", "renew-lost"},
	{"Renew by another prolongs a response", "renew-lost"},
	{"Renew by another is silent", "renew-lost identity-other-token takeover renew-atomic"},
	{"Release is not fenced from outstanding claims", "release-lost identity-other-token takeover ?release-atomic ?hammer"},
	{"Release is not fenced from responses", "release-lost"},
	{"Release of another's claim is an error", "release-lost identity-other-token takeover ?release-atomic"},
	{"Release of another's response is an error", "release-lost"},
	{"Renew by a former holder is silent", "takeover"},
	{"Complete by a former holder takes effect", "takeover"},
	{"Release by a former holder takes effect", "takeover ?release-atomic"},
	{"Release does nothing", "release-own identity-same-token release-nothing keys-independent context-ended context-ends-later release-atomic"},
	{"Release leaves a record", "release-own identity-same-token release-nothing complete-nothing renew-nothing keys-independent context-ended context-ends-later release-atomic ?hammer"},
	{"Release deletes its response", "release-completed status-zero"},
	{"Release of its response is an error", "release-completed status-zero"},
	{"Release of nothing is an error", "release-nothing ?release-atomic ?hammer"},
	{"Release of nothing leaves a record", "release-nothing ?release-atomic ?hammer"},
	{"Release repeated is an error", "release-nothing ?release-atomic"},
	{"Release repeated leaves a record", "release-nothing ?release-atomic"},
	{"Complete refuses a key that holds nothing", "complete-nothing time-over complete-atomic " + afterStall},
	{"Complete ignores a key that holds nothing", "complete-nothing time-over complete-atomic " + afterStall},
	{"Complete ignores a claim that lost its key", "complete-nothing time-over " + afterStall},
	{"Renew refuses a key that holds nothing", "renew-nothing time-over renew-atomic " + afterStall},
	{"Renew ignores a key that holds nothing", "renew-nothing time-over renew-atomic " + afterStall},
	{"Renew ignores a claim that lost its key", "renew-nothing time-over " + afterStall},
	{"Complete repeated replaces the response", "complete-repeated"},
	{"Complete repeated replaces the mark", "complete-repeated"},
	{"Complete repeated sets the time", "complete-repeated"},
	{"Complete repeated prolongs", "complete-repeated"},
	{"Complete repeated is an error", "complete-repeated"},
	{"Renew of a response makes it outstanding", "renew-completed status-zero ?renew-atomic"},
	{"Renew of a response sets its time", "renew-completed status-zero"},
	{"Renew of a response prolongs it", "renew-completed"},
	{"Renew of a response is an error", "renew-completed status-zero ?renew-atomic"},
	{"leases never end", "lease-ends claim-refused " + afterLease},
	{"leases end early", "lease-ends time-fractions *"},
	{"0 is over at once", "lease-zero expiry-zero status-zero"},
	{"Claim takes 0 for over at once", "lease-zero"},
	{"Renew takes 0 for over at once", "lease-zero"},
	{"0 is a short time", "lease-zero expiry-zero status-zero"},
	{"Claim refuses 0", "lease-zero expiry-replaces-lease"},
	{"Renew refuses 0", "lease-zero"},
	{"Renew ignores its lease", "renew-lease identity-same-token lease-zero time-fractions"},
	{"Renew only extends", "renew-lease time-fractions"},
	{"expiries never end", "expiry-ends claim-refused expiry-replaces-lease time-over status-zero " + afterExpiry},
	{"expiries end early", "expiry-ends time-fractions *"},
	{"Complete takes 0 for over at once", "expiry-zero status-zero"},
	{"Complete refuses 0", "expiry-zero status-zero"},
	{"Complete leaves the lease", "expiry-replaces-lease claim-refused expiry-ends expiry-zero time-over status-zero " + afterExpiry},
	{"Complete adds to the lease", "expiry-replaces-lease claim-refused expiry-ends time-over status-zero " + afterExpiry},
	{"Complete takes the shorter time", "expiry-replaces-lease expiry-zero"},
	{"Complete keeps a lease of 0", "expiry-replaces-lease"},
	{"Renew heeds another's lease that is over", "time-over"},
	{"Complete heeds another's lease that is over", "time-over"},
	{"Renew heeds another's response that is over", "time-over"},
	{"Complete heeds another's response that is over", "time-over"},
	{"Complete heeds its own response that is over", "time-over"},
	{"Claim counts whole milliseconds, rounded down", "time-fractions"},
	{"Claim refuses less than a millisecond", "time-fractions"},
	{"Renew counts whole milliseconds, rounded down", "time-fractions"},
	{"Renew refuses less than a millisecond", "time-fractions"},
	{"Complete counts whole milliseconds, rounded down", "time-fractions"},
	{"Complete refuses less than a millisecond", "time-fractions"},
	{"times have 32 bits", "time-long *"},
	{"Claim takes a time of years for over", "time-long"},
	{"Renew takes a time of years for over", "time-long"},
	{"Complete takes a time of years for over", "time-long"},
	{"Renew loses the fingerprint", "fingerprint lease-zero renew-lease time-long context-ended context-ends-later ?hammer"},
	{"Complete loses the fingerprint", "fingerprint *"},
	{"statuses that are not known are 500", "status"},
	{"Status 0 is not stored", "status-zero complete-repeated"},
	{"Status 0 is refused", "status-zero complete-repeated"},
	{"Status 0 becomes 200", "status-zero complete-repeated"},
	{"values are folded", "header-values"},
	{"values are split at commas", "header-values"},
	{"values are sorted", "header-values"},
	{"empty values are dropped", "header-values"},
	{"names without values are dropped", "header-names"},
	{"names are made canonical", "header-names"},
	{"values are kept as JSON", "header-bytes"},
	{"a nil header is refused", "header-empty complete-repeated status-zero"},
	{"a response without a header is not stored", "header-empty"},
	{"a response without a body is not stored", "body-empty header-empty"},
	{"a nil body becomes null", "body-empty header-empty"},
	{"the body is kept as JSON", "body-binary"},
	{"the body is cut at NUL", "body-binary"},
	{"the body is trimmed", "body-binary"},
	{"the body is kept in base64 with an alphabet of its own", "body-binary"},
	{"the body is cut at 64 KiB", "body-large"},
	{"Complete changes the header that it was given", "copies header-values"},
	{"the response is not copied", "copies"},
	{"the header is not copied", "copies"},
	{"the header's values are not copied", "copies"},
	{"the body is not copied", "copies"},
	{"a response is written over the last one", "records-stay *"},
	{"all keys are one", "keys-independent *"},
	{"Release frees all claims", "keys-independent context-ends-later ?hammer"},
	{"keys are cut", "keys-alike"},
	{"keys are kept in lower case", "keys-alike"},
	{"keys are file names", "keys-alike"},
	{"an ended context breaks the connection", "context-ended"},
	{"an ended context claims nothing and says nothing", "context-ended"},
	{"an ended context claims nothing and says it did", "context-ended"},
	{"an ended context renews nothing and says it did", "context-ended"},
	{"an ended context completes nothing and says it did", "context-ended"},
	{"an ended context completes by half", "context-ended"},
	{"an ended context releases nothing and says it did", "context-ended"},
	{"Claim panics when its context has ended", "context-ended"},
	{"Renew panics when its context has ended", "context-ended"},
	{"Complete panics when its context has ended", "context-ended"},
	{"Release panics when its context has ended", "context-ended"},
	{"Complete hangs when its context has ended", "context-ended"},
	{"a claim ends with its context", "context-ends-later"},
	{"a renewal ends with its context", "context-ends-later"},
	{"a response ends with its context", "context-ends-later"},
	{"a release is undone when its context ends", "context-ends-later"},
	{"Claim is not atomic", "claim-atomic claim-atomic-over ?hammer"},
	{"calls at the same time are refused", "claim-atomic *"},
	{"keys are cleared of what is over in a step of its own", "claim-atomic-over ?hammer"},
	{"Complete is not atomic", "complete-atomic ?hammer"},
	{"Renew of nothing is not atomic", "renew-atomic ?hammer"},
	{"Renew of a claim is not atomic", "renew-atomic"},
	{"Release is not atomic", "release-atomic"},
	{"every 20th Claim of a held key gets it", "hammer *"},
	{"Begin loses the context's values", "begin"},
	{"Begin's context has ended", "begin ?begin-complete ?begin-release ?begin-lost ?begin-outstanding ?begin-nested"},
	{"Begin's context does not end", "begin"},
	{"Begin releases the claim", "begin begin-lost begin-outstanding begin-nested"},
	{"Complete after Begin stores nothing", "begin-complete begin-release begin-lost begin-nested"},
	{"Complete after Begin stores no mark", "begin-complete"},
	{"Complete after Begin is refused when repeated", "begin-complete"},
	{"Release after Begin does nothing", "begin-release begin-nested"},
	{"Release after Begin of nothing is an error", "begin-release begin-lost"},
	{"Complete after Begin is not fenced", "begin-lost"},
	{"Complete after Begin by another is silent", "begin-lost"},
	{"Claim waits for what was begun", "begin-outstanding *"},
	{"Renew after Begin does nothing", "begin-outstanding"},
	{"what was begun within another is settled for that one", "begin-nested"},
}

// faultVariable has the fault of the model that TestFaulty runs the suite on.
const faultVariable = "IDEMPOTENCYTEST_FAULT"

// TestFaulty fails. TestFaults runs it in processes of its own.
func TestFaulty(t *testing.T) {
	fault, ok := os.LookupEnv(faultVariable)
	if !ok {
		t.Skip("run by TestFaults")
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

// runFaulty runs TestFaulty in a process of its own and returns the names of the
// cases that failed.
func runFaulty(t *testing.T, executable, fault string) (failed []string, output string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), executable, "-test.run=^TestFaulty$", "-test.v", "-test.parallel=64", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), faultVariable+"="+fault)
	told, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit, "the suite passes a backend with this fault:\n%s", told)
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

// expected reads what a fault should fail.
func expected(fails string) (must, may []string, others bool) {
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
