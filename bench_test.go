package idempotency_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/internal/redistest"
	"github.com/redis/go-redis/v9"
)

// benchSizes are the lengths of the JSON that the benchmarks' handler answers.
var benchSizes = []struct {
	name  string
	bytes int
}{{"200B", 200}, {"4kB", 4000}, {"100kB", 100_000}}

// bareHandler returns the handler that the middleware is put around: it drains
// the body and answers 201 with JSON.
func bareHandler(size int) http.Handler {
	answer := []byte(`{"note":"` + strings.Repeat("y", size-len(`{"note":""}`)) + `"}`)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Location", "/payments/1")
		w.WriteHeader(http.StatusCreated)
		_, _ = w.Write(answer)
	})
}

// sink is a ResponseWriter that costs nothing.
type sink struct{ header http.Header }

func (s *sink) Header() http.Header         { return s.header }
func (s *sink) WriteHeader(int)             {}
func (s *sink) Write(p []byte) (int, error) { return len(p), nil }

// benchClient sends one request again and again, with a body of 150 bytes. What
// it takes itself is part of each measurement, the bare handler's too. Like a
// server's, the request has a context that can end.
type benchClient struct {
	w    *sink
	r    *http.Request
	body *strings.Reader
	key  []string
}

func newBenchClient(t testing.TB) *benchClient {
	c := &benchClient{w: &sink{make(http.Header)}, body: strings.NewReader(""), key: []string{""}}
	c.r = httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/payments?currency=EUR", nil)
	c.r.Body, c.r.ContentLength = io.NopCloser(c.body), 150
	return c
}

// send sends a request with a key ("" is none) through h.
func (c *benchClient) send(h http.Handler, key, body string) {
	if key != "" {
		c.key[0] = key
		c.r.Header["Idempotency-Key"] = c.key
	}
	c.body.Reset(body)
	clear(c.w.header)
	h.ServeHTTP(c.w, c.r)
}

var (
	benchBody  = strings.Repeat("x", 150)
	otherBody  = strings.Repeat("z", 150)
	keyCount   atomic.Int64
	keyLength  = len("8e03978e-40d5-43dd-bc93-000000000000")
	millionKey = sync.OnceValue(func() string {
		var keys strings.Builder
		for i := range 1_000_000 {
			fmt.Fprintf(&keys, "8e03978e-40d5-43dd-bc93-%012d", i)
		}
		return keys.String()
	})
)

// oneOfAMillion returns key n of a million. It allocates nothing.
func oneOfAMillion(n int) string {
	n %= 1_000_000
	return millionKey()[n*keyLength : (n+1)*keyLength]
}

// nextKey returns a key that comes again after a million others.
func nextKey() string { return oneOfAMillion(int(keyCount.Add(1))) }

// operations runs a benchmark for each thing that can become of a request.
func operations(b *testing.B, backend idempotency.Backend, size int) {
	bare := bareHandler(size)
	h := idempotency.New(backend, idempotency.WithExpiry(time.Hour))(bare)
	run := func(name string, h http.Handler, key func() string, body string) {
		b.Run(name, func(b *testing.B) {
			c := newBenchClient(b)
			nextKey()
			b.ReportAllocs()
			for b.Loop() {
				c.send(h, key(), body)
			}
		})
	}
	fixed := func(key string) func() string { return func() string { return key } }
	run("bare", bare, fixed(""), benchBody)
	run("no-key", h, fixed(""), benchBody)
	run("first", h, nextKey, benchBody)
	newBenchClient(b).send(h, "stored", benchBody)
	run("replay", h, fixed("stored"), benchBody)
	run("reused-422", h, fixed("stored"), otherBody)

	whileOutstanding(b, backend, "outstanding", func() { run("outstanding-409", h, fixed("outstanding"), benchBody) })
}

// whileOutstanding calls f while a request with key runs.
func whileOutstanding(t testing.TB, backend idempotency.Backend, key string, f func()) {
	running, finish, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	h := idempotency.New(backend)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(running)
		<-finish
	}))
	go func() {
		defer close(done)
		newBenchClient(t).send(h, key, benchBody)
	}()
	<-running
	f()
	close(finish)
	<-done
}

// BenchmarkMemory measures what the middleware adds to a handler, which is the
// row "bare".
func BenchmarkMemory(b *testing.B) {
	for _, size := range benchSizes {
		b.Run(size.name, func(b *testing.B) { operations(b, idempotency.NewMemory(), size.bytes) })
	}
}

// BenchmarkMemoryParallel measures many goroutines, by -cpu: replays of one key,
// replays of a million in any order, and first requests.
func BenchmarkMemoryParallel(b *testing.B) {
	h := idempotency.New(idempotency.NewMemory(idempotency.WithMaxBytes(4 << 30)))(bareHandler(200))
	run := func(name string, key func() string) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				c := newBenchClient(b)
				for pb.Next() {
					c.send(h, key(), benchBody)
				}
			})
		})
	}
	client := newBenchClient(b)
	client.send(h, "hot", benchBody)
	run("replay-one-key", func() string { return "hot" })
	for n := range 1_000_000 {
		client.send(h, oneOfAMillion(n), benchBody)
	}
	run("replay-million-keys", func() string { return oneOfAMillion(mathrand.IntN(1_000_000)) })
	h = idempotency.New(idempotency.NewMemory())(bareHandler(200))
	run("first", nextKey)
}

// BenchmarkParts measures, each alone, what a request on memory takes of the
// standard library.
func BenchmarkParts(b *testing.B) {
	part := func(name string, f func()) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				f()
			}
		})
	}
	var (
		answer  = []byte(`{"note":"` + strings.Repeat("y", 200-len(`{"note":""}`)) + `"}`)
		key     = []byte("8 bytes " + oneOfAMillion(0))
		request = []byte(strings.Repeat("r", 31) + benchBody)
		header  = make(http.Header)
		values  = []string{"1", "2", "3", "4"}
		mu      sync.Mutex
		token   [16]byte
	)
	part("bare-handler", func() func() {
		c, h := newBenchClient(b), bareHandler(200)
		return func() { c.send(h, "", benchBody) }
	}())
	part("sha256-of-key-and-request", func() {
		_ = sha256.Sum256(key)
		_ = sha256.Sum256(request)
	})
	part("clock-and-mutex", func() {
		mu.Lock()
		defer mu.Unlock()
		_ = time.Now()
	})
	part("four-headers", func() {
		clear(header)
		for i, name := range [...]string{"Content-Type", "Location", "Idempotent-Replayed", "Content-Length"} {
			header[name] = values[i : i+1]
		}
	})
	part("json-valid", func() { json.Valid(answer) })
	part("timer", func() { time.AfterFunc(10*time.Second, func() {}).Stop() })
	part("cancel-context", func() {
		_, cancel := context.WithCancelCause(context.Background())
		cancel(nil)
	})
	part("random-token", func() { _, _ = rand.Read(token[:]) })

	index, n := make(map[[sha256.Size]byte]*[192]byte), 0
	of := func(n int) [sha256.Size]byte { return sha256.Sum256(binary.BigEndian.AppendUint64(key[:0], uint64(n))) }
	add := func() {
		index[of(n)] = new([192]byte)
		n++
	}
	for n < 100_000 {
		add()
	}
	part("sha256-and-map-of-100000-add-and-delete", func() {
		add()
		delete(index, of(n-1-100_000))
	})
	for len(index) < 1_000_000 {
		add()
	}
	first := n - len(index)
	sum := 0
	part("sha256-and-map-of-a-million-one-key", func() { sum += int(index[of(first)][0]) })
	part("sha256-and-map-of-a-million-any-key", func() { sum += int(index[of(first+mathrand.IntN(1_000_000))][0]) })
}

// BenchmarkRedis measures the same on a real Redis. Its baselines are the
// commands that the work cannot do without, as go-redis has them.
func BenchmarkRedis(b *testing.B) {
	client := redistest.Client(b)
	for _, size := range benchSizes {
		b.Run(size.name, func(b *testing.B) {
			bare := newBareRedis(b, client, size.bytes)
			stored := bare.stored(b)
			b.Run("bare-claim-and-complete", func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					key := bare.prefix + nextKey()
					bare.claim(b, key)
					bare.complete(b, key)
				}
			})
			b.Run("bare-claim-of-stored", func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					bare.claim(b, stored)
				}
			})
			prefix := idempotency.WithPrefix(freshPrefix(b, client))
			operations(b, idempotency.NewRedis(client, prefix), size.bytes)
		})
	}
}

// BenchmarkRedisParallel measures replays in many goroutines, as a share of what
// the bare command does; and the bare command with a replay from memory after it,
// which is what telling the request from others and answering it takes.
func BenchmarkRedisParallel(b *testing.B) {
	client := redistest.Client(b)
	bare := newBareRedis(b, client, 200)
	run := func(name string, request func(c *benchClient)) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetParallelism(8)
			b.RunParallel(func(pb *testing.PB) {
				c := newBenchClient(b)
				for pb.Next() {
					request(c)
				}
			})
		})
	}
	key := bare.stored(b)
	run("bare-claim-of-stored", func(*benchClient) { bare.claim(b, key) })
	h := idempotency.New(idempotency.NewMemory())(bareHandler(200))
	newBenchClient(b).send(h, "hot", benchBody)
	run("bare-claim-and-replay-from-memory", func(c *benchClient) {
		bare.claim(b, key)
		c.send(h, "hot", benchBody)
	})
	h = idempotency.New(idempotency.NewRedis(client, idempotency.WithPrefix(freshPrefix(b, client))))(bareHandler(200))
	newBenchClient(b).send(h, "hot", benchBody)
	run("replay", func(c *benchClient) { c.send(h, "hot", benchBody) })
}

// BenchmarkRedisBeside measures one client's requests and the bare commands in
// turn: the waking of processes, which differs by half between runs, is the same
// for both. It reports medians.
func BenchmarkRedisBeside(b *testing.B) {
	client := redistest.Client(b)
	bare := newBareRedis(b, client, 200)
	stored := bare.stored(b)
	h := idempotency.New(idempotency.NewRedis(client, idempotency.WithPrefix(freshPrefix(b, client))), idempotency.WithExpiry(time.Hour))(bareHandler(200))
	c := newBenchClient(b)
	c.send(h, "stored", benchBody)
	nextKey()
	beside(b, "first", 1, func() {
		key := bare.prefix + nextKey()
		bare.claim(b, key)
		bare.complete(b, key)
	}, func() { c.send(h, nextKey(), benchBody) })
	beside(b, "replay", 1, func() { bare.claim(b, stored) }, func() { c.send(h, "stored", benchBody) })
}

// beside measures two things in turn, each many times in a row.
func beside(b *testing.B, name string, inRow int, bare, ours func()) {
	b.Run(name, func(b *testing.B) {
		row := func(f func()) time.Duration {
			start := time.Now()
			for range inRow {
				f()
			}
			return time.Since(start) / time.Duration(inRow)
		}
		var bares, all []time.Duration
		for b.Loop() {
			bares, all = append(bares, row(bare)), append(all, row(ours))
		}
		b.ReportMetric(median(all), "ns/op")
		b.ReportMetric(median(bares), "bare-ns/op")
		b.ReportMetric(median(all)/median(bares), "x-bare")
	})
}

func median(times []time.Duration) float64 {
	slices.Sort(times)
	return float64(times[len(times)/2])
}

// bareRedis has the commands alone, with values as long as the records are.
type bareRedis struct {
	client   *redis.Client
	prefix   string
	ctx      context.Context
	claimed  string
	response string
}

func newBareRedis(t testing.TB, client *redis.Client, size int) *bareRedis {
	const claim, head = 57, 130
	return &bareRedis{client, freshPrefix(t, client), t.Context(), strings.Repeat("c", claim), strings.Repeat("r", head+size)}
}

func (r *bareRedis) claim(t testing.TB, key string) {
	err := r.client.SetArgs(r.ctx, key, r.claimed, redis.SetArgs{Mode: "NX", Get: true, TTL: 30 * time.Second}).Err()
	if err != nil && err != redis.Nil {
		t.Error(err)
	}
}

// compareAndSet is the least that can complete a claim.
var compareAndSet = redis.NewScript(`
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
return false
`)

func (r *bareRedis) complete(t testing.TB, key string) {
	if err := compareAndSet.Run(r.ctx, r.client, []string{key}, r.claimed, r.response, time.Hour.Milliseconds()).Err(); err != nil {
		t.Error(err)
	}
}

// stored returns a key that has a response.
func (r *bareRedis) stored(t testing.TB) string {
	key := r.prefix + "stored"
	r.claim(t, key)
	r.complete(t, key)
	return key
}
