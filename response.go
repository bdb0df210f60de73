package idempotency

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
)

// A Response is what a handler answered. [Response.MarshalBinary] makes the bytes
// that every [Backend] keeps.
type Response struct {
	// Status is the HTTP status code.
	Status int
	// Header has the headers that the handler added or changed. A name without
	// values is a header that the handler took away.
	Header http.Header
	// Body is the whole body.
	Body []byte
}

// responseVersion is the first byte of a stored response. Stored responses
// outlive releases: a change of the form takes a new version, and the old one
// stays readable.
const responseVersion = 1

// headStart is where the status stands: after the version and the length of the body.
const headStart = 1 + 4

// mostBody is the longest body whose length can be told.
const mostBody = math.MaxUint32

// MarshalBinary returns the response in the form that is stored:
//
//	version (1), the body's length (4 bytes, the highest first), status,
//	number of names, for each: name, number of values, values;
//	body
//
// Other numbers are uvarints, texts are their length and their bytes. Names are
// sorted, so that equal responses are equal bytes. It returns an error if the
// status is not one, or the body is longer than 4 GiB.
func (r Response) MarshalBinary() ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	b := appendHead(nil, r.Status, slices.Sorted(maps.Keys(r.Header)), r.Header)
	b = append(b, r.Body...)
	setBodyLength(b, len(r.Body))
	return b, nil
}

func (r Response) check() error {
	if r.Status < 200 || r.Status > 999 {
		return fmt.Errorf("idempotency: response with status %d", r.Status)
	}
	if uint64(len(r.Body)) > mostBody {
		return fmt.Errorf("idempotency: response with a body of %d bytes", len(r.Body))
	}
	return nil
}

// appendHead appends what stands before the body. The body's length is set later,
// by setBodyLength. names are sorted, and header has their values.
func appendHead(b []byte, status int, names []string, header http.Header) []byte {
	b = append(b, responseVersion, 0, 0, 0, 0)
	b = binary.AppendUvarint(b, uint64(status))
	b = binary.AppendUvarint(b, uint64(len(names)))
	for _, name := range names {
		values := header[name]
		b = appendText(b, name)
		b = binary.AppendUvarint(b, uint64(len(values)))
		for _, value := range values {
			b = appendText(b, value)
		}
	}
	return b
}

// setBodyLength tells in the head of a stored response how long its body is.
func setBodyLength(response []byte, n int) {
	binary.BigEndian.PutUint32(response[1:headStart], uint32(n))
}

func appendText(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// UnmarshalBinary reads a stored response. It keeps nothing of data. It returns
// an error that wraps [ErrUnreadable] if data was cut or lengthened, is of an
// unknown version, or tells of a size that it has not; r is then as it was.
func (r *Response) UnmarshalBinary(data []byte) error {
	read := Response{}
	if err := read.decode(bytes.Clone(data), everyHeader); err != nil {
		return err
	}
	*r = read
	return nil
}

// everyHeader keeps every header of a response.
func everyHeader(int, string) bool { return true }

// Open reads the response of a completed record, so that an operator sees what the
// client got. It returns an error that wraps [ErrUnreadable] if the record is in
// another state, or its response cannot be read. The response shares nothing with the
// record.
//
// scope and key are those of the request, key as the client sent it, unquoted. If the
// record is sealed ([WithEncryption]) one of the secrets must be the one that sealed it.
func (rec Record) Open(scope, key string, secrets ...[]byte) (*Response, error) {
	if rec.State != StateCompleted {
		return nil, fmt.Errorf("%w: no response: its state is %v", ErrUnreadable, rec.State)
	}
	stored, err := origin{scope, key, NewKey(scope, key), rec.Claim}.open(append(slices.Clip(secrets), nil), sealedResponse, rec.Response)
	if err != nil {
		return nil, err
	}
	response := new(Response)
	if err := response.UnmarshalBinary(stored); err != nil {
		return nil, err
	}
	return response, nil
}

// decode reads a stored response whose body it shares. It adds to the header,
// if r has one, the names for which keep returns true. After an error r is as it
// was.
func (r *Response) decode(data []byte, keep func(status int, name string) bool) error {
	if len(data) < headStart {
		return fmt.Errorf("%w: a response of %d bytes", ErrUnreadable, len(data))
	}
	if data[0] != responseVersion {
		return fmt.Errorf("%w: a response of version %d", ErrUnreadable, data[0])
	}
	length := uint64(binary.BigEndian.Uint32(data[1:headStart]))
	if length > uint64(len(data)-headStart) {
		return fmt.Errorf("%w: a response of %d bytes that tells of a body of %d", ErrUnreadable, len(data), length)
	}
	end := len(data) - int(length)
	d := decoder{rest: string(data[headStart:end])} // The values are parts of this text.
	status := d.number(999)
	// It is read to its end before anything is set.
	if whole := d; !whole.header(status, nil, keep) || status < 200 {
		return fmt.Errorf("%w: a response with a malformed header", ErrUnreadable)
	}
	if r.Header == nil {
		r.Header = make(http.Header)
	}
	d.header(status, r.Header, keep)
	r.Status, r.Body = status, data[end:len(data):len(data)]
	return nil
}

// decoder takes one value after another from the front of rest. Once one was
// not there whole, it has failed, and gives zero values.
type decoder struct {
	rest   string
	failed bool
}

// header sets the names for which keep returns true in h, if that is not nil, and
// reports whether the header was there whole, and nothing after it.
func (d *decoder) header(status int, h http.Header, keep func(status int, name string) bool) bool {
	// A name takes two bytes at the least: a larger number is refused before
	// anything is allocated for it.
	names := d.number(len(d.rest) / 2)
	var room []string
	if h != nil {
		room = make([]string, 0, names)
	}
	last := ""
	for i := range names {
		name := d.text()
		if i > 0 && name <= last {
			d.failed = true // Names are sorted, and none stands twice.
		}
		last = name
		begin := len(room)
		for n := d.number(len(d.rest)); n > 0 && !d.failed; n-- {
			if value := d.text(); h != nil {
				room = append(room, value)
			}
		}
		if d.failed {
			return false
		}
		switch {
		case h == nil || !keep(status, name):
		case begin == len(room):
			h[name] = nil
		default:
			h[name] = room[begin:len(room):len(room)]
		}
	}
	return !d.failed && d.rest == ""
}

func (d *decoder) text() string {
	n := d.number(len(d.rest))
	if d.failed || n > len(d.rest) {
		d.failed = true
		return ""
	}
	text := d.rest[:n]
	d.rest = d.rest[n:]
	return text
}

func (d *decoder) number(most int) int {
	if d.failed {
		return 0
	}
	// binary.Uvarint takes bytes: these few do not leave the stack.
	var head [binary.MaxVarintLen64]byte
	n, size := binary.Uvarint(head[:copy(head[:], d.rest)])
	if size <= 0 || n > uint64(most) || size > 1 && head[size-1] == 0 { // The last: more bytes than it needs.
		d.failed = true
		return 0
	}
	d.rest = d.rest[size:]
	return int(n)
}
