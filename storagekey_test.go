package idempotency_test

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

// The names under which stores hold records: a release that changed them would
// lose every record of the one before.
func TestNewKeyIsStable(t *testing.T) {
	for _, test := range []struct{ scope, key, want string }{
		{"", "", "r1Vw9aGBC3r3jK9LxwpmDw31HkK6-R1N5bIyjeDoPfw"},
		{"", "8e03978e-40d5-43dd-bc93-6894a57f9324", "oK49ZPuTgQB3vd7oOX49tswqg743iFIyQZVli66j1Wc"},
		{"tenant-1", "8e03978e-40d5-43dd-bc93-6894a57f9324", "J1aSfxOlJjwSapMoVuCjSy3V4SpaVtKBwtdMlJXDZVA"},
		{"a", "bc", "6YvEg8xq-cz4K8I-SBoSjBKBglHZ01mntWDcq_15CdY"},
		{"ab", "c", "KQo9qptJUmou1zUs1_XmnFUaAeFd5h_ATEP3gNcXK3E"},
		{"", "abc", "82UuTOk4u5ll9iw8pNj2kwGmyFsehurGfikRUtPA490"},
		{"abc", "", "w0lMoaLPjuuKEd7TFvtVuDw7u-22MTzVBBUlHl0J4S8"},
	} {
		t.Run(test.scope+"/"+test.key, func(t *testing.T) {
			got := idempotency.NewKey(test.scope, test.key)
			require.Equal(t, test.want, got.String())

			// By the description: SHA-256 of the scope's length (8 bytes, the
			// highest first), the scope and the key.
			text := binary.BigEndian.AppendUint64(nil, uint64(len(test.scope)))
			sum := sha256.Sum256(append(append(text, test.scope...), test.key...))
			require.Equal(t, sum[:], got[:])
			require.Equal(t, base64.RawURLEncoding.EncodeToString(sum[:]), got.String())
		})
	}
}

func TestNewKeyTellsScopesApart(t *testing.T) {
	texts := []string{
		"", "a", "b", "c", "ab", "bc", "abc", "A", " ", "a ", " a", ":", "a:", ":a", "a:b", "/", "\x00", "a\x00", "\x00a", "0", "1", "1a",
		"\x01", "\x00\x00\x00\x00\x00\x00\x00\x01", "\x00\x00\x00\x00\x00\x00\x00\x01a", `"a"`, strings.Repeat("k", 255), strings.Repeat("k", 256),
		strings.Repeat("scope", 1000),
	}
	seen := make(map[idempotency.Key]string)
	for _, scope := range texts {
		for _, key := range texts {
			pair := fmt.Sprintf("%.20q and %.20q of %d and %d bytes", scope, key, len(scope), len(key))
			storage := idempotency.NewKey(scope, key)
			require.Empty(t, seen[storage], "one key for two: %s", pair)
			seen[storage] = pair
			require.Regexp(t, "^[A-Za-z0-9_-]{43}$", storage.String())
		}
	}
}
