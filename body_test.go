package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestBodyReachesHandlerWhole(t *testing.T) {
	const limit = 64
	readers := map[string]func(s string) io.Reader{
		"at once":            func(s string) io.Reader { return strings.NewReader(s) },
		"byte by byte":       func(s string) io.Reader { return iotest.OneByteReader(strings.NewReader(s)) },
		"EOF with the bytes": func(s string) io.Reader { return iotest.DataErrReader(strings.NewReader(s)) },
	}
	for name, reader := range readers {
		for _, n := range []int{0, 1, limit - 1, limit, limit + 1, 100 * limit} {
			for _, declared := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s/%d/declared=%t", name, n, declared), func(t *testing.T) {
					want := strings.Repeat("x", n)
					var closed atomic.Bool
					h := idempotency.New(idempotency.NewMemory(), idempotency.WithBufferLimit(limit), quiet)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						got, err := io.ReadAll(r.Body)
						require.NoError(t, err)
						require.Equal(t, want, string(got))
						require.NoError(t, r.Body.Close())
					}))
					r := request("k", "")
					r.Body = closer{reader(want), &closed}
					r.ContentLength = -1
					if declared {
						r.ContentLength = int64(n)
					}
					if n == 0 && !declared {
						require.Equal(t, http.StatusInternalServerError, send(h, r).Code, "see TestEatenBody")
						return
					}
					require.Equal(t, http.StatusOK, send(h, r).Code)
					require.True(t, closed.Load(), "Close reaches the body that came")
				})
			}
		}
	}
}

type closer struct {
	io.Reader
	closed *atomic.Bool
}

func (c closer) Close() error { c.closed.Store(true); return nil }

func TestClosedBodyIsNotRead(t *testing.T) {
	h := idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		require.NoError(t, r.Body.Close())
		read, err := io.ReadAll(r.Body)
		require.Empty(t, read)
		require.ErrorIs(t, err, http.ErrBodyReadAfterClose)
	}))
	server := httptest.NewServer(h)
	defer server.Close()
	r, err := http.NewRequest(http.MethodPost, server.URL, strings.NewReader("body"))
	require.NoError(t, err)
	r.Header.Set("Idempotency-Key", "k")
	resp, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode)
	resp.Body.Close()
}

// A handler that reads on after it has returned, as one inside
// http.TimeoutHandler may, neither takes half a body for a whole one nor sees the
// body of a later request.
func TestBodyIsNotReadAfterTheHandler(t *testing.T) {
	bodies := make(chan io.Reader, 1)
	h := idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		first := make([]byte, 1)
		_, err := io.ReadFull(r.Body, first)
		require.NoError(t, err)
		bodies <- r.Body
	}))
	for n := range 100 {
		send(h, request(fmt.Sprint(n), "body"))
		rest, err := io.ReadAll(<-bodies)
		require.Empty(t, rest)
		require.ErrorIs(t, err, http.ErrBodyReadAfterClose)
	}
}

// TestBodiesAreNotMixed is for the buffers that bodies share, one after another.
func TestBodiesAreNotMixed(t *testing.T) {
	echo := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.Copy(w, r.Body)
	})
	h := idempotency.New(idempotency.NewMemory())(echo)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for n := range 200 {
				key := fmt.Sprintf("%d-%d", g, n)
				body := `"` + strings.Repeat(key, 1+n) + `"`
				for range 2 {
					assert.Equal(t, body, send(h, request(key, body)).Body.String())
				}
			}
		})
	}
	wg.Wait()
}

// TestBodyIsClosedWhileItIsRead is for the race detector.
func TestBodyIsClosedWhileItIsRead(t *testing.T) {
	h := idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = io.ReadAll(iotest.OneByteReader(r.Body))
		}()
		require.NoError(t, r.Body.Close())
		<-done
	}))
	for n := range 100 {
		send(h, request(fmt.Sprint(n), "body"))
	}
}

func TestDefaultBufferLimit(t *testing.T) {
	for size, status := range map[int]string{1 << 20: "true", 1<<20 + 1: ""} {
		h := idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, `"`+strings.Repeat("x", size-2)+`"`)
		}))
		send(h, request("k", "b"))
		require.Equal(t, status, send(h, request("k", "b")).Header().Get("Idempotent-Replayed"))
	}
}

func TestBodyUnreadable(t *testing.T) {
	broken := errors.New("connection reset by peer")
	tests := map[string]struct {
		body   io.Reader
		status int
	}{
		"at its begin":        {iotest.ErrReader(broken), http.StatusBadRequest},
		"after some bytes":    {io.MultiReader(strings.NewReader("1234"), iotest.ErrReader(broken)), http.StatusBadRequest},
		"where the limit is":  {io.MultiReader(strings.NewReader("12345678"), iotest.ErrReader(broken)), http.StatusBadRequest},
		"larger than allowed": {http.MaxBytesReader(nil, io.NopCloser(strings.NewReader("1234567")), 6), http.StatusRequestEntityTooLarge},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p, es := &payments{}, &events{}
			backend := newHooked()
			backend.claim = func(context.Context, idempotency.Key, idempotency.Claim, idempotency.Terms) (idempotency.Record, bool, error) {
				t.Error("the key was claimed")
				return idempotency.Record{}, false, nil
			}
			h := idempotency.New(backend, idempotency.WithBufferLimit(8), es.option())(p)
			r := request("k", "")
			r.Body = io.NopCloser(tt.body)
			w := send(h, r)
			require.NotContains(t, w.Body.String(), "reset by peer")
			requireProblem(t, w, tt.status, "ErrBodyUnreadable")
			require.Zero(t, p.runs.Load())
			e, _ := es.last(t)
			require.Equal(t, idempotency.Rejected, e.Outcome)
			require.Equal(t, tt.status, e.Status)
			require.ErrorIs(t, e.Err, idempotency.ErrBodyUnreadable)
		})
	}
}

// zeros is a body that takes no memory.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// heldWhile returns how many bytes are held while n handlers run that have each called
// use with a body of 1 MiB.
func heldWhile(t *testing.T, n int, use func(r *http.Request)) int {
	const size = 1 << 20
	var used, done sync.WaitGroup
	used.Add(n)
	leave := make(chan struct{})
	h := idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		use(r)
		used.Done()
		<-leave
	}))
	before := heapInUse()
	for i := range n {
		done.Go(func() {
			r := request(fmt.Sprint(i), "")
			r.Body, r.ContentLength = io.NopCloser(io.LimitReader(zeros{}, size)), size
			send(h, r)
		})
	}
	used.Wait()
	held := heapInUse() - before
	close(leave)
	done.Wait()
	return held
}

// heapInUse returns how many bytes are in use after a collection. A sync.Pool is empty
// after two.
func heapInUse() int {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// A body is held no longer than until the handler has read or closed it.
func TestBodyIsHeldUntilItIsRead(t *testing.T) {
	const handlers = 32
	require.Greater(t, heldWhile(t, handlers, func(*http.Request) {}), handlers<<20/2, "what is not read is held")
	require.Less(t, heldWhile(t, handlers, func(r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		assert.NoError(t, err)
		assert.EqualValues(t, 1<<20, n)
	}), handlers<<20/4, "read")
	require.Less(t, heldWhile(t, handlers, func(r *http.Request) { assert.NoError(t, r.Body.Close()) }), handlers<<20/4, "closed")
}

// A request that waits holds no more than its body, whatever a buffer had before.
func TestWaitingHoldsTheBodyOnly(t *testing.T) {
	const waiters, size = 256, 40_000
	backend := newHooked()
	var asked sync.WaitGroup
	asked.Add(waiters)
	long := strings.Repeat("x", size)
	fill := func(n int, h http.Handler, body string, key func(i int) string) (done *sync.WaitGroup) {
		done = new(sync.WaitGroup)
		for i := range n {
			done.Go(func() { send(h, request(key(i), body)) })
		}
		return done
	}
	before := heapInUse()
	// As many buffers as there are waiters are made large, and are in the pool.
	var running sync.WaitGroup
	running.Add(waiters)
	fill(waiters, idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		running.Done()
		running.Wait()
	})), long, func(i int) string { return fmt.Sprint(i) }).Wait()

	// All that wait, each for a key of its own, have looked at it twice: they are beyond
	// where they shrink.
	var looks sync.Map
	backend.claim = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
		n, _ := looks.LoadOrStore(claim.Token, new(atomic.Int32))
		if n.(*atomic.Int32).Add(1) == 2 {
			asked.Done()
		}
		return idempotency.Record{Claim: claim, State: idempotency.StateOutstanding}, false, nil
	}
	ctx, leave := context.WithCancel(t.Context())
	h := idempotency.New(backend, idempotency.WithWait(time.Hour))(&payments{})
	done := fill(waiters, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.ServeHTTP(w, r.WithContext(ctx)) }), "b",
		func(i int) string { return fmt.Sprint(i) })
	asked.Wait()
	held := heapInUse() - before
	leave()
	done.Wait()
	require.Less(t, held, waiters*size/4)
}

func TestMultipartFilesAreRemoved(t *testing.T) {
	// What exceeds the memory that ParseMultipartForm is given goes to disk.
	body := "--x\r\nContent-Disposition: form-data; name=\"f\"; filename=\"a\"\r\n\r\nhello\r\n--x--\r\n"
	for name, backend := range map[string]idempotency.Backend{"claimed": newCounted(never), "unprotected": newCounted(always("claim"))} {
		t.Run(name, func(t *testing.T) {
			var file string
			h := idempotency.New(backend, idempotency.WithFailOpen(), quiet)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				require.NoError(t, r.ParseMultipartForm(0))
				f, err := r.MultipartForm.File["f"][0].Open()
				require.NoError(t, err)
				file = f.(interface{ Name() string }).Name()
				require.FileExists(t, file)
				require.NoError(t, f.Close())
			}))
			r := request("k", body)
			r.Header.Set("Content-Type", "multipart/form-data; boundary=x")
			send(h, r)
			require.NoFileExists(t, file)
		})
	}
}
