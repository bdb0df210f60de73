package idempotency

import (
	"bytes"
	"encoding/hex"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// goldenRecords are the records of testdata/records_v1.golden, by name.
var goldenRecords = map[string]Record{
	"outstanding": {Claim: goldenClaim()},
	"outstanding, no fingerprint, short token": {Claim: Claim{Token: "t"}},
	"response": {Claim: goldenClaim(), Response: &Response{
		Status: 201,
		Header: http.Header{
			"Content-Type": {"application/json; charset=utf-8"},
			"Link":         {"</payments?page=1>; rel=prev", "</payments?page=3>; rel=next"},
			"Location":     {"/payments/1"},
			"X-Empty":      {""},
			"X-Latin":      {"caf\xe9"},
			"X-Taken-Away": {},
		},
		Body: []byte(`{"id":1,"amount":"10.00"}` + "\n"),
	}},
	"mark":               {Claim: goldenClaim(), Response: &Response{}},
	"mark with a header": {Claim: goldenClaim(), Response: &Response{Header: http.Header{"X-A": {"b"}}}},
	"empty body":         {Claim: goldenClaim(), Response: &Response{Status: 204, Header: http.Header{"Etag": {`"v1"`}}}},
	"binary body": {Claim: goldenClaim(), Response: &Response{
		Status: 200,
		Header: http.Header{"Content-Type": {"application/octet-stream"}},
		Body:   allBytes(),
	}},
	"long texts": {Claim: Claim{Token: strings.Repeat("T", 128)}, Response: &Response{
		Status: 599,
		Header: http.Header{"X-Long": {strings.Repeat("v", 300)}},
		Body:   bytes.Repeat([]byte("x"), 127),
	}},
}

func goldenClaim() Claim {
	c := Claim{Token: "AAECAwQFBgcICQoLDA0ODw"}
	for i := range c.Fingerprint {
		c.Fingerprint[i] = byte(0x20 + i)
	}
	return c
}

func allBytes() []byte {
	b := make([]byte, 256)
	for i := range b {
		b[i] = byte(i)
	}
	return b
}

// readGolden returns the records of a golden file by name. A line is a name in
// brackets, or bytes in hexadecimal; what follows # is a comment. The file is
// never written by a test: records of a released version do not change.
func readGolden(t testing.TB) map[string][]byte {
	t.Helper()
	text, err := os.ReadFile("testdata/records_v1.golden")
	require.NoError(t, err)
	records := make(map[string][]byte)
	name := ""
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		line = strings.TrimSpace(line)
		if inner, ok := strings.CutPrefix(line, "["); ok {
			name = strings.TrimSuffix(inner, "]")
			require.NotContains(t, records, name)
			records[name] = nil
			continue
		}
		b, err := hex.DecodeString(strings.ReplaceAll(line, " ", ""))
		require.NoError(t, err)
		records[name] = append(records[name], b...)
	}
	delete(records, "") // what stands before the first name: comments
	return records
}

func encodeRecord(rec Record) []byte {
	if rec.Response == nil {
		return encodeClaim(rec.Claim)
	}
	return encodeResponse(rec.Claim, newResponse(rec.Response))
}

func decode(b []byte) (Record, error) {
	rec, err := decodeRecord(string(b), b)
	return rec.export(), err
}

// alike gives records that mean the same one form: nothing is nil, not empty.
func alike(rec Record) Record {
	if rec.Response == nil {
		return rec
	}
	resp := &Response{Status: rec.Response.Status}
	if len(rec.Response.Body) > 0 {
		resp.Body = bytes.Clone(rec.Response.Body)
	}
	for name, values := range rec.Response.Header {
		if resp.Header == nil {
			resp.Header = make(http.Header)
		}
		if len(values) == 0 {
			values = nil
		}
		resp.Header[name] = values
	}
	rec.Response = resp
	return rec
}

func TestGoldenRecords(t *testing.T) {
	golden := readGolden(t)
	for name := range golden {
		require.Contains(t, goldenRecords, name, "the golden file has a record that the test does not know")
	}
	for name, rec := range goldenRecords {
		t.Run(name, func(t *testing.T) {
			want, ok := golden[name]
			require.True(t, ok, "the golden file lacks the record")
			require.Equal(t, hex.Dump(want), hex.Dump(encodeRecord(rec)),
				"the form of a released version has changed: stores hold records that other releases cannot read")
			decoded, err := decode(want)
			require.NoError(t, err)
			require.Equal(t, alike(rec), alike(decoded))
		})
	}
}

// Equal records are equal bytes: the Redis scripts compare them.
func TestRecordsAreDeterministic(t *testing.T) {
	header := make(http.Header)
	for c := 'A'; c <= 'Z'; c++ {
		header["X-"+string(c)] = []string{string(c)}
	}
	want := encodeRecord(Record{goldenClaim(), &Response{Status: 200, Header: header}})
	for range 20 {
		require.Equal(t, want, encodeRecord(Record{goldenClaim(), &Response{Status: 200, Header: header.Clone()}}))
	}
}

// The decoded body is a part of what was read, but appending to it must not
// write into what lies behind.
func TestDecodedBodyIsClipped(t *testing.T) {
	b := encodeRecord(goldenRecords["response"])
	rec, err := decode(b[:len(b):cap(b)])
	require.NoError(t, err)
	require.Equal(t, len(rec.Response.Body), cap(rec.Response.Body))
}

// requireUnreadable checks that a record is refused as such.
func requireUnreadable(t *testing.T, b []byte) {
	t.Helper()
	rec, err := decode(b)
	require.ErrorIs(t, err, errRecord, "% x", b)
	require.Equal(t, Record{}, rec, "a record that cannot be read gives nothing: % x", b)
}

func TestDamagedRecords(t *testing.T) {
	for name, b := range readGolden(t) {
		t.Run(name, func(t *testing.T) {
			for n := range len(b) {
				requireUnreadable(t, b[:n])
			}
			for _, more := range []string{"\x00", "\x01", "\xff", "more"} {
				requireUnreadable(t, append(slices.Clip(b), more...))
			}
			requireUnreadable(t, append(slices.Clip(b), b...))
			for version := range 256 {
				if version == recordVersion {
					continue
				}
				other := bytes.Clone(b)
				other[0] = byte(version)
				requireUnreadable(t, other)
			}
			for state := 2; state < 256; state++ {
				other := bytes.Clone(b)
				other[1] = byte(state)
				requireUnreadable(t, other)
			}
			// The one kind of record cannot be taken for the other.
			other := bytes.Clone(b)
			other[1] ^= 1
			requireUnreadable(t, other)
		})
	}
}

// The record is the same, whether its head finds room before the body or not.
func TestRecordInPlace(t *testing.T) {
	resp := goldenRecords["response"].Response
	want := encodeRecord(goldenRecords["response"])
	for _, lead := range []int{0, 1, len(want) - len(resp.Body) - 1, len(want) - len(resp.Body), 300} {
		buffer := append(bytes.Repeat([]byte{0xff}, lead), resp.Body...)
		for range 2 { // A Complete is tried again.
			got := encodeResponse(goldenClaim(), &response{resp.Status, newFields(resp.Header), buffer, lead})
			require.Equal(t, want, got)
		}
		require.Equal(t, resp.Body, buffer[lead:])
	}
	big := &response{resp.Status, newFields(resp.Header), make([]byte, 300+100_000), 300}
	require.Zero(t, testing.AllocsPerRun(10, func() { encodeResponse(goldenClaim(), big) })-1, "the head alone is allocated")
}

// A name that stands twice, or out of order, was not written by this package.
func TestNamesInRecordsAreSorted(t *testing.T) {
	head := string(encodeClaim(goldenClaim()))
	head = head[:1] + string(rune(recordCompleted)) + head[2:] + "\xc8\x01"
	_, err := decode([]byte(head + "\x02\x01A\x01\x011\x01B\x01\x012" + "\x00"))
	require.NoError(t, err)
	for _, names := range []string{
		"\x02\x01B\x01\x011\x01A\x01\x012", "\x02\x01A\x01\x011\x01A\x01\x012",
		"\x02\x01A\x00\x01A\x01\x012", "\x02\x01A\x01\x012\x01A\x00",
	} {
		requireUnreadable(t, []byte(head+names+"\x00"))
	}
}

func TestUnknownVersionIsNamed(t *testing.T) {
	b := encodeRecord(goldenRecords["response"])
	b[0] = 77
	_, err := decode(b)
	require.ErrorContains(t, err, "version 77")
	requireUnreadable(t, nil)
	_, err = decode(nil)
	require.NotContains(t, err.Error(), "version", "an empty record has no version")
}

// A number in a damaged record may be anything. It must not decide how much
// memory is taken.
func TestHugeNumbersInRecords(t *testing.T) {
	claim := encodeClaim(goldenClaim())
	completed := bytes.Clone(claim)
	completed[1] = recordCompleted
	huge := map[string]string{
		"2^24":             "\x80\x80\x80\x08",
		"2^31-1":           "\xff\xff\xff\xff\x07",
		"2^31":             "\x80\x80\x80\x80\x08",
		"2^32":             "\x80\x80\x80\x80\x10",
		"2^63-1":           "\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
		"2^63":             "\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
		"2^64-1":           "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
		"more than 2^64":   "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02",
		"more than ten":    "\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
		"one that is cut":  "\xff",
		"one that is long": "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
	}
	before := map[string]string{
		"token":     "\x01\x00",
		"headers":   string(completed) + "\xc8\x01",
		"name":      string(completed) + "\xc8\x01\x01",
		"values":    string(completed) + "\xc8\x01\x01\x01A",
		"value":     string(completed) + "\xc8\x01\x01\x01A\x01",
		"body":      string(completed) + "\xc8\x01\x00",
		"2nd value": string(completed) + "\xc8\x01\x01\x01A\x02\x00",
	}
	padding := strings.Repeat("\x00", 1000)
	for place, head := range before {
		for what, number := range huge {
			t.Run(place+" "+what, func(t *testing.T) {
				for _, tail := range []string{"", padding} {
					var start, end runtime.MemStats
					runtime.ReadMemStats(&start)
					requireUnreadable(t, []byte(head+number+tail))
					runtime.ReadMemStats(&end)
					// What other goroutines take is counted as well, so that
					// the bound is wide; what is wrong would be far above it.
					require.Less(t, end.TotalAlloc-start.TotalAlloc, uint64(8<<20))
				}
			})
		}
	}
	t.Run("status", func(t *testing.T) {
		rec, err := decode([]byte(string(completed) + huge["2^31-1"] + "\x00\x00"))
		require.NoError(t, err, "the largest status that fits an int everywhere")
		require.Equal(t, 1<<31-1, rec.Response.Status)
		for _, what := range []string{"2^31", "2^32", "2^63-1", "2^63", "2^64-1", "more than 2^64", "more than ten"} {
			requireUnreadable(t, []byte(string(completed)+huge[what]+"\x00\x00"))
		}
	})
}

func FuzzDecodeRecord(f *testing.F) {
	for _, b := range readGolden(f) {
		f.Add(b)
		f.Add(b[:len(b)/2])
		f.Add(append(slices.Clip(b), 0))
	}
	f.Add([]byte(nil))
	f.Add([]byte("\x02\x00"))
	f.Add([]byte("an answer that somebody else stored"))
	f.Fuzz(func(t *testing.T, b []byte) {
		given := bytes.Clone(b)
		rec, err := decode(b)
		require.Equal(t, given, b, "decoding altered its input")
		if err != nil {
			require.ErrorIs(t, err, errRecord)
			require.Equal(t, Record{}, rec)
			return
		}
		again := encodeRecord(rec)
		require.LessOrEqual(t, len(again), len(b), "the shortest form is longer than what was read")
		decoded, err := decode(again)
		require.NoError(t, err)
		require.Equal(t, alike(rec), alike(decoded))
	})
}

func FuzzRecord(f *testing.F) {
	for _, rec := range goldenRecords {
		status, body := 0, []byte(nil)
		if rec.Response != nil {
			status, body = rec.Response.Status, rec.Response.Body
		}
		f.Add(rec.Claim.Token, rec.Claim.Fingerprint[:], rec.Response != nil, uint16(status), "Content-Type", "application/json", "charset=utf-8", "Link", body)
	}
	f.Add("", []byte("fingerprint"), true, uint16(999), "", "", "", "", []byte{0})
	f.Add("t", []byte(nil), true, uint16(200), "not-canonical-", "", "\xff", "\x00", []byte("{}"))
	f.Fuzz(func(t *testing.T, token string, fingerprint []byte, completed bool, status uint16, name1, value1, value2, name2 string, body []byte) {
		rec := Record{Claim: Claim{Token: token}}
		copy(rec.Claim.Fingerprint[:], fingerprint)
		if completed {
			rec.Response = &Response{
				Status: int(status),
				Header: http.Header{name1 + "1": {value1, value2}, name2 + "2": {}, name2 + "3": {value1}},
				Body:   body,
			}
		}
		b := encodeRecord(rec)
		decoded, err := decode(b)
		require.NoError(t, err)
		require.Equal(t, alike(rec), alike(decoded))
		for n := 0; n < len(b); n += 1 + len(b)/64 {
			requireUnreadable(t, b[:n])
		}
		requireUnreadable(t, append(b, 0))
	})
}
