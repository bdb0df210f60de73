package main

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"net/http"
	"sync"
	"time"
)

// The page stands in one file, and asks nobody but this program for anything.
//
//go:embed page.html
var pageFile []byte

// page is what is served. The hashes of its policy are over what a browser
// reads, so a checkout with CRLF must not change it.
var page = bytes.ReplaceAll(pageFile, []byte("\r\n"), []byte("\n"))

// pagePolicy lets the page run its own script and style and talk to its own
// origin, and forbids everything else.
var pagePolicy = "default-src 'none'; connect-src 'self'; img-src data:" +
	"; script-src " + hashOf("script") + "; style-src " + hashOf("style") +
	"; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// hashOf returns the policy's name for the text of the page's only such element.
func hashOf(element string) string {
	_, text, _ := bytes.Cut(page, []byte("<"+element+">"))
	text, _, _ = bytes.Cut(text, []byte("</"+element+">"))
	sum := sha256.Sum256(text)
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// withPage answers GET / with the page, to everyone: the page itself has the
// token that the API wants. All else goes to next.
func withPage(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/" || r.Method != http.MethodGet && r.Method != http.MethodHead {
			next.ServeHTTP(w, r)
			return
		}
		header := w.Header()
		header.Set("Content-Type", "text/html; charset=utf-8")
		header.Set("Content-Security-Policy", pagePolicy)
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("Referrer-Policy", "no-referrer")
		header.Set("Cache-Control", "no-cache") // Another version may run at this address tomorrow.
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(page))
	})
}

// runs counts how often a handler was run for each account. It stands inside of
// the middleware, so what is replayed or refused there does not reach it. It is
// for this process, and forgets with it.
type runs struct {
	mu sync.Mutex
	of map[string]int
}

// counted counts each run of next as it begins.
func (c *runs) counted(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		c.of[account(r.Context())]++
		c.mu.Unlock()
		next(w, r)
	}
}

// counts tells an account how often the handler for payments ran, and how often the
// card processor charged.
func (a *api) counts(paid *runs) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		account := account(r.Context())
		paid.mu.Lock()
		n := paid.of[account]
		paid.mu.Unlock()
		w.Header().Set("Cache-Control", "no-store")
		writeJSON(w, http.StatusOK, map[string]int{"runs": n, "charges": a.cards.charges(account)})
	}
}
