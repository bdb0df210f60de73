package idempotency

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

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
