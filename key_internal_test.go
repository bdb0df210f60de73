package idempotency

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Memory knows records by what a StorageKey stands for. No other text may stand
// for the same.
func TestParseRecordKey(t *testing.T) {
	key := newRecordKey("scope", "key")
	text := key.String()
	require.Equal(t, StorageKey("scope", "key"), text)
	require.Len(t, text, storageKeyLength)
	require.Equal(t, key, parseRecordKey(text))

	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	seen := map[recordKey]string{key: text}
	for _, other := range []string{
		"", "a", text[:42], text + "=", text + "A", "\n" + text[:42], text[:42] + "\n", text + "\n", text[:20] + "\r\n" + text[22:],
		text[:42] + string(alphabet[strings.IndexByte(alphabet, text[42])|1]), // It differs in the bits that are not decoded.
		"\n" + strings.Repeat("A", 42),
		strings.Repeat("~", 43), strings.Repeat("A", 42), strings.Repeat("A", 43), strings.Repeat("A", 44),
	} {
		other := strings.Clone(other)
		k := parseRecordKey(other)
		require.Empty(t, seen[k], "%q and %q are one", other, seen[k])
		seen[k] = other
		require.Equal(t, k, parseRecordKey(other))
	}
}

func FuzzParseKey(f *testing.F) {
	for _, line := range []string{
		"", " ", "a", `"a"`, `""`, `"`, `"\"`, `"\\"`, `"\""`, `"a"b`, `"a";p=1`, `a"b`, `a\b`, "\t a\t", "caf\xc3\xa9", "\x00", "\x7f", "~",
		"8e03978e-40d5-43dd-bc93-6894a57f9324", `"8e03978e-40d5-43dd-bc93-6894a57f9324"`, `"\n"`, `" "`, `\"a\"`,
		strings.Repeat("k", 255), strings.Repeat("k", 256), `"` + strings.Repeat(`\"`, 255) + `"`, `"` + strings.Repeat(`\\`, 256) + `"`,
	} {
		f.Add(line)
	}
	canonical := strings.NewReplacer(`\`, `\\`, `"`, `\"`)
	f.Fuzz(func(t *testing.T, line string) {
		key, err := parseKey([]string{line})
		if err != nil {
			require.Empty(t, key, "an error comes without a key")
			require.NotEmpty(t, strings.Trim(line, " \t"), "a blank line is no key, not a bad one")
			return
		}
		if key == "" {
			require.Empty(t, strings.Trim(line, " \t\r\n"), "only a blank line is no key")
			return
		}
		require.LessOrEqual(t, len(key), 255)
		for i := range len(key) {
			require.True(t, 0x20 <= key[i] && key[i] <= 0x7E, "%q has %#x at %d", key, key[i], i)
		}
		again, err := parseKey([]string{`"` + canonical.Replace(key) + `"`})
		require.NoError(t, err)
		require.Equal(t, key, again, "the quoted spelling names another key")
		if key[0] != '"' && strings.TrimSpace(key) == key {
			again, err = parseKey([]string{key})
			require.NoError(t, err)
			require.Equal(t, key, again, "the bare spelling names another key")
		}
		_, err = parseKey([]string{line, line})
		require.Error(t, err, "a key in two lines")
	})
}
