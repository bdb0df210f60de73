package idempotency_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

// jsonSum returns what a JSONFingerprint makes of a body.
func jsonSum(body string, ignore ...string) string {
	r := httptest.NewRequest(http.MethodPost, "/payments?a=1", strings.NewReader(body))
	return string(idempotency.JSONFingerprint(ignore...)(r, []byte(body)))
}

func TestJSONFingerprintEqual(t *testing.T) {
	for _, same := range [][]string{
		{`{"a":1,"b":[true,null]}`, "\t{ \"b\" : [ true , null ] ,\r\n \"a\" : 1 } "},
		{`"a/é😀"`, `"\u0061\/\u00e9\ud83d\ude00"`, `"a/\u00E9\uD83D\uDE00"`},
		{`1`, `1.0`, `10e-1`, `1e0`, `1E+0`, `0.1e1`, `1000000e-6`, `100000000000000000000e-20`},
		{`0`, `-0`, `0.0`, `0e5`, `-0.00e-7`, `0e99999999999999999999999`},
		{`-12.5`, `-125e-1`, `-1250E-2`, `-0.125e2`},
		{`9007199254740993`, `9007199254740993.0`, `9.007199254740993e15`},
		{`1e99999999999999999999`, `10e99999999999999999998`, `0.1e+100000000000000000000`},
		{`1e9223372036854775808`, `10e9223372036854775807`, `100e9223372036854775806`},
		{`1e-9223372036854775809`, `0.1e-9223372036854775808`},
		{`{"a":{"c":1,"b":2}}`, `{"a":{"b":2,"c":1.0}}`},
		{`{"":1,"a":2}`, `{"a":2,"":1}`},
		{`[]`, ` [ ] `},
		{`{}`, "{\n}"},
	} {
		for _, body := range same {
			require.True(t, json.Valid([]byte(body)), body)
			require.Equal(t, jsonSum(same[0]), jsonSum(body), "%s and %s", same[0], body)
		}
	}
}

func TestJSONFingerprintDifferent(t *testing.T) {
	deep := strings.Repeat("[", 1000)
	bodies := []string{
		``, `null`, `true`, `false`, `0`, `1`, `-1`, `10`, `0.1`, `01`, `1e400`, `1e401`, `-1e400`, `1e-400`, `""`, `"0"`, `"a"`, `"null"`,
		`9007199254740992`, `9007199254740993`, `1e99999999999999999999`, `1e99999999999999999998`,
		`[]`, `{}`, `[null]`, `[[]]`, `[{}]`, `[1,2]`, `[2,1]`, `[1]`, `[1,[2]]`, `[[1],2]`, `[[1,2]]`, `["1,2"]`, `["1","2"]`,
		`{"a":1}`, `{"a":1,"b":null}`, `{"a":"1"}`, `{"A":1}`, `{"a":{}}`, `{"a":[]}`, `{"a":{"b":1}}`, `{"a":{"c":1}}`, `{"a":1,"b":2}`, `{"a":2,"b":1}`,
		`"\ud83d"`, `"\ud83e"`, `"\ud83d\u0041"`, `"\ude00\ud83d"`, `"\ufffd"`, "\"\xff\"", "\"\xfe\"", `"é"`, `"e\u0301"`,
		`{"a":1,"a":1}`, `{"a":1,"a":2}`, `{"a":2,"a":1}`, `{"a":1,"\u0061":1}`, `[{"a":1,"a":1}]`,
		`{`, `{} {}`, `1 1`, `a`, `{"a":1}x`,
		deep + strings.Repeat("]", 1000), "[" + deep + strings.Repeat("]", 1001), "[ " + deep + strings.Repeat("]", 1001),
	}
	seen := make(map[string]string)
	for _, body := range bodies {
		sum := jsonSum(body)
		require.NotContains(t, seen, sum, "%s and %s", body, seen[sum])
		seen[sum] = body
	}
}

// What must count byte for byte counts so in every way.
func TestJSONFingerprintByteForByte(t *testing.T) {
	deep := strings.Repeat("[", 1000) + "1" + strings.Repeat("]", 1000)
	require.Equal(t, jsonSum(deep), jsonSum(deep+" "))
	for _, body := range []string{`{"a":1,"a":1}`, `"\ud83d"`, `"\ude00"`, "\"\xff\"", `{"a":}`, `[` + deep + `]`, ``} {
		require.NotEqual(t, jsonSum(body), jsonSum(body+" "), body)
	}
	f := idempotency.JSONFingerprint()
	for name, length := range map[string]int64{"declared": 3, "not declared": -1} {
		cut := func(rest string) string {
			r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader("1 "+rest))
			r.ContentLength = length
			return string(f(r, []byte("1 ")))
		}
		require.NotEqual(t, cut(" "), string(f(httptest.NewRequest(http.MethodPost, "/", strings.NewReader("1 ")), []byte("1 "))), name)
	}
}

func TestJSONFingerprintIgnores(t *testing.T) {
	for _, test := range []struct {
		ignore []string
		a, b   string
		same   bool
	}{
		{[]string{"/at"}, `{"a":1,"at":5}`, `{"a":1,"at":6}`, true},
		{[]string{"/at"}, `{"a":1,"at":5}`, `{"a":1}`, true},
		{[]string{"/at"}, `{"a":1,"at":5}`, `{"a":2,"at":5}`, false},
		{[]string{"/at"}, `{"a":{"at":5}}`, `{"a":{"at":6}}`, false},
		{[]string{"/at"}, `[{"at":5}]`, `[{"at":6}]`, false},
		{[]string{"/meta/at"}, `{"meta":{"at":5,"b":1}}`, `{"meta":{"b":1}}`, true},
		{[]string{"/meta/at"}, `{"meta":{"at":5}}`, `{}`, false},
		{[]string{"/meta", "/meta/at"}, `{"meta":{"b":5}}`, `{}`, true},
		{[]string{"/items/1/at"}, `{"items":[1,{"at":5}]}`, `{"items":[1,{}]}`, true},
		{[]string{"/items/1/at"}, `{"items":[{"at":5}]}`, `{"items":[{}]}`, false},
		{[]string{"/items/0"}, `{"items":[1,2]}`, `{"items":[{"x":[]},2]}`, true},
		{[]string{"/items/0"}, `{"items":[1,2]}`, `{"items":[2]}`, false},
		{[]string{"/a~1b", "/c~0d", "/~01"}, `{"a/b":1,"c~d":2,"~1":3}`, `{}`, true},
		{[]string{"/a~1b"}, `{"a":{"b":1}}`, `{"a":{"b":2}}`, false},
		{[]string{"/"}, `{"":1}`, `{}`, true},
		{[]string{""}, `{"a":1}`, `[]`, true},
		{[]string{"/a"}, `{"a":1,"a":2}`, `{}`, false},
		{[]string{"/\u00e9"}, `{"\u00e9":1}`, `{}`, true},
	} {
		name := fmt.Sprint(test.ignore, test.a, test.b)
		require.Equal(t, test.same, jsonSum(test.a, test.ignore...) == jsonSum(test.b, test.ignore...), name)
	}
}

func TestJSONFingerprintPanics(t *testing.T) {
	for _, pointer := range []string{"a", "a/b", "/a~", "/~2", "/a/~b", "/~~0"} {
		require.PanicsWithValue(t, panicOf(func() { idempotency.JSONFingerprint(pointer) }), func() { idempotency.JSONFingerprint("/a", pointer) })
		require.Contains(t, panicOf(func() { idempotency.JSONFingerprint(pointer) }), "idempotency: JSONFingerprint: malformed JSON Pointer")
	}
}

func panicOf(f func()) (value any) {
	defer func() { value = recover() }()
	f()
	return nil
}

// Method, path and query count as ever, and so does what comes after the limit.
func TestJSONFingerprintInTheMiddleware(t *testing.T) {
	h := idempotency.New(idempotency.NewMemory(), idempotency.WithFingerprint(idempotency.JSONFingerprint("/sent")), idempotency.WithBufferLimit(20))(&payments{})
	send := func(method, target, body string, chunked bool) int {
		r := httptest.NewRequest(method, target, strings.NewReader(body))
		if chunked {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), -1
		}
		r.Header.Set("Idempotency-Key", fmt.Sprint("k", len(body) > 20, target == "/1"))
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Code
	}
	require.Equal(t, 201, send("POST", "/a?b=1", `{"a":1,"sent":5}`, false))
	require.Equal(t, 201, send("POST", "/a?b=1", ` {"sent":6,"a":1.0}`, true))
	require.Equal(t, 422, send("POST", "/a?b=1", `{"a":2,"sent":5}`, false))
	require.Equal(t, 422, send("PATCH", "/a?b=1", `{"a":1,"sent":5}`, false))
	require.Equal(t, 422, send("POST", "/b?b=1", `{"a":1,"sent":5}`, false))
	require.Equal(t, 422, send("POST", "/a?b=2", `{"a":1,"sent":5}`, false))
	long := `{"a":1}             ` + "  "
	require.Equal(t, 201, send("POST", "/", long, false))
	require.Equal(t, 201, send("POST", "/", long, false))
	require.Equal(t, 422, send("POST", "/", long+"x", false), "it is cut, and its length counts")
	require.Equal(t, 422, send("POST", "/", long, true), "it has no length")
	require.Equal(t, 422, send("POST", "/", ` {"a":1}            `+"  ", false), "it is cut, and counts byte for byte")
	require.Equal(t, 201, send("POST", "/1", long+" ", true))
	require.Equal(t, 201, send("POST", "/1", long+"x", true), "it has no length")
	require.Equal(t, 422, send("POST", "/1", ` {"a":1}            `+"   ", true), "it is cut, and counts byte for byte")
}

// An exponent that is too long to be computed counts by its digits.
func TestJSONFingerprintOfLongExponents(t *testing.T) {
	long, longer := strings.Repeat("9", 1<<20), strings.Repeat("9", 1<<20-1)+"8"
	require.Equal(t, jsonSum("1e"+long), jsonSum("1.0E+"+long))
	require.NotEqual(t, jsonSum("1e"+long), jsonSum("1e-"+long))
	require.NotEqual(t, jsonSum("1e"+long), jsonSum("1e"+longer))
	require.NotEqual(t, jsonSum("1e"+long), jsonSum("10e"+long))
	require.Equal(t, jsonSum("1e5"), jsonSum("1e"+strings.Repeat("0", 1<<20)+"5"))
	hundred := strings.Repeat("9", 100)
	require.Equal(t, jsonSum("1e1"+strings.Repeat("0", 99)), jsonSum("10e"+hundred[1:]))
}

// FuzzJSONFingerprint compares it with a reference: encoding/json's values, and numbers as
// math/big's fractions.
func FuzzJSONFingerprint(f *testing.F) {
	for _, seed := range [][2]string{
		{`{"a":1,"b":[true,null,"x"]}`, ` {"b":[true,null,"\u0078"],"a":1.0}`}, {`[1e2,-0]`, `[100,0]`}, {`9007199254740993`, `9007199254740992`},
		{`{"a":{"b":{}}}`, `{"a":{"b":[]}}`}, {`{"a":1,"a":1}`, `{"a":1}`}, {`"\ud83d\ude00"`, `"😀"`}, {`[[],[1]]`, `[[1],[]]`}, {`{"b":1,"a":2}`, `{"a":1,"b":2}`},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		if hugeExponent.MatchString(a) || hugeExponent.MatchString(b) {
			t.Skip("too much for the reference")
		}
		x, plain := meaning(a)
		if plain {
			var indented bytes.Buffer
			require.NoError(t, json.Indent(&indented, []byte(a), " ", "\t"))
			require.Equal(t, jsonSum(a), jsonSum(indented.String()))
			again, err := json.Marshal(x)
			require.NoError(t, err)
			require.Equal(t, jsonSum(a), jsonSum(string(again)), "%s", again)
		}
		y, both := meaning(b)
		if both = both && plain; both {
			require.Equal(t, sameMeaning(x, y), jsonSum(a) == jsonSum(b))
		} else {
			require.Equal(t, a == b, jsonSum(a) == jsonSum(b))
		}
	})
}

var (
	hugeExponent = regexp.MustCompile(`[eE][+-]?0*[1-9][0-9]{3}`)
	stringOfJSON = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)
	pair         = regexp.MustCompile(`\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}`)
	half         = regexp.MustCompile(`\\u[dD][89a-fA-F]`)
)

// meaning returns the value of a text by encoding/json. It is not plain if the text must
// count byte for byte.
func meaning(text string) (v any, plain bool) {
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	if !json.Valid([]byte(text)) || d.Decode(&v) != nil || !utf8.ValidString(text) {
		return nil, false
	}
	if half.MatchString(pair.ReplaceAllString(strings.ReplaceAll(text, `\\`, ""), "")) {
		return nil, false
	}
	written := strings.Count(stringOfJSON.ReplaceAllString(text, ""), ":")
	members, depth := measure(v)
	return v, members == written && depth <= 1000
}

// measure returns how many members all objects have, and how deep a value is nested.
func measure(v any) (members, depth int) {
	var below []any
	switch v := v.(type) {
	case []any:
		below = v
	case map[string]any:
		members = len(v)
		below = slices.Collect(maps.Values(v))
	default:
		return 0, 0
	}
	for _, of := range below {
		m, d := measure(of)
		members, depth = members+m, max(depth, d)
	}
	return members, depth + 1
}

func sameMeaning(a, b any) bool {
	switch a := a.(type) {
	case json.Number:
		b, ok := b.(json.Number)
		if !ok {
			return false
		}
		x, okX := new(big.Rat).SetString(a.String())
		y, okY := new(big.Rat).SetString(b.String())
		return okX && okY && x.Cmp(y) == 0
	case []any:
		b, ok := b.([]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for i := range a {
			if !sameMeaning(a[i], b[i]) {
				return false
			}
		}
		return true
	case map[string]any:
		b, ok := b.(map[string]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for name := range a {
			other, ok := b[name]
			if !ok || !sameMeaning(a[name], other) {
				return false
			}
		}
		return true
	}
	return reflect.DeepEqual(a, b)
}
