package idempotency_test

import (
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

// TestCompressionOutside has compression that declares its encoding before the
// handler runs (as gorilla/handlers does), or when the header is written (as chi
// does), and such that knows nothing of lengths.
func TestCompressionOutside(t *testing.T) {
	handlers := map[string]struct {
		handler script
		want    string
	}{
		"stored":     {script{asJSON, says(`{"a":1}`)}, `{"a":1}`},
		"not stored": {script{says("<html>hello")}, "<html>hello"},
		"NoStore":    {script{asJSON, says(`{"a":1}`), noStore}, `{"a":1}`},
		"broken":     {script{asJSON, says(`{"a":`)}, `{"a":`},
	}
	for _, compression := range []string{"declared before", "declared with the header", "naive"} {
		around := func(next http.Handler) *httptest.Server {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				z := &zipped{ResponseWriter: w, zip: gzip.NewWriter(w), compression: compression}
				defer z.zip.Close()
				if compression != "declared with the header" {
					w.Header().Set("Content-Encoding", "gzip")
				}
				next.ServeHTTP(z, r)
			}))
			t.Cleanup(server.Close)
			return server
		}
		get := func(t *testing.T, server *httptest.Server) (body string, header http.Header) {
			r, err := http.NewRequest(http.MethodPost, server.URL, nil)
			require.NoError(t, err)
			r.Header.Set("Idempotency-Key", "k")
			resp, err := http.DefaultClient.Do(r)
			require.NoError(t, err)
			defer resp.Body.Close()
			read, err := io.ReadAll(resp.Body)
			require.NoError(t, err)
			require.True(t, resp.Uncompressed)
			return string(read), resp.Header
		}
		for name, tt := range handlers {
			t.Run(name+", "+compression, func(t *testing.T) {
				_, bare := get(t, around(tt.handler))
				server := around(idempotency.New(idempotency.NewMemory())(tt.handler))
				for _, replayed := range []string{"", "true"} {
					body, header := get(t, server)
					require.Equal(t, tt.want, body)
					require.Equal(t, bare.Get("Content-Type"), header.Get("Content-Type"))
					if name == "stored" {
						require.Equal(t, replayed, header.Get("Idempotent-Replayed"))
					}
				}
			})
		}
		t.Run("refused, "+compression, func(t *testing.T) {
			body, _ := get(t, around(idempotency.New(newCounted(always("claim")), quiet)(&payments{})))
			require.Contains(t, body, "#unavailable")
		})
	}
}

// TestChangesOutsideStand has writers outside that change the header when it is
// written, and one that sends it later.
func TestChangesOutsideStand(t *testing.T) {
	handler := script{asJSON, set("Content-Length", "5"), says(`{"a":`)}
	chain := func(next http.Handler) http.Handler {
		return http.TimeoutHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			z := &zipped{ResponseWriter: w, zip: gzip.NewWriter(w), compression: "declared with the header"}
			defer z.zip.Close()
			next.ServeHTTP(z, r)
		}), time.Minute, "")
	}
	forEachProtocol(t, func(t *testing.T, serve func(http.Handler) func(string) answer) {
		require.Equal(t, serve(chain(handler))(""), serve(chain(idempotency.New(idempotency.NewMemory())(handler)))("k"))
	})
}

// zipped compresses what is written to it.
type zipped struct {
	http.ResponseWriter
	zip         *gzip.Writer
	compression string
	wrote       bool
}

func (z *zipped) WriteHeader(status int) {
	z.wrote = true
	if z.compression == "declared with the header" {
		z.Header().Set("Content-Encoding", "gzip")
	}
	if z.compression != "naive" {
		z.Header().Del("Content-Length")
	}
	z.ResponseWriter.WriteHeader(status)
}

func (z *zipped) Write(p []byte) (int, error) {
	if !z.wrote {
		if z.Header().Get("Content-Type") == "" {
			z.Header().Set("Content-Type", http.DetectContentType(p))
		}
		z.WriteHeader(http.StatusOK)
	}
	return z.zip.Write(p)
}

// TestNothingWritten has middleware outside that writes what the handler did not.
func TestNothingWritten(t *testing.T) {
	nothing := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	handlers := map[string]http.Handler{
		"held":        idempotency.New(idempotency.NewMemory())(nothing),
		"not held":    idempotency.New(idempotency.NewMemory(), idempotency.WithStoreIf(func(int, http.Header) bool { return false }))(nothing),
		"unprotected": idempotency.New(newCounted(always("claim")), idempotency.WithFailOpen(), quiet)(nothing),
	}
	for name, h := range handlers {
		t.Run(name, func(t *testing.T) {
			w := send(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				h.ServeHTTP(w, r)
				w.Header().Set("X-Elapsed", "1")
				w.WriteHeader(http.StatusNoContent)
			}), request("k", "b"))
			require.Equal(t, http.StatusNoContent, w.Code)
			require.Equal(t, "1", w.Result().Header.Get("X-Elapsed"))
		})
	}
}

// An empty write writes the header: what middleware outside writes comes too late.
func TestEmptyWrite(t *testing.T) {
	for name, handler := range map[string]script{
		"held":       {says(""), set("X-Late", "1")},
		"held, JSON": {asJSON, says(""), set("X-Late", "1")},
		"NoStore":    {noStore, says(""), set("X-Late", "1")},
		"streamed":   {asType("text/plain"), says(""), set("X-Late", "1")},
		"with more":  {says(""), set("Content-Type", "text/csv"), says("a,b")},
		"after it":   {code(201), says(""), set("X-Late", "1")},
	} {
		t.Run(name, func(t *testing.T) {
			answer := func(next http.Handler) answer {
				w := send(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					next.ServeHTTP(w, r)
					w.WriteHeader(http.StatusTeapot)
				}), request("k", "b"))
				return answer{Status: w.Code, Header: w.Result().Header, Body: w.Body.String()}
			}
			require.Equal(t, answer(handler), answer(idempotency.New(idempotency.NewMemory(), quiet)(handler)))
		})
	}
}

// An empty write where no body is allowed is no error, as over HTTP/1.1.
func TestEmptyWriteOfNoBody(t *testing.T) {
	for _, status := range []int{http.StatusNoContent, http.StatusNotModified} {
		h := idempotency.New(idempotency.NewMemory(), every)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(status)
			n, err := w.Write(nil)
			require.NoError(t, err)
			require.Zero(t, n)
			_, err = w.Write([]byte("x"))
			require.ErrorIs(t, err, http.ErrBodyNotAllowed)
		}))
		require.Equal(t, status, send(h, request("k", "b")).Code)
		requireReplayed(t, send(h, request("k", "b")), "")
	}
}

// TestRecovererWithTheHandlersWriter has a recoverer outside answer through the
// writer that the handler had, because it knows no other.
func TestRecovererWithTheHandlersWriter(t *testing.T) {
	for _, before := range []string{"nothing", "a header", "an answer"} {
		t.Run("the handler had written "+before, func(t *testing.T) {
			var written http.ResponseWriter
			h := idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				written = w
				if before != "nothing" {
					w.WriteHeader(http.StatusCreated)
				}
				if before == "an answer" {
					_, _ = w.Write([]byte(`{"payment":1}`))
				}
				panic("boom")
			}))
			w := httptest.NewRecorder()
			func() {
				defer func() {
					_ = recover()
					written.WriteHeader(http.StatusInternalServerError)
					_, _ = written.Write([]byte(`{"error":"it broke"}`))
				}()
				h.ServeHTTP(w, request("k", "b"))
			}()
			require.Equal(t, http.StatusInternalServerError, w.Code)
			require.Equal(t, `{"error":"it broke"}`, w.Body.String())
		})
	}
}

// TestPanicInStoreIf has a recoverer inside, which answers all the same.
func TestPanicInStoreIf(t *testing.T) {
	for contentType, body := range map[string]string{"application/json": `{"error":true}`, "text/plain": "error"} {
		t.Run(contentType, func(t *testing.T) {
			asked := 0
			h := idempotency.New(idempotency.NewMemory(), idempotency.WithStoreIf(func(int, http.Header) bool {
				asked++
				if asked == 1 {
					panic("store if")
				}
				return true
			}))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer func() {
					if recover() != nil {
						w.Header().Set("Content-Type", contentType)
						w.WriteHeader(http.StatusInternalServerError)
						io.WriteString(w, body)
					}
				}()
				io.WriteString(w, "{}")
			}))
			w := send(h, request("k", "b"))
			require.Equal(t, http.StatusInternalServerError, w.Code)
			require.Equal(t, body, w.Body.String())
		})
	}
}
