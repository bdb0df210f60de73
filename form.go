package idempotency

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"mime/multipart"
	"net/http"
	"slices"
	"strings"
)

// errEaten is a request whose body cannot be compared and would not reach the handler.
var errEaten = errors.New("idempotency: the request's body was read before it came to the middleware: put what reads it inside, " +
	"or let it put the whole body back (Request.Body, with ContentLength as long as that is, and no empty PostForm); " +
	"a client that has no body must not send an empty one in chunks")

// wasEaten reports whether middleware outside has read of a body of which it has parsed no
// form, as far as that can be known. length is what is left of it, up to the limit, which may cut it.
func wasEaten(r *http.Request, length int, cut bool) bool {
	switch declared := r.ContentLength; {
	case !cut && declared >= 0:
		return int64(length) < declared
	case !cut && length == 0:
		return true
	}
	return parsedInPart(r)
}

// parsedInPart reports whether a body that is not at its end, and of which there is no value,
// was parsed as an urlencoded form. net/http gives up after 10 MiB, and leaves an empty form;
// so it does if it does not read the body at all, which is of another type or method.
func parsedInPart(r *http.Request) bool {
	if r.PostForm == nil {
		return false // Nobody has tried.
	}
	contentType, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return contentType == "application/x-www-form-urlencoded" &&
		(r.Method == http.MethodPost || r.Method == http.MethodPut || r.Method == http.MethodPatch)
}

// parsedForm returns what tells a form from another that middleware outside has parsed
// of the body: its values as [url.Values.Encode] has them, and a line for each file,
// with its SHA-256. It is nil if no value and no file was parsed.
func parsedForm(r *http.Request) ([]byte, error) {
	values, files := r.PostForm, map[string][]*multipart.FileHeader(nil)
	if m := r.MultipartForm; m != nil {
		files = m.File
		if len(values) == 0 {
			values = m.Value
		}
	}
	if len(values) == 0 && len(files) == 0 {
		return nil, nil
	}
	form := []byte(values.Encode())
	for _, field := range slices.Sorted(maps.Keys(files)) {
		for _, file := range files[field] {
			sum, err := fileSum(file)
			if err != nil {
				return nil, fmt.Errorf("idempotency: file of a form that middleware outside has parsed: %w", err)
			}
			form = append(form, '\n')
			for _, s := range [...]string{field, file.Filename, file.Header.Get("Content-Type"), string(sum)} {
				form = appendText(form, s)
			}
		}
	}
	return form, nil
}

// fileSum returns the SHA-256 of a file.
func fileSum(file *multipart.FileHeader) ([]byte, error) {
	f, err := file.Open()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	digest := sha256.New()
	if _, err := io.Copy(digest, f); err != nil {
		return nil, err
	}
	return digest.Sum(nil), nil
}

// boundaryOf returns the boundary of a multipart body, or "".
func boundaryOf(r *http.Request) string {
	const prefix = "multipart/"
	contentType := r.Header.Get("Content-Type")
	if len(contentType) < len(prefix) || !strings.EqualFold(contentType[:len(prefix)], prefix) {
		return ""
	}
	_, params, _ := mime.ParseMediaType(contentType)
	return params["boundary"]
}

// sumWithoutBoundary returns a SHA-256 over what stands between the boundaries of a
// multipart body: clients make a new one for each try. It is nil if the body has none, or
// has one anywhere but in a line that every reader takes for a delimiter (RFC 2046, section
// 5.1.1): some readers split a body there, and others take it for content.
func sumWithoutBoundary(body []byte, boundary string) []byte {
	delimiter := []byte("--" + boundary)
	if boundary == "" || !bytes.Contains(body, delimiter) {
		return nil
	}
	digest := sha256.New()
	for begins := true; ; begins = false {
		part, rest, found := bytes.Cut(body, delimiter)
		beginsLine := begins && len(part) == 0 || bytes.HasSuffix(part, newLine)
		if found && !(beginsLine && endsDelimiter(rest)) {
			return nil
		}
		digest.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
		digest.Write(part)
		if !found {
			return digest.Sum(nil)
		}
		body = rest
	}
}

var newLine = []byte("\r\n")

// endsDelimiter reports whether what follows a boundary ends its line.
func endsDelimiter(rest []byte) bool {
	rest, last := bytes.CutPrefix(rest, []byte("--"))
	return bytes.HasPrefix(rest, newLine) || last && len(rest) == 0
}
