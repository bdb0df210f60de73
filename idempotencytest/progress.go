package idempotencytest

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"time"
)

// progressCases are about what Renew leaves with a claim.
var progressCases = []testCase{
	{
		name: "progress",
		clause: "The progress that Renew was given is kept with the claim, before Renew returns, and shown with its " +
			"record to the same request, outstanding and interrupted.",
		run: progressKept,
	},
	{
		name: "progress-nil",
		clause: "A Renew with a nil or empty progress leaves the progress as it is, and begins the lease anew. Most " +
			"renewals carry none.",
		run: progressNil,
	},
	{
		name: "progress-grows",
		clause: "Progress only grows: a Renew whose progress is longer than what the key holds replaces that, and one " +
			"whose progress is as long or shorter changes the times alone.",
		run: progressGrows,
	},
	{
		name: "progress-stays",
		clause: "Progress stays with its claim until that is completed, released or over: through renewals, a " +
			"repeated Claim, the end of the lease, and a Release with a trace.",
		run: progressStays,
	},
	{
		name: "progress-ends",
		clause: "Progress ends with its record: the claim that comes next, after a Release, the end of the lease or " +
			"an expiry, has none.",
		run: progressEnds,
	},
	{
		name: "progress-restored",
		clause: "A record that Renew brings back, where the key held nothing, has the progress that Renew was given. " +
			"Its owner knows all of it.",
		run: progressRestored,
	},
	{
		name: "progress-lost",
		clause: "A Renew that returns ErrClaimLost leaves no progress, however long: neither with the claim that " +
			"holds the key nor with its response.",
		run: progressLost,
	},
	{
		name: "progress-bytes",
		clause: "Progress is bytes, kept one for one: every value, NUL, what is not valid UTF-8, and 1 MiB of them. A " +
			"form or column that holds text only alters them.",
		run: progressBytes,
	},
}

func progressKept(t *tester) {
	r, progress := t.newRequest(), []byte("progress")
	t.claim(r, traced(long, long))
	t.renew(r, traced(long, long), progress)
	t.holds(r.key, r.outstanding(progress), "After Renew with progress")
	t.release(r, long)
	t.holds(r.key, r.interrupted(progress), "After Renew with progress, and Release with a trace")
}

func progressNil(t *tester) {
	r, none, progress := t.newRequest(), t.newRequest(), []byte("progress")
	t.claim(r, traced(long, long))
	t.renew(r, traced(t.soon, long), progress)
	for _, nothing := range [][]byte{nil, {}} {
		t.renew(r, traced(long, long), nothing)
		t.holds(r.key, r.outstanding(progress), "After Renew with progress, and Renew with none")
	}
	t.pass()
	t.holds(r.key, r.outstanding(progress), "After Renew with progress and a short lease, and Renew without progress and with a long lease")
	t.claim(none, lease(long))
	t.renew(none, lease(long), nil)
	t.renew(none, lease(long), []byte{})
	t.holds(none.key, none.outstanding(nil), "After Renew without progress")
	t.renew(r, lease(t.soon), nil)
	t.awaitFree(r, "After Renew without progress and with a short lease")
}

func progressGrows(t *tester) {
	r, progress := t.newRequest(), []byte("progress")
	t.claim(r, lease(long))
	t.renew(r, lease(long), progress[:1])
	t.renew(r, lease(long), progress)
	t.holds(r.key, r.outstanding(progress), "After Renew with progress, and Renew with more")
	for _, other := range []string{"x", "shorter", "as long!"} {
		t.renew(r, lease(long), []byte(other))
		t.holds(r.key, r.outstanding(progress), fmt.Sprintf("After Renew with %q, and Renew with %q, which is not longer,", progress, other))
	}
	t.renew(r, lease(long), []byte("longer ones"))
	t.holds(r.key, r.outstanding([]byte("longer ones")), "After Renew with progress, and Renew with more that does not begin like it")
	for _, other := range []string{"shorter", "as long ...", "longer than that"} {
		extended, ended := t.newRequest(), t.newRequest()
		for _, r := range []request{extended, ended} {
			t.claim(r, lease(long))
			t.renew(r, lease(long), []byte("longer ones"))
		}
		t.renew(ended, lease(t.soon), []byte(other))
		t.awaitFree(ended, fmt.Sprintf("After Renew with the progress %q, and Renew with a short lease and %q", "longer ones", other))
		t.renew(extended, traced(t.soon, long), nil)
		t.renew(extended, traced(long, long), []byte(other))
		t.pass()
		want := []byte("longer ones")
		if len(other) > len(want) {
			want = []byte(other)
		}
		t.holds(extended.key, extended.outstanding(want), fmt.Sprintf("After Renew with a short lease, and Renew with a long one and the progress %q", other))
	}
}

func progressStays(t *tester) {
	r, progress := t.newRequest(), []byte("progress")
	t.claim(r, traced(long, long))
	t.renew(r, traced(long, long), progress)
	t.claim(r, traced(long, long))
	t.holds(r.key, r.outstanding(progress), "After Renew with progress, and a Claim repeated with its token")
	t.renew(r, traced(t.soon, long), nil)
	t.awaitInterrupted(r, progress, "After Renew with progress, and Renew with a short lease and a long trace")
	t.renew(r, traced(long, long), nil)
	t.holds(r.key, r.outstanding(progress), "After Renew with progress, the end of the lease, and Renew")
	t.release(r, long)
	t.holds(r.key, r.interrupted(progress), "After Renew with progress, and Release with a trace")
	t.release(r, long)
	t.holds(r.key, r.interrupted(progress), "After Renew with progress, and Release with a trace, repeated")
	t.claim(r, lease(long))
	t.holds(r.key, r.outstanding(progress), "After Renew with progress, Release with a trace, and a Claim repeated with its token")
}

func progressEnds(t *tester) {
	released, over, expired, progress := t.newRequest(), t.newRequest(), t.newRequest(), []byte("progress")
	t.claim(released, lease(long))
	t.renew(released, lease(long), progress)
	t.release(released, 0)
	next := released.retry()
	t.claim(next, lease(long))
	t.holds(next.key, next.outstanding(nil), "After Renew with progress, Release, and Claim by the next request")
	t.claim(over, traced(long, t.soon))
	t.renew(over, traced(t.soon, t.soon), progress)
	next = t.awaitFree(over, "After Renew with progress and a short lease and trace")
	t.holds(next.key, next.outstanding(nil), "After Renew with progress, the end of lease and trace, and Claim by the next request")
	t.claim(expired, lease(long))
	t.renew(expired, lease(long), progress)
	t.complete(expired, newResponse("kept"), t.soon)
	next = t.awaitFree(expired, "After Renew with progress, and Complete with a short expiry")
	t.holds(next.key, next.outstanding(nil), "After Renew with progress, Complete, the end of its expiry, and Claim by the next request")
}

func progressRestored(t *tester) {
	never, released, progress := t.newRequest(), t.newRequest(), []byte("progress")
	t.renew(never, traced(long, long), progress)
	t.holds(never.key, never.outstanding(progress), "After Renew, with progress, where the key held nothing")
	t.claim(released, lease(long))
	t.renew(released, lease(long), progress)
	t.release(released, 0)
	t.renew(released, lease(long), []byte("short"))
	t.holds(released.key, released.outstanding([]byte("short")), "After Release, and Renew with progress")
	t.release(released, long)
	t.holds(released.key, released.interrupted([]byte("short")), "After Renew, with progress, where the key held nothing, and Release with a trace")
}

func progressLost(t *tester) {
	r, interrupted, completed := t.newRequest(), t.newRequest(), t.newRequest()
	progress, lost, response := []byte("progress"), []byte("progress of another that is longer"), newResponse("kept")
	t.claim(r, lease(long))
	t.renew(r, lease(long), progress)
	t.interrupt(interrupted, long, progress)
	t.store(completed, response, long)
	for _, other := range []request{r.rival(), r.retry(), interrupted.rival(), interrupted.retry(), completed.rival(), completed.retry()} {
		t.losesRenew(other, traced(long, long), lost)
	}
	t.holds(r.key, r.outstanding(progress), "After Renew, with progress, by another claim")
	t.holds(interrupted.key, interrupted.interrupted(progress), "After Renew, with progress, by another claim")
	t.holds(completed.key, completed.completed(response), "After Renew, with progress, by another claim")
}

func progressBytes(t *tester) {
	large := make([]byte, 1<<20)
	rand.Read(large)
	for _, progress := range append(manyBytes(), large[:1<<16], large) {
		if len(progress) == 0 {
			continue
		}
		r, was := t.newRequest(), bytes.Clone(progress)
		t.claim(r, traced(long, long))
		t.renew(r, traced(long, long), progress)
		t.holds(r.key, r.outstanding(was), "After Renew with progress of many kinds of bytes")
		t.release(r, long)
		next := r.retry()
		t.takeOver(next, takingOver(long, long), was)
		t.holds(next.key, next.outstanding(was), "After a Claim that took over progress of many kinds of bytes")
		t.release(next, time.Minute)
	}
}
