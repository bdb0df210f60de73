package main

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/internal/netfault"
)

// TestConnectionsOfAnOutage has an outage in which each try of many claims leaves a
// connection. Later all of these fall silent for good, while one claim is left and new
// connections can be made. It must not try one silent connection after the other until its
// lease is over.
func TestConnectionsOfAnOutage(t *testing.T) {
	const lease = time.Second
	for _, claims := range []int{1, 20} {
		t.Run(fmt.Sprint(claims), func(t *testing.T) {
			node, err := startNode(t.TempDir(), nil, "appendonly no")
			require.NoError(t, err)
			defer node.stop()
			proxy, err := netfault.Start("127.0.0.1:0", node.addr())
			require.NoError(t, err)
			defer proxy.Close()
			client := redis.NewClient(&redis.Options{Addr: proxy.Addr()})
			defer client.Close()
			leave := map[string]chan struct{}{"last": make(chan struct{}), "other": make(chan struct{})}
			var inside sync.WaitGroup
			inside.Add(claims)
			h := idempotency.New(idempotency.NewRedis(client), idempotency.WithLease(lease),
				idempotency.WithLogger(slog.New(slog.DiscardHandler)))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				inside.Done()
				<-leave[r.Header.Get("X-Leaves")]
				idempotency.NoStore(r.Context())
			}))
			served := map[string]*sync.WaitGroup{"last": {}, "other": {}}
			post := func(key, leaves string) {
				served[leaves].Go(func() {
					r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader("{}"))
					r.Header.Set("Idempotency-Key", key)
					r.Header.Set("X-Leaves", leaves)
					h.ServeHTTP(httptest.NewRecorder(), r)
				})
			}
			post("0", "last")
			for i := 1; i < claims; i++ {
				post(fmt.Sprint(i), "other")
			}
			inside.Wait()
			require.NoError(t, proxy.Shut(netfault.Held))
			time.Sleep(7 * lease / 10)
			require.NoError(t, proxy.Open())
			time.Sleep(lease / 4) // until all have been answered, and are kept
			close(leave["other"])
			served["other"].Wait()
			time.Sleep(lease / 4)
			require.NoError(t, proxy.Shut(netfault.Stale))
			for began := time.Now(); time.Since(began) < 3*lease; time.Sleep(lease / 100) {
				left, err := node.client.PTTL(t.Context(), "idempotency:"+idempotency.NewKey("", "0").String()).Result()
				require.NoError(t, err)
				require.Positive(t, left, "lost %v after the connections fell silent", time.Since(began))
			}
			close(leave["last"])
			served["last"].Wait()
		})
	}
}
