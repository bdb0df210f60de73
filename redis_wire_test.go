package idempotency_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// redisWire stands between a client and its server and keeps what the client
// sends.
type redisWire struct {
	addr string
	mu   sync.Mutex
	sent [][]string // command by command
	raw  strings.Builder
}

// tapped returns a client of one connection to the server of another client,
// and the wire between them. It has sent all that it sends of itself.
func tapped(t *testing.T, client *redis.Client) (*redis.Client, *redisWire) {
	t.Helper()
	opts := *client.Options()
	if opts.TLSConfig != nil {
		t.Skip("SKIPPED: the commands on a TLS connection cannot be counted")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	wire := &redisWire{addr: listener.Addr().String()}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			in, err := listener.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial(opts.Network, opts.Addr)
			if err != nil {
				in.Close()
				continue
			}
			context.AfterFunc(t.Context(), func() { in.Close() }) // Those of renewals outlive the client.
			wg.Go(func() {
				defer in.Close()
				_, _ = io.Copy(in, out)
			})
			wg.Go(func() {
				defer out.Close()
				wire.forward(out, in)
			})
		}
	})
	tap := redis.NewClient(&redis.Options{
		Addr: wire.addr, Username: opts.Username, Password: opts.Password, DB: opts.DB, Protocol: opts.Protocol, PoolSize: 1,
	})
	t.Cleanup(func() {
		tap.Close()
		listener.Close()
		wg.Wait()
	})
	require.NoError(t, tap.Ping(t.Context()).Err())
	return tap, wire
}

// forward passes on commands whole, and keeps each before it is sent.
func (w *redisWire) forward(out io.Writer, in io.Reader) {
	r := bufio.NewReader(in)
	var raw []byte
	number := func(kind byte) (int, error) {
		line, err := r.ReadBytes('\n')
		raw = append(raw, line...)
		if err != nil || line[0] != kind {
			return 0, errors.Join(err, errors.New("not a command"))
		}
		return strconv.Atoi(strings.TrimSpace(string(line[1:])))
	}
	for {
		raw = nil
		args, err := number('*')
		if err != nil {
			return
		}
		command := make([]string, args)
		for i := range command {
			size, err := number('$')
			if err != nil {
				return
			}
			text := make([]byte, size+2)
			if _, err := io.ReadFull(r, text); err != nil {
				return
			}
			raw = append(raw, text...)
			command[i] = string(text[:size])
		}
		w.mu.Lock()
		w.sent = append(w.sent, command)
		w.raw.Write(raw)
		w.mu.Unlock()
		if _, err := out.Write(raw); err != nil {
			return
		}
	}
}

// during returns the commands that are sent while f runs, but for the one that a new
// connection begins with.
func (w *redisWire) during(f func()) [][]string {
	w.mu.Lock()
	before := len(w.sent)
	w.mu.Unlock()
	f()
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(w.sent[before:]), func(command []string) bool { return command[0] == "hello" })
}

// names returns the names of commands, in capitals.
func names(commands [][]string) []string {
	list := []string{}
	for _, command := range commands {
		list = append(list, strings.ToUpper(command[0]))
	}
	return list
}
