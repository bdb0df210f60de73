package report

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency/internal/redistest"
)

func TestFormats(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{Duration(0), "0 ns"},
		{Duration(118.4), "118 ns"},
		{Duration(1234), "1.23 µs"},
		{Duration(-45678), "-45.7 µs"},
		{Duration(9_996_000), "10.0 ms"},
		{Duration(2e9), "2.00 s"},
		{Ratio(1.064), "1.06 ×"},
		{Ratio(99.96), "100 ×"},
		{Count(7), "7"},
		{Count(999.6), "1,000"},
		{Count(1234567), "1,234,567"},
		{Count(-1234), "-1,234"},
		{Count(-0.2), "0"},
	} {
		require.Equal(t, c.want, c.got)
	}
}

func TestMedian(t *testing.T) {
	values := []float64{9, 1, 5}
	require.Equal(t, 5.0, Median(values))
	require.Equal(t, []float64{9, 1, 5}, values)
	require.Equal(t, 3.0, Median([]float64{1, 5}))
}

func TestTable(t *testing.T) {
	var b strings.Builder
	Table(&b, []string{"who", "time"}, func(i int) bool { return i == 1 }, [][]string{{"one", "2 s"}})
	require.Equal(t, "| who | time |\n| --- | ---: |\n| one | 2 s |\n\n", b.String())
}

func TestDescribe(t *testing.T) {
	m, err := Describe(t.Context(), redistest.Start(t).Options())
	require.NoError(t, err)
	require.NotContains(t, []string{m.CPU, m.System, m.Go, m.Redis, m.Date}, "")
	var b strings.Builder
	m.Write(&b, "example.org/none")
	require.Regexp(t, `^- .+, \d+ cores, \S+/\S+\n- go\S+, Redis \d\S+ on the same machine\n`+
		`- example.org/none of an unknown version\n- \d{4}-\d\d-\d\d\n$`, b.String())
}

func TestSave(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "directory")
	require.NoError(t, Save(dir, "one.md", []byte("once")))
	require.NoError(t, Save(dir, "one.md", []byte("again")))
	written, err := os.ReadFile(filepath.Join(dir, "one.md"))
	require.NoError(t, err)
	require.Equal(t, "again", string(written))
}
