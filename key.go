package idempotency

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"regexp"
	"strings"

	"github.com/google/uuid"
)

// maxKeyLength is how many characters a key may have.
const maxKeyLength = 255

// keyError is an ErrKeyInvalid whose reason is told to the client.
type keyError struct{ reason error }

func (e *keyError) Error() string   { return ErrKeyInvalid.Error() + ": " + e.reason.Error() }
func (e *keyError) Unwrap() []error { return []error{ErrKeyInvalid, e.reason} }

// Why a key is malformed. None of the texts shows the key.
var (
	errKeyLines      = errors.New("the key must be in one header line")
	errKeyLength     = fmt.Errorf("the key must have 1 to %d characters", maxKeyLength)
	errKeyCharacters = errors.New("the key must be of printable ASCII characters")
	errKeyQuotes     = errors.New(`a key that begins with a quote must be one whole quoted string, with \" and \\ as its only escapes`)
	errKeyParameters = errors.New("only parameters may follow the quoted string (RFC 9651, section 3.1.2)")
)

// parseKey reads a key from the lines of its header. It returns "" if there
// is no key. A key is bare, or the quoted string of RFC 9651, section 3.3.3,
// that the IETF draft asks for (section 2.1); both spellings name the same key.
// Parameters after the string have no meaning.
func parseKey(lines []string) (string, error) {
	switch len(lines) {
	case 0:
		return "", nil
	case 1:
	default:
		return "", &keyError{errKeyLines}
	}
	key := textproto.TrimString(lines[0])
	if key == "" {
		return "", nil
	}
	if key[0] == '"' {
		var err error
		if key, err = unquote(key); err != nil {
			return "", &keyError{err}
		}
	}
	if err := checkKey(key); err != nil {
		return "", err
	}
	return key, nil
}

// checkKey returns what is wrong with a key, or nil.
func checkKey(key string) error {
	if len(key) < 1 || len(key) > maxKeyLength {
		return &keyError{errKeyLength}
	}
	for i := range len(key) {
		if key[i] < 0x20 || key[i] > 0x7E {
			return &keyError{errKeyCharacters}
		}
	}
	return nil
}

// keyOfBody returns the key that the function of WithKeyFunc finds, or "".
func (x *exchange) keyOfBody() (key string, err error) {
	body, cut, err := x.body.readAhead()
	if err != nil {
		return "", err
	}
	if cut {
		return "", fmt.Errorf("%w: WithKeyFunc: %w", ErrBodyUnreadable, &http.MaxBytesError{Limit: int64(x.h.bufferLimit)})
	}
	err = peek(&x.body, func(r *http.Request) (err error) {
		key, err = x.h.keyFunc(r, body)
		return err
	})
	switch {
	case err != nil:
		return "", &keyError{err}
	case key == "":
		return "", nil
	}
	if err := checkKey(key); err != nil {
		return "", err
	}
	return key, nil
}

// parameters are those of a structured field's item (RFC 9651, sections 3.1.2 and 3.3).
var parameters = regexp.MustCompile("^(?:; *[a-z*][a-z0-9_.*-]*(?:=(?:" + strings.Join([]string{
	`-?[0-9]{1,15}`, `-?[0-9]{1,12}\.[0-9]{1,3}`, // Integer, Decimal
	`"(?:[ !#-\[\]-~]|\\["\\])*"`,                    // String
	"[A-Za-z*][!#$%&'*+.^_`|~0-9A-Za-z:/-]*",         // Token
	`:[A-Za-z0-9+/]*=*:`, `\?[01]`, `@-?[0-9]{1,15}`, // Byte Sequence, Boolean, Date
	`%"(?:[ !#$&-~]|%[0-9a-f]{2})*"`, // Display String
}, "|") + "))?)*$")

// unquote returns what stands between the quotes, its escapes resolved.
func unquote(s string) (string, error) {
	var plain []byte
	for begin, i := 1, 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			if after := s[i+1:]; after != "" && !parameters.MatchString(after) {
				return "", errKeyParameters
			}
			return string(plain) + s[begin:i], nil
		case '\\':
			plain = append(plain, s[begin:i]...)
			i++
			begin = i
			if i == len(s) || s[i] != '"' && s[i] != '\\' {
				return "", errKeyQuotes
			}
		}
	}
	return "", errKeyQuotes
}

// UUIDv4 is a validator for [WithKeyValidator]: the key must be a version 4
// UUID (RFC 9562, section 5.4), with its dashes or as 32 hexadecimal digits.
// Two spellings of one UUID (other case, no dashes) are two keys.
func UUIDv4(key string) error { return requireUUID(key, 4) }

// UUIDv7 is a validator as [UUIDv4], for a version 7 UUID (RFC 9562, section 5.7). What
// time it tells does not count.
func UUIDv7(key string) error { return requireUUID(key, 7) }

func requireUUID(key string, version uuid.Version) error {
	// uuid.Parse knows other forms too: in braces, and as a URN.
	if len(key) == 36 || len(key) == 32 {
		id, err := uuid.Parse(key)
		if err == nil && id.Version() == version && id.Variant() == uuid.RFC4122 {
			return nil
		}
	}
	return fmt.Errorf("the key must be a version %d UUID", version)
}

// A Key is the name under which a [Backend] sees a client's key: a SHA-256, so
// that no client's text reaches a store.
type Key [sha256.Size]byte

// NewKey returns the storage key of a client's key in a scope ("" is none). It
// hashes the length of the scope in bytes as 8 bytes, the first one the highest,
// then the scope, then the key, unquoted: scopes cannot run into each other. It
// is the same in every release, so that a record can be found by hand; [Redis]
// puts its prefix before [Key.String]. (If one instance stands around another
// and a request has the same key in both their headers, the scope of the inner
// one begins with the name of its header and a space.)
func NewKey(scope, key string) Key {
	b := make([]byte, 0, 128)
	b = binary.BigEndian.AppendUint64(b, uint64(len(scope)))
	b = append(b, scope...)
	b = append(b, key...)
	return sha256.Sum256(b)
}

// String returns the key as 43 characters of URL-safe base64, without padding.
func (k Key) String() string { return string(k.append(make([]byte, 0, 64))) }

// append appends String to b.
func (k Key) append(b []byte) []byte {
	return base64.RawURLEncoding.AppendEncode(b, k[:])
}
