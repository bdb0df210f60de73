package idempotency_test

import (
	"bufio"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

// answer is what a client sees of a response.
type answer struct {
	Status  int
	Header  http.Header
	Body    string
	Err     string // where the body broke off
	Trailer http.Header
}

// forEachProtocol runs a subtest on a real connection for HTTP/1.1 and HTTP/2.
// serve starts a server around a handler and returns what sends it a POST with
// a key ("" is none).
func forEachProtocol(t *testing.T, test func(t *testing.T, serve func(h http.Handler) func(key string) answer)) {
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(protocol, func(t *testing.T) {
			test(t, func(h http.Handler) func(string) answer {
				server := httptest.NewUnstartedServer(h)
				server.EnableHTTP2 = protocol == "HTTP/2.0"
				server.Config.ErrorLog = log.New(io.Discard, "", 0)
				server.StartTLS()
				t.Cleanup(server.Close)
				return func(key string) answer {
					r, err := http.NewRequest(http.MethodPost, server.URL, strings.NewReader("b"))
					require.NoError(t, err)
					if key != "" {
						r.Header.Set("Idempotency-Key", key)
					}
					client := server.Client()
					client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
					resp, err := client.Do(r)
					require.NoError(t, err)
					defer resp.Body.Close()
					require.Equal(t, protocol, resp.Proto)
					a := answer{Status: resp.StatusCode, Header: resp.Header}
					body, err := io.ReadAll(resp.Body)
					if err != nil {
						a.Err = err.Error()
					}
					a.Body, a.Trailer = string(body), resp.Trailer
					a.Header.Del("Date")
					return a
				}
			})
		})
	}
}

// outside sets the headers that middleware around this one would.
func outside(next http.Handler) http.Handler {
	n := 0
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n++
		w.Header().Set("X-Request-Id", fmt.Sprint("request-", n))
		w.Header().Set("Vary", "Origin")
		w.Header().Set("Cache-Control", "no-cache")
		w.Header().Set("X-Powered-By", "net/http")
		next.ServeHTTP(w, r)
	})
}

func jsonHeader(w http.ResponseWriter) { w.Header().Set("Content-Type", "application/json") }

// TestStoredResponses has a row for each kind of response that is stored: the
// first answer and the replay are the same, and as without the middleware.
func TestStoredResponses(t *testing.T) {
	every := idempotency.WithContentTypes("*")
	long := `"` + strings.Repeat("x", 100_000) + `"`
	tests := map[string]struct {
		opts    []idempotency.Option
		handler http.HandlerFunc
	}{
		"JSON": {handler: func(w http.ResponseWriter, r *http.Request) { jsonHeader(w); io.WriteString(w, `{"a":1}`) }},
		"JSON with a status": {handler: func(w http.ResponseWriter, r *http.Request) {
			jsonHeader(w)
			w.WriteHeader(402)
			io.WriteString(w, `null`)
		}},
		"a server's error": {handler: func(w http.ResponseWriter, r *http.Request) {
			jsonHeader(w)
			w.WriteHeader(599)
			io.WriteString(w, `0`)
		}},
		"JSON with a charset": {handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "Application/JSON ; charset=utf-8")
			io.WriteString(w, `[]`)
		}},
		"JSON without a type": {handler: func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, ` {"a":1}`) }},
		"white space first": {handler: func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, " \n")
			io.WriteString(w, "\t\r")
			io.WriteString(w, `-1`)
		}},
		"JSON in many pieces": {handler: func(w http.ResponseWriter, r *http.Request) {
			jsonHeader(w)
			for _, c := range `{"a":[1,2,3]}` {
				fmt.Fprintf(w, "%c", c)
			}
		}},
		"long JSON": {handler: func(w http.ResponseWriter, r *http.Request) {
			jsonHeader(w)
			w.Header().Set("Content-Length", fmt.Sprint(len(long)))
			io.WriteString(w, long)
		}},
		"a declared length": {handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "2")
			io.WriteString(w, `{}`)
		}},
		"flushed": {handler: func(w http.ResponseWriter, r *http.Request) {
			jsonHeader(w)
			w.Header().Set("Content-Length", "2")
			io.WriteString(w, `{`)
			w.(http.Flusher).Flush()
			io.WriteString(w, `}`)
		}},
		"many values of one": {handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header()["Link"] = []string{"</a>; rel=a", "</b>; rel=b"}
			w.Header().Set("Location", "/payments/1")
			io.WriteString(w, `{}`)
		}},
		"listed type": {opts: []idempotency.Option{idempotency.WithContentTypes("application/problem+JSON")}, handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/problem+json")
			io.WriteString(w, `{}`)
		}},
		"listed type, not JSON": {opts: []idempotency.Option{idempotency.WithContentTypes("application/json", "text/csv")}, handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/csv; header=absent")
			io.WriteString(w, "a,b")
		}},
		"listed type, empty":   {opts: []idempotency.Option{idempotency.WithContentTypes("text/csv")}, handler: func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Content-Type", "text/csv") }},
		"listed type, sniffed": {opts: []idempotency.Option{idempotency.WithContentTypes("text/html")}, handler: func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "<html>"); io.WriteString(w, "hello") }},
		"*, HTML":              {opts: []idempotency.Option{every}, handler: func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "<p>") }},
		"*, broken JSON":       {opts: []idempotency.Option{every}, handler: func(w http.ResponseWriter, r *http.Request) { jsonHeader(w); io.WriteString(w, `{"a"`) }},
		"*, nothing written":   {opts: []idempotency.Option{every}, handler: func(w http.ResponseWriter, r *http.Request) {}},
		"*, 204":               {opts: []idempotency.Option{every}, handler: func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) }},
		"*, 304": {opts: []idempotency.Option{every}, handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"v1"`)
			w.WriteHeader(http.StatusNotModified)
		}},
		"*, 204 with a body": {opts: []idempotency.Option{every}, handler: func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusNoContent)
			n, err := io.WriteString(w, "x")
			if n != 0 || err != http.ErrBodyNotAllowed {
				panic(err)
			}
		}},
		"*, binary": {opts: []idempotency.Option{every}, handler: func(w http.ResponseWriter, r *http.Request) { w.Write([]byte{0, 1, 0xff, '\r', '\n'}) }},
		"*, type suppressed": {opts: []idempotency.Option{every}, handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header()["Content-Type"] = nil
			io.WriteString(w, "<p>")
		}},
		"exactly at the limit": {opts: []idempotency.Option{idempotency.WithBufferLimit(4)}, handler: func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "12"); io.WriteString(w, "34") }},
		"limit 0, no body": {opts: []idempotency.Option{every, idempotency.WithBufferLimit(0)}, handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", "/")
			w.WriteHeader(http.StatusSeeOther)
		}},
		"header set too late": {handler: func(w http.ResponseWriter, r *http.Request) {
			jsonHeader(w)
			w.Header()["X-A"] = []string{"1"}
			w.WriteHeader(201)
			w.Header()["X-A"][0] = "2"
			w.Header().Set("X-Late", "1")
			w.Header().Del("Content-Type")
			io.WriteString(w, `{}`)
		}},
		"second header ignored": {handler: func(w http.ResponseWriter, r *http.Request) {
			jsonHeader(w)
			w.WriteHeader(201)
			w.WriteHeader(500)
			w.WriteHeader(103)
			io.WriteString(w, `{}`)
		}},
		"outer header changed": {handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Add("Vary", "Accept")
			w.Header().Set("Cache-Control", "no-store")
			io.WriteString(w, `{}`)
		}},
		"outer header taken": {handler: func(w http.ResponseWriter, r *http.Request) { w.Header().Del("X-Powered-By"); io.WriteString(w, `{}`) }},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			forEachProtocol(t, func(t *testing.T, serve func(http.Handler) func(string) answer) {
				forEachBackend(t, func(t *testing.T, newBackend func(*testing.T) idempotency.Backend) {
					runs := 0
					h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { runs++; tt.handler(w, r) })
					want := serve(outside(h))("")
					if want.Body != "" || want.Header.Get("Content-Length") != "" {
						want.Header.Set("Content-Length", fmt.Sprint(len(want.Body))) // Else it may be chunked.
					}

					post := serve(outside(idempotency.New(newBackend(t), tt.opts...)(h)))
					require.Equal(t, want, post("k"))
					for n := 2; n <= 3; n++ {
						want.Header.Set("Idempotent-Replayed", "true")
						want.Header.Set("X-Request-Id", fmt.Sprint("request-", n)) // The one of its own request.
						require.Equal(t, want, post("k"))
					}
					require.Equal(t, 2, runs)
				})
			})
		})
	}
}

// TestNotStoredResponses has a row for each kind of response that is not stored:
// every answer is as without the middleware.
func TestNotStoredResponses(t *testing.T) {
	every := idempotency.WithContentTypes("*")
	tests := map[string]struct {
		opts    []idempotency.Option
		handler http.HandlerFunc
	}{
		"HTML": {handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			io.WriteString(w, `{}`)
		}},
		"HTML without a type": {handler: func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "  ")
			io.WriteString(w, "<html>")
			io.WriteString(w, "</html>")
		}},
		"problem+json": {handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/problem+json")
			io.WriteString(w, `{}`)
		}},
		"jsonp": {handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/jsonp")
			io.WriteString(w, `{}`)
		}},
		"broken JSON": {handler: func(w http.ResponseWriter, r *http.Request) {
			jsonHeader(w)
			w.WriteHeader(201)
			io.WriteString(w, `{"a":`)
		}},
		"two JSON texts": {handler: func(w http.ResponseWriter, r *http.Request) {
			jsonHeader(w)
			io.WriteString(w, "{}\n")
			io.WriteString(w, "{}\n")
		}},
		"not JSON from the first": {handler: func(w http.ResponseWriter, r *http.Request) { jsonHeader(w); io.WriteString(w, "<p>") }},
		"empty JSON":              {handler: func(w http.ResponseWriter, r *http.Request) { jsonHeader(w) }},
		"nothing":                 {handler: func(w http.ResponseWriter, r *http.Request) {}},
		"204":                     {handler: func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) }},
		"sniffed type, nothing":   {opts: []idempotency.Option{idempotency.WithContentTypes("text/plain")}, handler: func(w http.ResponseWriter, r *http.Request) {}},
		"listed, broken problem": {opts: []idempotency.Option{idempotency.WithContentTypes("application/problem+json")}, handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/problem+json")
			io.WriteString(w, `{`)
		}},
		"JSON is not listed": {opts: []idempotency.Option{idempotency.WithContentTypes("text/html")}, handler: func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, `{}`) }},
		"encoded": {opts: []idempotency.Option{every}, handler: func(w http.ResponseWriter, r *http.Request) {
			jsonHeader(w)
			w.Header().Set("Content-Encoding", "br")
			io.WriteString(w, `{}`)
		}},
		"over the limit": {opts: []idempotency.Option{every, idempotency.WithBufferLimit(4)}, handler: func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(201)
			io.WriteString(w, "123")
			io.WriteString(w, "45")
			io.WriteString(w, "67")
		}},
		"over the limit at once": {opts: []idempotency.Option{idempotency.WithBufferLimit(4)}, handler: func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, strings.Repeat("1", 5000)) }},
		"shorter than declared": {opts: []idempotency.Option{every}, handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "5")
			io.WriteString(w, "1234")
		}},
		"longer than declared": {opts: []idempotency.Option{every}, handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "5")
			io.WriteString(w, "1234")
			if _, err := io.WriteString(w, "567"); r.ProtoMajor == 1 && err != http.ErrContentLength {
				panic(fmt.Sprint("written: ", err))
			}
		}},
		"malformed length": {opts: []idempotency.Option{every}, handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "2.0")
			io.WriteString(w, "{}")
		}},
		"declared trailer": {opts: []idempotency.Option{every}, handler: func(w http.ResponseWriter, r *http.Request) {
			jsonHeader(w)
			w.Header().Set("Trailer", "X-Sum")
			io.WriteString(w, `{}`)
			w.Header().Set("X-Sum", "1")
		}},
		"trailer, not declared": {handler: func(w http.ResponseWriter, r *http.Request) {
			jsonHeader(w)
			w.WriteHeader(201)
			io.WriteString(w, `"`+strings.Repeat("x", 5000)+`"`)
			w.Header().Set(http.TrailerPrefix+"X-Sum", "1")
		}},
		"trailer set before": {handler: func(w http.ResponseWriter, r *http.Request) {
			jsonHeader(w)
			w.Header().Set(http.TrailerPrefix+"X-Sum", "1")
			io.WriteString(w, `{}`)
		}},
		"declared, set before": {opts: []idempotency.Option{every}, handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Trailer", "X-Sum")
			w.Header().Set("X-Sum", "1")
			w.WriteHeader(200)
		}},
		"NoStore": {handler: func(w http.ResponseWriter, r *http.Request) {
			jsonHeader(w)
			io.WriteString(w, `{`)
			idempotency.NoStore(r.Context())
			io.WriteString(w, `}`)
		}},
		"header set too late": {handler: func(w http.ResponseWriter, r *http.Request) {
			jsonHeader(w)
			w.Header().Set("X-A", "1")
			w.WriteHeader(201)
			w.Header().Set("X-A", "2")
			w.Header().Set("X-Late", "1")
			io.WriteString(w, `{`)
		}},
		"streamed, then more JSON": {handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			io.WriteString(w, "data: 1\n\n")
			w.(http.Flusher).Flush()
			io.WriteString(w, "data: 2\n\n")
		}},
		"invalid status": {handler: func(w http.ResponseWriter, r *http.Request) {
			defer func() { fmt.Fprintf(w, "<%v>", recover()) }()
			w.WriteHeader(1000)
		}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			forEachProtocol(t, func(t *testing.T, serve func(http.Handler) func(string) answer) {
				runs := 0
				h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { runs++; tt.handler(w, r) })
				want := serve(outside(h))("")
				es := &events{}
				post := serve(outside(idempotency.New(idempotency.NewMemory(), append(tt.opts, es.option())...)(h)))
				for n := 1; n <= 3; n++ {
					want.Header.Set("X-Request-Id", fmt.Sprint("request-", n))
					require.Equal(t, want, post("k"))
					require.Equal(t, n+1, runs)
				}
				for _, e := range es.all {
					require.Equal(t, idempotency.NotStored, e.Outcome)
					require.Equal(t, want.Status, e.Status)
				}
			})
		})
	}
}

func TestStreamsWhatIsNotStored(t *testing.T) {
	tests := map[string]struct {
		opts        []idempotency.Option
		contentType string
		before      string // what is held, flushes notwithstanding, until next
		next        string // makes it known
		header      http.Header
	}{
		"by its Content-Type":                {contentType: "text/event-stream", next: "data: 1\n\n"},
		"by its first byte, without a type":  {before: " \n", next: "<p>"},
		"by its first byte, although JSON":   {contentType: "application/json", before: "\t", next: "x"},
		"by its first byte, JSON not listed": {opts: []idempotency.Option{idempotency.WithContentTypes("text/html")}, next: "{}"},
		"by its length":                      {opts: []idempotency.Option{idempotency.WithBufferLimit(4)}, contentType: "application/json", before: "1234", next: "5"},
		"by a declared length":               {contentType: "application/json", before: "12", next: "3", header: http.Header{"Content-Length": {"2"}}},
		"by its Content-Encoding":            {contentType: "application/json", next: "1", header: http.Header{"Content-Encoding": {"gzip"}}},
		"by a trailer":                       {contentType: "application/json", next: "1", header: http.Header{"Trailer": {"X-Sum"}}},
		"by a trailer that is not declared":  {contentType: "application/json", next: "1", header: http.Header{http.TrailerPrefix + "X-Sum": {"1"}}},
		"by WithStoreIf":                     {opts: []idempotency.Option{idempotency.WithStoreIf(func(int, http.Header) bool { return false })}, contentType: "application/json", next: "1"},
		"by NoStore, with the next write":    {contentType: "application/json", before: "12", next: "NoStore"},
		"by NoStore, with a flush":           {contentType: "application/json", before: "12", next: "NoStore and flush"},
		"by its type, before any byte of it": {contentType: "text/plain"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := httptest.NewRecorder()
			h := idempotency.New(idempotency.NewMemory(), tt.opts...)(http.HandlerFunc(func(rec http.ResponseWriter, r *http.Request) {
				if tt.contentType != "" {
					rec.Header().Set("Content-Type", tt.contentType)
				}
				maps.Copy(rec.Header(), tt.header)
				control := http.NewResponseController(rec)
				if tt.before != "" {
					io.WriteString(rec, tt.before)
					require.NoError(t, control.Flush())
					rec.(http.Flusher).Flush()
					require.False(t, w.Flushed)
					require.Zero(t, w.Body.Len())
				}
				switch tt.next {
				case "NoStore":
					idempotency.NoStore(r.Context())
					io.WriteString(rec, "3")
					require.Equal(t, "123", w.Body.String())
				case "NoStore and flush":
					idempotency.NoStore(r.Context())
				default:
					io.WriteString(rec, tt.next)
					require.Equal(t, tt.before+tt.next, w.Body.String())
				}
				require.NoError(t, control.Flush())
				require.True(t, w.Flushed)
				for range 3 {
					was := w.Body.Len()
					io.WriteString(rec, "more")
					require.Equal(t, was+4, w.Body.Len())
				}
			}))
			h.ServeHTTP(w, request("k", "b"))
		})
	}
}

func TestHeadersStored(t *testing.T) {
	hop := http.Header{
		"Connection": {"close"}, "Keep-Alive": {"timeout=5"}, "Proxy-Connection": {"close"}, "Te": {"trailers"},
		"Transfer-Encoding": {"identity"}, "Upgrade": {"h2c"}, "Date": {"Thu, 01 Jan 1970 00:00:00 GMT"}, "Content-Length": {"2"},
	}
	tests := map[string]struct {
		opts []idempotency.Option
		want http.Header
	}{
		"default": {nil, http.Header{"Location": {"/1"}, "Link": {"a", "b"}, "X-Lower": {"1"}, "Content-Type": {"application/json"}, "X-Empty": {""}}},
		"a filter that keeps all": {[]idempotency.Option{idempotency.WithHeaderFilter(func(string) bool { return true })},
			http.Header{"Location": {"/1"}, "Link": {"a", "b"}, "X-Lower": {"1"}, "Content-Type": {"application/json"}, "X-Empty": {""}, "Set-Cookie": {"session=secret", "b=2"}, "set-cookie": {"c=3"}}},
		"a filter that keeps some": {[]idempotency.Option{idempotency.WithHeaderFilter(func(name string) bool { return name == "Location" || name == "Content-Type" })},
			http.Header{"Location": {"/1"}, "Content-Type": {"application/json"}}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			backend := newCounted(never)
			var stored *idempotency.Response
			complete := backend.complete
			backend.complete = func(ctx context.Context, key string, claim idempotency.Claim, resp *idempotency.Response, expiry time.Duration) error {
				stored = &idempotency.Response{Status: resp.Status, Header: resp.Header.Clone(), Body: slices.Clone(resp.Body)}
				return complete(ctx, key, claim, resp, expiry)
			}
			h := idempotency.New(backend, tt.opts...)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				header := w.Header()
				maps.Copy(header, hop)
				maps.Copy(header, http.Header{"Location": {"/1"}, "Link": {"a", "b"}, "X-Lower": {"1"}, "Content-Type": {"application/json"}, "X-Empty": {""},
					"Set-Cookie": {"session=secret", "b=2"}, "set-cookie": {"c=3"}})
				io.WriteString(w, "{}")
			}))
			first := send(h, request("k", "b"))
			require.Equal(t, []string{"session=secret", "b=2"}, first.Header()["Set-Cookie"], "the first answer has them all")
			for name, values := range hop {
				require.Equal(t, values, first.Header()[name])
			}
			require.Equal(t, &idempotency.Response{Status: 200, Header: tt.want, Body: []byte("{}")}, stored)
			replayed := tt.want.Clone()
			replayed["Idempotent-Replayed"], replayed["Content-Length"] = []string{"true"}, []string{"2"}
			require.Equal(t, replayed, send(h, request("k", "b")).Header())
		})
	}
}

func TestTypeIsSniffedOnce(t *testing.T) {
	backend := newCounted(never)
	var stored http.Header
	backend.complete = func(_ context.Context, _ string, _ idempotency.Claim, resp *idempotency.Response, _ time.Duration) error {
		stored = resp.Header
		return nil
	}
	for contentTypes, body := range map[string]string{"application/json": "{}", "*": "\xff\xd8\xff"} {
		h := idempotency.New(backend, idempotency.WithContentTypes(contentTypes))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, body)
		}))
		want := http.DetectContentType([]byte(body))
		require.Equal(t, want, send(h, request(contentTypes, "b")).Header().Get("Content-Type"))
		require.Equal(t, want, stored.Get("Content-Type"))
	}
}

func TestSwitchingProtocolsIsNotStored(t *testing.T) {
	runs, es := 0, &events{}
	h := idempotency.New(idempotency.NewMemory(), idempotency.WithContentTypes("*"), es.option())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		runs++
		w.WriteHeader(http.StatusSwitchingProtocols)
	}))
	for range 2 {
		require.Equal(t, http.StatusSwitchingProtocols, send(h, request("k", "b")).Code)
	}
	require.Equal(t, 2, runs)
	e, _ := es.last(t)
	require.Equal(t, idempotency.NotStored, e.Outcome)
	require.Equal(t, http.StatusSwitchingProtocols, e.Status)
}

// TestFlushKeepsItsPlace has handlers that flush what is held and is not stored
// in the end: net/http takes the type from what was written before the flush.
func TestFlushKeepsItsPlace(t *testing.T) {
	tests := map[string]http.HandlerFunc{
		"before the body": func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			io.WriteString(w, `{"a":`)
		},
		"within the body": func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, `{"b":1}`)
			w.(http.Flusher).Flush()
			io.WriteString(w, "\x1f\x8b\x00")
		},
		"without a body": func(w http.ResponseWriter, r *http.Request) { w.(http.Flusher).Flush() },
		"before the body, and after": func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			io.WriteString(w, `{"a":`)
			w.(http.Flusher).Flush()
		},
		"twice": func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, `{`)
			w.(http.Flusher).Flush()
			io.WriteString(w, `"b"`)
			w.(http.Flusher).Flush()
		},
	}
	for name, handler := range tests {
		t.Run(name, func(t *testing.T) {
			forEachProtocol(t, func(t *testing.T, serve func(http.Handler) func(string) answer) {
				require.Equal(t, serve(handler)(""), serve(idempotency.New(idempotency.NewMemory())(handler))("k"))
			})
		})
	}
}

// TestNoBodyNoLength has a handler that declares the length of no body.
func TestNoBodyNoLength(t *testing.T) {
	forEachProtocol(t, func(t *testing.T, serve func(http.Handler) func(string) answer) {
		post := serve(idempotency.New(idempotency.NewMemory(), idempotency.WithContentTypes("*"))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "0")
			w.WriteHeader(http.StatusNotModified)
		})))
		first, replay := post("k"), post("k")
		require.Equal(t, "true", replay.Header.Get("Idempotent-Replayed"))
		replay.Header.Del("Idempotent-Replayed")
		require.Equal(t, first, replay)
	})
}

// TestCompressionOutside has compression that declares its encoding before the
// handler runs (as gorilla/handlers does), or when the header is written (as chi
// does), and such that knows nothing of lengths.
func TestCompressionOutside(t *testing.T) {
	handlers := map[string]struct {
		handler http.HandlerFunc
		want    string
	}{
		"stored":     {func(w http.ResponseWriter, r *http.Request) { jsonHeader(w); io.WriteString(w, `{"a":1}`) }, `{"a":1}`},
		"not stored": {func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "<html>hello") }, "<html>hello"},
		"NoStore": {func(w http.ResponseWriter, r *http.Request) {
			jsonHeader(w)
			io.WriteString(w, `{"a":1}`)
			idempotency.NoStore(r.Context())
		}, `{"a":1}`},
		"broken": {func(w http.ResponseWriter, r *http.Request) { jsonHeader(w); io.WriteString(w, `{"a":`) }, `{"a":`},
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
			require.Contains(t, body, "ErrUnavailable")
		})
	}
}

// TestChangesOutsideStand has writers outside that change the header when it is
// written, and one that sends it later.
func TestChangesOutsideStand(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		jsonHeader(w)
		w.Header().Set("Content-Length", "5")
		io.WriteString(w, `{"a":`)
	})
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

// TestReplayIsItsOwn shows that what outside does to a replay stays there.
func TestReplayIsItsOwn(t *testing.T) {
	h := idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Link"] = []string{"a", "b"}
		w.Header()["X-Empty"] = []string{}
		w.Header()["X-Last"] = []string{"z"}
		io.WriteString(w, "{}")
	}))
	for range 3 {
		header := send(h, request("k", "b")).Header()
		require.Equal(t, []string{"a", "b"}, header["Link"])
		before := header.Clone()
		header["Link"][0] = "changed outside"
		for name := range header {
			header[name] = append(header[name], "added outside")
		}
		for name, values := range header {
			require.Equal(t, append(before[name], "added outside")[1:], values[1:], "what was added to one is in another")
			if name != "Link" {
				require.Equal(t, append(before[name], "added outside")[0], values[0], "what was added to one is in another")
			}
		}
	}
}

// A Content-Encoding without a value is none.
func TestEmptyContentEncodingIsStored(t *testing.T) {
	for _, outside := range []string{"", "gzip"} {
		p := &payments{}
		inner := idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header()["Content-Encoding"] = nil
			p.ServeHTTP(w, r)
		}))
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if outside != "" {
				w.Header().Set("Content-Encoding", outside)
			}
			inner.ServeHTTP(w, r)
		})
		send(h, request("k", "b"))
		require.Equal(t, `{"payment":1}`, send(h, request("k", "b")).Body.String())
	}
}

// A Trailer that is declared after the header was written declares nothing.
func TestLateTrailerIsNone(t *testing.T) {
	p := &payments{}
	h := idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.ServeHTTP(w, r)
		w.Header().Set("Trailer", "X-Sum")
		w.Header().Set("X-Sum", "1")
	}))
	send(h, request("k", "b"))
	require.Equal(t, `{"payment":1}`, send(h, request("k", "b")).Body.String())
}

// TestLateHeaderLeavesOthersAlone has a writer outside that changes the header
// when it is written, and sends it with the body.
func TestLateHeaderLeavesOthersAlone(t *testing.T) {
	inner := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", "3")
		w.WriteHeader(http.StatusOK)
		w.Header().Set("X-Late", "1")
		w.Header()["X-None"] = nil
		io.WriteString(w, "abc") // It is not JSON, and streams.
	})
	answer := func(h http.Handler) http.Header {
		w := httptest.NewRecorder()
		h.ServeHTTP(&lengthless{ResponseWriter: w}, request("k", "b"))
		return w.Header()
	}
	plain := answer(inner)
	require.NotContains(t, plain, "Content-Length")
	delete(plain, "X-None")
	require.Equal(t, plain, answer(idempotency.New(idempotency.NewMemory())(inner)))
}

// lengthless takes the length away when the header is written.
type lengthless struct{ http.ResponseWriter }

func (w *lengthless) WriteHeader(status int) { w.Header().Del("Content-Length") }

// What was added to one header of a refusal is not in another.
func TestRefusalIsItsOwn(t *testing.T) {
	h := idempotency.New(idempotency.NewMemory(), idempotency.WithErrorHandler(func(w http.ResponseWriter, r *http.Request, err error) {
		idempotency.WriteError(w, r, fmt.Errorf("again: %w", idempotency.ErrOutstanding))
	}))(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	for range 2 {
		w := send(h, request("\x00", ""))
		require.Equal(t, []string{"1"}, w.Header()["Retry-After"])
		require.Equal(t, []string{"application/problem+json"}, w.Header()["Content-Type"])
		require.Len(t, w.Header()["Content-Length"], 1)
		for _, name := range []string{"Retry-After", "Content-Type", "Content-Length"} {
			w.Header().Add(name, "added outside")
			w.Header()[name][0] += "changed outside"
		}
		for _, name := range []string{"Retry-After", "Content-Type", "Content-Length"} {
			require.Equal(t, "added outside", w.Header()[name][1])
			require.Len(t, w.Header()[name], 2)
			require.NotContains(t, w.Header()[name][0], "added")
		}
	}
}

func TestInformational(t *testing.T) {
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(protocol, func(t *testing.T) {
			server := httptest.NewUnstartedServer(idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Link", "</style.css>; rel=preload")
				w.WriteHeader(http.StatusEarlyHints)
				w.Header().Del("Link")
				w.WriteHeader(http.StatusProcessing)
				jsonHeader(w)
				w.WriteHeader(http.StatusCreated)
				io.WriteString(w, "{}")
			})))
			server.EnableHTTP2 = protocol == "HTTP/2.0"
			server.StartTLS()
			defer server.Close()
			for n, want := range [][]int{{103, 102}, nil} {
				var got []int
				ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
					got = append(got, code)
					require.Equal(t, code == 103, header.Get("Link") != "")
					return nil
				}})
				r, err := http.NewRequestWithContext(ctx, http.MethodPost, server.URL, nil)
				require.NoError(t, err)
				r.Header.Set("Idempotency-Key", "k")
				resp, err := server.Client().Do(r)
				require.NoError(t, err)
				resp.Body.Close()
				require.Equal(t, protocol, resp.Proto)
				require.Equal(t, want, got)
				require.Equal(t, http.StatusCreated, resp.StatusCode)
				require.Empty(t, resp.Header.Get("Link"))
				require.Equal(t, n == 1, resp.Header.Get("Idempotent-Replayed") == "true")
			}
		})
	}
}

func TestResponseController(t *testing.T) {
	forEachProtocol(t, func(t *testing.T, serve func(http.Handler) func(string) answer) {
		post := serve(idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			control := http.NewResponseController(w)
			require.NoError(t, control.SetReadDeadline(time.Now().Add(time.Minute)))
			require.NoError(t, control.SetWriteDeadline(time.Now().Add(time.Minute)))
			require.NoError(t, control.EnableFullDuplex())
			require.NoError(t, control.Flush())
			_, flusher := w.(http.Flusher)
			require.True(t, flusher)
			require.Implements(t, (*interface{ Unwrap() http.ResponseWriter })(nil), w)
			jsonHeader(w)
			io.WriteString(w, "{}")
		})))
		require.Equal(t, "{}", post("k").Body)
		require.Equal(t, "true", post("k").Header.Get("Idempotent-Replayed"))
	})
}

func TestFlushWritesTheHeader(t *testing.T) {
	// As net/http has it: after a flush a status comes too late.
	h := idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		jsonHeader(w)
		w.(http.Flusher).Flush()
		w.WriteHeader(http.StatusTeapot)
		io.WriteString(w, "{}")
	}))
	require.Equal(t, http.StatusOK, send(h, request("k", "b")).Code)
}

func TestFlushThatIsNotSupported(t *testing.T) {
	h := idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		require.ErrorIs(t, http.NewResponseController(w).Flush(), http.ErrNotSupported)
	}))
	h.ServeHTTP(struct{ http.ResponseWriter }{httptest.NewRecorder()}, request("k", "b"))
}

func TestHijack(t *testing.T) {
	handlers := map[string]struct {
		status  int // as it is observed
		handler http.HandlerFunc
	}{
		"before an answer": {0, func(w http.ResponseWriter, r *http.Request) {
			conn, rw, err := http.NewResponseController(w).Hijack()
			require.NoError(t, err)
			defer conn.Close()
			_, err = io.WriteString(w, "{}")
			require.ErrorIs(t, err, http.ErrHijacked)
			rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
			rw.Flush()
		}},
		"and nothing else": {0, func(w http.ResponseWriter, r *http.Request) {
			conn, rw, err := http.NewResponseController(w).Hijack()
			require.NoError(t, err)
			rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
			rw.Flush()
			conn.Close()
		}},
		"after 101": {http.StatusSwitchingProtocols, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Upgrade", "x")
			w.Header().Set("Connection", "Upgrade")
			w.WriteHeader(http.StatusSwitchingProtocols)
			conn, _, err := w.(http.Hijacker).Hijack()
			require.NoError(t, err)
			conn.Close()
		}},
	}
	for name, tt := range handlers {
		t.Run(name, func(t *testing.T) {
			runs, es := 0, &events{}
			backend := newCounted(never)
			server := httptest.NewServer(idempotency.New(backend, es.option(), idempotency.WithContentTypes("*"))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
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
				return len(es.all) == 2 && es.all[1].Status == tt.status && es.all[1].Outcome == idempotency.NotStored
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
