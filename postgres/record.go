package postgres

import (
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/idempotency-go/idempotency"
)

// record is a row of the table, without its key and its end.
type record struct {
	token       string
	fingerprint []byte
	status      *int32
	header      *string
	body        []byte
}

// encode returns the part of a row that a response fills.
func encode(resp *idempotency.Response) (record, error) {
	status := int32(resp.Status)
	text, err := json.Marshal(recode(resp.Header, latin1))
	if err != nil {
		return record{}, err
	}
	header := string(text)
	return record{status: &status, header: &header, body: resp.Body}, nil
}

func (row record) decode() (idempotency.Record, error) {
	rec := idempotency.Record{Claim: idempotency.Claim{Token: row.token}}
	if len(row.fingerprint) != len(rec.Claim.Fingerprint) {
		return idempotency.Record{}, fmt.Errorf("postgres: unreadable record: a fingerprint of %d bytes", len(row.fingerprint))
	}
	copy(rec.Claim.Fingerprint[:], row.fingerprint)
	if row.status == nil {
		return rec, nil
	}
	rec.Response = &idempotency.Response{Status: int(*row.status), Body: row.body}
	if row.header != nil {
		var header http.Header
		if err := json.Unmarshal([]byte(*row.header), &header); err != nil {
			return idempotency.Record{}, fmt.Errorf("postgres: unreadable record: its header: %w", err)
		}
		rec.Response.Header = recode(header, fromLatin1)
	}
	return rec, nil
}

// recode returns a header with its texts changed.
func recode(header http.Header, text func(string) string) http.Header {
	recoded := make(http.Header, len(header))
	for name, values := range header {
		list := make([]string, len(values))
		for i, value := range values {
			list[i] = text(value)
		}
		recoded[text(name)] = list
	}
	return recoded
}

// latin1 returns the bytes of s as characters. JSON has no others, and a header
// may have any byte (RFC 9110, section 5.5).
func latin1(s string) string {
	runes := make([]rune, len(s))
	for i := range len(s) {
		runes[i] = rune(s[i])
	}
	return string(runes)
}

// fromLatin1 is latin1 backwards.
func fromLatin1(s string) string {
	b := make([]byte, 0, len(s))
	for _, r := range s {
		b = append(b, byte(r))
	}
	return string(b)
}
