package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

func TestPageServed(t *testing.T) {
	s := inMemory(t)
	for _, method := range []string{"GET", "HEAD"} {
		t.Run(method, func(t *testing.T) {
			w := s.send(method, "/", "", "", "")
			require.Equal(t, http.StatusOK, w.Code)
			header := w.Header()
			require.Equal(t, "text/html; charset=utf-8", header.Get("Content-Type"))
			require.Equal(t, "nosniff", header.Get("X-Content-Type-Options"))
			require.Equal(t, "no-referrer", header.Get("Referrer-Policy"))
			require.Equal(t, "no-cache", header.Get("Cache-Control"))
			policy := header.Get("Content-Security-Policy")
			require.Regexp(t, `^default-src 'none'; connect-src 'self'; `, policy)
			require.Len(t, regexp.MustCompile(`'sha256-[A-Za-z0-9+/]{43}='`).FindAllString(policy, -1), 2, policy)
			require.NotContains(t, policy, "unsafe")
			if method == "HEAD" {
				require.Empty(t, w.Body.String())
			} else {
				require.Equal(t, string(page), w.Body.String())
			}
		})
	}
}

// The policy's hashes stand for the whole script and the whole style only while
// there is one of each, without attributes.
func TestPageHasOneOfEach(t *testing.T) {
	for _, element := range []string{"script", "style"} {
		require.Equal(t, 1, bytes.Count(page, []byte("<"+element)), element)
		require.Equal(t, 1, bytes.Count(page, []byte("<"+element+">")), element)
		require.Equal(t, 1, bytes.Count(page, []byte("</"+element+">")), element)
		// Of nothing at all.
		require.NotContains(t, hashOf(element), "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=")
	}
	require.NotContains(t, string(page), "\r")
	require.NotRegexp(t, `\son[a-z]+=|\sstyle=|innerHTML|outerHTML|insertAdjacentHTML|document\.write`, string(page),
		"nothing that the policy forbids, and no markup from data")
}

// The page alone is open. The API answers as it did before there was a page.
func TestPageIsAllThatIsOpen(t *testing.T) {
	s := inMemory(t)
	for _, test := range []struct {
		method, path, token string
		status              int
	}{
		{"GET", "/page.html", "", http.StatusUnauthorized},
		{"GET", "/index.html", "alice-secret", http.StatusNotFound},
		{"GET", "//", "", http.StatusUnauthorized},
		{"POST", "/", "", http.StatusUnauthorized},
		{"POST", "/", "alice-secret", http.StatusBadRequest},
		{"PUT", "/", "alice-secret", http.StatusNotFound},
		{"GET", "/payments", "", http.StatusUnauthorized},
		{"GET", "/counts", "", http.StatusUnauthorized},
		{"GET", "/counts", "mallory", http.StatusUnauthorized},
		{"GET", "/counts", "alice-secret", http.StatusOK},
		{"POST", "/counts", "alice-secret", http.StatusBadRequest},
		{"DELETE", "/counts", "alice-secret", http.StatusMethodNotAllowed},
	} {
		t.Run(test.method+" "+test.path+" "+test.token, func(t *testing.T) {
			w := s.send(test.method, test.path, test.token, "", "")
			require.Equal(t, test.status, w.Code, w.Body)
			require.NotContains(t, w.Body.String(), "<html")
			require.Empty(t, w.Header().Get("Content-Security-Policy"))
		})
	}
}

// counts is how often the handler ran for an account, and its cards were charged.
type counts struct{ Runs, Charges int }

func (s *service) counts(t *testing.T, token string) counts {
	t.Helper()
	w := s.send("GET", "/counts", token, "", "")
	require.Equal(t, http.StatusOK, w.Code)
	require.Equal(t, "no-store", w.Header().Get("Cache-Control"))
	return decoded[counts](t, w.Body)
}

func TestCounts(t *testing.T) {
	forEachStore(t, func(t *testing.T, s *service) {
		require.Zero(t, s.counts(t, "alice-secret"))
		for _, step := range []struct {
			name, key, body       string
			status, runs, charges int
		}{
			{"paid", "order-1", visa, http.StatusCreated, 1, 1},
			{"replayed", "order-1", visa, http.StatusCreated, 1, 1},
			{"reused", "order-1", strings.Replace(visa, "1250", "1350", 1), http.StatusUnprocessableEntity, 1, 1},
			{"no key", "", visa, http.StatusBadRequest, 1, 1},
			{"not finished", "order-2", strings.Replace(visa, "visa", "timeout", 1), http.StatusServiceUnavailable, 2, 1},
			{"run again", "order-2", strings.Replace(visa, "visa", "timeout", 1), http.StatusCreated, 3, 2},
			{"declined", "order-3", strings.Replace(visa, "visa", "declined", 1), http.StatusPaymentRequired, 4, 2},
			{"declined, replayed", "order-3", strings.Replace(visa, "visa", "declined", 1), http.StatusPaymentRequired, 4, 2},
			{"crashed", "order-4", strings.Replace(visa, "visa", "crash", 1), http.StatusInternalServerError, 5, 3},
			{"recovered", "order-4", strings.Replace(visa, "visa", "crash", 1), http.StatusCreated, 5, 3},
		} {
			require.Equal(t, step.status, s.pay(step.key, step.body).Code, step.name)
			require.Equal(t, counts{step.runs, step.charges}, s.counts(t, "alice-secret"), step.name)
		}
		require.Zero(t, s.counts(t, "bob-secret"), "an account sees its own")
		bobs := s.send("POST", "/payments", "bob-secret", "order-1", visa)
		require.Equal(t, http.StatusCreated, bobs.Code)
		require.Equal(t, counts{1, 1}, s.counts(t, "bob-secret"))
		refund := s.send("POST", bobs.Header().Get("Location")+"/refunds", "bob-secret", "refund-1", `{"amount": 1}`)
		require.Equal(t, http.StatusCreated, refund.Code)
		require.Equal(t, counts{1, 1}, s.counts(t, "bob-secret"), "a refund is neither")
		require.Equal(t, counts{5, 3}, s.counts(t, "alice-secret"))
	})
}

func TestCountsAtOnce(t *testing.T) {
	t.Run("one key", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := inMemory(t)
			slow := strings.Replace(visa, "tok_visa", "tok_slow", 1)
			var first *httptest.ResponseRecorder
			var wg sync.WaitGroup
			wg.Go(func() { first = s.pay("order-1", slow) })
			synctest.Wait()
			require.Equal(t, 1, s.counts(t, "alice-secret").Runs, "a run counts from its beginning")
			require.Equal(t, http.StatusConflict, s.pay("order-1", slow).Code)
			require.Equal(t, 1, s.counts(t, "alice-secret").Runs)
			wg.Wait()
			require.Equal(t, http.StatusCreated, first.Code)
			require.Equal(t, 1, s.counts(t, "alice-secret").Runs)
		})
	})
	t.Run("many keys", func(t *testing.T) {
		forEachStore(t, func(t *testing.T, s *service) {
			var wg sync.WaitGroup
			for _, key := range strings.Split("abcdefgh", "") {
				wg.Go(func() { s.pay(key, visa) })
				wg.Go(func() { s.pay(key, visa) })
			}
			wg.Wait()
			require.Equal(t, 8, s.counts(t, "alice-secret").Runs)
		})
	})
}
