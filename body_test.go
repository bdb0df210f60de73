package idempotency_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"

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
					h := idempotency.New(idempotency.NewMemory(), idempotency.WithBufferLimit(limit))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
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
