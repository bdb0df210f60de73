package idempotency_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

func TestPassesUntouched(t *testing.T) {
	tests := map[string]struct {
		method string
		header http.Header
		opts   []idempotency.Option
	}{
		"no key":                       {http.MethodPost, http.Header{}, nil},
		"empty key":                    {http.MethodPost, http.Header{"Idempotency-Key": {""}}, nil},
		"blank key":                    {http.MethodPost, http.Header{"Idempotency-Key": {" \t"}}, nil},
		"another method":               {http.MethodPut, http.Header{"Idempotency-Key": {"k"}}, nil},
		"another method, required":     {http.MethodGet, http.Header{}, []idempotency.Option{idempotency.WithRequired()}},
		"another header":               {http.MethodPost, http.Header{"Idempotency-Key": {"k"}}, []idempotency.Option{idempotency.WithHeader("X-Key")}},
		"a method not in the new list": {http.MethodPost, http.Header{"Idempotency-Key": {"k"}}, []idempotency.Option{idempotency.WithMethods(http.MethodPut)}},
		"methods are case-sensitive":   {"post", http.Header{"Idempotency-Key": {"k"}}, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest(tt.method, "/", nil)
			r.Header = tt.header
			w := httptest.NewRecorder()
			runs := 0
			var es events
			backend := &hooked{Memory: idempotency.NewMemory(), claim: func(context.Context, idempotency.Key, idempotency.Claim, idempotency.Terms) (idempotency.Record, bool, error) {
				t.Error("the backend was asked")
				return idempotency.Record{}, false, nil
			}}
			h := idempotency.New(backend, append(tt.opts, es.option())...)(http.HandlerFunc(func(gotW http.ResponseWriter, gotR *http.Request) {
				runs++
				require.Same(t, w, gotW)
				require.Same(t, r, gotR)
			}))
			h.ServeHTTP(w, r)
			require.Equal(t, 1, runs)
			require.Empty(t, es.all, "a request that passes is not observed")
		})
	}
}

func TestPassingAllocatesNothing(t *testing.T) {
	h := idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	w, r := httptest.NewRecorder(), request("", "")
	require.Zero(t, testing.AllocsPerRun(100, func() { h.ServeHTTP(w, r) }))
}

func TestRequired(t *testing.T) {
	p, es := &payments{}, &events{}
	h := idempotency.New(idempotency.NewMemory(), idempotency.WithRequired(), es.option(), idempotency.WithKeyValidator(func(key string) error {
		require.Equal(t, "k", key, "the validator is asked for keys only")
		return nil
	}))(p)

	detail := requireProblem(t, send(h, request("", "b")), http.StatusBadRequest, "ErrKeyMissing")
	require.Contains(t, detail, "Send the request with a key")
	e, n := es.last(t)
	require.Equal(t, 1, n)
	require.Equal(t, idempotency.Rejected, e.Outcome)
	require.Equal(t, http.StatusBadRequest, e.Status)
	require.ErrorIs(t, e.Err, idempotency.ErrKeyMissing)
	require.Zero(t, p.runs.Load())

	require.Equal(t, http.StatusCreated, send(h, request("k", "b")).Code)
}

func TestHeaderMethodsReplayHeader(t *testing.T) {
	p := &payments{}
	h := idempotency.New(idempotency.NewMemory(), idempotency.WithHeader("x-request-KEY"), idempotency.WithMethods("PUT", "MERGE"),
		idempotency.WithReplayHeader("x-again"))(p)
	for i, method := range []string{"PUT", "MERGE"} {
		for _, again := range []string{"", "true"} {
			r := httptest.NewRequest(method, "/", nil)
			r.Header.Set("X-Request-Key", "k"+method)
			w := send(h, r)
			require.Equal(t, fmt.Sprintf(`{"payment":%d}`, i+1), w.Body.String())
			require.Equal(t, again, w.Header().Get("X-Again"))
			require.Empty(t, w.Header().Get("Idempotent-Replayed"))
		}
	}
}
