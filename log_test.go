package idempotency_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"testing"

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

// What is logged leads to the record and to the claim. It shows neither a key nor
// a body.
func TestLogLines(t *testing.T) {
	for verb, tt := range map[string]struct {
		handler script
		err     error
		message string
	}{
		"claim":    {script{says("{}")}, errDown, "idempotency: key not claimed"},
		"complete": {script{says("{}")}, idempotency.ErrFull, "idempotency: response not stored"},
		"release":  {script{noStore, says("{}")}, errDown, "idempotency: claim not released"},
	} {
		t.Run(verb, func(t *testing.T) {
			var log bytes.Buffer
			backend := newCounted(alwaysWith(verb, tt.err))
			claim := backend.claim
			var token idempotency.Token
			backend.claim = func(ctx context.Context, key idempotency.Key, c idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
				token = c.Token
				return claim(ctx, key, c, terms)
			}
			logger := idempotency.WithLogger(slog.New(slog.NewJSONHandler(&log, nil)))
			send(idempotency.New(backend, logger)(tt.handler), request("my-secret-key", "my-secret-body"))
			var line map[string]any
			require.NoError(t, json.NewDecoder(bytes.NewReader(log.Bytes())).Decode(&line))
			delete(line, "time")
			require.Equal(t, map[string]any{
				"level": "ERROR", "msg": tt.message, "error": tt.err.Error(),
				"storage_key": keyOf("my-secret-key").String(), "claim": token.String(),
			}, line)
			require.NotContains(t, log.String(), "secret")
		})
	}
}
