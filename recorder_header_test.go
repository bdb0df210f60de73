package idempotency_test

import (
	"context"
	"io"
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

// hopByHop has the headers that are never stored, and never replayed.
var hopByHop = http.Header{
	"Connection": {"close"}, "Keep-Alive": {"timeout=5"}, "Proxy-Connection": {"close"}, "Te": {"trailers"},
	"Transfer-Encoding": {"identity"}, "Upgrade": {"h2c"}, "Date": {"Thu, 01 Jan 1970 00:00:00 GMT"}, "Content-Length": {"2"},
}

func TestHeadersStored(t *testing.T) {
	all := http.Header{
		"Location": {"/1"}, "Link": {"a", "b"}, "X-Lower": {"1"}, "Content-Type": {"application/json"}, "X-Empty": {""},
		"Set-Cookie": {"session=secret", "b=2"}, "set-cookie": {"c=3"},
	}
	keep := func(names string) idempotency.Option {
		return idempotency.WithHeaderFilter(func(name string) bool { return names == "*" || slices.Contains(strings.Fields(names), name) })
	}
	tests := map[string]struct {
		opts []idempotency.Option
		want string // the names
	}{
		"default":                  {nil, "Location Link X-Lower Content-Type X-Empty"},
		"a filter that keeps all":  {with(keep("*")), "Location Link X-Lower Content-Type X-Empty Set-Cookie set-cookie"},
		"a filter that keeps some": {with(keep("Location Content-Type")), "Location Content-Type"},
		"a filter for Set-Cookie":  {with(keep("Set-Cookie Content-Type")), "Set-Cookie set-cookie Content-Type"},
		"a filter for what cannot": {with(keep("Connection Date Content-Length Content-Type")), "Content-Type"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			backend := newCounted(never)
			var kept idempotency.Response
			complete := backend.complete
			backend.complete = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, response []byte, expiry time.Duration) error {
				kept = readResponse(t, response)
				return complete(ctx, key, claim, response, expiry)
			}
			h := idempotency.New(backend, tt.opts...)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				maps.Copy(w.Header(), hopByHop)
				maps.Copy(w.Header(), all)
				io.WriteString(w, "{}")
			}))
			first := send(h, request("k", "b"))
			require.Equal(t, []string{"session=secret", "b=2"}, first.Header()["Set-Cookie"], "the first answer has them all")
			for name, values := range hopByHop {
				require.Equal(t, values, first.Header()[name])
			}
			want := make(http.Header)
			for _, name := range strings.Fields(tt.want) {
				want[name] = all[name]
			}
			require.Equal(t, idempotency.Response{Status: 200, Header: want, Body: []byte("{}")}, kept)
			want["Idempotent-Replayed"], want["Content-Length"] = []string{"true"}, []string{"2"}
			require.Equal(t, want, send(h, request("k", "b")).Header())
		})
	}
}

func TestTypeIsSniffedOnce(t *testing.T) {
	backend := newHooked()
	var kept http.Header
	backend.complete = func(_ context.Context, _ idempotency.Key, _ idempotency.Claim, response []byte, _ time.Duration) error {
		kept = readResponse(t, response).Header
		return nil
	}
	for contentTypes, body := range map[string]string{"application/json": "{}", "*": "\xff\xd8\xff"} {
		h := idempotency.New(backend, idempotency.WithContentTypes(contentTypes))(script{says(body)})
		want := http.DetectContentType([]byte(body))
		require.Equal(t, want, send(h, request(contentTypes, "b")).Header().Get("Content-Type"))
		require.Equal(t, want, kept.Get("Content-Type"))
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

// TestHEAD has answers to HEAD, which tell the length of a body that is not there, or
// nothing of it: none is made up.
func TestHEAD(t *testing.T) {
	for name, tt := range map[string]struct {
		handler script
		stored  bool
	}{
		"nothing":             {script{}, true},
		"a status":            {script{code(404)}, true},
		"no content":          {script{code(204)}, true},
		"a body":              {script{asJSON, says(`{"a":1}`)}, true},
		"a body, declared":    {script{asJSON, set("Content-Length", "7"), says(`{"a":1}`)}, true},
		"a length of no body": {script{set("Content-Length", "7")}, false},
	} {
		t.Run(name, func(t *testing.T) {
			forEachProtocol(t, func(t *testing.T, _ func(http.Handler) func(string) answer) {
				head := func(h http.Handler) func() http.Header {
					server := httptest.NewUnstartedServer(h)
					server.EnableHTTP2 = strings.HasSuffix(t.Name(), "HTTP/2.0")
					server.StartTLS()
					t.Cleanup(server.Close)
					return func() http.Header {
						r, err := http.NewRequest(http.MethodHead, server.URL, nil)
						require.NoError(t, err)
						r.Header.Set("Idempotency-Key", "k")
						resp, err := server.Client().Do(r)
						require.NoError(t, err)
						require.NoError(t, resp.Body.Close())
						resp.Header.Del("Date")
						return resp.Header
					}
				}
				want := head(tt.handler)()
				get := head(idempotency.New(idempotency.NewMemory(), every, idempotency.WithMethods(http.MethodHead), quiet)(tt.handler))
				require.Equal(t, want, get())
				if tt.stored {
					want.Set("Idempotent-Replayed", "true")
				}
				require.Equal(t, want, get())
			})
		})
	}
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

// TestOuterHeadersTakenAway has handlers that take away what middleware outside
// had set: a replay lacks it too. What never is stored leaves no name either.
func TestOuterHeadersTakenAway(t *testing.T) {
	none := []string(nil)
	for name, tt := range map[string]struct {
		outside string // the names that are set there
		handler script
		stored  http.Header
		replay  string // of the names that were set outside
	}{
		"the only one":         {"X-A", script{drop("X-A")}, http.Header{"X-A": none}, ""},
		"the first by name":    {"A X-B", script{drop("A")}, http.Header{"A": none}, "X-B"},
		"the last by name":     {"A X-B", script{drop("X-B")}, http.Header{"X-B": none}, "A"},
		"one, and adds one":    {"A B", script{drop("A"), set("C", "1")}, http.Header{"A": none, "C": {"1"}}, "B"},
		"one between others":   {"B", script{drop("B"), set("A", "1"), set("X-C", "1")}, http.Header{"A": {"1"}, "B": none, "X-C": {"1"}}, ""},
		"all of them":          {"A B Z", script{drop("A"), drop("B"), drop("Z")}, http.Header{"A": none, "B": none, "Z": none}, ""},
		"none":                 {"A B", script{}, http.Header{}, "A B"},
		"and sets it anew":     {"A", script{drop("A"), set("A", "outside")}, http.Header{}, "A"},
		"and sets another":     {"A", script{drop("A"), set("A", "1")}, http.Header{"A": {"1"}}, "A"},
		"a cookie":             {"A Set-Cookie", script{drop("Set-Cookie")}, http.Header{}, "A Set-Cookie"},
		"a date, and an other": {"A Date", script{drop("Date"), drop("A")}, http.Header{"A": none}, "Date"},
		"without a value":      {"A", script{suppress("A")}, http.Header{"A": none}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			backend := newHooked()
			inner := idempotency.New(backend)(append(tt.handler, asJSON, says("{}")))
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				for _, name := range strings.Fields(tt.outside) {
					w.Header().Set(name, "outside")
				}
				inner.ServeHTTP(w, r)
			})
			send(h, request("k", "b"))
			tt.stored["Content-Type"] = []string{"application/json"}
			require.Equal(t, tt.stored, readResponse(t, lookup(t, backend, "k").Response).Header)
			w := send(h, request("k", "b"))
			requireReplayed(t, w, "{}")
			for _, name := range strings.Fields(tt.outside) {
				there := slices.Contains(strings.Fields(tt.replay), name)
				require.Equal(t, there, w.Header().Get(name) != "", name)
			}
		})
	}
}

// A header that is set after an empty Write comes too late, as with net/http.
func TestHeaderAfterAnEmptyWrite(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Write(nil)
		w.Header().Set("X-Late", "1")
		w.Write([]byte("<html>"))
	})
	for _, h := range []http.Handler{handler, idempotency.New(idempotency.NewMemory(), quiet)(handler)} {
		server := httptest.NewServer(h)
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL, strings.NewReader("b"))
		require.NoError(t, err)
		r.Header.Set("Idempotency-Key", "k")
		answer, err := server.Client().Do(r)
		require.NoError(t, err)
		require.NoError(t, answer.Body.Close())
		server.Close()
		require.Empty(t, answer.Header["X-Late"])
	}
}
