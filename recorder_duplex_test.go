package idempotency_test

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

// echo answers each line of the body, as it comes, with the same line. It first does
// what the script says, and flushes.
func echo(t *testing.T, begin script) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		_ = control.EnableFullDuplex() // HTTP/2 is.
		begin.ServeHTTP(w, r)
		require.NoError(t, control.Flush())
		lines := bufio.NewScanner(r.Body)
		for lines.Scan() {
			_, _ = io.WriteString(w, lines.Text()+"\n")
			require.NoError(t, control.Flush())
		}
		require.NoError(t, lines.Err())
		w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
	})
}

// TestBothWays has a client that waits for the header before it sends more of its body,
// and for the answer to each line before it sends the next.
func TestBothWays(t *testing.T) {
	noFingerprint := with(idempotency.WithFingerprint(nil))
	for _, tt := range []struct {
		name  string
		opts  []idempotency.Option
		begin script
		first string // What is sent before the header comes.
	}{
		{"gRPC", noFingerprint, script{asType("application/grpc"), set("Trailer", "Grpc-Message"), code(200)}, ""},
		{"gRPC without a header", noFingerprint, script{asType("application/grpc+proto")}, ""},
		{"events", noFingerprint, script{asEvents, code(200)}, ""},
		{"JSON lines, NoStore", noFingerprint, script{asJSON, noStore}, ""},
		{"with a fingerprint, once the limit is read", with(limit(5)), script{asEvents}, "first\n"},
	} {
		for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
			t.Run(tt.name+", "+protocol, func(t *testing.T) {
				backend, es := idempotency.NewMemory(), &events{}
				opts := append(tt.opts, es.option(), quiet)
				server := httptest.NewUnstartedServer(idempotency.New(backend, opts...)(echo(t, tt.begin)))
				server.EnableHTTP2 = protocol == "HTTP/2.0"
				server.StartTLS()
				defer server.Close()
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // A deadlock is a failure.
				defer cancel()
				read, body := io.Pipe()
				r, err := http.NewRequestWithContext(ctx, http.MethodPost, server.URL, read)
				require.NoError(t, err)
				r.Header.Set("Idempotency-Key", "k")
				if tt.first != "" {
					go func() { _, _ = io.WriteString(body, tt.first) }()
				}
				resp, err := server.Client().Do(r)
				require.NoError(t, err)
				require.Equal(t, protocol, resp.Proto)
				defer resp.Body.Close()
				answered := bufio.NewReader(resp.Body)
				if tt.first != "" {
					line, err := answered.ReadString('\n')
					require.NoError(t, err)
					require.Equal(t, tt.first, line)
				}
				for _, line := range []string{"[1]\n", "[2]\n"} {
					_, err = io.WriteString(body, line)
					require.NoError(t, err)
					got, err := answered.ReadString('\n')
					require.NoError(t, err)
					require.Equal(t, line, got)
				}
				require.NoError(t, body.Close())
				rest, err := io.ReadAll(answered)
				require.NoError(t, err)
				require.Empty(t, rest)
				require.Equal(t, "0", resp.Trailer.Get("Grpc-Status"))
				server.Close()
				require.Eventually(t, func() bool { return len(es.seen()) == 1 }, time.Minute, time.Millisecond)
				require.Equal(t, idempotency.NotStored, es.seen()[0].Outcome)
				require.NoError(t, es.seen()[0].Err)
				require.Nil(t, lookup(t, backend, "k"))
			})
		}
	}
}
