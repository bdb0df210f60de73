package idempotency_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

// keyTeller is a handler that tells the key that it sees, and counts its runs.
type keyTeller struct{ runs int }

func (k *keyTeller) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	k.runs++
	key, ok := idempotency.KeyFromContext(r.Context())
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"key": key, "ok": ok})
}

// post sends a request whose key header has these lines.
func (k *keyTeller) post(h http.Handler, lines ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, "/payments", strings.NewReader(`{"amount":"10.00"}`))
	if len(lines) > 0 {
		r.Header["Idempotency-Key"] = lines
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// requireKey checks that the handler ran, or was replayed, with this key.
func requireKey(t *testing.T, w *httptest.ResponseRecorder, key string) {
	t.Helper()
	require.Equal(t, http.StatusOK, w.Code, w.Body)
	var told struct {
		Key string
		OK  bool
	}
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &told))
	require.Equal(t, key, told.Key)
	require.Equal(t, key != "", told.OK)
}

func TestKeySpellings(t *testing.T) {
	long := strings.Repeat("k", 255)
	for _, test := range []struct{ name, line, key string }{
		{"bare", "8e03978e-40d5-43dd-bc93-6894a57f9324", "8e03978e-40d5-43dd-bc93-6894a57f9324"},
		{"bare, one character", "k", "k"},
		{"bare, 255 characters", long, long},
		{"bare, with a quote inside", `a"b`, `a"b`},
		{"bare, with a quote at its end", `a"`, `a"`},
		{"bare, with a backslash", `a\b`, `a\b`},
		{"bare, begins with a backslash", `\"a\"`, `\"a\"`},
		{"bare, spaces inside", "a  b", "a  b"},
		{"bare, with the look of parameters", "a;p=1", "a;p=1"},
		{"bare, with a comma", "a, b", "a, b"},
		{"bare, in single quotes", "'a'", "'a'"},
		{"bare, lowest and highest character", "! ~", "! ~"},
		{"bare, spaces around", "  a b  ", "a b"},
		{"bare, tabs around", "\ta\t", "a"},
		{"quoted", `"8e03978e"`, "8e03978e"},
		{"quoted, one character", `"k"`, "k"},
		{"quoted, a space", `" "`, " "},
		{"quoted, spaces at the ends", `" a "`, " a "},
		{"quoted, lowest and highest character", `" ~"`, " ~"},
		{"quoted, an escaped quote", `"a\"b"`, `a"b`},
		{"quoted, nothing but an escaped quote", `"\""`, `"`},
		{"quoted, an escaped backslash", `"a\\b"`, `a\b`},
		{"quoted, nothing but an escaped backslash", `"\\"`, `\`},
		{"quoted, an escaped backslash, then an escaped quote", `"\\\""`, `\"`},
		{"quoted, an escaped backslash before the end", `"a\\"`, `a\`},
		{"quoted, 255 characters", `"` + long + `"`, long},
		{"quoted, 255 escaped quotes", `"` + strings.Repeat(`\"`, 255) + `"`, strings.Repeat(`"`, 255)},
		{"quoted, 255 escaped backslashes", `"` + strings.Repeat(`\\`, 255) + `"`, strings.Repeat(`\`, 255)},
		{"quoted, spaces around", `  "a"  `, "a"},
		{"quoted, tabs around", "\t\"a\"\t", "a"},
		{"quoted, the look of parameters inside", `"a;p=1"`, "a;p=1"},
		{"parameter", `"a";p=1`, "a"},
		{"parameter without a value", `"a";p`, "a"},
		{"parameters of each kind", `"a\"";a=-1;b=1.5;c="\"\\";d=*t:/;e=:YQ==:;f=?0;g=@-9;h=%"%c3%a9 "`, `a"`},
		{"parameter, spaces before its name", `"a";  *p-_.1=t`, "a"},
		{"parameter twice", `"a";p=1;p=2`, "a"},
	} {
		t.Run(test.name, func(t *testing.T) {
			teller := new(keyTeller)
			h := idempotency.New(idempotency.NewMemory())(teller)
			requireKey(t, teller.post(h, test.line), test.key)

			// Its canonical quoted spelling names the same key.
			quoted := `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(test.key) + `"`
			w := teller.post(h, quoted)
			requireKey(t, w, test.key)
			require.Equal(t, "true", w.Header().Get("Idempotent-Replayed"))
			require.Equal(t, 1, teller.runs)

			// And so does the bare one, for a key that can be spelled so.
			if strings.Trim(test.key, " ") == test.key && test.key[0] != '"' {
				require.Equal(t, "true", teller.post(h, test.key).Header().Get("Idempotent-Replayed"))
				require.Equal(t, 1, teller.runs)
			}
		})
	}
}

// Spellings that look alike and name other keys.
func TestKeysToldApart(t *testing.T) {
	teller := new(keyTeller)
	h := idempotency.New(idempotency.NewMemory())(teller)
	for i, line := range []string{"a", "A", `"a "`, `" a"`, `a\`, `\a`, `"\"a\""`, `"\"a"`, `a"`, "'a'", "a;p=1", "a b", "a  b"} {
		require.Empty(t, teller.post(h, line).Header().Get("Idempotent-Replayed"), line)
		require.Equal(t, i+1, teller.runs, line)
	}
}

func TestMalformedKeys(t *testing.T) {
	long := strings.Repeat("k", 255)
	for _, test := range []struct {
		name   string
		lines  []string
		reason string // a part of the detail
	}{
		{"empty quoted string", []string{`""`}, "1 to 255 characters"},
		{"bare, 256 characters", []string{long + "k"}, "1 to 255 characters"},
		{"quoted, 256 characters", []string{`"` + long + `k"`}, "1 to 255 characters"},
		{"quoted, 256 escaped quotes", []string{`"` + strings.Repeat(`\"`, 256) + `"`}, "1 to 255 characters"},
		{"very long", []string{strings.Repeat("k", 1<<20)}, "1 to 255 characters"},
		{"a quote alone", []string{`"`}, "quoted string"},
		{"unterminated", []string{`"a`}, "quoted string"},
		{"the end is escaped", []string{`"a\"`}, "quoted string"},
		{"nothing but an escaped end", []string{`"\"`}, "quoted string"},
		{"a backslash before an escaped end", []string{`"\\\"`}, "quoted string"},
		{"a quote inside", []string{`"a"b"`}, "quoted string"},
		{"quotes inside", []string{`"""`}, "quoted string"},
		{"two strings", []string{`"a" "b"`}, "quoted string"},
		{"two strings, a comma", []string{`"a", "b"`}, "quoted string"},
		{"text after the quote", []string{`"a"b`}, "quoted string"},
		{"space and text after the quote", []string{`"a" b`}, "quoted string"},
		{"a semicolon after the quote", []string{`"a";`}, "only parameters"},
		{"a space before the parameters", []string{`"a" ;p`}, "only parameters"},
		{"a parameter in capitals", []string{`"a";P`}, "only parameters"},
		{"a parameter that begins with a digit", []string{`"a";1p`}, "only parameters"},
		{"a parameter without its value", []string{`"a";p=`}, "only parameters"},
		{"a parameter with a space before its value", []string{`"a";p= 1`}, "only parameters"},
		{"an integer of 16 digits", []string{`"a";p=1234567890123456`}, "only parameters"},
		{"a decimal of four places", []string{`"a";p=1.1234`}, "only parameters"},
		{"a decimal without places", []string{`"a";p=1.`}, "only parameters"},
		{"a boolean that is none", []string{`"a";p=?2`}, "only parameters"},
		{"an unterminated parameter", []string{`"a";p="b`}, "only parameters"},
		{"an escape in a parameter", []string{`"a";p="\n"`}, "only parameters"},
		{"a capital in a display string", []string{`"a";p=%"%C3"`}, "only parameters"},
		{"unterminated bytes", []string{`"a";p=:YQ==`}, "only parameters"},
		{"a list as a parameter", []string{`"a";p=(1)`}, "only parameters"},
		{`escape \n`, []string{`"a\nb"`}, "quoted string"},
		{`escape \x41`, []string{`"\x41"`}, "quoted string"},
		{`escape \ and space`, []string{`"\ "`}, "quoted string"},
		{`escape \/`, []string{`"\/"`}, "quoted string"},
		{"0x1F", []string{"a\x1fb"}, "printable ASCII"},
		{"0x1F, quoted", []string{"\"a\x1fb\""}, "printable ASCII"},
		{"0x1F alone", []string{"\x1f"}, "printable ASCII"},
		{"0x7F", []string{"a\x7f"}, "printable ASCII"},
		{"0x7F, quoted", []string{"\"\x7f\""}, "printable ASCII"},
		{"0x80", []string{"\x80"}, "printable ASCII"},
		{"0xFF", []string{"\xff"}, "printable ASCII"},
		{"NUL", []string{"\x00"}, "printable ASCII"},
		{"a tab inside", []string{"a\tb"}, "printable ASCII"},
		{"a tab inside the quotes", []string{"\"a\t\""}, "printable ASCII"},
		{"a line break inside", []string{"a\r\nb"}, "printable ASCII"},
		{"UTF-8", []string{"café"}, "printable ASCII"},
		{"UTF-8, quoted", []string{`"café"`}, "printable ASCII"},
		{"a no-break space before", []string{"\u00a0a"}, "printable ASCII"},
		{"two lines", []string{"a", "b"}, "one header line"},
		{"two lines that agree", []string{"a", "a"}, "one header line"},
		{"two lines, bare and quoted", []string{"a", `"a"`}, "one header line"},
		{"two lines, one of them empty", []string{"a", ""}, "one header line"},
		{"two lines, the first of them empty", []string{"", "a"}, "one header line"},
	} {
		t.Run(test.name, func(t *testing.T) {
			teller := new(keyTeller)
			var seen []idempotency.Event
			h := idempotency.New(untouched{t}, eventsInto(&seen))(teller)
			w := teller.post(h, test.lines...)
			require.Equal(t, http.StatusUnprocessableEntity, w.Code)
			require.Equal(t, "application/problem+json", w.Header().Get("Content-Type"))
			require.Empty(t, w.Header().Get("Retry-After"), "a retry would not help")
			require.Zero(t, teller.runs)
			var problem struct {
				Type, Title, Detail string
				Status              int
			}
			require.NoError(t, json.Unmarshal(w.Body.Bytes(), &problem))
			require.True(t, strings.HasSuffix(problem.Type, "#key-invalid"), problem.Type)
			require.Equal(t, http.StatusUnprocessableEntity, problem.Status)
			require.Contains(t, problem.Detail, test.reason)
			require.Len(t, seen, 1)
			require.Equal(t, idempotency.Rejected, seen[0].Outcome)
			require.ErrorIs(t, seen[0].Err, idempotency.ErrKeyInvalid)
		})
	}
}

// An absent key and an empty one are no key: the handler runs each time.
func TestAbsentKeys(t *testing.T) {
	for _, test := range []struct {
		name  string
		lines []string
	}{
		{"no header", nil},
		{"empty", []string{""}},
		{"a space", []string{" "}},
		{"spaces and tabs", []string{" \t "}},
	} {
		t.Run(test.name, func(t *testing.T) {
			teller := new(keyTeller)
			h := idempotency.New(untouched{t})(teller)
			for range 2 {
				requireKey(t, teller.post(h, test.lines...), "")
			}
			require.Equal(t, 2, teller.runs)

			h = idempotency.New(untouched{t}, idempotency.WithRequired())(teller)
			require.Equal(t, http.StatusBadRequest, teller.post(h, test.lines...).Code)
			require.Equal(t, 2, teller.runs)
		})
	}
}

// untouched is a backend that must not be asked: it fails the test.
type untouched struct{ t *testing.T }

func (u untouched) Claim(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
	u.t.Error("Claim was called")
	return idempotency.Record{}, true, nil
}

func (u untouched) Renew(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms, progress []byte) error {
	u.t.Error("Renew was called")
	return nil
}

func (u untouched) Complete(ctx context.Context, key idempotency.Key, claim idempotency.Claim, response []byte, expiry time.Duration) error {
	u.t.Error("Complete was called")
	return nil
}

func (u untouched) Release(ctx context.Context, key idempotency.Key, claim idempotency.Claim, trace time.Duration) error {
	u.t.Error("Release was called")
	return nil
}

// eventsInto appends the events to a slice.
func eventsInto(seen *[]idempotency.Event) idempotency.Option {
	return idempotency.WithObserver(func(_ context.Context, e idempotency.Event) { *seen = append(*seen, e) })
}

// As a validator it sees the key without its quotes, and no malformed key.
func TestUUIDv4AsValidator(t *testing.T) {
	teller := new(keyTeller)
	h := idempotency.New(idempotency.NewMemory(), idempotency.WithKeyValidator(idempotency.UUIDv4))(teller)
	const id = "8e03978e-40d5-43dd-bc93-6894a57f9324"
	requireKey(t, teller.post(h, `"`+id+`"`), id)
	requireKey(t, teller.post(h, id), id)
	require.Equal(t, 1, teller.runs)
	for _, bad := range []string{"payment-1", "{" + id + "}", `"urn:uuid:` + id + `"`} {
		w := teller.post(h, bad)
		require.Equal(t, http.StatusUnprocessableEntity, w.Code, bad)
		require.Contains(t, w.Body.String(), "version 4 UUID")
		require.NotContains(t, w.Body.String(), id)
	}
	require.Equal(t, 1, teller.runs)
}

func TestKeyValidator(t *testing.T) {
	p, es := &payments{}, &events{}
	refused := errors.New("keys of this service begin with ord_")
	var asked []string
	h := idempotency.New(idempotency.NewMemory(), es.option(), idempotency.WithKeyValidator(func(key string) error {
		asked = append(asked, key)
		if strings.HasPrefix(key, "ord_") {
			return nil
		}
		return refused
	}))(p)

	detail := requireProblem(t, send(h, request(`"secret key"`, "b")), http.StatusUnprocessableEntity, "ErrKeyInvalid")
	require.Contains(t, detail, refused.Error())
	require.NotContains(t, detail, "secret")
	e, _ := es.last(t)
	require.Equal(t, idempotency.Rejected, e.Outcome)
	require.Equal(t, "secret key", e.Key)
	require.ErrorIs(t, e.Err, idempotency.ErrKeyInvalid)
	require.ErrorIs(t, e.Err, refused)

	requireProblem(t, send(h, request("caf\xc3\xa9", "b")), http.StatusUnprocessableEntity, "ErrKeyInvalid")
	require.Equal(t, http.StatusCreated, send(h, request("ord_1", "b")).Code)
	require.Equal(t, []string{"secret key", "ord_1"}, asked, "the validator sees what passed the built-in checks, unquoted")
}

// Through the middleware, scope and key do not run into each other either.
func TestScopesAreApart(t *testing.T) {
	teller := new(keyTeller)
	scope := func(r *http.Request) string { return r.Header.Get("Tenant") }
	h := idempotency.New(idempotency.NewMemory(), idempotency.WithScope(scope))(teller)
	send := func(tenant, key string) bool {
		r := httptest.NewRequest(http.MethodPost, "/payments", strings.NewReader("{}"))
		r.Header.Set("Tenant", tenant)
		r.Header.Set("Idempotency-Key", key)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		requireKey(t, w, key)
		return w.Header().Get("Idempotent-Replayed") == "true"
	}
	pairs := [][2]string{{"a", "bc"}, {"ab", "c"}, {"", "abc"}, {"a", "b"}, {"b", "a"}, {"a:b", "c"}, {"a", "b:c"}}
	for _, pair := range pairs {
		require.False(t, send(pair[0], pair[1]), pair)
	}
	for _, pair := range pairs {
		require.True(t, send(pair[0], pair[1]), pair)
	}
	require.Equal(t, len(pairs), teller.runs)
}

func TestScope(t *testing.T) {
	forEachBackend(t, func(t *testing.T, newBackend func(*testing.T) idempotency.Backend) {
		p := &payments{}
		var keys []idempotency.Key
		backend := newBackend(t)
		spy := newHooked()
		spy.claim = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
			keys = append(keys, key)
			return backend.Claim(ctx, key, claim, terms)
		}
		spy.complete = backend.Complete
		h := idempotency.New(spy, idempotency.WithScope(func(r *http.Request) string { return r.Header.Get("X-Tenant") }))(p)
		as := func(tenant string) *httptest.ResponseRecorder {
			r := request("k", "b")
			r.Header.Set("X-Tenant", tenant)
			return send(h, r)
		}
		require.Equal(t, `{"payment":1}`, as("acme").Body.String())
		require.Equal(t, `{"payment":2}`, as("bolt").Body.String())
		require.Equal(t, `{"payment":1}`, as("acme").Body.String())
		require.EqualValues(t, 2, p.runs.Load())
		require.Equal(t, []idempotency.Key{idempotency.NewKey("acme", "k"), idempotency.NewKey("bolt", "k"), idempotency.NewKey("acme", "k")}, keys)
	})
}
