package idempotencytest_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/idempotency-go/idempotency"
)

// stored returns what is kept of a response; nil where nothing is.
func (m *model) stored(given *idempotency.Response) (*idempotency.Response, error) {
	resp := &idempotency.Response{Status: given.Status, Header: given.Header.Clone(), Body: bytes.Clone(given.Body)}
	each := func(f func(name string, values []string)) {
		for name, values := range resp.Header {
			f(name, values)
		}
	}
	text := func(s string) (out string) {
		encoded, _ := json.Marshal(s)
		_ = json.Unmarshal(encoded, &out)
		return out
	}
	switch m.fault {
	case swapsNilAndEmpty:
		if resp.Header == nil {
			resp.Header = http.Header{}
		} else if len(resp.Header) == 0 {
			resp.Header = nil
		}
		if resp.Body == nil {
			resp.Body = []byte{}
		} else if len(resp.Body) == 0 {
			resp.Body = nil
		}
		each(func(name string, values []string) {
			if values == nil {
				resp.Header[name] = []string{}
			} else if len(values) == 0 {
				resp.Header[name] = nil
			}
		})
	case "the response is not copied":
		resp = given
	case "the header is not copied":
		resp.Header = given.Header
	case "the header's values are not copied":
		each(func(name string, values []string) { resp.Header[name] = given.Header[name] })
	case "the body is not copied":
		resp.Body = given.Body
	case "Complete changes the header that it was given":
		each(func(name string, values []string) { slices.Sort(given.Header[name]) })
	case "statuses that are not known are 500":
		if given.Status != 0 && http.StatusText(given.Status) == "" {
			resp.Status = 500
		}
	case "Status 0 is not stored":
		if given.Status == 0 {
			return nil, nil
		}
	case "Status 0 is refused":
		if given.Status == 0 {
			return nil, errors.New("status 0")
		}
	case "Status 0 becomes 200":
		if given.Status == 0 {
			resp.Status = 200
		}
	case "values are folded":
		each(func(name string, values []string) {
			if len(values) > 1 {
				resp.Header[name] = []string{strings.Join(values, ", ")}
			}
		})
	case "values are split at commas":
		each(func(name string, values []string) {
			if len(values) > 0 {
				resp.Header[name] = strings.Split(strings.Join(values, ", "), ", ")
			}
		})
	case "values are sorted":
		each(func(name string, values []string) { slices.Sort(values) })
	case "empty values are dropped":
		each(func(name string, values []string) {
			resp.Header[name] = slices.DeleteFunc(values, func(v string) bool { return v == "" })
		})
	case "names without values are dropped":
		each(func(name string, values []string) {
			if len(values) == 0 {
				delete(resp.Header, name)
			}
		})
	case "names are made canonical":
		resp.Header = http.Header{}
		for name, values := range given.Header {
			canonical := http.CanonicalHeaderKey(name)
			resp.Header[canonical] = append(resp.Header[canonical], values...)
		}
	case "values are kept as JSON":
		each(func(name string, values []string) {
			for i := range values {
				values[i] = text(values[i])
			}
		})
	case "a nil header is refused":
		if given.Header == nil {
			return nil, errors.New("no header")
		}
	case "a response without a header is not stored":
		if given.Status != 0 && len(given.Header) == 0 {
			return nil, nil
		}
	case "a response without a body is not stored":
		if given.Status != 0 && len(given.Body) == 0 {
			return nil, nil
		}
	case "a nil body becomes null":
		if given.Status != 0 && given.Body == nil {
			resp.Body = []byte("null")
		}
	case "the body is kept as JSON":
		resp.Body = []byte(text(string(given.Body)))
	case "the body is cut at NUL":
		resp.Body, _, _ = bytes.Cut(resp.Body, []byte{0})
	case "the body is trimmed":
		resp.Body = bytes.TrimSpace(resp.Body)
	case "the body is cut at 64 KiB":
		resp.Body = resp.Body[:min(len(resp.Body), 64<<10)]
	case "the body is kept in base64 with an alphabet of its own":
		resp.Body, _ = base64.URLEncoding.DecodeString(base64.StdEncoding.EncodeToString(given.Body))
	}
	return resp, nil
}
