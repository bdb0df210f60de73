package idempotency

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/textproto"
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
	errKeyUUID       = errors.New("the key must be a version 4 UUID")
)

// parseKey reads a key from the lines of its header. It returns "" if there
// is no key. A key is bare, or the quoted string of RFC 8941, section 3.3.3,
// that the IETF draft asks for (section 2.1); both spellings name the same key.
func parseKey(lines []string) (string, error) {
	switch len(lines) {
	case 0:
		return "", nil
	case 1:
	default:
		return "", errKeyLines
	}
	key := textproto.TrimString(lines[0])
	if key == "" {
		return "", nil
	}
	if key[0] == '"' {
		var err error
		if key, err = unquote(key); err != nil {
			return "", err
		}
	}
	if len(key) < 1 || len(key) > maxKeyLength {
		return "", errKeyLength
	}
	for i := range len(key) {
		if key[i] < 0x20 || key[i] > 0x7E {
			return "", errKeyCharacters
		}
	}
	return key, nil
}

// unquote returns what stands between the quotes, its escapes resolved.
func unquote(s string) (string, error) {
	if len(s) < 2 || s[len(s)-1] != '"' {
		return "", errKeyQuotes
	}
	s = s[1 : len(s)-1]
	if !strings.ContainsAny(s, `"\`) {
		return s, nil
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '"' {
			return "", errKeyQuotes
		}
		if s[i] == '\\' {
			i++
			if i == len(s) || s[i] != '"' && s[i] != '\\' {
				return "", errKeyQuotes
			}
		}
		b = append(b, s[i])
	}
	return string(b), nil
}

// UUIDv4 is a validator for [WithKeyValidator]: the key must be a version 4
// UUID of the RFC 4122 variant, with its dashes or as 32 hexadecimal digits.
// Two spellings of one UUID (other case, no dashes) are two keys.
func UUIDv4(key string) error {
	// uuid.Parse knows other forms too: in braces, and as a URN.
	if len(key) != 36 && len(key) != 32 {
		return errKeyUUID
	}
	id, err := uuid.Parse(key)
	if err != nil || id.Version() != 4 || id.Variant() != uuid.RFC4122 {
		return errKeyUUID
	}
	return nil
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
