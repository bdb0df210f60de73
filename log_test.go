package idempotency_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

func TestDefaultLogger(t *testing.T) {
	was := slog.Default()
	defer slog.SetDefault(was)
	h := idempotency.New(newCounted(always("claim")))(&payments{})
	var log bytes.Buffer
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
	send(h, request("k", "b"))
	require.Contains(t, log.String(), "key not claimed")
}

// What is logged leads to the record and to the claim, and so from a record that an
// operator looks at to the process that made it. It shows neither a key nor a body.
func TestLogLines(t *testing.T) {
	slow := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(3 * time.Second) // Longer than until the first renewal.
		fmt.Fprint(w, "{}")
	})
	for message, tt := range map[string]struct {
		verb    string
		err     error
		handler http.Handler
	}{
		"key not claimed":     {"claim", errDown, script{says("{}")}},
		"record not readable": {"claim", idempotency.ErrUnreadable, script{says("{}")}},
		"claim not renewed":   {"renew", idempotency.ErrClaimLost, slow},
		"response not stored": {"complete", idempotency.ErrFull, script{says("{}")}},
		"claim not released":  {"release", errDown, script{noStore, says("{}")}},
	} {
		t.Run(message, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				backend := newCounted(alwaysWith(tt.verb, tt.err))
				claim := backend.claim
				var token idempotency.Token
				backend.claim = func(ctx context.Context, key idempotency.Key, c idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
					token = c.Token
					return claim(ctx, key, c, terms)
				}
				send(idempotency.New(backend, jsonLog(&log))(tt.handler), request("my-secret-key", "my-secret-body"))
				synctest.Wait() // A renewal logs in its own goroutine.
				var line map[string]any
				require.NoError(t, json.NewDecoder(bytes.NewReader(log.Bytes())).Decode(&line))
				delete(line, "time")
				require.Equal(t, map[string]any{
					"level": "ERROR", "msg": "idempotency: " + message, "error": tt.err.Error(),
					"storage_key": keyOf("my-secret-key").String(), "claim": token.String(),
				}, line)
				require.NotContains(t, log.String(), "secret")
			})
		})
	}
}

// A store that is full is told of once a second, with how often it was not told. Other
// faults are told each time.
func TestFullIsLoggedOnceASecond(t *testing.T) {
	for name, tt := range map[string]struct {
		err   error
		lines int // of 500 requests in five seconds
	}{
		"full":          {idempotency.ErrFull, 5},
		"full, wrapped": {fmt.Errorf("OOM command not allowed: %w", idempotency.ErrFull), 5},
		"down":          {errDown, 500},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				logger := idempotency.WithLogger(slog.New(slog.NewJSONHandler(&log, nil)))
				wrap := idempotency.New(newCounted(alwaysWith("claim", tt.err)), logger)
				for n := range 500 {
					requireProblem(t, send(wrap(&payments{}), request(fmt.Sprint(n), "b")), http.StatusServiceUnavailable, "ErrUnavailable")
					time.Sleep(10 * time.Millisecond)
				}
				lines, told := 0, 0
				for line := range strings.Lines(log.String()) {
					var l struct {
						Msg, Error string
						Suppressed int
					}
					require.NoError(t, json.Unmarshal([]byte(line), &l))
					require.Equal(t, "idempotency: key not claimed", l.Msg)
					require.Equal(t, tt.err.Error(), l.Error)
					lines++
					told += 1 + l.Suppressed
				}
				require.Equal(t, tt.lines, lines)
				if tt.lines < 500 {
					require.Equal(t, 401, told, "but for what is to be told with the next line")
				}
			})
		})
	}
}

// One tenant's interrupted keys may fill a Memory for all: each request of the others is
// refused, and few are logged.
func TestMemoryFullOfInterruptedKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		logger := idempotency.WithLogger(slog.New(slog.NewTextHandler(&log, nil)))
		backend := idempotency.NewMemory(idempotency.WithMaxBytes(10_000))
		h := idempotency.New(backend, idempotency.WithAtMostOnce(), logger, idempotency.WithScope(func(r *http.Request) string { return r.Header.Get("Tenant") }))(script{says("<p>")})
		refused := 0
		for n := range 1000 {
			r := request(fmt.Sprint(n), "b")
			r.Header.Set("Tenant", fmt.Sprint(n/900))
			if w := send(h, r); w.Code != http.StatusOK {
				requireProblem(t, w, http.StatusServiceUnavailable, "ErrUnavailable")
				refused++
			}
		}
		require.Greater(t, refused, 900)
		require.Equal(t, 1, strings.Count(log.String(), "key not claimed"))
	})
}
