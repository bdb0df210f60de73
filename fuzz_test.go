package idempotency_test

import (
	"bytes"
	"net/http"
	"slices"
	"testing"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

// FuzzResponse reads arbitrary bytes as a response. What is read is written in no
// more bytes, and read again as the same. Damage is an error.
func FuzzResponse(f *testing.F) {
	for _, b := range readGolden(f) {
		f.Add(b)
		f.Add(b[:len(b)/2])
		f.Add(append(slices.Clip(b), 0))
	}
	f.Add([]byte(nil))
	f.Add([]byte("\x02\x00"))
	f.Add([]byte("an answer that somebody else stored"))
	f.Fuzz(func(t *testing.T, b []byte) {
		given := bytes.Clone(b)
		var r idempotency.Response
		err := r.UnmarshalBinary(b)
		require.Equal(t, given, b, "reading altered its input")
		if err != nil {
			requireUnreadable(t, b)
			return
		}
		again := marshal(t, r)
		require.LessOrEqual(t, len(again), len(b), "the shortest form is longer than what was read")
		var read idempotency.Response
		require.NoError(t, read.UnmarshalBinary(again))
		require.Equal(t, alike(r), alike(read))
		for n := 0; n < len(again); n += 1 + len(again)/64 {
			requireUnreadable(t, again[:n])
		}
		requireUnreadable(t, append(again, 0))
	})
}

// FuzzResponseFields writes and reads a response of arbitrary fields.
func FuzzResponseFields(f *testing.F) {
	f.Add(uint16(201), "Content-Type", "application/json", "charset=utf-8", "Link", []byte("{}"))
	f.Add(uint16(999), "", "", "", "", []byte{0})
	f.Add(uint16(200), "not-canonical-", "", "\xff", "\x00", []byte(nil))
	f.Add(uint16(100), "", "", "", "", []byte(nil))
	f.Fuzz(func(t *testing.T, status uint16, name1, value1, value2, name2 string, body []byte) {
		r := idempotency.Response{
			Status: int(status),
			Header: http.Header{name1 + "1": {value1, value2}, name2 + "2": {}, name2 + "3": {value1}},
			Body:   body,
		}
		b, err := r.MarshalBinary()
		if status < 200 || status > 999 {
			require.Error(t, err)
			return
		}
		require.NoError(t, err)
		var read idempotency.Response
		require.NoError(t, read.UnmarshalBinary(b))
		require.Equal(t, alike(r), alike(read))
	})
}
