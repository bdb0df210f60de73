package recoverytest

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// patience is how long anything may take that is waited for.
const patience = time.Minute

// answer is what a client got.
type answer struct {
	err      error // there was none, or not all of it
	status   int
	body     []byte
	replayed bool
}

// request is what a client sends, again and again.
type request struct {
	path, key  string
	body       string // "" is that of most
	die, pause string
	holds      bool // It waits where it pauses, and is not cut off.
}

// send sends a request once.
func (p *Proof) send(ctx context.Context, n *node, r request) answer {
	body := r.body
	if body == "" {
		body = `{"amount":100}`
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, n.URL(r.path), strings.NewReader(body))
	if err != nil {
		return answer{err: err}
	}
	req.GetBody = nil // net/http would retry by itself a request with this header.
	req.Header.Set("Idempotency-Key", r.key)
	req.Header.Set(headerDie, r.die)
	req.Header.Set(headerPause, r.pause)
	if r.holds {
		req.Header.Set(headerHold, "true")
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return answer{err: err, status: resp.StatusCode, body: text, replayed: resp.Header.Get("Idempotent-Replayed") != ""}
}

// crowd has several clients send a request at once, to these servers, until each has its
// answer, or until it got none, if the server is to die. It returns all answers.
func (p *Proof) crowd(nodes []*node, r request) (all []answer) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var mu sync.Mutex
	var clients sync.WaitGroup
	for i := range crowdSize {
		clients.Go(func() {
			for n := i; ; n++ {
				a := p.send(ctx, nodes[n%len(nodes)], r)
				mu.Lock()
				all = append(all, a)
				mu.Unlock()
				switch {
				case a.err == nil && a.status == http.StatusCreated, a.err != nil && r.die != "":
					return
				case ctx.Err() != nil:
					p.violate("stuck", "%s: no answer in %v: %d %s %v", r.key, patience, a.status, a.body, a.err)
					return
				case a.err == nil && a.status != http.StatusConflict && a.status != http.StatusServiceUnavailable:
					p.violate("status", "%s: %d %s", r.key, a.status, a.body)
					return
				}
				time.Sleep(time.Duration(20+rand.IntN(40)) * time.Millisecond)
			}
		})
	}
	clients.Wait()
	return all
}

// crowdSize is how many clients retry at once.
const crowdSize = 4

// failed reports whether an answer is missing: the server died.
func failed(all []answer) bool {
	return slices.ContainsFunc(all, func(a answer) bool { return a.err != nil })
}

// answered reports whether there is an answer that tells of what was done.
func answered(all []answer) bool {
	return slices.ContainsFunc(all, func(a answer) bool { return a.err == nil && a.status == http.StatusCreated })
}

// another sends another request under the same key, which has a record: it is refused.
func (p *Proof) another(n *node, r request) {
	r.body, r.die = `{"amount":999}`, ""
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if a := p.send(ctx, n, r); a.err != nil || a.status != http.StatusUnprocessableEntity {
		p.violate("another", "%s: another request got %d %s %v", r.key, a.status, a.body, a.err)
	}
	p.count("other requests", 1)
}

// check demands that what was asked for was done once, that all answers tell of it, and, if
// the store has lost nothing, that one more retry is a replay.
func (p *Proof) check(n *node, r request, all []answer, lossless bool) {
	p.count("keys", 1)
	if lossless {
		last := p.send(context.Background(), n, request{path: r.path, key: r.key})
		if !last.replayed {
			p.violate("answer", "%s: not replayed: %d %s %v", r.key, last.status, last.body, last.err)
		}
		all = append(all, last)
	}
	want := 1
	if r.path == pathTrip {
		want = 3
	}
	p.downstream.with(r.key, func(o *order) {
		names := make(map[string]bool)
		for _, d := range o.done {
			if names[d.Name] {
				p.violate("doubled", "%s: %s was done twice: %v", r.key, d.Name, o.done)
			}
			names[d.Name] = true
		}
		if len(names) != want {
			p.violate("missing", "%s: done is %v", r.key, o.done)
		}
		p.count("effects", len(o.done))
		p.count("runs", len(o.runs))
		p.count("recoveries", o.recoveries)
		p.count("steps kept", len(o.kept))
		for _, v := range o.violations {
			if lossless || v.kind != "again" && v.kind != "unfenced" { // A store that lost the claim lets two run.
				p.violate(v.kind, "%s: %s", r.key, v.text)
			}
		}
		expected := expectedAnswer(r.path, o.done)
		for _, a := range all {
			if a.err == nil && a.status == http.StatusCreated && !bytes.Equal(bytes.TrimSpace(a.body), expected) {
				p.violate("answer", "%s: answered %s; done is %v", r.key, a.body, o.done)
			}
		}
	})
}
