package idempotency

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
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

// encodeClaim returns the record of an outstanding request:
//
//	version, 0, token, fingerprint (32 bytes)
//
// A text is its length as a uvarint, then its bytes.
func encodeClaim(c Claim) []byte {
	return append(encodeToken(c), c.Fingerprint[:]...)
}

// encodeToken returns what that begins with, up to and with the token. There is
// room for the rest.
func encodeToken(c Claim) []byte {
	b := make([]byte, 0, 2+binary.MaxVarintLen16+len(c.Token)+len(c.Fingerprint))
	return appendText(append(b, recordVersion, recordOutstanding), c.Token)
}

// encodeHead returns what stands before the body in the record of a request that
// has run:
//
//	version, 1, token, fingerprint, status,
//	number of headers, for each: name, number of values, values;
//	body
//
// Numbers are uvarints, names are sorted, so that equal records are equal bytes.
func encodeHead(c Claim, resp *response) []byte {
	names, room := 0, 128+len(c.Token)
	for fs := resp.header; len(fs) > 0; fs = fs[fs.first():] {
		names++
	}
	for _, f := range resp.header {
		room += 2*binary.MaxVarintLen16 + len(f.name) + len(f.value)
	}
	b := append(make([]byte, 0, room), recordVersion, recordCompleted)
	b = append(appendText(b, c.Token), c.Fingerprint[:]...)
	b = binary.AppendUvarint(b, uint64(resp.status))
	b = binary.AppendUvarint(b, uint64(names))
	for fs := resp.header; len(fs) > 0; fs = fs[fs.first():] {
		b = appendText(b, fs[0].name)
		if fs[0].empty {
			b = binary.AppendUvarint(b, 0)
			continue
		}
		values := fs[:fs.first()]
		b = binary.AppendUvarint(b, uint64(len(values)))
		for _, f := range values {
			b = appendText(b, f.value)
		}
	}
	return binary.AppendUvarint(b, uint64(len(resp.body())))
}

// encodeResponse returns the record of a request that has run. It writes the head
// into the room before the body, if that is enough.
func encodeResponse(c Claim, resp *response) []byte {
	head := encodeHead(c, resp)
	if len(head) > resp.lead {
		return append(head, resp.body()...)
	}
	begin := resp.lead - len(head)
	copy(resp.buffer[begin:], head)
	return resp.buffer[begin:]
}

func appendText(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// decodeRecord reads a record. It is given the same bytes twice, so that it
// copies nothing: the record's texts are parts of text, its body is one of raw.
func decodeRecord(text string, raw []byte) (record, error) {
	d := decoder{rest: text}
	if version := d.byte(); !d.failed && version != recordVersion {
		return record{}, fmt.Errorf("%w: version %d", errRecord, version)
	}
	state := d.byte()
	var rec record
	rec.claim.Token = d.text()
	copy(rec.claim.Fingerprint[:], d.bytes(len(rec.claim.Fingerprint)))
	switch state {
	case recordOutstanding:
	case recordCompleted:
		rec.response = &response{status: d.number(math.MaxInt32), header: d.header()}
		// What is left is the body, if its length says so too.
		length := d.number(len(d.rest))
		d.failed = d.failed || length != len(d.rest)
		rec.response.buffer = raw[len(raw)-len(d.rest) : len(raw) : len(raw)]
		d.rest = ""
	default:
		d.failed = true
	}
	if d.failed || d.rest != "" {
		return record{}, fmt.Errorf("%w: %d bytes", errRecord, len(text))
	}
	return rec, nil
}

// decoder takes one value after another from the front of rest. Once one was
// not there whole, it has failed, and gives zero values.
type decoder struct {
	rest   string
	failed bool
}

func (d *decoder) header() fields {
	// A header takes two bytes at the least: a number larger than that is
	// refused before anything is allocated for it.
	n := d.number(len(d.rest) / 2)
	fs := make(fields, 0, n)
	for ; n > 0 && !d.failed; n-- {
		name := d.text()
		if last := len(fs) - 1; last >= 0 && fs[last].name >= name {
			d.failed = true // Names are sorted, and none stands twice.
		}
		values := d.number(len(d.rest))
		if values == 0 {
			fs = append(fs, field{name: name, empty: true})
		}
		for ; values > 0 && !d.failed; values-- {
			fs = append(fs, field{name: name, value: d.text()})
		}
	}
	return fs
}

func (d *decoder) byte() byte {
	if b := d.bytes(1); b != "" {
		return b[0]
	}
	return 0
}

func (d *decoder) text() string { return d.bytes(d.number(len(d.rest))) }

func (d *decoder) number(most int) int {
	if d.failed {
		return 0
	}
	// binary.Uvarint takes bytes: these few do not leave the stack.
	var head [binary.MaxVarintLen64]byte
	n, size := binary.Uvarint(head[:copy(head[:], d.rest)])
	if size <= 0 || n > uint64(most) {
		d.failed = true
		return 0
	}
	d.rest = d.rest[size:]
	return int(n)
}

func (d *decoder) bytes(n int) string {
	if d.failed || n > len(d.rest) {
		d.failed = true
		return ""
	}
	b := d.rest[:n]
	d.rest = d.rest[n:]
	return b
}
