package integration

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const root = ".."

// fence is a code block: its language and its lines.
var fence = regexp.MustCompile("(?ms)^```(\\w*)\n(.*?)^```$")

// documents returns the texts of the repository's documents, by their paths.
func documents(t *testing.T) map[string]string { return files(t, ".md") }

// files returns the texts of the repository's files with one of the endings.
func files(t *testing.T, endings ...string) map[string]string {
	t.Helper()
	found := make(map[string]string)
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() && entry.Name() == ".git" {
			return filepath.SkipDir
		}
		if err == nil && slices.Contains(endings, filepath.Ext(path)) {
			var text []byte
			text, err = os.ReadFile(path)
			found[path] = string(text)
		}
		return err
	})
	require.NoError(t, err)
	require.NotEmpty(t, found)
	return found
}

// Every code block is compiled: a program by itself, and anything else as a part
// of a file that is, which has it word for word. So are statements in SQL, and scripts.
func TestDocumentedCode(t *testing.T) {
	sources := files(t, ".go", ".sql", ".mjs")
	blocks := 0
	for path, text := range documents(t) {
		for _, block := range fence.FindAllStringSubmatch(text, -1) {
			language, code := block[1], block[2]
			switch language {
			case "go", "sql", "js":
				blocks++
				if strings.HasPrefix(code, "package main\n") {
					build(t, code)
					continue
				}
				stands := false
				for _, source := range sources {
					// A statement stands within a text of Go.
					stands = stands || contains(source, code) || language == "sql" && strings.Contains(source, strings.TrimSpace(code))
				}
				require.True(t, stands, "%s: no source has this block:\n%s", path, code)
			case "yaml":
				require.Equal(t, filepath.Join(root, "docs", "OBSERVING.md"), path, "TestAlerts evaluates the rules there")
			case "console", "mermaid", "text", "":
			default:
				t.Errorf("%s: nobody tests blocks of %q", path, language)
			}
		}
	}
	require.GreaterOrEqual(t, blocks, 13)
}

// contains reports whether the lines of code stand in source, all of them
// indented by as much.
func contains(source, code string) bool {
	lines, want := strings.Split(source, "\n"), strings.Split(strings.TrimSuffix(code, "\n"), "\n")
	for i := range len(lines) - len(want) + 1 {
		indent, found := strings.CutSuffix(lines[i], want[0])
		if !found || strings.Trim(indent, "\t ") != "" {
			continue
		}
		same := true
		for j, line := range want {
			got, indented := strings.CutPrefix(lines[i+j], indent)
			same = same && (indented && got == line || line == "" && lines[i+j] == "")
		}
		if same {
			return true
		}
	}
	return false
}

// build compiles a program and returns where it is.
func build(t *testing.T, code string) string {
	t.Helper()
	dir := t.TempDir()
	source, program := filepath.Join(dir, "main.go"), filepath.Join(dir, "program")
	require.NoError(t, os.WriteFile(source, []byte(code), 0o600))
	said, err := exec.Command("go", "build", "-o", program, source).CombinedOutput()
	require.NoError(t, err, "%s\n%s", code, said)
	return program
}

// The README's program gives the README's transcript.
func TestTranscript(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("SKIPPED: there is no curl on the PATH to run the README's lines with.")
	}
	readme, err := os.ReadFile(filepath.Join(root, "README.md"))
	require.NoError(t, err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := listener.Addr().String()
	require.NoError(t, listener.Close())
	var program, transcript string
	for _, block := range fence.FindAllStringSubmatch(string(readme), -1) {
		code := strings.ReplaceAll(block[2], "127.0.0.1:8080", addr)
		switch {
		case block[1] == "go" && program == "":
			program = build(t, code)
		case block[1] == "console":
			transcript += code
		}
	}
	server := exec.Command(program)
	require.NoError(t, server.Start())
	t.Cleanup(func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	})
	require.Eventually(t, func() bool {
		resp, err := http.Get("http://" + addr)
		if err == nil {
			resp.Body.Close()
		}
		return err == nil
	}, time.Minute, 10*time.Millisecond)

	var given bytes.Buffer
	commands := 0
	for line := range strings.Lines(transcript) {
		command, ok := strings.CutPrefix(line, "$ ")
		if !ok {
			continue
		}
		commands++
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		said, err := exec.CommandContext(ctx, "sh", "-c", command).Output()
		cancel()
		require.NoError(t, err, command)
		fmt.Fprintf(&given, "%s%s", line, said)
		if !bytes.HasSuffix(said, []byte("\n")) {
			given.WriteString("\n") // As a reader's prompt would stand on a line of its own.
		}
	}
	require.GreaterOrEqual(t, commands, 3)
	date := regexp.MustCompile(`(?m)^Date: .*$`)
	plain := func(text string) string {
		return date.ReplaceAllString(strings.ReplaceAll(text, "\r", ""), "Date: then")
	}
	require.Equal(t, plain(transcript), plain(given.String()))
}

// Links within the repository lead somewhere: to a file, and to a heading of it
// where they name one.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:\s]*)(#[\w-]+)?\)|<img [^>]*src="([^":]+)"`)
	all, links, fragments := documents(t), 0, 0
	for path, text := range all {
		for _, found := range link.FindAllStringSubmatch(text, -1) {
			links++
			target := path
			if file := found[1] + found[3]; file != "" {
				target = filepath.Join(filepath.Dir(path), file)
			}
			_, err := os.Stat(target)
			require.NoError(t, err, path)
			if found[2] != "" {
				fragments++
				require.Contains(t, anchors(all[target]), found[2], path)
			}
		}
	}
	require.GreaterOrEqual(t, links, 50)
	require.GreaterOrEqual(t, fragments, 5)
}

// anchors returns the fragments that the headings of a document have.
func anchors(text string) (all []string) {
	heading, dropped := regexp.MustCompile(`(?m)^#+ (.*)$`), regexp.MustCompile(`[^\w -]`)
	for _, found := range heading.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		plain := dropped.ReplaceAllString(strings.ToLower(found[1]), "")
		all = append(all, "#"+strings.ReplaceAll(plain, " ", "-"))
	}
	return all
}

// Every page of docs/ is in its index.
func TestIndex(t *testing.T) {
	index, err := os.ReadFile(filepath.Join(root, "docs", "README.md"))
	require.NoError(t, err)
	pages, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(pages), 9)
	for _, page := range pages {
		if name := filepath.Base(page); name != "README.md" {
			require.Contains(t, string(index), "]("+name+")")
		}
	}
}

// The README is short, and its program begins in the first screen.
func TestReadme(t *testing.T) {
	readme, err := os.ReadFile(filepath.Join(root, "README.md"))
	require.NoError(t, err)
	lines := strings.Split(string(readme), "\n")
	require.LessOrEqual(t, len(lines), 165)
	require.Less(t, slices.Index(lines, "```go"), 12)
}

// Every outcome and every reason of an event is explained.
func TestOutcomesExplained(t *testing.T) {
	event, err := os.ReadFile(filepath.Join(root, "event.go"))
	require.NoError(t, err)
	page, err := os.ReadFile(filepath.Join(root, "docs", "OBSERVING.md"))
	require.NoError(t, err)
	values := regexp.MustCompile(`(?m)^\t\w+ (?:Outcome|Reason) += "(\w+)"$`).FindAllSubmatch(event, -1)
	require.GreaterOrEqual(t, len(values), 20)
	for _, value := range values {
		require.Contains(t, string(page), fmt.Sprintf("\n| `%s` |", value[1]))
	}
}
