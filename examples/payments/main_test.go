package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9/logging"
	"github.com/stretchr/testify/require"
)

func TestMain(m *testing.M) {
	logging.Disable() // As main does.
	os.Exit(m.Run())
}

func TestBadStart(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { taken.Close() })
	locked := miniredis.RunT(t)
	locked.RequireAuth("other")

	for name, test := range map[string]struct {
		args []string
		says string
	}{
		"unknown flag":            {[]string{"-nope"}, "-nope"},
		"flag without its value":  {[]string{"-addr"}, "-addr"},
		"extra argument":          {[]string{"redis://:hunter2@127.0.0.1/0"}, "unexpected argument"},
		"malformed address":       {[]string{"-addr", "127.0.0.1"}, "missing port"},
		"address taken":           {[]string{"-addr", taken.Addr().String()}, "in use"},
		"not a URL":               {[]string{"-redis", "redis://:hunter2/x@127.0.0.1"}, "-redis"},
		"not a Redis URL":         {[]string{"-redis", "http://:hunter2@127.0.0.1"}, "-redis"},
		"database not a number":   {[]string{"-redis", "redis://:hunter2@127.0.0.1/x"}, "-redis"},
		"no Redis there":          {[]string{"-redis", "redis://:hunter2@127.0.0.1:1/0"}, "no answer from Redis at 127.0.0.1:1"},
		"the wrong password":      {[]string{"-redis", "redis://:hunter2@" + locked.Addr()}, "WRONGPASS"},
		"a Redis that is no help": {[]string{"-redis", "redis://:hunter2@" + taken.Addr().String()}, "no answer from Redis"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var stdout, stderr bytes.Buffer
			start := time.Now()
			require.Equal(t, 1, run(t.Context(), test.args, &stdout, &stderr))
			require.Less(t, time.Since(start), 10*time.Second)
			require.Empty(t, stdout.String())
			require.Equal(t, 1, strings.Count(stderr.String(), "\n"), stderr.String())
			require.Contains(t, stderr.String(), "payments: ")
			require.Contains(t, stderr.String(), test.says)
			require.NotContains(t, stderr.String(), "hunter2")
		})
	}
}

func TestHelp(t *testing.T) {
	var stdout, stderr bytes.Buffer
	require.Equal(t, 0, run(t.Context(), []string{"-h"}, &stdout, &stderr))
	require.Contains(t, stdout.String(), "-redis")
	require.Empty(t, stderr.String())
}

// A shutdown waits for what was begun.
func TestShutdown(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out, stdout := io.Pipe()
	status := make(chan int, 1)
	go func() {
		status <- run(ctx, []string{"-addr", "127.0.0.1:0"}, stdout, io.Discard)
		stdout.Close()
	}()
	intro := bufio.NewReader(out)
	url := introURL(t, intro)
	go io.Copy(io.Discard, intro)

	answered := make(chan int, 1)
	go func() {
		answered <- post(t, url+"/payments", "order-1", strings.Replace(visa, "tok_visa", "tok_slow", 1)).status
	}()
	require.Eventually(t, func() bool {
		return strings.Contains(get(t, url+"/counts"), `"runs":1`)
	}, time.Minute, 10*time.Millisecond, "the slow payment runs")
	cancel()
	require.Equal(t, http.StatusCreated, <-answered)
	require.Equal(t, 0, <-status)
}

// introURL reads the first line that the program prints and returns its URL.
func introURL(t *testing.T, out *bufio.Reader) string {
	t.Helper()
	line, err := out.ReadString('\n')
	require.NoError(t, err)
	fields := strings.Fields(line)
	require.Greater(t, len(fields), 2, line)
	return strings.TrimSuffix(fields[2], ",")
}

// answer is a response that has been read.
type answer struct {
	status   int
	body     string
	location string
	replayed bool
}

// get returns what a GET is answered with.
func get(t *testing.T, url string) string {
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	require.NoError(t, err)
	r.Header.Set("Authorization", "Bearer alice-secret")
	resp, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return string(text)
}

// post sends one request of Alice's. It may be called from any goroutine: a
// request that is not answered has status 0.
func post(t *testing.T, url, key, body string) answer {
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Error(err)
		return answer{}
	}
	r.Header.Set("Authorization", "Bearer alice-secret")
	r.Header.Set("Idempotency-Key", key)
	client := http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(r)
	if err != nil {
		t.Error(err)
		return answer{}
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return answer{resp.StatusCode, string(text), resp.Header.Get("Location"), resp.Header.Get("Idempotent-Replayed") == "true"}
}
