package main

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
)

// TestQueueForConnections has more clients than the go-redis client has connections. Claims
// that are held meanwhile must not wait behind them: neither those of handlers that run,
// nor those of requests that wait to be completed.
func TestQueueForConnections(t *testing.T) {
	const long = 40
	for _, tt := range []struct {
		clients, poolSize int // 0: the client's default
		delay             time.Duration
		lease             time.Duration
	}{
		{100, 1, 0, time.Second},
		{1500, 0, 100 * time.Millisecond, 6 * time.Second},
	} {
		t.Run(fmt.Sprintf("%d clients, %v away", tt.clients, tt.delay), func(t *testing.T) {
			node, err := startNode(t.TempDir(), nil, "appendonly no")
			require.NoError(t, err)
			defer node.stop()
			proxy, err := startProxy(node.addr())
			require.NoError(t, err)
			defer proxy.Stop()
			_, err = proxy.Toxics.AddToxicJson(strings.NewReader(fmt.Sprintf(
				`{"name":"far","type":"latency","stream":"downstream","attributes":{"latency":%d}}`, tt.delay.Milliseconds())))
			require.NoError(t, err)
			client := redis.NewClient(&redis.Options{Addr: proxy.Listen, PoolSize: tt.poolSize})
			defer client.Close()

			leave := make(chan struct{})
			var inside, served sync.WaitGroup
			inside.Add(long)
			h := idempotency.New(idempotency.NewRedis(client), idempotency.WithLease(tt.lease),
				idempotency.WithLogger(slog.New(slog.DiscardHandler)))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.HasPrefix(r.Header.Get("Idempotency-Key"), "long") {
					inside.Done()
					<-leave
				}
				w.Header().Set("Content-Type", "application/json")
				_, _ = io.WriteString(w, "{}")
			}))
			post := func(key string) {
				r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader("{}"))
				r.Header.Set("Idempotency-Key", key)
				h.ServeHTTP(httptest.NewRecorder(), r)
			}
			for i := range long {
				served.Go(func() { post(fmt.Sprint("long ", i)) })
			}
			inside.Wait()
			var over atomic.Bool
			var requests atomic.Int32
			for i := range tt.clients {
				served.Go(func() {
					for n := 0; !over.Load(); n++ {
						post(fmt.Sprint("client ", i, ", request ", n))
						requests.Add(1)
					}
				})
			}
			least := tt.lease
			for began := time.Now(); time.Since(began) < 4*tt.lease; time.Sleep(tt.lease / 100) {
				for i := range long {
					name := "idempotency:" + idempotency.NewKey("", fmt.Sprint("long ", i)).String()
					left, err := node.client.PTTL(t.Context(), name).Result()
					require.NoError(t, err)
					require.Positive(t, left, "a claim was lost after %v", time.Since(began))
					least = min(least, left)
				}
			}
			over.Store(true)
			close(leave)
			served.Wait()
			t.Logf("%d claims kept, at least %v of %v was left; %d other requests", long, least, tt.lease, requests.Load())
		})
	}
}
