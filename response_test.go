package idempotency_test

import (
	"bytes"
	"encoding"
	"encoding/hex"
	"math"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

var (
	_ encoding.BinaryMarshaler   = (*idempotency.Response)(nil)
	_ encoding.BinaryUnmarshaler = (*idempotency.Response)(nil)
)

// goldenResponses are the responses of testdata/response_v1.golden, by name.
var goldenResponses = map[string]idempotency.Response{
	"response": {
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
	},
	"no header, no body": {Status: 200},
	"empty body":         {Status: 204, Header: http.Header{"Etag": {`"v1"`}}},
	"binary body":        {Status: 200, Header: http.Header{"Content-Type": {"application/octet-stream"}}, Body: allBytes()},
	"empty name":         {Status: 999, Header: http.Header{"": {"v"}, "A": {"", ""}}, Body: []byte("x")},
	"long texts":         {Status: 599, Header: http.Header{"X-Long": {strings.Repeat("v", 300)}}, Body: bytes.Repeat([]byte("x"), 70_000)},
}

func allBytes() []byte {
	b := make([]byte, 256)
	for i := range b {
		b[i] = byte(i)
	}
	return b
}

// readGolden returns the responses of the golden file by name.
func readGolden(t testing.TB) map[string][]byte {
	return readGoldenFile(t, "testdata/response_v1.golden")
}

// readGoldenFile returns what is in a golden file, by name. A line is a name in
// brackets, or bytes in hexadecimal, which "x 3" after them repeats; what follows #
// is a comment. The file is never written by a test: what is of a released version does
// not change.
func readGoldenFile(t testing.TB, path string) map[string][]byte {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	responses := make(map[string][]byte)
	name := ""
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		line = strings.TrimSpace(line)
		if inner, ok := strings.CutPrefix(line, "["); ok {
			name = strings.TrimSuffix(inner, "]")
			require.NotContains(t, responses, name)
			responses[name] = nil
			continue
		}
		digits, times, repeated := strings.Cut(line, "x")
		b, err := hex.DecodeString(strings.ReplaceAll(digits, " ", ""))
		require.NoError(t, err)
		if repeated {
			n, err := strconv.Atoi(strings.TrimSpace(times))
			require.NoError(t, err)
			b = bytes.Repeat(b, n)
		}
		responses[name] = append(responses[name], b...)
	}
	delete(responses, "") // The lines before the first name are comments.
	return responses
}

func marshal(t testing.TB, r idempotency.Response) []byte {
	t.Helper()
	b, err := r.MarshalBinary()
	require.NoError(t, err)
	return b
}

// alike gives responses that mean the same one form: nothing is nil, not empty.
func alike(r idempotency.Response) idempotency.Response {
	one := idempotency.Response{Status: r.Status}
	if len(r.Body) > 0 {
		one.Body = bytes.Clone(r.Body)
	}
	for name, values := range r.Header {
		if one.Header == nil {
			one.Header = make(http.Header)
		}
		if len(values) == 0 {
			values = nil
		}
		one.Header[name] = values
	}
	return one
}

// requireUnreadable checks that a response is refused as such, and that nothing of
// it is taken.
func requireUnreadable(t testing.TB, b []byte) error {
	t.Helper()
	r := idempotency.Response{Status: 1, Header: http.Header{"Before": {"b"}}, Body: []byte("before")}
	err := r.UnmarshalBinary(b)
	require.ErrorIs(t, err, idempotency.ErrUnreadable, "%.100x", b)
	want := idempotency.Response{Status: 1, Header: http.Header{"Before": {"b"}}, Body: []byte("before")}
	require.Equal(t, want, r, "a response that cannot be read gives nothing: %.100x", b)
	return err
}

func TestGoldenResponses(t *testing.T) {
	golden := readGolden(t)
	for name := range golden {
		require.Contains(t, goldenResponses, name, "the golden file has a response that the test does not know")
	}
	for name, r := range goldenResponses {
		t.Run(name, func(t *testing.T) {
			want, ok := golden[name]
			require.True(t, ok, "the golden file lacks the response")
			require.Equal(t, hex.Dump(want), hex.Dump(marshal(t, r)),
				"the form of a released version has changed: stores hold responses that other releases cannot read")
			var read idempotency.Response
			require.NoError(t, read.UnmarshalBinary(want))
			require.Equal(t, alike(r), alike(read))
		})
	}
}

// What was in a response before it is read is gone.
func TestUnmarshalReplaces(t *testing.T) {
	r := idempotency.Response{Status: 1, Header: http.Header{"Before": {"b"}}, Body: []byte("before")}
	before := r.Header
	require.NoError(t, r.UnmarshalBinary(marshal(t, goldenResponses["empty body"])))
	require.Equal(t, alike(goldenResponses["empty body"]), alike(r))
	require.Equal(t, http.Header{"Before": {"b"}}, before, "the header that was there is another's")
}

// Equal responses are equal bytes.
func TestMarshalIsDeterministic(t *testing.T) {
	header := make(http.Header)
	for c := 'A'; c <= 'Z'; c++ {
		header["X-"+string(c)] = []string{string(c)}
	}
	want := marshal(t, idempotency.Response{Status: 200, Header: header})
	for range 20 {
		require.Equal(t, want, marshal(t, idempotency.Response{Status: 200, Header: header.Clone()}))
	}
	require.Equal(t, marshal(t, idempotency.Response{Status: 200}), marshal(t, idempotency.Response{Status: 200, Header: http.Header{}, Body: []byte{}}))
}

func TestMarshalRefuses(t *testing.T) {
	for _, status := range []int{math.MinInt, -1, 0, 1, 100, 101, 199, 1000, math.MaxInt} {
		b, err := idempotency.Response{Status: status}.MarshalBinary()
		require.ErrorContains(t, err, "status "+strconv.Itoa(status))
		require.Nil(t, b)
	}
	for _, status := range []int{200, 999} {
		var r idempotency.Response
		require.NoError(t, r.UnmarshalBinary(marshal(t, idempotency.Response{Status: status})))
		require.Equal(t, status, r.Status)
	}
}

// Neither side keeps anything of the other's bytes, and values can be appended to.
func TestResponseKeepsNothing(t *testing.T) {
	golden := goldenResponses["response"]
	r := idempotency.Response{Status: golden.Status, Header: golden.Header.Clone(), Body: bytes.Clone(golden.Body)}
	b := marshal(t, r)
	want := bytes.Clone(b)
	r.Body[0]++
	r.Header["Link"][0] = "changed"
	require.Equal(t, want, b)

	var read idempotency.Response
	require.NoError(t, read.UnmarshalBinary(b[:len(b):cap(b)]))
	for i := range b {
		b[i] ^= 0xff
	}
	require.Equal(t, alike(golden), alike(read))
	require.Equal(t, len(read.Body), cap(read.Body))
	read.Header.Add("Content-Type", "more")
	read.Header.Add("Link", "more")
	read.Header.Add("X-Taken-Away", "more")
	for name, values := range golden.Header {
		require.Equal(t, values, read.Header[name][:len(values):len(values)], name)
	}
}

func TestDamagedResponses(t *testing.T) {
	for name, b := range readGolden(t) {
		t.Run(name, func(t *testing.T) {
			step := 1 + len(b)/5000 // The cuts in a long body are one like the other.
			for n := 0; n < len(b); n += step {
				requireUnreadable(t, b[:n])
				requireUnreadable(t, b[len(b)-n:])
			}
			for n := range min(len(b), 500) {
				requireUnreadable(t, b[:n])
				requireUnreadable(t, slices.Delete(bytes.Clone(b), n/2, n/2+1))
			}
			for _, more := range []string{"\x00", "\x01", "\xff", "more"} {
				requireUnreadable(t, append(slices.Clip(b), more...))
				requireUnreadable(t, slices.Insert(bytes.Clone(b), 1, []byte(more)...))
			}
			requireUnreadable(t, append(slices.Clip(b), b...))
			for version := range 256 {
				if version != 1 {
					other := bytes.Clone(b)
					other[0] = byte(version)
					requireUnreadable(t, other)
				}
			}
			for _, change := range []int64{-1, 1, 256, 1 << 16, 1 << 31} {
				other := bytes.Clone(b)
				length := int64(other[1])<<24 | int64(other[2])<<16 | int64(other[3])<<8 | int64(other[4])
				length += change
				other[1], other[2], other[3], other[4] = byte(length>>24), byte(length>>16), byte(length>>8), byte(length)
				requireUnreadable(t, other)
			}
		})
	}
}

func TestUnknownVersionIsNamed(t *testing.T) {
	b := marshal(t, goldenResponses["response"])
	b[0] = 77
	require.ErrorContains(t, requireUnreadable(t, b), "version 77")
	require.NotContains(t, requireUnreadable(t, nil).Error(), "version", "an empty response has no version")
}

// A name that stands twice, or out of order, was not written by this package.
func TestNamesInResponsesAreSorted(t *testing.T) {
	const head = "\x01\x00\x00\x00\x00\xc8\x01"
	var r idempotency.Response
	require.NoError(t, r.UnmarshalBinary([]byte(head+"\x02\x01A\x01\x011\x01B\x01\x012")))
	require.Equal(t, http.Header{"A": {"1"}, "B": {"2"}}, r.Header)
	for _, names := range []string{
		"\x02\x01B\x01\x011\x01A\x01\x012", "\x02\x01A\x01\x011\x01A\x01\x012", "\x02\x01A\x00\x01A\x01\x012",
		"\x02\x01A\x01\x012\x01A\x00", "\x02\x00\x00\x00\x00", "\x02\x01A\x00\x00\x00",
	} {
		requireUnreadable(t, []byte(head+names))
	}
}

func TestStatusInResponses(t *testing.T) {
	for _, number := range []string{"\x00", "\x01", "\x64", "\xc7\x01", "\xe8\x07", "\xff\xff\xff\xff\x07", "\xc8\x81\x80\x80\x80\x80\x80\x80\x80\x01"} {
		requireUnreadable(t, []byte("\x01\x00\x00\x00\x00"+number+"\x00"))
	}
	for number, status := range map[string]int{"\xc8\x01": 200, "\xe7\x07": 999} {
		var r idempotency.Response
		require.NoError(t, r.UnmarshalBinary([]byte("\x01\x00\x00\x00\x00"+number+"\x00")))
		require.Equal(t, status, r.Status)
	}
}

// A number in a damaged response may be anything. It must not decide how much
// memory is taken.
func TestHugeNumbersInResponses(t *testing.T) {
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
	const head = "\x01\x00\x00\x00\x00\xc8\x01"
	before := map[string]string{
		"status":    head[:5],
		"names":     head,
		"name":      head + "\x01",
		"values":    head + "\x01\x01A",
		"value":     head + "\x01\x01A\x01",
		"2nd value": head + "\x01\x01A\x02\x00",
	}
	check := func(t *testing.T, b []byte) {
		t.Helper()
		var start, end runtime.MemStats
		runtime.ReadMemStats(&start)
		requireUnreadable(t, b)
		runtime.ReadMemStats(&end)
		// What other goroutines take is counted as well, so that the bound is wide;
		// what is wrong would be far above it.
		require.Less(t, end.TotalAlloc-start.TotalAlloc, uint64(8<<20))
	}
	padding := strings.Repeat("\x00", 1000)
	for place, head := range before {
		for what, number := range huge {
			t.Run(place+" "+what, func(t *testing.T) {
				for _, tail := range []string{"", padding} {
					check(t, []byte(head+number+tail))
				}
			})
		}
	}
	t.Run("body", func(t *testing.T) {
		for _, length := range []string{"\xff\xff\xff\xff", "\x80\x00\x00\x00", "\x7f\xff\xff\xff", "\x01\x00\x00\x00"} {
			check(t, []byte("\x01"+length+"\xc8\x01\x00"+padding))
		}
	})
	// There is room for so many names, but the second one stands there twice.
	t.Run("many names", func(t *testing.T) {
		check(t, []byte(head+"\xff\xff\x01"+strings.Repeat("\x00", 1<<16)))
	})
}

// A number in more bytes than it needs would give one response many forms.
func TestOverlongNumbersAreUnreadable(t *testing.T) {
	whole, err := idempotency.Response{Status: 200}.MarshalBinary()
	require.NoError(t, err)
	require.Zero(t, whole[len(whole)-1], "the number of names")
	var r idempotency.Response
	require.ErrorIs(t, r.UnmarshalBinary(append(whole[:len(whole)-1:len(whole)-1], 0x80, 0x80, 0x00)), idempotency.ErrUnreadable)
}
