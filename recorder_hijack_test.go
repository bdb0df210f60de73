package idempotency_test

import (
	"bufio"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

const switching = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"

// hijacks takes the connection and answers over it. Only then it writes to the
// ResponseWriter, if it is to.
func hijacks(t *testing.T, writes string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		require.NoError(t, err)
		defer conn.Close()
		if writes != "" {
			_, err = io.WriteString(w, writes)
			require.ErrorIs(t, err, http.ErrHijacked)
		}
		rw.WriteString(switching)
		rw.Flush()
	}
}

// switches answers with 101 and then takes the connection.
func switches(t *testing.T) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Upgrade", "x")
		w.Header().Set("Connection", "Upgrade")
		w.WriteHeader(http.StatusSwitchingProtocols)
		conn, _, err := w.(http.Hijacker).Hijack()
		require.NoError(t, err)
		conn.Close()
	}
}

func TestHijack(t *testing.T) {
	handlers := map[string]struct {
		status  int // as it is observed
		handler http.HandlerFunc
	}{
		"before an answer": {0, hijacks(t, "{}")},
		"and nothing else": {0, hijacks(t, "")},
		"after 101":        {http.StatusSwitchingProtocols, switches(t)},
	}
	for name, tt := range handlers {
		t.Run(name, func(t *testing.T) {
			runs, es := 0, &events{}
			backend := newCounted(never)
			server := httptest.NewServer(idempotency.New(backend, es.option(), every, quiet)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				runs++
				tt.handler(w, r)
			})))
			for n := 1; n <= 2; n++ {
				r, err := http.NewRequest(http.MethodPost, server.URL, nil)
				require.NoError(t, err)
				r.Header.Set("Idempotency-Key", "k")
				resp, err := http.DefaultClient.Do(r)
				require.NoError(t, err)
				require.Equal(t, http.StatusSwitchingProtocols, resp.StatusCode)
				resp.Body.Close()
				// A hijacked handler ends after its connection.
				require.Eventually(t, func() bool { return backend.releases.Load() == int32(n) }, 10*time.Second, time.Millisecond)
			}
			server.Close()
			require.Equal(t, 2, runs)
			require.Zero(t, backend.completes.Load())
			require.Eventually(t, func() bool {
				es.mu.Lock()
				defer es.mu.Unlock()
				return len(es.all) == 2 && es.all[1].Status == tt.status && es.all[1].Reason == idempotency.ReasonHijacked
			}, 10*time.Second, time.Millisecond)
		})
	}
	t.Run("sends first what was written", func(t *testing.T) {
		server := httptest.NewServer(idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			jsonHeader(w)
			w.Header().Set("Content-Length", "2")
			w.WriteHeader(http.StatusCreated)
			io.WriteString(w, "{}")
			control := http.NewResponseController(w)
			require.NoError(t, control.Flush())
			conn, _, err := control.Hijack()
			require.NoError(t, err)
			conn.Close()
		})))
		defer server.Close()
		r, err := http.NewRequest(http.MethodPost, server.URL, nil)
		require.NoError(t, err)
		r.Header.Set("Idempotency-Key", "k")
		resp, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		defer resp.Body.Close()
		require.Equal(t, http.StatusCreated, resp.StatusCode)
		line, _ := bufio.NewReader(resp.Body).ReadString('\n')
		require.Equal(t, "{}", line)
	})
	t.Run("not supported", func(t *testing.T) {
		h := idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _, err := http.NewResponseController(w).Hijack()
			require.ErrorIs(t, err, http.ErrNotSupported)
			io.WriteString(w, "{}")
		}))
		send(h, request("k", "b"))
		require.Equal(t, "true", send(h, request("k", "b")).Header().Get("Idempotent-Replayed"), "nothing was hijacked")
	})
}

func TestSwitchingProtocolsIsNotStored(t *testing.T) {
	runs, es := 0, &events{}
	h := idempotency.New(idempotency.NewMemory(), every, es.option(), quiet)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		runs++
		w.WriteHeader(http.StatusSwitchingProtocols)
	}))
	for range 2 {
		require.Equal(t, http.StatusSwitchingProtocols, send(h, request("k", "b")).Code)
	}
	require.Equal(t, 2, runs)
	e, _ := es.last(t)
	require.Equal(t, idempotency.NotStored, e.Outcome)
	require.Equal(t, idempotency.ReasonHijacked, e.Reason)
	require.Equal(t, http.StatusSwitchingProtocols, e.Status)
}
