package main

import (
	"bufio"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
)

func TestForget(t *testing.T) {
	const asks, not = "Forget this record? The next request with this key runs the handler. [y/N] ", "idempotency: not forgotten"
	eachStore(t, func(t *testing.T, s testStore) {
		for name, tt := range map[string]struct {
			state     idempotency.State
			flags     []string
			stdin     string
			forgotten bool
			stderr    string
		}{
			"yes":                     {idempotency.StateInterrupted, nil, "y\n", true, asks},
			"yes, in full":            {idempotency.StateCompleted, nil, "Yes\r\n", true, asks},
			"yes, without a line end": {idempotency.StateCompleted, nil, "y", true, asks},
			"no":                      {idempotency.StateInterrupted, nil, "n\n", false, asks + not + "\n"},
			"an empty line":           {idempotency.StateInterrupted, nil, "\ny\n", false, asks + not + "\n"},
			"no answer":               {idempotency.StateCompleted, nil, "", false, asks + not + "\n"},
			"another word":            {idempotency.StateCompleted, nil, "yellow\n", false, asks + not + "\n"},
			"not asked":               {idempotency.StateInterrupted, []string{"-yes"}, "", true, ""},
			"outstanding": {idempotency.StateOutstanding, []string{"-yes"}, "y\n", false,
				not + ": the record is outstanding, and a retry would run beside its handler; -force forgets it all the same\n"},
			"outstanding, by force":         {idempotency.StateOutstanding, []string{"-force"}, "y\n", true, asks},
			"outstanding, by force, no":     {idempotency.StateOutstanding, []string{"-force"}, "n\n", false, asks + not + "\n"},
			"outstanding, by force and yes": {idempotency.StateOutstanding, []string{"-force", "-yes"}, "", true, ""},
			"interrupted, by force":         {idempotency.StateInterrupted, []string{"-force"}, "n\n", false, asks + not + "\n"},
		} {
			t.Run(name, func(t *testing.T) {
				key, other := idempotency.NewKey("s", name), idempotency.NewKey("", name)
				put(t, s, other, tt.state, stored(t, "{}"))
				put(t, s, key, tt.state, stored(t, "{}"))
				show := s.run(t, "show", "-scope", "s", name)
				args := append(append([]string{"forget"}, s.flags...), append(tt.flags, "-scope", "s", name)...)
				r := execute(t, tt.stdin, nil, args...)
				status, stdout := 1, timeless(show.stdout)
				if tt.forgotten {
					status, stdout = 0, stdout+"forgotten\n"
				}
				require.Equal(t, result{status, stdout, tt.stderr}, result{r.status, timeless(r.stdout), r.stderr})
				_, _, ok, err := s.Lookup(t.Context(), key)
				require.NoError(t, err)
				require.Equal(t, !tt.forgotten, ok)
				_, _, ok, err = s.Lookup(t.Context(), other)
				require.NoError(t, err)
				require.True(t, ok, "the same key in another scope stays")
			})
		}
	})
}

// A record that changes while the operator thinks stays.
func TestForgetOnlyWhatWasShown(t *testing.T) {
	eachStore(t, func(t *testing.T, s testStore) {
		for name, change := range map[string]func(t *testing.T, key idempotency.Key, claim idempotency.Claim){
			"completed meanwhile": func(t *testing.T, key idempotency.Key, claim idempotency.Claim) {
				require.NoError(t, s.Complete(t.Context(), key, claim, stored(t, "{}"), time.Hour))
			},
			"released, and claimed by another": func(t *testing.T, key idempotency.Key, claim idempotency.Claim) {
				require.NoError(t, s.Release(t.Context(), key, claim, 0))
				put(t, s, key, idempotency.StateOutstanding, nil)
			},
		} {
			t.Run(name, func(t *testing.T) {
				key := idempotency.NewKey("", name)
				claim := put(t, s, key, idempotency.StateOutstanding, nil)
				cmd := program(t, nil, append(append([]string{"forget", "-force"}, s.flags...), name)...)
				stdin, err := cmd.StdinPipe()
				require.NoError(t, err)
				stderr, err := cmd.StderrPipe()
				require.NoError(t, err)
				require.NoError(t, cmd.Start())
				said := bufio.NewReader(stderr)
				question, err := said.ReadString(']')
				require.NoError(t, err, question)
				change(t, key, claim)
				_, err = io.WriteString(stdin, "y\n")
				require.NoError(t, err)
				rest, err := io.ReadAll(said)
				require.NoError(t, err)
				require.Error(t, cmd.Wait())
				require.Equal(t, 1, cmd.ProcessState.ExitCode())
				require.Equal(t, "idempotency: not forgotten: the record has changed since it was shown", strings.TrimSpace(string(rest)))
				_, _, ok, err := s.Lookup(t.Context(), key)
				require.NoError(t, err)
				require.True(t, ok)
			})
		}
	})
}

// What is free, or cannot be read, is not forgotten; a response that cannot be read is.
func TestForgetUnreadable(t *testing.T) {
	eachStore(t, func(t *testing.T, s testStore) {
		s.run(t, "forget", "-yes", "free").requireFailed(t, 1, "no record: the key is free")
		s.spoil(t, idempotency.NewKey("", "spoilt"))
		s.run(t, "forget", "-yes", "-force", "spoilt").requireFailed(t, 1, "record unreadable")
		s.run(t, "show", "spoilt").requireFailed(t, 1, "record unreadable")
		key := idempotency.NewKey("", "cut")
		put(t, s, key, idempotency.StateCompleted, []byte{9})
		r := s.run(t, "forget", "-yes", "-storage-key", key.String())
		require.Equal(t, 0, r.status, r)
		require.Contains(t, r.stdout, "\nresponse     1 bytes, unreadable\nforgotten\n")
	})
}
