package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/idempotency-go/idempotency"
)

// clientSettings are settings of a go-redis client whose effect is measured.
type clientSettings struct {
	name  string
	apply func(*redis.Options)
}

// shortTimeouts sets all time-outs of a client.
func shortTimeouts(o *redis.Options) {
	o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout = 300*time.Millisecond, 300*time.Millisecond, 300*time.Millisecond, 300*time.Millisecond
}

// noRetries turns a client's retries off.
func noRetries(o *redis.Options) { o.MaxRetries, o.DialerRetries = -1, 1 }

// waitSettings are measured one by one and together.
var waitSettings = []clientSettings{
	{name: "as it comes", apply: func(*redis.Options) {}},
	{name: "ContextTimeoutEnabled", apply: heedContext},
	{name: "MaxRetries -1", apply: func(o *redis.Options) { o.MaxRetries = -1 }},
	{name: "DialerRetries 1", apply: func(o *redis.Options) { o.DialerRetries = 1 }},
	{name: "MaxRetries -1, DialerRetries 1", apply: noRetries},
	{name: "time-outs of 300 ms", apply: shortTimeouts},
	{name: "time-outs of 300 ms, MaxRetries 1, DialerRetries 1", apply: func(o *redis.Options) {
		shortTimeouts(o)
		o.MaxRetries, o.DialerRetries = 1, 1
	}},
	{name: "the same, ContextTimeoutEnabled", apply: func(o *redis.Options) {
		shortTimeouts(o)
		heedContext(o)
		o.MaxRetries, o.DialerRetries = 1, 1
	}},
	{name: "time-outs of 300 ms, MaxRetries -1, DialerRetries 1", apply: func(o *redis.Options) { shortTimeouts(o); noRetries(o) }},
}

// heedContext has a client end a read or a write with its context.
func heedContext(o *redis.Options) { o.ContextTimeoutEnabled = true }

// absence is a way in which Redis is gone.
type absence string

// The ways.
const (
	absenceRefused     absence = "refused"     // its process was killed: connections are closed and refused
	absenceSilent      absence = "silent"      // connections are made, and nothing is answered
	absenceUnreachable absence = "unreachable" // connections that are made are never answered
)

// longestWait is when a measurement is given up.
const longestWait = 2 * time.Minute

// measureWaits measures how long a request waits for its answer where Redis is
// gone, before the handler and in mid-handler.
func measureWaits(ctx context.Context, progress io.Writer) (*table, error) {
	dir, err := os.MkdirTemp("", "idempotency-faults-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	n, err := startNode(dir, nil, "appendonly no")
	if err != nil {
		return nil, err
	}
	defer n.stop()
	absences := []absence{absenceRefused, absenceSilent, absenceUnreachable}
	t := &table{header: []string{"go-redis client"}, rows: make([][]string, len(waitSettings))}
	for _, a := range absences {
		t.header = append(t.header, string(a)+", before", string(a)+", mid-handler")
	}
	fmt.Fprintf(progress, "measuring %d waits at once, each for at most %v\n", 2*len(absences)*len(waitSettings), longestWait)
	var wg sync.WaitGroup
	var failed atomic.Pointer[error]
	for i, settings := range waitSettings {
		t.rows[i] = make([]string, 1+2*len(absences))
		t.rows[i][0] = settings.name
		for j := range 2 * len(absences) {
			wg.Go(func() {
				text, err := measure(ctx, n.addr(), settings, absences[j/2], j%2 == 1)
				if err != nil {
					failed.Store(&err)
				}
				t.rows[i][1+j] = text
			})
		}
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return nil, *err
	}
	return t, nil
}

// measure makes Redis go away, before a request or in the middle of its handler,
// and returns how long the client waits from there, and for what.
func measure(ctx context.Context, addr string, settings clientSettings, how absence, mid bool) (string, error) {
	p, err := startProxy(addr)
	if err != nil {
		return "", err
	}
	defer p.Stop()
	nowhere, release, err := listenUnreachable()
	if err != nil {
		return "", err
	}
	defer release()
	options := &redis.Options{Addr: p.Listen}
	settings.apply(options)
	var unreachable atomic.Bool
	options.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if unreachable.Load() {
			addr = nowhere
		}
		return redis.NewDialer(options)(ctx, network, addr)
	}
	client := redis.NewClient(options)
	defer client.Close()

	var gone time.Time
	goAway := func() error {
		gone = time.Now()
		if how == absenceRefused {
			p.Stop()
			return nil
		}
		unreachable.Store(how == absenceUnreachable)
		_, err := p.inject(planned{kind: faultCut, choice: 1})
		return err
	}
	var handlerErr error
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if mid && gone.IsZero() {
			handlerErr = goAway()
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, "{}")
	})
	wrapped := idempotency.New(idempotency.NewRedis(client), idempotency.WithLogger(slog.New(slog.DiscardHandler)))(handler)
	ask := func(key string) *httptest.ResponseRecorder {
		r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/", strings.NewReader("{}"))
		r.Header.Set(headerKey, key)
		w := httptest.NewRecorder()
		wrapped.ServeHTTP(w, r)
		return w
	}
	if err := client.Ping(ctx).Err(); err != nil { // So that there is a connection.
		return "", err
	}
	if !mid {
		if err := goAway(); err != nil {
			return "", err
		}
	}
	done := make(chan *httptest.ResponseRecorder, 1)
	go func() { done <- ask(rand.Text()) }()
	select {
	case <-ctx.Done():
		return "", ctx.Err()
	case <-time.After(longestWait):
		return fmt.Sprintf("> %v", longestWait), nil
	case w := <-done:
		return fmt.Sprintf("%.2f s (%d)", time.Since(gone).Seconds(), w.Code), handlerErr
	}
}
