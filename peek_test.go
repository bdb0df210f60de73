package idempotency_test

import (
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

// formRequest returns a POST with a key and an urlencoded form.
func formRequest(key, form string) *http.Request {
	r := request(key, form)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return r
}

// multipartBody returns a multipart body with an amount and a file.
func multipartBody(boundary, amount, file string) string {
	return "--" + boundary + "\r\nContent-Disposition: form-data; name=\"amount\"\r\n\r\n" + amount +
		"\r\n--" + boundary + "\r\nContent-Disposition: form-data; name=\"f\"; filename=\"a.txt\"\r\nContent-Type: text/plain\r\n\r\n" + file +
		"\r\n--" + boundary + "--\r\n"
}

func multipartRequest(key, boundary, body string) *http.Request {
	r := request(key, body)
	r.Header.Set("Content-Type", "multipart/form-data; boundary="+boundary)
	return r
}

// amountPaid answers with the amount of the form.
func amountPaid(w http.ResponseWriter, r *http.Request) {
	jsonHeader(w)
	io.WriteString(w, `"`+r.PostFormValue("amount")+`"`)
}

// What a function of the user's reads of the body, or parses as a form, counts and
// reaches the handler all the same.
func TestFunctionsReadTheBody(t *testing.T) {
	byForm := func(r *http.Request) string { return r.FormValue("account") }
	byBody := func(r *http.Request) string {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.Body.Close() != nil {
			panic(err)
		}
		return string(body[:7])
	}
	byMultipart := func(r *http.Request) string {
		reader, err := r.MultipartReader()
		if err != nil {
			return r.FormValue("account")
		}
		_, err = reader.NextPart()
		return errors.Join(err).Error()
	}
	asFingerprint := func(f func(r *http.Request) string) idempotency.Option {
		return idempotency.WithFingerprint(func(r *http.Request, body []byte) []byte { return append([]byte(f(r)), body...) })
	}
	tests := map[string][]idempotency.Option{
		"scope, form":               with(idempotency.WithScope(byForm)),
		"scope, body":               with(idempotency.WithScope(byBody)),
		"scope, multipart reader":   with(idempotency.WithScope(byMultipart)),
		"fingerprint, form":         with(asFingerprint(byForm)),
		"fingerprint, body":         with(asFingerprint(byBody)),
		"both, form":                with(idempotency.WithScope(byForm), asFingerprint(byForm)),
		"both, body then form":      with(idempotency.WithScope(byBody), asFingerprint(byForm)),
		"both, form then multipart": with(idempotency.WithScope(byForm), asFingerprint(byMultipart)),
	}
	for name, opts := range tests {
		t.Run(name, func(t *testing.T) {
			h := idempotency.New(idempotency.NewMemory(), opts...)(http.HandlerFunc(amountPaid))
			require.Equal(t, `"10"`, send(h, formRequest("k", "account=a&amount=10")).Body.String())
			requireReplayed(t, send(h, formRequest("k", "account=a&amount=10")), `"10"`)
			requireProblem(t, send(h, formRequest("k", "account=a&amount=9999")), http.StatusUnprocessableEntity, "ErrKeyReused")
		})
	}
}

// A form that middleware outside has parsed in part is not added to.
func TestFunctionsFormIsItsOwn(t *testing.T) {
	h := idempotency.New(idempotency.NewMemory(), idempotency.WithScope(func(r *http.Request) string { return r.FormValue("amount") }))(
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			require.NoError(t, r.ParseMultipartForm(1<<20))
			require.Equal(t, []string{"10"}, r.Form["amount"])
			require.Equal(t, []string{"10"}, r.PostForm["amount"])
		}))
	r := multipartRequest("k", "x", multipartBody("x", "10", "file"))
	require.NoError(t, r.ParseForm()) // It parses the query only, and leaves an empty form.
	require.Equal(t, http.StatusOK, send(h, r).Code)
}

func TestFunctionsReadTheBodyUpToTheLimit(t *testing.T) {
	const sent = "0123456789"
	var read string
	var err error
	scope := idempotency.WithScope(func(r *http.Request) string {
		var b []byte
		b, err = io.ReadAll(iotest.OneByteReader(r.Body))
		read = string(b)
		return ""
	})
	for _, limit := range []int{0, 4, len(sent) - 1} {
		h := idempotency.New(idempotency.NewMemory(), scope, idempotency.WithBufferLimit(limit))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			require.NoError(t, err)
			require.Equal(t, sent, string(body))
		}))
		require.Equal(t, http.StatusOK, send(h, request("k", sent)).Code)
		require.Equal(t, sent[:limit], read)
		var tooLarge *http.MaxBytesError
		require.ErrorAs(t, err, &tooLarge)
		require.EqualValues(t, limit, tooLarge.Limit)
	}
	h := idempotency.New(idempotency.NewMemory(), scope, idempotency.WithBufferLimit(len(sent)))(&payments{})
	require.Equal(t, http.StatusCreated, send(h, request("k", sent)).Code)
	require.Equal(t, sent, read)
	require.NoError(t, err)
}

// A function that does not read the body leaves it where it is.
func TestScopeWithoutFingerprint(t *testing.T) {
	unread := idempotency.WithScope(func(r *http.Request) string { return r.Header.Get("X-Account") })
	h := idempotency.New(idempotency.NewMemory(), unread, idempotency.WithFingerprint(nil))(&payments{})
	r := request("k", "b")
	r.Body = io.NopCloser(iotest.ErrReader(errors.New("the body was read")))
	require.Equal(t, http.StatusCreated, send(h, r).Code)

	reads := idempotency.WithScope(func(r *http.Request) string { return r.FormValue("account") })
	h = idempotency.New(idempotency.NewMemory(), reads, idempotency.WithFingerprint(nil))(http.HandlerFunc(amountPaid))
	require.Equal(t, `"10"`, send(h, formRequest("k", "account=a&amount=10")).Body.String())
	r = formRequest("k2", "")
	r.Body = io.NopCloser(io.MultiReader(strings.NewReader("account=a&am"), iotest.ErrReader(io.ErrUnexpectedEOF)))
	requireProblem(t, send(h, r), http.StatusBadRequest, "ErrBodyUnreadable")
}

// An instance that steps aside hands on what its scope has read.
func TestScopeOfAnInstanceThatStepsAside(t *testing.T) {
	backend := idempotency.NewMemory()
	scope := idempotency.WithScope(func(r *http.Request) string { return r.FormValue("account") })
	inner := idempotency.New(backend, scope)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Pattern = "inside"
		amountPaid(w, r)
	}))
	h := idempotency.New(backend, scope)(inner)
	r := formRequest("k", "account=a&amount=10")
	require.Equal(t, `"10"`, send(h, r).Body.String())
	require.Equal(t, "inside", r.Pattern)
}

// A body that a function has kept is no longer read once the handler has it.
func TestFunctionsKeepNoBody(t *testing.T) {
	var kept io.Reader
	scope := idempotency.WithScope(func(r *http.Request) string { kept = r.Body; return "" })
	requireDead := func() {
		read, err := io.ReadAll(kept)
		require.Empty(t, read)
		require.ErrorIs(t, err, http.ErrBodyReadAfterClose)
	}
	h := idempotency.New(idempotency.NewMemory(), scope)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requireDead()
		body, err := io.ReadAll(r.Body)
		require.NoError(t, err)
		require.Equal(t, "b", string(body))
		io.WriteString(w, "{}")
	}))
	send(h, request("k", "b"))
	requireDead()
	send(h, request("k", "b")) // a replay
	requireDead()
}

// Multipart files that a function's form has on disk are removed.
func TestFunctionsFilesAreRemoved(t *testing.T) {
	var file string
	h := idempotency.New(idempotency.NewMemory(), idempotency.WithScope(func(r *http.Request) string {
		require.NoError(t, r.ParseMultipartForm(0))
		f, err := r.MultipartForm.File["f"][0].Open()
		require.NoError(t, err)
		defer f.Close()
		file = f.(*os.File).Name()
		require.FileExists(t, file)
		return ""
	}))(http.HandlerFunc(amountPaid))
	require.Equal(t, `"10"`, send(h, multipartRequest("k", "x", multipartBody("x", "10", "file"))).Body.String())
	require.NoFileExists(t, file)
}
