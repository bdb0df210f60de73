package idempotency

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
)

// recordVersion is the first byte of every record. Records outlive releases: a
// change of the form below takes a new version, and the old one stays readable.
const recordVersion = 1

// The second byte of a record.
const (
	recordOutstanding = 0
	recordCompleted   = 1
)

// errRecord is a record that cannot be read: cut, lengthened, or of a version
// that this release does not know.
var errRecord = errors.New("idempotency: unreadable record")

// appendClaim appends the record of an outstanding request:
//
//	version, 0, token, fingerprint (32 bytes)
//
// A text is its length as a uvarint, then its bytes.
func appendClaim(b []byte, c Claim) []byte {
	b = appendToken(b, recordOutstanding, c)
	return append(b, c.Fingerprint[:]...)
}

// appendToken appends what every record begins with, up to and with the token.
func appendToken(b []byte, state byte, c Claim) []byte {
	return appendText(append(b, recordVersion, state), c.Token)
}

// appendRecord appends the record of a request that has run:
//
//	version, 1, token, fingerprint, status,
//	number of headers, for each: name, number of values, values;
//	body
//
// Numbers are uvarints, names are sorted, so that equal records are equal bytes.
func appendRecord(b []byte, c Claim, resp *Response) []byte {
	b = appendToken(b, recordCompleted, c)
	b = append(b, c.Fingerprint[:]...)
	b = binary.AppendUvarint(b, uint64(resp.Status))
	b = binary.AppendUvarint(b, uint64(len(resp.Header)))
	for _, name := range slices.Sorted(maps.Keys(resp.Header)) {
		b = appendText(b, name)
		values := resp.Header[name]
		b = binary.AppendUvarint(b, uint64(len(values)))
		for _, v := range values {
			b = appendText(b, v)
		}
	}
	return appendText(b, resp.Body)
}

func appendText[T string | []byte](b []byte, s T) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// decodeRecord reads what appendClaim or appendRecord wrote. The record's body
// is a part of b, not a copy.
func decodeRecord(b []byte) (Record, error) {
	d := decoder{rest: b}
	if version := d.byte(); !d.failed && version != recordVersion {
		return Record{}, fmt.Errorf("%w: version %d", errRecord, version)
	}
	state := d.byte()
	var rec Record
	rec.Claim.Token = string(d.text())
	copy(rec.Claim.Fingerprint[:], d.bytes(uint64(len(rec.Claim.Fingerprint))))
	switch state {
	case recordOutstanding:
	case recordCompleted:
		rec.Response = d.response()
	default:
		d.failed = true
	}
	if d.failed || len(d.rest) > 0 {
		return Record{}, fmt.Errorf("%w: %d bytes", errRecord, len(b))
	}
	return rec, nil
}

// decoder takes one value after another from the front of rest. Once one was
// not there whole, it has failed, and gives zero values.
type decoder struct {
	rest   []byte
	failed bool
}

func (d *decoder) response() *Response {
	resp := &Response{Status: d.number(math.MaxInt32)}
	// A header takes two bytes at the least, a value one: a number larger than
	// that is refused before anything is allocated for it.
	if n := d.number(len(d.rest) / 2); n > 0 {
		resp.Header = make(http.Header, n)
		for range n {
			name := string(d.text())
			values := make([]string, d.number(len(d.rest)))
			for i := range values {
				values[i] = string(d.text())
			}
			if d.failed {
				return nil
			}
			resp.Header[name] = values
		}
	}
	resp.Body = d.text()
	return resp
}

func (d *decoder) byte() byte {
	if b := d.bytes(1); len(b) == 1 {
		return b[0]
	}
	return 0
}

func (d *decoder) text() []byte {
	return d.bytes(uint64(d.number(len(d.rest))))
}

func (d *decoder) number(most int) int {
	n, size := binary.Uvarint(d.rest)
	if d.failed || size <= 0 || n > uint64(most) {
		d.failed = true
		return 0
	}
	d.rest = d.rest[size:]
	return int(n)
}

func (d *decoder) bytes(n uint64) []byte {
	if d.failed || n > uint64(len(d.rest)) {
		d.failed = true
		return nil
	}
	b := d.rest[:n:n]
	d.rest = d.rest[n:]
	return b
}
