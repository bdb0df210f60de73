package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/idempotency-go/idempotency"
)

// errNone is what there is to say of a key that is free.
var errNone = errors.New("no record: the key is free, or it has another scope, prefix or table")

// found is a record as it is shown.
type found struct {
	key      idempotency.Key
	rec      idempotency.Record
	left     time.Duration
	response *idempotency.Response // nil unless it is completed and readable
	err      error                 // why the response cannot be read
}

// lookup returns the record of the key that the command line names.
func (c *command) lookup(s store) (found, error) {
	if err := c.readSecrets(); err != nil {
		return found{}, err
	}
	f := found{key: c.key}
	err := c.within(func(ctx context.Context) error {
		rec, left, ok, err := s.Lookup(ctx, c.key)
		f.rec, f.left = rec, left
		if err == nil && !ok {
			return errNone
		}
		return err
	})
	if err != nil {
		return found{}, err
	}
	if f.rec.State == idempotency.StateCompleted && c.byStorageKey && len(c.secrets) > 0 {
		f.err = errors.New("a sealed response is opened with the client's key: give that and -scope in place of -storage-key")
	} else if f.rec.State == idempotency.StateCompleted {
		f.response, f.err = f.rec.Open(c.scope, c.flags.Arg(0), c.secrets...)
	}
	return f, nil
}

// show prints a record. A response that cannot be read is an error, after what else
// there is to tell.
func (c *command) show(s store) error {
	f, err := c.lookup(s)
	if err != nil {
		return err
	}
	if c.json {
		err = f.printJSON(c.stdout, c.body)
	} else {
		err = f.print(c.stdout, c.body)
	}
	return errors.Join(f.err, err)
}

// forget prints a record, asks, and deletes what it printed.
func (c *command) forget(s store) error {
	f, err := c.lookup(s)
	if err != nil {
		return err
	}
	if err := f.print(c.stdout, false); err != nil {
		return err
	}
	if f.rec.State == idempotency.StateOutstanding && !c.force {
		return errors.New("not forgotten: the record is outstanding, and a retry would run beside its handler; -force forgets it all the same")
	}
	if !c.yes {
		fmt.Fprint(c.stderr, "Forget this record? The next request with this key runs the handler. [y/N] ")
		line, _ := bufio.NewReader(c.stdin).ReadString('\n') // The end of the input is no answer.
		if answer := strings.ToLower(strings.TrimSpace(line)); answer != "y" && answer != "yes" {
			return errors.New("not forgotten")
		}
	}
	var forgotten bool
	err = c.within(func(ctx context.Context) error {
		forgotten, err = s.Forget(ctx, f.key, f.rec)
		return err
	})
	switch {
	case err != nil:
		return fmt.Errorf("it is not known whether the record is forgotten: %w", err)
	case !forgotten:
		return errors.New("not forgotten: the record has changed since it was shown")
	}
	_, err = fmt.Fprintln(c.stdout, "forgotten")
	return err
}

// print prints the record as lines of a name and a value.
func (f found) print(w io.Writer, body bool) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(table, "%s\t%s\n", name, printable(fmt.Sprintf(format, args...), ""))
	}
	line("storage key", "%v", f.key)
	line("state", "%v", f.rec.State)
	line("claim", "%v", f.rec.Claim.Token)
	line("claimed", "%s", since(f.rec.Claim.Token))
	line("ends", "%s", ends(f.left))
	if f.rec.Progress != nil {
		line("progress", "%d bytes", len(f.rec.Progress))
	}
	switch {
	case f.err != nil:
		line("response", "%d bytes, unreadable", len(f.rec.Response))
	case f.response != nil:
		line("status", "%d", f.response.Status)
		for _, name := range slices.Sorted(maps.Keys(f.response.Header)) {
			values := f.response.Header[name]
			if len(values) == 0 {
				line("header", "%s, taken away", name)
			}
			for _, value := range values {
				line("header", "%s: %s", name, value)
			}
		}
		line("body", "%d bytes", len(f.response.Body))
	}
	if err := table.Flush(); err != nil || !body || f.response == nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%s\n", printable(string(f.response.Body), "\n\t"))
	return err
}

// printable returns a text without what would control the terminal, but for what to keep.
func printable(text, keep string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) || strings.ContainsRune(keep, r) {
			return r
		}
		return unicode.ReplacementChar
	}, text)
}

// since tells when a claim was made, by the clock of its process, and how long ago that is.
func since(token idempotency.Token) string {
	made := token.Time()
	return fmt.Sprintf("%s, %v ago", made.UTC().Format("2006-01-02T15:04:05.000Z"), time.Since(made).Round(time.Second))
}

func ends(left time.Duration) string {
	if left == idempotency.Forever {
		return "never"
	}
	return "in " + left.Round(time.Second).String()
}

// foundJSON is a record as JSON.
type foundJSON struct {
	StorageKey    string        `json:"storage_key"`
	State         string        `json:"state"`
	Claim         string        `json:"claim"`
	Claimed       time.Time     `json:"claimed"`
	LeftSeconds   *float64      `json:"left_seconds"` // null is for ever
	ProgressBytes int           `json:"progress_bytes"`
	Response      *responseJSON `json:"response,omitempty"`
}

// responseJSON has the body as a text if it is one, else in base64, if it was asked for.
type responseJSON struct {
	Status     int         `json:"status"`
	Header     http.Header `json:"header"`
	BodyBytes  int         `json:"body_bytes"`
	Body       *string     `json:"body,omitempty"`
	BodyBase64 []byte      `json:"body_base64,omitempty"`
}

func (f found) printJSON(w io.Writer, body bool) error {
	shown := foundJSON{
		StorageKey:    f.key.String(),
		State:         f.rec.State.String(),
		Claim:         f.rec.Claim.Token.String(),
		Claimed:       f.rec.Claim.Token.Time().UTC(),
		ProgressBytes: len(f.rec.Progress),
	}
	if f.left != idempotency.Forever {
		left := f.left.Seconds()
		shown.LeftSeconds = &left
	}
	if r := f.response; r != nil {
		shown.Response = &responseJSON{Status: r.Status, Header: r.Header, BodyBytes: len(r.Body)}
		switch text := string(r.Body); {
		case !body:
		case utf8.ValidString(text):
			shown.Response.Body = &text
		default:
			shown.Response.BodyBase64 = r.Body
		}
	}
	return printJSON(w, shown)
}

func printJSON(w io.Writer, v any) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(v)
}
