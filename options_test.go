package idempotency_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

func TestBadOptions(t *testing.T) {
	memory := idempotency.NewMemory()
	same := func(next http.Handler) http.Handler { return next }
	const badType = "idempotency: WithContentTypes: malformed media type (give it without parameters and wildcards)"
	tests := map[string]struct {
		opts []idempotency.Option
		want string
	}{
		"WithHeader empty":           {with(idempotency.WithHeader("")), "idempotency: WithHeader: malformed header name"},
		"WithHeader malformed":       {with(idempotency.WithHeader("Idempotency Key")), "idempotency: WithHeader: malformed header name"},
		"WithReplayHeader empty":     {with(idempotency.WithReplayHeader("")), "idempotency: WithReplayHeader: malformed header name"},
		"WithReplayHeader malformed": {with(idempotency.WithReplayHeader("A:")), "idempotency: WithReplayHeader: malformed header name"},
		"WithMethods none":           {with(idempotency.WithMethods()), "idempotency: WithMethods: no method"},
		"WithMethods malformed":      {with(idempotency.WithMethods("POST", "PO ST")), "idempotency: WithMethods: malformed method"},
		"WithMethods empty":          {with(idempotency.WithMethods("")), "idempotency: WithMethods: malformed method"},
		"WithKeyValidator":           {with(idempotency.WithKeyValidator(nil)), "idempotency: WithKeyValidator: nil function"},
		"WithScope":                  {with(idempotency.WithScope(nil)), "idempotency: WithScope: nil function"},
		"WithLease zero":             {with(idempotency.WithLease(0)), "idempotency: WithLease: lease under 100ms"},
		"WithLease negative":         {with(idempotency.WithLease(-1)), "idempotency: WithLease: lease under 100ms"},
		"WithLease short":            {with(idempotency.WithLease(100*time.Millisecond - 1)), "idempotency: WithLease: lease under 100ms"},
		"WithWait":                   {with(idempotency.WithWait(-1)), "idempotency: WithWait: negative duration"},
		"WithBufferLimit":            {with(idempotency.WithBufferLimit(-1)), "idempotency: WithBufferLimit: negative limit"},
		"WithExpiry":                 {with(idempotency.WithExpiry(-1)), "idempotency: WithExpiry: negative duration"},
		"WithContentTypes none":      {with(idempotency.WithContentTypes()), "idempotency: WithContentTypes: no type"},
		"WithContentTypes malformed": {with(idempotency.WithContentTypes("json")), badType},
		"WithContentTypes wildcard":  {with(idempotency.WithContentTypes("application/*")), badType},
		"WithContentTypes parameter": {with(idempotency.WithContentTypes("text/html; charset=utf-8")), badType},
		"WithStoreIf":                {with(idempotency.WithStoreIf(nil)), "idempotency: WithStoreIf: nil function"},
		"WithHeaderFilter":           {with(idempotency.WithHeaderFilter(nil)), "idempotency: WithHeaderFilter: nil function"},
		"WithErrorHandler":           {with(idempotency.WithErrorHandler(nil)), "idempotency: WithErrorHandler: nil function"},
		"WithObserver":               {with(idempotency.WithObserver(nil)), "idempotency: WithObserver: nil function"},
		"WithLogger":                 {with(idempotency.WithLogger(nil)), "idempotency: WithLogger: nil logger"},
		"WithAtMostOnce":             {with(idempotency.WithFailOpen(), idempotency.WithAtMostOnce()), "idempotency: WithAtMostOnce: cannot be had together with WithFailOpen"},
		"WithAtMostOnce first":       {with(idempotency.WithAtMostOnce(), idempotency.WithFailOpen()), "idempotency: WithAtMostOnce: cannot be had together with WithFailOpen"},
		"WithKeyFunc nil":            {with(idempotency.WithKeyFunc(nil)), "idempotency: WithKeyFunc: nil function"},
		"WithKeyFunc, header":        {with(idempotency.WithHeader("A"), idempotency.WithKeyFunc(keyField)), "idempotency: WithKeyFunc: cannot be had together with WithHeader"},
		"WithKeyFunc, echo":          {with(idempotency.WithKeyFunc(keyField), idempotency.WithEcho()), "idempotency: WithKeyFunc: cannot be had together with WithEcho"},
		"WithEncryption":             {with(idempotency.WithEncryption(make([]byte, 15))), "idempotency: WithEncryption: secret under 16 bytes"},
		"WithEncryption, nil":        {with(idempotency.WithEncryption(nil)), "idempotency: WithEncryption: secret under 16 bytes"},
		"WithEncryption, older":      {with(idempotency.WithEncryption(newSecret, nil, make([]byte, 15))), "idempotency: WithEncryption: older secret under 16 bytes"},
		"WithRecovery nil":           {with(idempotency.WithRecovery(nil)), "idempotency: WithRecovery: nil function"},
		"WithRecovery, at most once": {with(idempotency.WithRecovery(same), idempotency.WithAtMostOnce()), "idempotency: WithRecovery: cannot be had together with WithAtMostOnce"},
		"at most once, WithRecovery": {with(idempotency.WithAtMostOnce(), idempotency.WithRecovery(same)), "idempotency: WithRecovery: cannot be had together with WithAtMostOnce"},
		"WithRecovery, fail open":    {with(idempotency.WithRecovery(same), idempotency.WithFailOpen()), "idempotency: WithRecovery: cannot be had together with WithFailOpen"},
		"nil option":                 {with(nil), "idempotency: New: nil option"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			require.PanicsWithValue(t, tt.want, func() { idempotency.New(memory, tt.opts...) })
		})
	}
	t.Run("nil backend", func(t *testing.T) {
		require.PanicsWithValue(t, "idempotency: New: nil backend", func() { idempotency.New(nil) })
		require.PanicsWithValue(t, "idempotency: New: nil backend", func() { idempotency.New((*idempotency.Memory)(nil)) })
	})
	t.Run("nil handler", func(t *testing.T) {
		require.PanicsWithValue(t, "idempotency: New: nil handler to wrap", func() { idempotency.New(memory)(nil) })
	})
	t.Run("the shortest lease", func(t *testing.T) {
		require.NotPanics(t, func() { idempotency.New(memory, idempotency.WithLease(100*time.Millisecond)) })
	})
	t.Run("the last of two wins", func(t *testing.T) {
		h := idempotency.New(memory, idempotency.WithReplayHeader("A"), idempotency.WithReplayHeader("B"))(&payments{})
		send(h, request("k", "b"))
		w := send(h, request("k", "b"))
		require.Empty(t, w.Header().Get("A"))
		require.Equal(t, "true", w.Header().Get("B"))
	})
}
