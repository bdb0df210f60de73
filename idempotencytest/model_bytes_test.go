package idempotencytest_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"

	"github.com/idempotency-go/idempotency"
)

// kept returns what is kept of a response or a progress. what names it in faults.
func (m *model) kept(what string, given []byte) []byte {
	switch {
	case m.has("Complete sorts the bytes that it was given") && what == "response":
		slices.Sort(given)
	case m.has("Renew writes behind the progress that it was given") && what == "progress":
		_ = append(given, '\n')
	case m.has("Complete writes behind the response that it was given") && what == "response":
		_ = append(given, '\n')
	case m.has("a " + what + " is kept as JSON"):
		encoded, _ := json.Marshal(string(given))
		var text string
		_ = json.Unmarshal(encoded, &text)
		return []byte(text)
	case m.has("a " + what + " is cut at NUL"):
		before, _, _ := bytes.Cut(given, []byte{0})
		return before
	case m.has("a " + what + " is trimmed"):
		return bytes.TrimSpace(given)
	case m.has("a " + what + " is cut at 64 KiB"):
		return given[:min(len(given), 64<<10)]
	case m.has("a " + what + " is cut at 1 MiB"):
		return given[:min(len(given), 1<<20)]
	case m.has("a " + what + " is kept in base64 with an alphabet of its own"):
		decoded, _ := base64.URLEncoding.DecodeString(base64.StdEncoding.EncodeToString(given))
		return decoded
	}
	return bytes.Clone(given)
}

// stored returns what is stored of a response, and whether anything is.
func (m *model) stored(given []byte) (response []byte, ok bool, err error) {
	if len(given) == 0 {
		switch {
		case m.has("an empty response is not stored"):
			return nil, false, nil
		case m.has("an empty response is refused"):
			return nil, false, errors.New("no response")
		case m.has("an empty response becomes null"):
			return []byte("null"), true, nil
		}
	}
	return m.kept("response", given), true, nil
}

// shown returns a row as Claim and Lookup show it to a claim.
func (m *model) shown(r *row, asked idempotency.Claim) idempotency.Record {
	rec := idempotency.Record{Claim: r.claim, State: m.state(r), Progress: r.progress}
	if r.completed {
		rec.Response = r.response
		if !m.has(keepsProgress) {
			rec.Progress = nil
		}
	}
	other := !m.matches(r.claim, asked)
	switch {
	case m.has(hidesOthers) && other:
		rec.Progress, rec.Response = nil, nil
	case m.has(swapsEmpty):
		swap := func(b []byte) []byte {
			if b == nil {
				return []byte{}
			} else if len(b) == 0 {
				return nil
			}
			return b
		}
		rec.Progress, rec.Response = swap(rec.Progress), swap(rec.Response)
	case m.has("Claim shows its caller's claim"):
		rec.Claim = asked
	case m.has("Claim shows its caller's fingerprint"):
		rec.Claim.Fingerprint = asked.Fingerprint
	case m.has("Claim shows an empty response while outstanding") && rec.State == outstanding:
		rec.State = completed
	case m.has("Claim shows the same request its own claim") && asked.Fingerprint == r.claim.Fingerprint:
		rec.Claim = asked
	case m.has("Claim shows another request no state") && other:
		rec.State = 0
	case m.has("Claim shows another request a part of the response") && other && len(rec.Response) > 0:
		rec.Response = rec.Response[:1]
	case m.has("Claim shows another request a part of the progress") && other && len(rec.Progress) > 0:
		rec.Progress = rec.Progress[:1]
	case m.has("progress is not shown while outstanding") && rec.State == outstanding,
		m.has("progress is not shown when interrupted") && rec.State == interrupted,
		m.has("the end of the lease drops the progress") && rec.State == interrupted && !r.released:
		rec.Progress = nil
	}
	return rec
}
