package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
)

// stored is a response as a store keeps it.
func stored(t *testing.T, body string) []byte {
	t.Helper()
	b, err := idempotency.Response{
		Status: http.StatusCreated,
		Header: http.Header{"Content-Type": {"application/json"}, "Link": {"</a>", "</b>"}, "Server": nil, "X-Odd": {"a\x1b[31m\tb\nc"}},
		Body:   []byte(body),
	}.MarshalBinary()
	require.NoError(t, err)
	return b
}

func TestShow(t *testing.T) {
	eachStore(t, func(t *testing.T, s testStore) {
		response := stored(t, "{\"payment\":1}\n\x1b[31m")
		for name, tt := range map[string]struct {
			state idempotency.State
			flags []string
			want  string // after the storage key and the claim
		}{
			"outstanding": {idempotency.StateOutstanding, nil, ""},
			"interrupted": {idempotency.StateInterrupted, []string{"-body"}, ""},
			"completed": {idempotency.StateCompleted, nil, `
status       201
header       Content-Type: application/json
header       Link: </a>
header       Link: </b>
header       Server, taken away
header       X-Odd: a�[31m�b�c
body         19 bytes`},
			"with its body": {idempotency.StateCompleted, []string{"-body"}, `
status       201
header       Content-Type: application/json
header       Link: </a>
header       Link: </b>
header       Server, taken away
header       X-Odd: a�[31m�b�c
body         19 bytes

{"payment":1}
�[31m`},
		} {
			t.Run(name, func(t *testing.T) {
				key := idempotency.NewKey("tenant-1", name)
				claim := put(t, s, key, tt.state, response)
				want := "storage key  " + key.String() + "\nstate        " + tt.state.String() + "\nclaim        " + claim.Token.String() +
					"\nclaimed      T, T ago\nends         in T" + tt.want + "\n"
				r := s.run(t, "show", append(tt.flags, "-scope", "tenant-1", name)...)
				require.Equal(t, result{0, want, ""}, result{r.status, timeless(r.stdout), r.stderr})

				byStorageKey := s.run(t, "show", append(tt.flags, "-storage-key", key.String())...)
				require.Equal(t, want, timeless(byStorageKey.stdout))
				s.run(t, "show", name).requireFailed(t, 1, "no record")
			})
		}
	})
}

// What is shown of times is the claim's and the record's.
func TestShowTimes(t *testing.T) {
	f := found{
		rec:  idempotency.Record{Claim: idempotency.Claim{Token: newToken(time.Now().Add(-time.Hour).Truncate(time.Millisecond))}},
		left: 90*time.Minute + time.Millisecond,
	}
	var out strings.Builder
	require.NoError(t, f.print(&out, false))
	require.Contains(t, out.String(), "claimed      "+f.rec.Claim.Token.Time().UTC().Format("2006-01-02T15:04:05.000Z")+", 1h0m")
	require.Contains(t, out.String(), "ends         in 1h30m0s\n")
	f.left = idempotency.Forever
	out.Reset()
	require.NoError(t, f.print(&out, false))
	require.Contains(t, out.String(), "ends         never\n")
}

func TestShowProgress(t *testing.T) {
	eachStore(t, func(t *testing.T, s testStore) {
		key := idempotency.NewKey("", "k")
		claim := put(t, s, key, idempotency.StateOutstanding, nil)
		require.NoError(t, s.Renew(t.Context(), key, claim, idempotency.Terms{Lease: time.Hour}, []byte("step")))
		r := s.run(t, "show", "k")
		require.Contains(t, r.stdout, "progress     4 bytes\n")
		require.NotContains(t, r.stdout, "status")
	})
}

func TestShowJSON(t *testing.T) {
	eachStore(t, func(t *testing.T, s testStore) {
		header := map[string]any{
			"Content-Type": []any{"application/json"}, "Link": []any{"</a>", "</b>"}, "Server": nil, "X-Odd": []any{"a\x1b[31m\tb\nc"},
		}
		for name, tt := range map[string]struct {
			state    idempotency.State
			body     string
			flags    []string
			response map[string]any
		}{
			"outstanding": {idempotency.StateOutstanding, "", nil, nil},
			"interrupted": {idempotency.StateInterrupted, "", []string{"-body"}, nil},
			"completed":   {idempotency.StateCompleted, `{"a":"<"}`, nil, map[string]any{"status": 201.0, "header": header, "body_bytes": 9.0}},
			"with its body": {idempotency.StateCompleted, `{"a":"<"}`, []string{"-body"},
				map[string]any{"status": 201.0, "header": header, "body_bytes": 9.0, "body": `{"a":"<"}`}},
			"with an empty body": {idempotency.StateCompleted, "", []string{"-body"},
				map[string]any{"status": 201.0, "header": header, "body_bytes": 0.0, "body": ""}},
			"with a body that is no text": {idempotency.StateCompleted, "\xFF\x00", []string{"-body"},
				map[string]any{"status": 201.0, "header": header, "body_bytes": 2.0, "body_base64": "/wA="}},
		} {
			t.Run(name, func(t *testing.T) {
				key := idempotency.NewKey("", name)
				claim := put(t, s, key, tt.state, stored(t, tt.body))
				r := s.run(t, "show", append(tt.flags, "-json", name)...)
				require.Equal(t, 0, r.status, r)
				require.Empty(t, r.stderr)
				var shown map[string]any
				require.NoError(t, json.Unmarshal([]byte(r.stdout), &shown))
				left, _ := shown["left_seconds"].(float64)
				require.InDelta(t, 3600, left, 300)
				delete(shown, "left_seconds")
				want := map[string]any{
					"storage_key": key.String(), "state": tt.state.String(), "claim": claim.Token.String(),
					"claimed": claim.Token.Time().UTC().Format(time.RFC3339Nano), "progress_bytes": 0.0,
				}
				if tt.response != nil {
					want["response"] = tt.response
				}
				require.Equal(t, want, shown)
			})
		}
		t.Run("for ever", func(t *testing.T) {
			key := idempotency.NewKey("", "ever")
			require.NoError(t, s.Complete(t.Context(), key, idempotency.Claim{Token: newToken(time.Now())}, stored(t, "{}"), idempotency.Forever))
			t.Cleanup(func() { s.run(t, "forget", "-yes", "ever") })
			require.Contains(t, s.run(t, "show", "-json", "ever").stdout, "\n  \"left_seconds\": null,\n")
			require.Contains(t, s.run(t, "show", "ever").stdout, "\nends         never\n")
		})
	})
}

// A record that cannot be read is one line. Of one whose response alone cannot be read
// the rest is shown.
func TestShowUnreadable(t *testing.T) {
	eachStore(t, func(t *testing.T, s testStore) {
		s.spoil(t, idempotency.NewKey("", "spoilt"))
		put(t, s, idempotency.NewKey("", "cut"), idempotency.StateCompleted, stored(t, "{}")[:20])
		for _, flags := range [][]string{nil, {"-json"}, {"-body"}, {"-json", "-body"}} {
			r := s.run(t, "show", append(flags, "spoilt")...)
			r.requireFailed(t, 1, "record unreadable")
			require.Empty(t, r.stdout)

			r = s.run(t, "show", append(flags, "cut")...)
			r.requireFailed(t, 1, "record unreadable")
			require.Contains(t, r.stdout, "completed")
			require.NotContains(t, r.stdout, "status")
			require.NotContains(t, r.stdout, "\n\n")
		}
		require.Contains(t, s.run(t, "show", "cut").stdout, "\nresponse     20 bytes, unreadable\n")
		s.run(t, "show", "free").requireFailed(t, 1, "no record: the key is free")
	})
}
