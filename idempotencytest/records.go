package idempotencytest

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"math"
	"net/http"
	"strings"

	"github.com/idempotency-go/idempotency"
)

// recordCases are about what a record looks like when it comes back.
var recordCases = []testCase{
	{
		name: "fingerprint",
		clause: "A record keeps its claim's fingerprint byte for byte, outstanding or with a response, after Renew as well. " +
			"Every byte may have every value, and all of them may be zero, which is a fingerprint like any other.",
		run: fingerprints,
	},
	{
		name:   "status",
		clause: "A record keeps its response's status code, whatever it is: errors are replayed like successes.",
		run:    statuses,
	},
	{
		name: "status-zero",
		clause: "A response with Status 0 is the mark of a handler that ran and whose answer was not kept. It is kept, and ends, like any " +
			"response, and is neither an outstanding request nor nothing.",
		run: statusZero,
	},
	{
		name: "header-values",
		clause: "A header keeps each of its values apart and in their order: they are not folded into one line, not sorted, and not split at commas. " +
			"An empty value is a value.",
		run: headerValues,
	},
	{
		name: "header-names",
		clause: "A header keeps its names as they are spelled, and a name with no values too: it is a header that the handler took away. " +
			"Do not use Header.Set or Header.Add to read a record.",
		run: headerNames,
	},
	{
		name: "header-bytes",
		clause: "A header's values are bytes, kept one for one: they need not be valid UTF-8, and may be long. " +
			"A form that holds text only, such as JSON, alters them.",
		run: headerBytes,
	},
	{
		name:   "header-empty",
		clause: "A response may have no header at all: Header may be nil or empty. Either is kept, and may come back as the other.",
		run:    headerEmpty,
	},
	{
		name:   "body-empty",
		clause: "A response may have no body: Body may be nil or empty. It is a response all the same, with its status and header.",
		run:    bodyEmpty,
	},
	{
		name: "body-binary",
		clause: "A body is bytes, kept one for one: NUL, CR LF, spaces at its ends, and what is not valid UTF-8. " +
			"A form or column that holds text only alters them.",
		run: bodyBinary,
	},
	{
		name: "body-large",
		clause: "A body of 1 MiB, the middleware's default limit, is kept whole. Mind the size that a column or an item may have; " +
			"what has no room at all is an error, never a body cut short.",
		run: bodyLarge,
	},
	{
		name: "copies",
		clause: "What a backend was given is its caller's again once the call returns: the caller may change the response's body, the header and " +
			"its values. Copy what you keep. Nor may the backend change it: the caller has yet to send it.",
		run: copies,
	},
	{
		name: "records-stay",
		clause: "A Record that Claim returned does not change any more, whatever later calls and time do to its key: its caller may be sending it. " +
			"Replace what you keep, do not write into it.",
		run: recordsStay,
	},
}

// keeps checks that a response comes back as it was stored.
func (t *tester) keeps(what string, resp *idempotency.Response) {
	t.Helper()
	r := t.newRequest()
	t.store(r, resp, long)
	t.holds(r, resp, "After Complete with "+what)
}

func fingerprints(t *tester) {
	all := [][32]byte{{}, {31: 1}, {0: 1}}
	for b := range 256 {
		if b%32 == 0 {
			all = append(all, [32]byte{})
		}
		all[len(all)-1][b%32] = byte(b)
	}
	for _, fingerprint := range all {
		r := t.newRequest()
		r.claim.Fingerprint = fingerprint
		t.claim(r, long)
		t.holds(r, nil, "After Claim")
		t.renew(r, long)
		t.holds(r, nil, "After Renew")
		t.complete(r, newResponse("kept"), long)
		t.holds(r, newResponse("kept"), "After Complete")
	}
}

func statuses(t *tester) {
	for _, status := range []int{200, 201, 202, 204, 226, 299, 301, 304, 400, 404, 409, 422, 499, 500, 503, 599, 999} {
		resp := newResponse("kept")
		resp.Status = status
		t.keeps("a status of its own", resp)
	}
}

func statusZero(t *tester) {
	r, forever, ending, mark := t.newRequest(), t.newRequest(), t.newRequest(), &idempotency.Response{}
	t.store(r, mark, long)
	t.store(forever, mark, 0)
	t.store(ending, mark, t.soon)
	t.release(r)
	t.renew(r, t.soon)
	t.losesComplete(r.rival())
	t.pass()
	t.refused(r, r.record(mark), "When the key had the mark Status 0 of this very claim")
	t.holds(r, mark, "After Complete with the mark Status 0, then Release, Renew with a short lease, and another claim's Complete")
	t.holds(forever, mark, "After Complete with the mark Status 0 and an expiry of 0")
	t.awaitFree(ending.key, "After Complete with the mark Status 0 and a short expiry")
}

func headerValues(t *tester) {
	t.keeps("several values of a header", &idempotency.Response{Status: 200, Header: http.Header{
		"Set-Cookie": {"b=2; Path=/", "a=1; Path=/", "b=2; Path=/"},
		"Vary":       {"Accept, Origin", "Cookie"},
		"Link":       {"<https://example.com/?a=1,2>; rel=next", "", "z", "y"},
		"X-Empty":    {""},
		"X-Empties":  {"", ""},
	}, Body: []byte("{}")})
}

func headerNames(t *tester) {
	t.keeps("headers without values", &idempotency.Response{Status: 200, Header: http.Header{
		"X-None": {}, "X-Nil": nil, "X-Some": {"1"},
	}, Body: []byte("{}")})
	t.keeps("names in several spellings", &idempotency.Response{Status: 200, Header: http.Header{
		"X-Spelling": {"1"}, "x-spelling": {"2"}, "X-SPELLING": {"3"}, "ETag": {`"4"`}, "!#$%&'*+-.^_`|~9": {"5"},
	}, Body: []byte("{}")})
}

func headerBytes(t *tester) {
	var high strings.Builder
	for b := 0x80; b <= 0xFF; b++ {
		high.WriteByte(byte(b))
	}
	t.keeps("values of many kinds", &idempotency.Response{Status: 200, Header: http.Header{
		"X-High":   {high.String()},
		"X-Latin1": {"caf\xe9"},
		"X-Utf8":   {"café \u2028 \U0001F600"},
		"X-Quoted": {`"a\"b\\" c:d;e='f' {} [] <b>&amp; %00 \u0041`},
		"X-Space":  {" a\tb  c\t"},
		"X-Long":   {strings.Repeat("0123456789abcdef", 512)},
	}, Body: []byte("{}")})
}

func headerEmpty(t *tester) {
	t.keeps("a nil Header", &idempotency.Response{Status: 200, Body: []byte("{}")})
	t.keeps("an empty Header", &idempotency.Response{Status: 200, Header: http.Header{}, Body: []byte("{}")})
	t.keeps("neither header nor body", &idempotency.Response{Status: 204})
}

func bodyEmpty(t *tester) {
	for _, body := range [][]byte{nil, {}} {
		t.keeps("an empty body", &idempotency.Response{Status: 200, Header: http.Header{"X-Some": {"1"}}, Body: body})
	}
}

func bodyBinary(t *tester) {
	var every []byte
	for b := range 256 {
		every = append(every, byte(b))
	}
	for _, body := range []string{
		string(every), "\x00", "a\x00b\x00", "\r\n\r\n", "\n", " {} \n", "\xff\xfe", "\xc3", "null", `"\u00e9"`, "'; --", "\x1f\x8b\x08\x00",
	} {
		t.keeps("a body of many kinds of bytes", &idempotency.Response{Status: 200, Header: http.Header{"X-Some": {"1"}}, Body: []byte(body)})
	}
}

func bodyLarge(t *tester) {
	for _, size := range []int{math.MaxUint16 + 1, 1 << 20} {
		// Random text, so that no part of it is like another.
		body := make([]byte, base64.StdEncoding.EncodedLen(size*3/4))
		random := make([]byte, size*3/4)
		rand.Read(random)
		base64.StdEncoding.Encode(body, random)
		t.keeps("a large body", &idempotency.Response{Status: 200, Header: http.Header{"X-Some": {"1"}}, Body: body})
	}
}

func copies(t *tester) {
	r, given := t.newRequest(), newResponse("kept")
	given.Header["X-Two"] = []string{"2", "1"}
	given.Header["x-lower"] = []string{"1"}
	given.Header["X-None"] = nil
	was := clone(r.record(given))
	t.store(r, given, long)
	if d := diff(r.record(given), was); d != "" {
		t.broken("Complete changed the response that it was given: %s", d)
	}
	held, _ := t.probe(r.key)
	held = clone(held)
	unchanged := func(after string) {
		t.Helper()
		if now, _ := t.probe(r.key); diff(now, held) != "" {
			t.broken("The record changed after the caller of Complete %s: %s", after, diff(now, held))
		}
	}
	given.Status = http.StatusTeapot
	unchanged("set Status in its response")
	copy(given.Body, bytes.Repeat([]byte("x"), len(given.Body)))
	unchanged("wrote into its Body")
	given.Header.Set("X-Added", "x")
	given.Header.Del("Content-Type")
	unchanged("added and deleted names in its Header")
	given.Header["X-Two"][0] = "x"
	unchanged("replaced a value in its Header")
}

func recordsStay(t *tester) {
	// Another response follows once the first is expired. On a busy machine it
	// may be expired before it was seen: then it is tried again with more time.
	for soon := t.soon; soon < t.patience; soon *= 4 {
		r := t.newRequest()
		t.store(r, newResponse("1"), soon)
		held, ok := t.probe(r.key)
		if !ok {
			continue
		}
		was := clone(held)
		next := t.awaitFree(r.key, "After Complete with a short expiry")
		t.complete(next, newResponse("2"), long)
		if d := diff(held, was); d != "" {
			t.broken("The record that Claim returned changed when its key was claimed and completed again: %s", d)
		}
		return
	}
	t.Skip("idempotencytest: the backend is too slow to tell")
}
