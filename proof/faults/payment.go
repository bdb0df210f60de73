package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"os"
	"time"

	"github.com/idempotency-go/idempotency"
)

// The headers between the harness's clients and its servers.
const (
	headerKey     = "Idempotency-Key"
	headerScope   = "Payment-Scope"
	headerAttempt = "Payment-Attempt" // the client's token of the request
	headerRun     = "Payment-Run"     // which run of the handler made the answer
	headerKept    = "Payment-Kept"    // "no" on an answer that is not to be stored
	headerReplay  = "Idempotent-Replayed"
)

// The ways in which a run of the handler ends.
const (
	fateStored  = "stored"   // JSON of some status
	fateText    = "text"     // an answer that is not to be stored
	fateNoStore = "no-store" // JSON, after NoStore
	fatePanic   = "panic"
)

// plan is what a run of the handler does.
type plan struct {
	fate   string
	status int
	takes  time.Duration
}

// longestRun is how many leases the slowest handler takes: it lives by renewals.
// longLivedRun is that of scenarios with long runs.
const longestRun, longLivedRun = 2, 5

// planRun chooses by the seed what a run does: the same for the same request.
func planRun(seed uint64, attempt string, lease time.Duration, unstored float64) plan {
	rng := seeded(seed, "run "+attempt)
	p := plan{fate: fateStored, status: http.StatusCreated}
	switch n := rng.Float64(); {
	case n < 0.05:
		p.status = http.StatusPaymentRequired
	case n < 0.08:
		p.status = http.StatusInternalServerError
	}
	switch n := rng.Float64(); {
	case n < 0.01:
		p.takes = longestRun * lease
	case n < 0.05:
		p.takes = time.Duration(rng.Int64N(int64(lease / 2)))
	default:
		p.takes = time.Duration(rng.Int64N(int64(20 * time.Millisecond)))
	}
	if rng.Float64() < unstored {
		p.fate = []string{fateText, fateNoStore, fatePanic}[rng.IntN(3)]
	}
	return p
}

// seeded returns a source of random numbers for one purpose of a seed.
func seeded(seed uint64, purpose string) *mathrand.Rand {
	h := fnv.New64a()
	_, _ = io.WriteString(h, purpose) // A hash does not fail.
	return mathrand.New(mathrand.NewPCG(seed, h.Sum64()))
}

// receipt is the answer to a payment. It tells whose it is, so that one that
// went astray is seen.
type receipt struct {
	Payment string `json:"payment"` // random: a second run is seen by other bytes
	Run     string `json:"run"`
	Scope   string `json:"scope"`
	Key     string `json:"key"`
	Body    string `json:"body"` // a digest of the request's
}

// digest is a short name for a request's body.
func digest(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:8])
}

// pay is the handler. It writes to the ledger before it does anything, and
// again before it answers.
func (s *server) pay(w http.ResponseWriter, r *http.Request) {
	v := r.Context().Value(visitKey{}).(*visit)
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	v.run = fmt.Sprintf("%s/%d", s.config.Name, s.runs.Add(1))
	paid := receipt{Payment: rand.Text(), Run: v.run, Scope: r.Header.Get(headerScope), Key: r.Header.Get(headerKey), Body: digest(body)}
	attempt := r.Header.Get(headerAttempt)
	start := record{Kind: recordStart, Run: v.run, Time: time.Now().UnixNano(), Scope: paid.Scope, Key: paid.Key, Body: paid.Body,
		Attempt: attempt, PID: os.Getpid(), Arrived: v.arrived.UnixNano()}
	if err := s.ledger.append(start); err != nil {
		s.giveUp(err)
	}
	p := planRun(s.config.Seed, attempt, s.config.Lease, s.config.Unstored)
	if s.config.Long {
		p.takes = s.config.Lease/2 + time.Duration(seeded(s.config.Seed, "long run "+attempt).Int64N(int64((longLivedRun-1)*s.config.Lease)))
	}
	// The harshest handler goes on even where its context has ended.
	time.Sleep(p.takes)
	end := record{Kind: recordEnd, Run: v.run, Time: time.Now().UnixNano(), Fate: p.fate, Status: p.status, Lost: r.Context().Err() != nil}
	if err := s.ledger.append(end); err != nil {
		s.giveUp(err)
	}
	w.Header().Set(headerRun, v.run)
	switch p.fate {
	case fatePanic:
		panic(http.ErrAbortHandler)
	case fateText:
		w.Header().Set("Content-Type", "text/plain")
	default:
		w.Header().Set("Content-Type", "application/json")
	}
	if p.fate == fateNoStore {
		idempotency.NoStore(r.Context())
	}
	if p.fate != fateStored {
		w.Header().Set(headerKept, "no")
	}
	w.WriteHeader(p.status)
	_ = json.NewEncoder(w).Encode(paid) // The client may be gone.
}
