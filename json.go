package idempotency

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// JSONFingerprint returns a function for [WithFingerprint] that takes two JSON bodies for
// one if they mean the same (RFC 8259): the order of members, white space, escapes and the
// spelling of a number do not count. 1.0 is 1 is 10e-1, and -0 is 0, but 2^53+1 is not 2^53:
// numbers are compared exactly. null is not an absent member, and the order of elements
// counts. Method, path and query count as they do by default.
//
// Each of ignore is a JSON Pointer (RFC 6901) to a member that does not count, such as
// "/metadata/sent_at"; of an element of an array only the value does not count. The
// function panics if one is malformed.
//
// A body counts byte for byte if it is not JSON, has a name twice in one object, a lone
// surrogate or invalid UTF-8, or is nested deeper than 1000. One that is longer than
// [WithBufferLimit] counts by its first bytes and its declared length. To compare takes
// memory in proportion to the body's length, and hardly more time than that: no number is
// expanded, and an exponent of more than 100 digits is compared by them.
func JSONFingerprint(ignore ...string) func(r *http.Request, body []byte) []byte {
	root := new(pointers)
	for _, p := range ignore {
		root.add(p)
	}
	return func(r *http.Request, body []byte) []byte {
		parts := appendTarget(nil, r)
		if isCut(r, body) {
			parts = binary.BigEndian.AppendUint64(append(parts, 'C'), uint64(r.ContentLength))
			return append(parts, body...)
		}
		if meaning, ok := meaningOf(body, root); ok {
			return append(append(parts, 'J'), meaning...)
		}
		return append(append(parts, 'B'), body...)
	}
}

// isCut reports whether there is more of the body of r than the given bytes.
func isCut(r *http.Request, body []byte) bool {
	if r.ContentLength >= 0 {
		return r.ContentLength > int64(len(body))
	}
	_, err := io.CopyN(io.Discard, r.Body, int64(len(body))+1)
	return err != io.EOF
}

// pointers is a tree of JSON Pointers, by their reference tokens. Nil has none.
type pointers struct {
	ends  bool // A pointer ends here.
	below map[string]*pointers
}

// add adds a pointer. It panics if that is malformed.
func (p *pointers) add(pointer string) {
	if pointer != "" && pointer[0] != '/' {
		panic(fmt.Sprintf("idempotency: JSONFingerprint: malformed JSON Pointer %q: it must begin with \"/\"", pointer))
	}
	for i, token := range strings.Split(pointer, "/") {
		if i == 0 {
			continue
		}
		if plain := strings.NewReplacer("~0", "", "~1", "").Replace(token); strings.Contains(plain, "~") {
			panic(fmt.Sprintf("idempotency: JSONFingerprint: malformed JSON Pointer %q: write \"~0\" for \"~\"", pointer))
		}
		token = strings.NewReplacer("~1", "/", "~0", "~").Replace(token)
		if p.below == nil {
			p.below = make(map[string]*pointers)
		}
		if p.below[token] == nil {
			p.below[token] = new(pointers)
		}
		p = p.below[token]
	}
	p.ends = true
}

// at returns the pointers that go on below a name or an index.
func (p *pointers) at(token string) *pointers {
	if p == nil {
		return nil
	}
	return p.below[token]
}

// deepest is how deep a body may be nested.
const deepest = 1000

// meaningOf returns bytes that two texts have in common if and only if they mean the same.
// It returns false if the text must count byte for byte.
func meaningOf(text []byte, ignore *pointers) (meaning []byte, ok bool) {
	if !utf8.Valid(text) || !json.Valid(text) || hasLoneSurrogate(text) {
		return nil, false
	}
	m := meaningful{rest: text}
	ok = m.value(ignore, 0)
	return m.out, ok
}

// meaningful reads a text that is known to be JSON.
type meaningful struct{ rest, out []byte }

// next returns the byte that the next value or sign begins with.
func (m *meaningful) next() byte {
	m.rest = bytes.TrimLeft(m.rest, " \t\r\n")
	return m.rest[0]
}

// value appends what the next value means.
func (m *meaningful) value(ignore *pointers, depth int) (ok bool) {
	begin := len(m.out)
	switch c := m.next(); c {
	case '{':
		ok = depth < deepest && m.object(ignore, depth+1)
	case '[':
		ok = depth < deepest && m.array(ignore, depth+1)
	case '"':
		ok = true
		m.out = appendText(append(m.out, c), m.text())
	default: // true, false, null or a number
		ok = true
		end := bytes.IndexAny(m.rest, ",]} \t\r\n")
		if end < 0 {
			end = len(m.rest)
		}
		if m.out = append(m.out, c); c == '-' || '0' <= c && c <= '9' {
			m.out = appendNumber(append(m.out[:begin], '#'), string(m.rest[:end]))
		}
		m.rest = m.rest[end:]
	}
	if ignore != nil && ignore.ends {
		m.out = append(m.out[:begin], '-')
	}
	return ok
}

// array appends an array: its elements, and their end.
func (m *meaningful) array(ignore *pointers, depth int) bool {
	m.out = append(m.out, '[')
	m.rest = m.rest[1:]
	for i := 0; m.next() != ']'; i++ {
		if m.rest[0] == ',' {
			m.rest = m.rest[1:]
		}
		var below *pointers
		if ignore != nil {
			below = ignore.at(strconv.Itoa(i))
		}
		if !m.value(below, depth) {
			return false
		}
	}
	m.out = append(m.out, ']')
	m.rest = m.rest[1:]
	return true
}

// object appends an object: the hash of its members, in the order of their names. So each
// byte is sorted and copied once, however deep it lies.
func (m *meaningful) object(ignore *pointers, depth int) bool {
	type member struct {
		name       string
		begin, end int // of its value in out
	}
	var members []member
	begin := len(m.out)
	m.rest = m.rest[1:]
	for m.next() != '}' {
		if m.rest[0] == ',' {
			m.rest = m.rest[1:]
			m.next()
		}
		name := m.text()
		m.next()
		m.rest = m.rest[1:] // the colon
		of := member{name: name, begin: len(m.out)}
		below := ignore.at(name)
		if !m.value(below, depth) {
			return false
		}
		of.end = len(m.out)
		members = append(members, of)
	}
	m.rest = m.rest[1:]
	slices.SortFunc(members, func(a, b member) int { return strings.Compare(a.name, b.name) })
	digest := sha256.New()
	for i, of := range members {
		if i > 0 && of.name == members[i-1].name {
			return false
		}
		if below := ignore.at(of.name); below == nil || !below.ends {
			digest.Write(appendText(nil, of.name))
			digest.Write(m.out[of.begin:of.end])
		}
	}
	m.out = digest.Sum(append(m.out[:begin], '{'))
	return true
}

// text returns the next string, without its escapes.
func (m *meaningful) text() string {
	end, escaped := 1, false
	for ; m.rest[end] != '"'; end++ {
		if m.rest[end] == '\\' {
			escaped = true
			end++
		}
	}
	literal := m.rest[:end+1]
	m.rest = m.rest[end+1:]
	if !escaped {
		return string(literal[1:end])
	}
	var s string
	_ = json.Unmarshal(literal, &s) // It is valid.
	return s
}

// hasLoneSurrogate reports whether an escape of a JSON text is one half of a character.
func hasLoneSurrogate(text []byte) bool {
	unit := func(at []byte) (r rune, escape bool) {
		if len(at) < 6 || at[0] != '\\' || at[1] != 'u' {
			return 0, false
		}
		n, err := strconv.ParseUint(string(at[2:6]), 16, 16)
		return rune(n), err == nil
	}
	for {
		i := bytes.IndexByte(text, '\\')
		if i < 0 {
			return false
		}
		text = text[i:]
		first, escape := unit(text)
		switch {
		case !escape:
			text = text[2:]
		case !utf16.IsSurrogate(first):
			text = text[6:]
		default:
			second, _ := unit(text[6:])
			if utf16.DecodeRune(first, second) == utf8.RuneError {
				return true
			}
			text = text[12:]
		}
	}
}

// appendNumber appends the exact value of a JSON number: its digits without zeros at
// either end, and the power of ten that they are multiplied by.
func appendNumber(out []byte, number string) []byte {
	mantissa, power, _ := strings.Cut(strings.ToLower(number), "e")
	digits, negative := strings.CutPrefix(mantissa, "-")
	whole, fraction, _ := strings.Cut(digits, ".")
	digits = strings.TrimLeft(whole+fraction, "0")
	if digits == "" {
		return appendText(out, "0")
	}
	significant := strings.TrimRight(digits, "0")
	shift := int64(len(digits) - len(significant) - len(fraction))
	power = exponent(power, shift)
	if negative {
		significant = "-" + significant
	}
	return appendText(out, significant+"e"+power)
}

// mostDigits is how many digits an exponent has at most that is computed: the time for that
// grows with the square of its length.
const mostDigits = 100

// exponent returns the sum of an exponent as it is written, and of shift.
func exponent(written string, shift int64) string {
	if written == "" {
		written = "0"
	}
	if n, err := strconv.ParseInt(written, 10, 64); err == nil && n>>62 == n>>63 {
		return strconv.FormatInt(n+shift, 10)
	}
	sign, digits := "", strings.TrimPrefix(written, "+")
	if without, negative := strings.CutPrefix(digits, "-"); negative {
		sign, digits = "-", without
	}
	digits = strings.TrimLeft(digits, "0")
	if len(digits) > mostDigits {
		return fmt.Sprintf("%s%s+%d", sign, digits, shift)
	}
	n, _ := new(big.Int).SetString(sign+digits, 10) // It is valid.
	return n.Add(n, big.NewInt(shift)).String()
}
