package compare

import (
	"fmt"
	"io"

	"github.com/idempotency-go/idempotency/benchmarks/internal/report"
)

// difference is one situation, and what each does in it.
type difference struct {
	situation, ours, fiber, byHand string
}

// differences was read from the sources of the versions in go.mod; what can be
// seen from outside, the tests try out.
var differences = []difference{
	{"the same key with another request", "422", "replays the other's answer", "replays the other's answer"},
	{"one key in two processes at once", "one runs the handler", "both run it: the lock is in memory", "one runs the handler"},
	{"a duplicate while the first runs", "409; waits with `WithWait`", "waits, however long it takes", "409"},
	{"the process dies in the handler", "the key is free one lease (30 s) later", "the key is free at once", "409 until the expiry"},
	{"the handler panics", "the key is free", "the key is free", "409 until the expiry"},
	{"the handler outlasts its claim", "it is renewed", "it has no end", "it is not renewed"},
	{"one that lost its claim answers late", "cannot overwrite the record", "overwrites it", "overwrites it"},
	{"the client leaves while the handler runs", "the answer is stored", "the answer is stored", "`SET` fails: 409 until the expiry"},
	{"the store fails before the handler", "503, it does not run", "500, it does not run", "503, it does not run"},
	{"the store fails after the handler", "tried again for 5 s; the answer is sent", "500 in place of the answer; a retry runs it again", "the answer is sent; 409 until the expiry"},
	{"status of a replay", "the first one's", "the first one's", "written out in the code"},
	{"headers of a replay", "the handler's, without Set-Cookie", "all, Set-Cookie too; those set outside of it twice", "written out in the code"},
	{"the client can tell a replay", "`Idempotent-Replayed: true`", "no", "no"},
	{"what is stored", "valid JSON, and what options add", "every body within the server's limit, unless the handler returned an error", "everything"},
	{"a malformed key", "422", "500: a length other than 36", "is taken as it is"},
	{"the key in the store", "a hash of scope and key", "in clear, without a prefix", "in clear"},
	{"memory taken, at the most", "64 MiB", "no bound; swept every 15 min", "–"},
	{"round trips to Redis: first request, replay", "2, 1", "3, 1", "2, 2"},
}

// writeDifferences writes the differences, and where Fiber's can be read.
func writeDifferences(w io.Writer) {
	var rows [][]string
	for _, d := range differences {
		rows = append(rows, []string{d.situation, d.ours, d.fiber, d.byHand})
	}
	report.Table(w, []string{"", "this package", "Fiber's middleware", "by hand"}, func(int) bool { return false }, rows)
	fmt.Fprint(w, "Fiber's were read in its `middleware/idempotency` (`New` in idempotency.go, `MemoryLock` in locker.go, `configDefault` in\n"+
		"config.go), its `internal/storage/memory`, and `Storage` in gofiber/storage's redis.go. Its `Lock` may be replaced by one of\n"+
		"one's own, its headers be chosen by `KeepResponseHeaders`, its keys be checked by `KeyHeaderValidate`.\n")
}
