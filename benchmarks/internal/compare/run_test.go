package compare

import (
	"bytes"
	"encoding/xml"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency/internal/redistest"
)

func TestRun(t *testing.T) {
	server := redistest.Start(t)
	out := filepath.Join(t.TempDir(), "new", "directory")
	var progress bytes.Buffer
	require.NoError(t, Run(t.Context(), Config{
		Rounds:   2,
		Time:     5 * time.Millisecond,
		Clients:  3,
		Redis:    server.Options(),
		Measure:  Measure,
		Progress: &progress,
		Out:      out,
	}))
	total := 2 * 3 * len(operations) * len(contestants)
	require.Equal(t, total+1, strings.Count(progress.String(), "\n"))

	table, err := os.ReadFile(filepath.Join(out, "compare.md"))
	require.NoError(t, err)
	chart, err := os.ReadFile(filepath.Join(out, "compare.svg"))
	require.NoError(t, err)
	for _, c := range contestants {
		// Two tables for each operation.
		require.Equal(t, 2*len(operations), strings.Count(string(table), "\n| "+c.name+" | "), c.name)
	}
	for _, word := range []string{"NaN", "Inf", "%!"} {
		require.NotContains(t, string(table), word)
		require.NotContains(t, string(chart), word)
	}
	requireTables(t, string(table))
	texts := svgTexts(t, chart)
	for _, c := range contestants {
		require.Contains(t, texts, c.name)
	}
	for _, op := range operations {
		require.Contains(t, texts, string(op))
	}
}

// requireTables requires that the rows of each table have as many columns as
// its head.
func requireTables(t *testing.T, markdown string) {
	t.Helper()
	columns := 0
	for line := range strings.Lines(markdown) {
		if !strings.HasPrefix(line, "|") {
			columns = 0
			continue
		}
		n := strings.Count(line, "|")
		if columns == 0 {
			columns = n
		}
		require.Equal(t, columns, n, line)
	}
}

// svgTexts returns the texts of an SVG, which it requires to be well-formed XML
// with a size.
func svgTexts(t *testing.T, svg []byte) []string {
	t.Helper()
	var texts []string
	inText, sized := false, false
	for d := xml.NewDecoder(bytes.NewReader(svg)); ; {
		token, err := d.Token()
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		switch token := token.(type) {
		case xml.StartElement:
			inText = token.Name.Local == "text"
			for _, attr := range token.Attr {
				sized = sized || token.Name.Local == "svg" && attr.Name.Local == "viewBox"
			}
		case xml.CharData:
			if inText {
				texts = append(texts, string(token))
			}
		case xml.EndElement:
			inText = false
		}
	}
	require.True(t, sized)
	return texts
}

func TestRefused(t *testing.T) {
	good := Config{Rounds: 1, Time: time.Second, Clients: 2, Redis: &redis.Options{Addr: "127.0.0.1:1"}, Progress: io.Discard}
	for name, change := range map[string]func(*Config){
		"rounds: fewer than 1":  func(c *Config) { c.Rounds = 0 },
		"time: not positive":    func(c *Config) { c.Time = 0 },
		"clients: fewer than 2": func(c *Config) { c.Clients = 1 },
		"connection refused":    func(*Config) {},
	} {
		config := good
		change(&config)
		require.ErrorContains(t, Run(t.Context(), config), name)
	}
	_, err := Measure(t.Context(), Cell{Contestant: "nobody"}, good.Redis)
	require.EqualError(t, err, `no contestant "nobody"`)
}

func TestMedianOfRounds(t *testing.T) {
	c := &comparison{results: make(map[Cell][]Result)}
	bare, ours := c.cell(bareNetHTTP, First, true, 1), c.cell("net/http + this package, memory", First, true, 1)
	c.results[bare] = []Result{{PerOp: 10}, {PerOp: 20}, {PerOp: 40}}
	c.results[ours] = []Result{{PerOp: 30}, {PerOp: 40}, {PerOp: 160}}
	require.Equal(t, 40.0, c.median(ours, perOp))
	require.Equal(t, 3.0, c.ratio(ours, perOp), "of each round's quotient")
	require.Equal(t, 1.0, c.ratio(bare, perOp))
}
