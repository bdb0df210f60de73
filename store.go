package idempotency

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// store is a [Backend] as the middleware uses it. [Memory] and [Redis] are
// stores themselves, and spare what a Backend's form costs: a key as text, a
// header as a map. Any other Backend is adapted.
type store interface {
	claim(ctx context.Context, key recordKey, fingerprint [sha256.Size]byte, lease time.Duration) (found, error)
	renew(ctx context.Context, key recordKey, claim Claim, lease time.Duration) error
	// complete may keep the header and the body of resp: nobody alters them.
	complete(ctx context.Context, key recordKey, claim Claim, resp *response, expiry time.Duration) error
	release(ctx context.Context, key recordKey, claim Claim) error
	// lead is how much room to leave before a body, for what complete writes
	// there.
	lead() int
}

// found is what a claim finds.
type found struct {
	token    string    // of the claim, where it has the key now, and where it failed and may have
	claimed  bool      // it has the key
	same     bool      // or another has it, with the same fingerprint
	response *response // of the other; nil while that is outstanding
}

// newStore returns b as a store. It goes by the type and not by an interface: a
// type that embeds Memory, to add to what it does, is a Backend of its own.
func newStore(b Backend) store {
	switch b := b.(type) {
	case *Memory:
		return b
	case *Redis:
		return b
	}
	return adapted{b}
}

// adapted is a Backend of others as a store.
type adapted struct{ Backend }

func (a adapted) claim(ctx context.Context, key recordKey, fingerprint [sha256.Size]byte, lease time.Duration) (found, error) {
	ctx, cancel := context.WithTimeout(ctx, claimTime)
	defer cancel()
	begun := time.Now()
	claim := Claim{newToken(), fingerprint}
	held, claimed, err := a.Claim(ctx, key.String(), claim, lease)
	if claimed || err != nil {
		claimed, err = inTime(claimed, err, begun, lease)
		return found{token: claim.Token, claimed: claimed}, err
	}
	f := found{same: held.Claim.Fingerprint == fingerprint}
	if held.Response != nil {
		f.response = &response{status: held.Response.Status, header: newFields(held.Response.Header), buffer: held.Response.Body}
	}
	return f, nil
}

// errLate is a claim that may have run out before its request knew of it.
var errLate = errors.New("idempotency: claim took longer than its lease")

// inTime takes a claim for failed that was begun a lease ago: the process, or the
// network, stood still meanwhile, and another request may have claimed since.
func inTime(claimed bool, err error, begun time.Time, lease time.Duration) (bool, error) {
	if claimed && lease > 0 && time.Since(begun) >= lease {
		return false, errLate
	}
	return claimed, err
}

func (a adapted) renew(ctx context.Context, key recordKey, claim Claim, lease time.Duration) error {
	return a.Renew(ctx, key.String(), claim, lease)
}

func (a adapted) complete(ctx context.Context, key recordKey, claim Claim, resp *response, expiry time.Duration) error {
	return a.Complete(ctx, key.String(), claim, resp.export(), expiry)
}

func (a adapted) lead() int { return 0 }

func (a adapted) release(ctx context.Context, key recordKey, claim Claim) error {
	return a.Release(ctx, key.String(), claim)
}

// record is a [Record] as a store gives it.
type record struct {
	claim    Claim
	response *response
}

func (r record) export() Record {
	if r.response == nil {
		return Record{Claim: r.claim}
	}
	return Record{Claim: r.claim, Response: r.response.export()}
}

// response is a [Response] whose header takes one piece of memory, not a map
// and a slice for each name. It is never altered.
type response struct {
	status int
	header fields
	buffer []byte // the body, with room before it
	lead   int    // how much room
}

// body returns the body, which is read only.
func (r *response) body() []byte { return r.buffer[r.lead:len(r.buffer):len(r.buffer)] }

// newResponse returns a copy of resp.
func newResponse(resp *Response) *response {
	return &response{status: resp.Status, header: newFields(resp.Header), buffer: bytes.Clone(resp.Body)}
}

func (r *response) export() *Response {
	return &Response{Status: r.status, Header: r.header.export(), Body: r.body()}
}

// field is one value of a header, or a name without any.
type field struct {
	name, value string
	empty       bool // the name has no value
}

// fields are a header, sorted by name. The values of a name stand in their order.
type fields []field

// newFields returns the fields of h.
func newFields(h http.Header) fields {
	fs := make(fields, 0, len(h))
	for name, values := range h {
		if len(values) == 0 {
			fs = append(fs, field{name: name, empty: true})
		}
		for _, value := range values {
			fs = append(fs, field{name: name, value: value})
		}
	}
	fs.sort()
	return fs
}

func (fs fields) sort() {
	slices.SortStableFunc(fs, func(a, b field) int { return strings.Compare(a.name, b.name) })
}

// get returns the first value of a name, or "".
func (fs fields) get(name string) string {
	if named := fs.named(name); len(named) > 0 {
		return named[0].value
	}
	return ""
}

// named returns the fields of one name.
func (fs fields) named(name string) fields {
	i := slices.IndexFunc(fs, func(f field) bool { return f.name == name })
	if i < 0 {
		return nil
	}
	return fs[i : i+fs[i:].first()]
}

// first returns how many fields the first name has.
func (fs fields) first() int {
	n := 1
	for n < len(fs) && fs[n].name == fs[0].name {
		n++
	}
	return n
}

// are reports whether the fields of one name are these values.
func (fs fields) are(values []string) bool {
	if len(values) == 0 {
		return len(fs) > 0 && fs[0].empty
	}
	return slices.EqualFunc(fs, values, func(f field, value string) bool { return !f.empty && f.value == value })
}

// haveTrailers reports whether there are trailers of either kind.
func (fs fields) haveTrailers() bool {
	return slices.ContainsFunc(fs, func(f field) bool {
		return f.name == "Trailer" && !f.empty || strings.HasPrefix(f.name, http.TrailerPrefix)
	})
}

// length returns the Content-Length, -1 if there is none, or a length that no
// body meets if it is malformed.
func (fs fields) length() int64 {
	declared := fs.named("Content-Length")
	if declared == nil {
		return -1
	}
	n, err := strconv.ParseInt(declared[0].value, 10, 64)
	if err != nil || n < 0 {
		return 1<<63 - 1
	}
	return n
}

// equal reports whether h is what fs was made from.
func (fs fields) equal(h http.Header) bool {
	names := 0
	for rest := fs; len(rest) > 0; names++ {
		n := rest.first()
		values, ok := h[rest[0].name]
		if !ok || !rest[:n].are(values) {
			return false
		}
		rest = rest[n:]
	}
	return names == len(h)
}

// restore makes h what fs was made from.
func (fs fields) restore(h http.Header) {
	if !fs.equal(h) {
		clear(h)
		fs.set(h, make([]string, len(fs)))
	}
}

// set sets the fields in h. The values are taken from room, which has enough;
// what is left of it is returned.
func (fs fields) set(h http.Header, room []string) []string {
	for len(fs) > 0 {
		n := fs.first()
		name := fs[0].name
		if fs[0].empty {
			h[name] = nil
		} else {
			for i := range n {
				room[i] = fs[i].value
			}
			h[name], room = room[:n:n], room[n:]
		}
		fs = fs[n:]
	}
	return room
}

// export returns a header of its own.
func (fs fields) export() http.Header {
	h := make(http.Header, len(fs))
	fs.set(h, make([]string, len(fs)))
	return h
}
