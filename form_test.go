package idempotency_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"strings"
	"testing"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

// A form that middleware outside has parsed counts by its values and files, and the
// handler gets it as it stands.
func TestFormParsedOutside(t *testing.T) {
	file := func(amount, file string) *http.Request {
		return multipartRequest("k", "x", multipartBody("x", amount, file))
	}
	form := func(body string) *http.Request { return formRequest("k", body) }
	renamed := multipartRequest("k", "x", strings.Replace(multipartBody("x", "10", "file"), "a.txt", "b.txt", 1))
	ignoring := idempotency.WithFingerprint(func(r *http.Request, body []byte) []byte { return []byte(r.FormValue("amount")) })
	ofBody := idempotency.WithFingerprint(func(r *http.Request, body []byte) []byte { return body })
	asJSONText := idempotency.WithFingerprint(idempotency.JSONFingerprint())
	tests := map[string]struct {
		first, second *http.Request
		opts          []idempotency.Option
		same          bool
	}{
		"the same form":                 {form("amount=10&a=1"), form("amount=10&a=1"), nil, true},
		"in another order":              {form("amount=10&a=1"), form("a=1&amount=10"), nil, true},
		"another value":                 {form("amount=10"), form("amount=9999"), nil, false},
		"another name":                  {form("amount=10&a=1"), form("amount=10&b=1"), nil, false},
		"values in another order":       {form("amount=10&a=1&a=2"), form("amount=10&a=2&a=1"), nil, false},
		"values told apart":             {form("amount=10&a=1%26b%3D2"), form("amount=10&a=1&b=2"), nil, false},
		"the same file":                 {file("10", "file"), file("10", "file"), nil, true},
		"another file":                  {file("10", "file"), file("10", "FILE"), nil, false},
		"another name of the file":      {file("10", "file"), renamed, nil, false},
		"another value beside a file":   {file("10", "file"), file("9999", "file"), nil, false},
		"another boundary":              {file("10", "file"), multipartRequest("k", "other", multipartBody("other", "10", "file")), nil, true},
		"own fingerprint, ignored":      {form("amount=10&a=1"), form("amount=10&a=2"), with(ignoring), true},
		"own fingerprint, counted":      {form("amount=10&a=1"), form("amount=9999&a=1"), with(ignoring), false},
		"own fingerprint over the body": {form("amount=10"), form("amount=9999"), with(ofBody), false},
		"own, over another file":        {file("10", "file"), file("10", "FILE"), with(ofBody), false},
		"own, over the same file":       {file("10", "file"), file("10", "file"), with(ofBody), true},
		"own, over the limit":           {form("amount=10&a=1"), form("amount=10&a=2"), with(ofBody, limit(10)), false},
		"own, ignored over the limit":   {form("amount=10&a=1"), form("amount=10&a=2"), with(ignoring, limit(10)), true},
		"own, a file over the limit":    {file("10", "file"), file("10", "FILE"), with(ofBody, limit(10)), false},
		"as JSON, another boundary":     {file("10", "file"), multipartRequest("k", "other", multipartBody("other", "10", "file")), with(asJSONText), true},
		"as JSON, another file":         {file("10", "file"), file("10", "FILE"), with(asJSONText, limit(10)), false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			h := idempotency.New(idempotency.NewMemory(), tt.opts...)(http.HandlerFunc(amountPaid))
			outside := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				r.FormValue("_method") // as gorilla's HTTPMethodOverrideHandler does
				h.ServeHTTP(w, r)
			})
			require.Equal(t, `"10"`, send(outside, tt.first).Body.String())
			w := send(outside, tt.second)
			if tt.same {
				requireReplayed(t, w, `"10"`)
			} else {
				requireProblem(t, w, http.StatusUnprocessableEntity, "ErrKeyReused")
			}
		})
	}
}

// A form that was parsed outside counts for a function of WithFingerprint, whatever stands in
// the body beside it: what came behind the form, or the body put back.
func TestFingerprintFuncOfAFormBesideABody(t *testing.T) {
	behind := func(r *http.Request) {
		require.NoError(t, r.ParseMultipartForm(1<<20))
		r.Body = io.NopCloser(strings.NewReader(r.Header.Get("Behind")))
	}
	putBack := func(r *http.Request) {
		body, err := io.ReadAll(r.Body)
		require.NoError(t, err)
		r.Body = io.NopCloser(bytes.NewReader(body))
		r.FormValue("amount")
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	alone := multipartRequest("k", "x", multipartBody("x", "10", "file"))
	file := func(amount string) *http.Request {
		r := multipartRequest("k", "x", multipartBody("x", amount, "file"))
		r.Header.Set("Behind", "\r\n")
		return r
	}
	form := func(amount string) *http.Request { return formRequest("k", "a=1234567890&amount="+amount) }
	chunks := func(r *http.Request) *http.Request {
		r.ContentLength = -1
		return r
	}
	for name, f := range map[string]func(*http.Request, []byte) []byte{
		"the body": func(_ *http.Request, body []byte) []byte { return body }, "as JSON": idempotency.JSONFingerprint(),
	} {
		for _, tt := range []struct {
			name          string
			outside       func(*http.Request)
			first, second *http.Request
			same          bool
		}{
			{"behind, the same", behind, file("10"), file("10"), true},
			{"behind one of them, the same", behind, alone, file("10"), true},
			{"behind, another", behind, file("10"), file("99"), false},
			{"behind, in chunks, another", behind, chunks(file("10")), chunks(file("99")), false},
			{"put back, the same", putBack, form("10"), form("10"), true},
			{"put back, another", putBack, form("10"), form("99"), false},
			{"put back, in chunks, another", putBack, chunks(form("10")), chunks(form("99")), false},
		} {
			t.Run(name+", "+tt.name, func(t *testing.T) {
				h := idempotency.New(idempotency.NewMemory(), limit(10), idempotency.WithFingerprint(f))(script{asJSON, says("1")})
				outside := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					tt.outside(r)
					h.ServeHTTP(w, r)
				})
				require.Equal(t, "1", send(outside, tt.first).Body.String())
				w := send(outside, tt.second)
				if tt.same {
					require.Equal(t, "true", w.Header().Get("Idempotent-Replayed"))
				} else {
					requireProblem(t, w, http.StatusUnprocessableEntity, "ErrKeyReused")
				}
			})
		}
	}
}

// A handler may read what is left of a body beside its form: nothing, which is no fault.
func TestRestOfAParsedForm(t *testing.T) {
	for name, opts := range map[string][]idempotency.Option{"compared": nil, "not compared": with(idempotency.WithFingerprint(nil))} {
		t.Run(name, func(t *testing.T) {
			h := idempotency.New(idempotency.NewMemory(), append(opts, limit(4))...)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				rest, err := io.ReadAll(r.Body)
				require.NoError(t, err)
				require.Empty(t, rest)
				io.WriteString(w, r.FormValue("a"))
			}))
			for _, replayed := range []string{"", "true"} {
				r := formRequest("k", "a=1&b=2")
				require.NoError(t, r.ParseForm())
				require.Equal(t, replayed, send(h, r).Header().Get("Idempotent-Replayed"))
			}
		})
	}
}

// A function gets a form that was parsed outside, as the body that it was.
func TestFingerprintFuncOfAParsedForm(t *testing.T) {
	var bodies []string
	f := func(r *http.Request, body []byte) []byte {
		bodies = append(bodies, string(body))
		return body
	}
	const sent = "a=1&amount=10"
	for _, opts := range [][]idempotency.Option{nil, with(limit(len(sent))), with(limit(3))} {
		h := idempotency.New(idempotency.NewMemory(), append(opts, idempotency.WithFingerprint(f))...)(&payments{})
		r := formRequest("k", sent)
		require.NoError(t, r.ParseForm())
		require.Equal(t, http.StatusCreated, send(h, r).Code)
	}
	require.Equal(t, []string{sent, sent, sent}, bodies, "all of it: what was parsed is in memory")
}

// A body that is whole counts, also beside a form.
func TestWholeBodyBesideAForm(t *testing.T) {
	both := func(body string) *http.Request {
		r := request("k", body)
		r.PostForm = map[string][]string{"a": {"1"}}
		return r
	}
	h := idempotency.New(idempotency.NewMemory())(&payments{})
	require.Equal(t, http.StatusCreated, send(h, both("b")).Code)
	require.Equal(t, "true", send(h, both("b")).Header().Get("Idempotent-Replayed"))
	requireProblem(t, send(h, both("c")), http.StatusUnprocessableEntity, "ErrKeyReused")
	requireProblem(t, send(h, request("k", "b")), http.StatusUnprocessableEntity, "ErrKeyReused")
}

// A form of other middleware may have its values in the multipart form alone.
func TestMultipartFormReadByHand(t *testing.T) {
	h := idempotency.New(idempotency.NewMemory())(&payments{})
	read := func(amount string) *http.Request {
		r := multipartRequest("k", "x", multipartBody("x", amount, "file"))
		form, err := multipart.NewReader(r.Body, "x").ReadForm(1 << 20)
		require.NoError(t, err)
		r.MultipartForm = form
		return r
	}
	require.Equal(t, http.StatusCreated, send(h, read("10")).Code)
	require.Equal(t, "true", send(h, read("10")).Header().Get("Idempotent-Replayed"))
	requireProblem(t, send(h, read("9999")), http.StatusUnprocessableEntity, "ErrKeyReused")
}

func TestFileOfAParsedFormIsGone(t *testing.T) {
	var log bytes.Buffer
	p := &payments{}
	h := idempotency.New(idempotency.NewMemory(), logInto(&log))(p)
	r := multipartRequest("k", "x", multipartBody("x", "10", "file"))
	require.NoError(t, r.ParseMultipartForm(0))
	require.NoError(t, r.MultipartForm.RemoveAll())
	require.Equal(t, http.StatusInternalServerError, send(h, r).Code)
	require.Contains(t, log.String(), "file of a form")
	require.Zero(t, p.runs.Load())
}

// The boundary of a multipart body does not count. Elsewhere it is content.
func TestBoundaryDoesNotCount(t *testing.T) {
	post := func(boundary, body string) *http.Request { return multipartRequest("k", boundary, body) }
	whole := multipartBody("abc", "10", "file")
	part := func(boundary, content string) *http.Request {
		return post(boundary, multipartBody(boundary, content, ""))
	}
	typed := func(contentType, body string) *http.Request {
		r := request("k", body)
		r.Header.Set("Content-Type", contentType)
		return r
	}
	tests := map[string]struct {
		first, second *http.Request
		same          bool
	}{
		"the same":                      {post("abc", whole), post("abc", whole), true},
		"another boundary":              {post("abc", whole), post("other-boundary", multipartBody("other-boundary", "10", "file")), true},
		"of another case of the type":   {post("abc", whole), typed(`Multipart/Form-Data; charset=x; boundary="a c"`, multipartBody("a c", "10", "file")), true},
		"of another multipart type":     {post("abc", whole), typed("multipart/mixed; boundary=y", multipartBody("y", "10", "file")), true},
		"another content":               {post("abc", whole), post("xyz", multipartBody("xyz", "9999", "file")), false},
		"a part moved":                  {post("abc", "--abc\r\na\r\n--abc\r\n\r\n--abc--\r\n"), post("xyz", "--xyz\r\n\r\n--xyz\r\na\r\n--xyz--\r\n"), false},
		"content like a boundary":       {part("abc", "pay --abc"), part("xyz", "pay --xyz"), false},
		"a line like a boundary":        {part("abc", "\r\n--abcd"), part("xyz", "\r\n--xyzd"), false},
		"a line end like a boundary":    {part("abc", "\n--abc\n"), part("xyz", "\n--xyz\n"), false},
		"an empty line before":          {post("abc", whole), post("abc", "\r\n"+whole), false},
		"a line with a space after it":  {part("abc", "\r\n--xyz \r\n"), part("xyz", "\r\n--xyz \r\n"), false},
		"a first line that ends short":  {post("abc", "--xyz\n\r\n"+multipartBody("abc", "10", "")), post("xyz", "--xyz\n\r\n"+multipartBody("xyz", "10", "")), false},
		"no boundary in the body":       {post("abc", "amount=10"), request("k", "amount=10"), true},
		"no boundary, another body":     {post("abc", "amount=10"), post("xyz", "amount=9999"), false},
		"no boundary in the type":       {typed("multipart/form-data", whole), request("k", whole), true},
		"a type that is not multipart":  {typed("text/plain; boundary=abc", whole), typed("text/plain; boundary=xyz", multipartBody("xyz", "10", "file")), false},
		"a malformed type":              {typed("multipart/;;", whole), request("k", whole), true},
		"the same bytes, not multipart": {post("abc", whole), request("k", whole), false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			h := idempotency.New(idempotency.NewMemory())(&payments{})
			require.Equal(t, http.StatusCreated, send(h, tt.first).Code)
			w := send(h, tt.second)
			if tt.same {
				requireReplayed(t, w, `{"payment":1}`)
			} else {
				requireProblem(t, w, http.StatusUnprocessableEntity, "ErrKeyReused")
			}
		})
	}
}

// Stores hold fingerprints that other releases compare with.
func TestFormFingerprintIsStable(t *testing.T) {
	hash := func(s string) string { sum := sha256.Sum256([]byte(s)); return string(sum[:]) }
	segment := func(s string) string { return string(binary.BigEndian.AppendUint64(nil, uint64(len(s)))) + s }
	const parts = "\x01k\x04POST\x09/payments\x00\x0ccurrency=EUR\x00"
	split := parts + "\x04" + hash(segment("")+segment("\r\n\r\na\r\n")+segment("--\r\n"))
	require.Equal(t, hash(split), fingerprintOf(multipartRequest("k", "x", "--x\r\n\r\na\r\n--x--\r\n")))

	form := formRequest("k", "b=2&a=1")
	require.NoError(t, form.ParseForm())
	require.Equal(t, hash(parts+"\x02"+hash("a=1&b=2")), fingerprintOf(form))

	file := multipartRequest("k", "x", multipartBody("x", "10", "file"))
	require.NoError(t, file.ParseMultipartForm(1<<20))
	require.Equal(t, hash(parts+"\x02"+hash("amount=10\n\x01f\x05a.txt\x0atext/plain\x20"+hash("file"))), fingerprintOf(file))
}

func fingerprintOf(r *http.Request) string {
	sum := claimSent(r).Fingerprint
	return string(sum[:])
}

// What is left out of a fingerprint is what mime/multipart takes for a delimiter.
func FuzzBoundary(f *testing.F) {
	f.Add("10", "--abc", "abc", "xyz")
	f.Add("\r\n--abc\r\n", "\r\n--abc--", "abc", "xyz")
	f.Add("-", "\r\n---", "-", "--")
	f.Fuzz(func(t *testing.T, one, two, boundary, other string) {
		var w multipart.Writer
		if w.SetBoundary(boundary) != nil || w.SetBoundary(other) != nil || strings.ContainsAny(boundary+other, `"\`) {
			return
		}
		write := func(boundary string) *http.Request {
			var body bytes.Buffer
			w := multipart.NewWriter(&body)
			require.NoError(t, w.SetBoundary(boundary))
			for _, content := range []string{one, two} {
				part, err := w.CreatePart(textproto.MIMEHeader{"Content-Disposition": {`form-data; name="a"`}})
				require.NoError(t, err)
				io.WriteString(part, content)
			}
			require.NoError(t, w.Close())
			r := request("k", body.String())
			r.Header.Set("Content-Type", w.FormDataContentType())
			return r
		}
		read := func(r *http.Request) (parts []string) {
			reader, err := r.MultipartReader()
			if err != nil {
				return nil
			}
			for {
				part, err := reader.NextPart()
				if err != nil {
					return parts
				}
				content, err := io.ReadAll(part)
				parts = append(parts, string(content), http.Header(part.Header).Get("Content-Disposition"))
				if err != nil {
					return parts
				}
			}
		}
		if claimSent(write(boundary)).Fingerprint == claimSent(write(other)).Fingerprint {
			require.Equal(t, read(write(boundary)), read(write(other)), "two that are not the same have one fingerprint")
		}
	})
}

// A body that was read outside can neither be compared nor reach the handler.
func TestEatenBody(t *testing.T) {
	chunked := func(r *http.Request) *http.Request { r.ContentLength = -1; return r }
	eat := func(r *http.Request, n int64) *http.Request {
		_, err := io.CopyN(io.Discard, r.Body, n)
		require.NoError(t, err)
		return r
	}
	replaced := request("k", "body")
	replaced.Body = http.NoBody
	taken := request("k", "body")
	taken.Body = nil
	onlyQuery := formRequest("k", "")
	onlyQuery.ContentLength = 4
	require.NoError(t, onlyQuery.ParseForm())
	halfMultipart := multipartRequest("k", "x", multipartBody("x", "10", "file"))
	reader, err := halfMultipart.MultipartReader()
	require.NoError(t, err)
	_, err = reader.NextPart()
	require.NoError(t, err)
	own := idempotency.WithFingerprint(func(r *http.Request, body []byte) []byte { return body })
	parsed := func(r *http.Request) *http.Request { _ = r.ParseForm(); return r } // as middleware that ignores its error
	typed := func(contentType string, r *http.Request) *http.Request {
		r.Header.Set("Content-Type", contentType)
		return r
	}
	putBack := func(r *http.Request, body string) *http.Request {
		r.Body = io.NopCloser(strings.NewReader(body))
		return r
	}
	long := "amount=10&pad=" + strings.Repeat("x", 11<<20) // ParseForm reads 10 MiB of it, and leaves an empty form.
	longForm := func() *http.Request { return formRequest("k", long) }
	forgotten := putBack(parsed(longForm()), long)
	forgotten.PostForm = nil
	deleted := formRequest("k", "a=1")
	deleted.Method = http.MethodDelete // ParseForm leaves its body alone.
	ofDelete := idempotency.WithMethods(http.MethodDelete)
	tests := map[string]struct {
		r     *http.Request
		opts  []idempotency.Option
		eaten bool
	}{
		"whole":                            {request("k", "body"), nil, false},
		"whole, no length declared":        {chunked(request("k", "body")), nil, false},
		"over the limit":                   {request("k", "body"), with(limit(2)), false},
		"over the limit, none declared":    {chunked(request("k", "body")), with(limit(2)), false},
		"no body":                          {request("k", ""), nil, false},
		"all eaten":                        {eat(request("k", "body"), 4), nil, true},
		"some eaten":                       {eat(request("k", "body"), 1), nil, true},
		"some eaten of a long body":        {eat(request("k", "body"), 2), with(limit(2)), true},
		"all eaten, no length declared":    {eat(chunked(request("k", "body")), 4), nil, true},
		"an empty body in chunks":          {chunked(request("k", "")), nil, true},
		"replaced by no body":              {replaced, nil, true},
		"taken away":                       {taken, nil, true},
		"all eaten, own fingerprint":       {eat(request("k", "body"), 4), with(own), true},
		"a form of the query only":         {onlyQuery, nil, true},
		"read by parts":                    {halfMultipart, nil, true},
		"all eaten, not compared":          {eat(request("k", "body"), 4), with(idempotency.WithFingerprint(nil)), false},
		"eaten, though the store would do": {eat(request("k", "body"), 4), with(idempotency.WithFailOpen()), true},

		"a long form, in part":                 {parsed(longForm()), nil, true},
		"a long form, in part, none declared":  {parsed(chunked(longForm())), nil, true},
		"a long form, nothing held":            {parsed(longForm()), with(limit(0)), true},
		"a long form, the rest held":           {parsed(chunked(longForm())), with(limit(2 << 20)), true},
		"a long form, own fingerprint":         {parsed(longForm()), with(own), true},
		"a long form, of a type in full":       {parsed(typed("Application/X-WWW-Form-Urlencoded; charset=utf-8", longForm())), nil, true},
		"a long form, of a type half readable": {parsed(typed("application/x-www-form-urlencoded; charset", longForm())), nil, true},
		"a long form, not compared":            {parsed(longForm()), with(idempotency.WithFingerprint(nil)), false},
		"a long form, not parsed":              {longForm(), nil, false},
		"a long form, put back and forgotten":  {forgotten, nil, false},
		"a form, put back":                     {putBack(parsed(formRequest("k", "a=1")), "a=1"), nil, false},
		"a form over the limit, put back":      {putBack(parsed(formRequest("k", "a=1")), "a=1"), with(limit(2)), false},
		"a form of no values, put back":        {putBack(parsed(formRequest("k", "&")), "&"), nil, false},
		"another type, parsed":                 {parsed(typed("application/json", request("k", "body"))), with(limit(2)), false},
		"no type, parsed":                      {parsed(chunked(request("k", "body"))), nil, false},
		"a multipart form, its query parsed":   {parsed(multipartRequest("k", "x", multipartBody("x", "10", "file"))), with(limit(2)), false},
		"a form of another method, parsed":     {parsed(chunked(deleted)), with(ofDelete), false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			p, es, backend := &payments{}, &events{}, newCounted(never)
			h := idempotency.New(backend, append(tt.opts, es.option(), logInto(&log))...)(p)
			w := send(h, tt.r)
			if !tt.eaten {
				require.Equal(t, http.StatusCreated, w.Code)
				return
			}
			require.Equal(t, http.StatusInternalServerError, w.Code)
			require.Equal(t, "application/problem+json", w.Header().Get("Content-Type"))
			require.Contains(t, log.String(), "request refused")
			require.Contains(t, log.String(), "put what reads it inside")
			require.Zero(t, p.runs.Load())
			require.Zero(t, backend.claims.Load())
			e, n := es.last(t)
			require.Equal(t, 1, n)
			require.Equal(t, idempotency.Failed, e.Outcome)
			require.Equal(t, http.StatusInternalServerError, e.Status)
			require.Error(t, e.Err)
		})
	}
}

// The beginning of a long form counts: who parses it in part is refused, and nobody gets another form's replay.
func TestLongFormParsedOutside(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		p := &payments{}
		h := idempotency.New(idempotency.NewMemory(), quiet)(p)
		server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r.FormValue("_method") // as gorilla's HTTPMethodOverrideHandler does
			h.ServeHTTP(w, r)
		}))
		server.EnableHTTP2 = http2
		server.StartTLS()
		defer server.Close()
		for _, amount := range []string{"10", "99"} {
			for _, declared := range []bool{true, false} {
				var body io.Reader = strings.NewReader("amount=" + amount + "&pad=" + strings.Repeat("x", 11<<20))
				if !declared {
					body = io.MultiReader(body)
				}
				r, err := http.NewRequest(http.MethodPost, server.URL, body)
				require.NoError(t, err)
				r.Header.Set("Idempotency-Key", "k")
				r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
				resp, err := server.Client().Do(r)
				require.NoError(t, err)
				resp.Body.Close()
				require.Equal(t, http.StatusInternalServerError, resp.StatusCode, "%s, declared: %t", resp.Proto, declared)
			}
		}
		require.Zero(t, p.runs.Load())
	}
}

// What a scope, a fingerprint or the handler itself parses of a long form was not read outside.
func TestLongFormParsedInside(t *testing.T) {
	parse := func(r *http.Request) string { return r.FormValue("a") }
	opts := []idempotency.Option{
		idempotency.WithScope(parse),
		idempotency.WithFingerprint(func(r *http.Request, body []byte) []byte { parse(r); return body }),
		quiet,
	}
	backend, p := idempotency.NewMemory(), &payments{}
	inner := idempotency.New(backend, opts...)(p)
	h := idempotency.New(backend, opts...)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		parse(r)
		inner.ServeHTTP(w, r) // It steps aside.
	}))
	form := func(a string) *http.Request { return formRequest("k", "a="+a+"&pad="+strings.Repeat("x", 11<<20)) }
	require.Equal(t, http.StatusCreated, send(h, form("1")).Code)
	require.Equal(t, "true", send(h, form("1")).Header().Get("Idempotent-Replayed"))
	requireProblem(t, send(h, form("2")), http.StatusUnprocessableEntity, "ErrKeyReused")
	require.EqualValues(t, 1, p.runs.Load())
}

// A server tells no body from one that was eaten.
func TestRequestWithoutABody(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		server := httptest.NewUnstartedServer(idempotency.New(idempotency.NewMemory(), quiet)(&payments{}))
		server.EnableHTTP2 = http2
		server.StartTLS()
		defer server.Close()
		bodies := map[string]io.Reader{"nil": nil, "none": http.NoBody, "unknown length": io.MultiReader(strings.NewReader("body"))}
		for name, body := range bodies {
			r, err := http.NewRequest(http.MethodPost, server.URL, body)
			require.NoError(t, err)
			r.Header.Set("Idempotency-Key", strings.ReplaceAll(name, " ", "-"))
			resp, err := server.Client().Do(r)
			require.NoError(t, err)
			resp.Body.Close()
			require.Equal(t, http.StatusCreated, resp.StatusCode, "%s, %s", resp.Proto, name)
		}
	}
}
