package compare

import (
	"context"
	"net"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency/benchmarks/internal/work"
	"github.com/idempotency-go/idempotency/internal/redistest"
)

// onRedis has the contestants that differences tells apart, and what it says of
// them, as far as it can be seen from outside.
var onRedis = []struct {
	name                   string
	reused                 int  // the status of the same key with another request
	elsewhere              int  // the status in another process while the first runs
	waits                  bool // whether a duplicate waits while the first runs
	afterLeaving           int  // the status after a client left that was the first
	malformed              int  // the status of a key of three characters and a tab
	location               bool // whether a replay has the handler's Location
	marked                 bool // whether a replay is marked
	clear                  bool // whether the store has the key in clear
	firstTrips, replayTrip int64
}{
	{
		name: "net/http + this package, Redis", reused: 422, elsewhere: 409, afterLeaving: 201, malformed: 422,
		location: true, marked: true, firstTrips: 2, replayTrip: 1,
	},
	{
		name: "Fiber + its middleware, Redis", reused: 201, elsewhere: 201, waits: true, afterLeaving: 201, malformed: 500,
		location: true, clear: true, firstTrips: 3, replayTrip: 1,
	},
	{
		name: "net/http + SETNX by hand, Redis", reused: 201, elsewhere: 409, afterLeaving: 409, malformed: 201,
		clear: true, firstTrips: 2, replayTrip: 2,
	},
}

func TestDifferences(t *testing.T) {
	for _, want := range onRedis {
		t.Run(want.name, func(t *testing.T) {
			t.Parallel()
			c, found := contestantNamed(want.name)
			require.True(t, found)
			server := redistest.Start(t)

			t.Run("replay", func(t *testing.T) {
				r := start(t, c, server, true, new(work.Service))
				key := work.Key(1, 1)
				r.post(t, key, work.Body)
				status, _ := r.post(t, key, work.Body)
				require.Equal(t, work.Status, status)
				require.Equal(t, want.location, len(r.Header("Location")) > 0)
				require.Equal(t, want.marked, len(r.Header("Idempotent-Replayed")) > 0)
				status, _ = r.post(t, key, strings.ToUpper(work.Body))
				require.Equal(t, want.reused, status)
				require.EqualValues(t, 1, r.service.Runs())
				names, err := server.Client(t).Keys(t.Context(), "*").Result()
				require.NoError(t, err)
				require.Equal(t, want.clear, strings.Contains(strings.Join(names, " "), key))
			})
			t.Run("malformed key", func(t *testing.T) {
				r := start(t, c, server, true, new(work.Service))
				status, _ := r.post(t, "a\tbc", work.Body)
				require.Equal(t, want.malformed, status)
			})
			t.Run("while the first runs", func(t *testing.T) {
				begun, end := make(chan struct{}), make(chan struct{})
				one := start(t, c, server, true, &work.Service{Hold: func() { close(begun); <-end }})
				other := start(t, c, server, true, new(work.Service))
				key := work.Key(2, 1)
				first := postBeside(one.newClient(), key)
				<-begun
				status, _ := other.post(t, key, work.Body)
				require.Equal(t, want.elsewhere, status)

				key = work.Key(2, 2)
				begun = make(chan struct{})
				close(end)
				require.Equal(t, work.Status, <-first)
				end = make(chan struct{})
				first = postBeside(one.newClient(), key)
				<-begun
				duplicate := postBeside(one.newClient(), key)
				if want.waits {
					select {
					case status := <-duplicate:
						require.Fail(t, "answered", status)
					case <-time.After(settling):
					}
					close(end)
					require.Equal(t, work.Status, <-duplicate)
				} else {
					require.Equal(t, 409, <-duplicate)
					close(end)
				}
				require.Equal(t, work.Status, <-first)
				require.EqualValues(t, 2, one.service.Runs())
			})
			t.Run("the client leaves", func(t *testing.T) {
				begun, end := make(chan struct{}), make(chan struct{})
				r := start(t, c, server, true, &work.Service{Hold: func() { close(begun); <-end }})
				key := work.Key(3, 1)
				leave(t, r.url, key, begun)
				time.Sleep(settling) // The server notices.
				close(end)
				time.Sleep(settling) // The answer is stored, if it is.
				status, _ := r.post(t, key, work.Body)
				require.Equal(t, want.afterLeaving, status)
				require.EqualValues(t, 1, r.service.Runs())
			})
			t.Run("round trips", func(t *testing.T) {
				client := server.Client(t)
				trips := new(tripHook)
				client.AddHook(trips)
				s, err := c.open(&work.Service{Answer: work.Answer(work.AnswerSize)}, client, true)
				require.NoError(t, err)
				t.Cleanup(func() { require.NoError(t, s.close()) })
				r := running{session: s, Client: s.newClient()}
				r.post(t, work.Key(4, 1), work.Body) // The server learns its scripts.
				for _, n := range []int64{want.firstTrips, want.replayTrip} {
					trips.n.Store(0)
					r.post(t, work.Key(4, 2), work.Body)
					require.Equal(t, n, trips.n.Load())
				}
			})
		})
	}
}

// settling is how long the tests give a server for what cannot be seen.
const settling = 100 * time.Millisecond

// postBeside posts in a goroutine of its own and sends the status, or 0.
func postBeside(client work.Client, key string) <-chan int {
	answered := make(chan int, 1)
	go func() {
		status, _, err := client.Post(key, work.Body)
		if err != nil {
			status = 0
		}
		answered <- status
	}()
	return answered
}

// leave sends a request and closes the connection once the handler has begun.
func leave(t *testing.T, target, key string, begun <-chan struct{}) {
	t.Helper()
	u, err := url.Parse(target)
	require.NoError(t, err)
	conn, err := net.Dial("tcp", u.Host)
	require.NoError(t, err)
	_, err = conn.Write([]byte("POST " + u.Path + " HTTP/1.1\r\nHost: " + u.Host + "\r\n" +
		work.KeyHeader + ": " + key + "\r\nContent-Length: 150\r\n\r\n" + work.Body))
	require.NoError(t, err)
	<-begun
	require.NoError(t, conn.Close())
}

// tripHook counts the commands that are sent to a Redis.
type tripHook struct{ n atomic.Int64 }

func (h *tripHook) DialHook(next redis.DialHook) redis.DialHook { return next }

func (h *tripHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		h.n.Add(1)
		return next(ctx, cmd)
	}
}

func (h *tripHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}
