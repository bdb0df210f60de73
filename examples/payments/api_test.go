package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
)

const visa = `{"amount": 1250, "currency": "EUR", "card": "tok_visa"}`

// service is the API without a server around it.
type service struct {
	*api
	http.Handler
	logged *bytes.Buffer
}

func newService(backend idempotency.Backend, payments store) *service {
	logged := new(bytes.Buffer)
	a := &api{payments, newProcessor(), slog.New(slog.NewTextHandler(logged, nil))}
	return &service{a, a.handler(backend), logged}
}

func inMemory(*testing.T) *service {
	return newService(idempotency.NewMemory(), &memoryStore{payments: make(map[[2]string]payment)})
}

func inRedis(t *testing.T) *service {
	client := redis.NewClient(&redis.Options{Addr: miniredis.RunT(t).Addr()})
	t.Cleanup(func() { client.Close() })
	return newService(idempotency.NewRedis(client), redisStore{client})
}

// forEachStore runs test on both backends.
func forEachStore(t *testing.T, test func(t *testing.T, s *service)) {
	t.Run("memory", func(t *testing.T) { test(t, inMemory(t)) })
	t.Run("redis", func(t *testing.T) { test(t, inRedis(t)) })
}

// send sends one request; a GET has neither key nor body.
func (s *service) send(method, path, token, key, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	if key != "" {
		r.Header.Set("Idempotency-Key", key)
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

// pay sends a payment of Alice's.
func (s *service) pay(key, body string) *httptest.ResponseRecorder {
	return s.send("POST", "/payments", "alice-secret", key, body)
}

func (s *service) listed(t *testing.T, token string) []payment {
	t.Helper()
	w := s.send("GET", "/payments", token, "", "")
	require.Equal(t, http.StatusOK, w.Code, w.Body)
	return decoded[struct{ Payments []payment }](t, w.Body).Payments
}

// charged returns how often cards were charged, and what they paid in all.
func (s *service) charged() (times int, sum int64) {
	for _, m := range s.cards.moved {
		if m.amount > 0 {
			times++
		}
		sum += m.amount
	}
	return times, sum
}

func decoded[T any](t *testing.T, body io.Reader) (v T) {
	t.Helper()
	require.NoError(t, json.NewDecoder(body).Decode(&v))
	return v
}

func TestPayAndRetry(t *testing.T) {
	forEachStore(t, func(t *testing.T, s *service) {
		require.Empty(t, s.listed(t, "alice-secret"))

		first := s.pay("order-1", visa)
		require.Equal(t, http.StatusCreated, first.Code, first.Body)
		require.Empty(t, first.Header().Get("Idempotent-Replayed"))
		retry := s.pay("order-1", visa)
		require.Equal(t, http.StatusCreated, retry.Code)
		require.Equal(t, "true", retry.Header().Get("Idempotent-Replayed"))
		require.Equal(t, first.Header().Get("Location"), retry.Header().Get("Location"))
		require.Equal(t, first.Body.String(), retry.Body.String())

		paid := decoded[payment](t, first.Body)
		require.Equal(t, "order-1", paid.Reference)
		require.Equal(t, []payment{paid}, s.listed(t, "alice-secret"))
		got := s.send("GET", first.Header().Get("Location"), "alice-secret", "", "")
		require.Equal(t, paid, decoded[payment](t, got.Body))
		times, sum := s.charged()
		require.Equal(t, 1, times)
		require.EqualValues(t, 1250, sum)

		other := s.pay("order-1", strings.Replace(visa, "1250", "9900", 1))
		require.Equal(t, http.StatusUnprocessableEntity, other.Code)
		require.Equal(t, "application/problem+json", other.Header().Get("Content-Type"))
		require.Len(t, s.listed(t, "alice-secret"), 1)

		require.NotContains(t, s.logged.String(), "order-1", "a key is not logged")
	})
}

func TestTwoAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := inMemory(t)
		slow := strings.Replace(visa, "tok_visa", "tok_slow", 1)
		var first *httptest.ResponseRecorder
		var wg sync.WaitGroup
		wg.Go(func() { first = s.pay("order-1", slow) })
		synctest.Wait()
		require.Equal(t, http.StatusConflict, s.pay("order-1", slow).Code)
		wg.Wait()
		require.Equal(t, http.StatusCreated, first.Code)
		require.Equal(t, "true", s.pay("order-1", slow).Header().Get("Idempotent-Replayed"))
		require.Len(t, s.listed(t, "alice-secret"), 1)
	})
}

func TestRefund(t *testing.T) {
	forEachStore(t, func(t *testing.T, s *service) {
		path := s.pay("order-1", visa).Header().Get("Location") + "/refunds"
		refund := func(key, body string) *httptest.ResponseRecorder {
			return s.send("POST", path, "alice-secret", key, body)
		}
		require.Equal(t, http.StatusCreated, refund("refund-1", `{"amount": 1000}`).Code)
		require.Equal(t, "true", refund("refund-1", `{"amount": 1000}`).Header().Get("Idempotent-Replayed"))
		tooMuch := refund("refund-2", `{"amount": 251}`)
		require.Equal(t, http.StatusUnprocessableEntity, tooMuch.Code)
		require.Contains(t, tooMuch.Body.String(), "exceed")
		require.Equal(t, http.StatusCreated, refund("refund-2", `{"amount": 250}`).Code, "the key is free to be used with a mended body")
		require.Equal(t, http.StatusUnprocessableEntity, refund("refund-3", `{"amount": 1}`).Code)
		require.Equal(t, http.StatusUnprocessableEntity, refund("refund-3", `{"amount": -1}`).Code)
		require.Equal(t, http.StatusBadRequest, refund("refund-3", `{"amount": "all"}`).Code)

		require.Len(t, s.listed(t, "alice-secret")[0].Refunds, 2)
		_, sum := s.charged()
		require.Zero(t, sum)

		require.Equal(t, http.StatusNotFound, s.send("POST", "/payments/pay_none/refunds", "alice-secret", "refund-4", `{"amount": 1}`).Code)
		require.Equal(t, http.StatusNotFound, s.send("POST", path, "bob-secret", "refund-4", `{"amount": 1}`).Code)
	})
}

func TestRefundsAtOnceDoNotExceed(t *testing.T) {
	forEachStore(t, func(t *testing.T, s *service) {
		path := s.pay("order-1", visa).Header().Get("Location") + "/refunds"
		var wg sync.WaitGroup
		for _, key := range strings.Split("abcdefgh", "") {
			wg.Go(func() { s.send("POST", path, "alice-secret", key, `{"amount": 500}`) })
		}
		wg.Wait()
		require.Len(t, s.listed(t, "alice-secret")[0].Refunds, 2)
		_, sum := s.charged()
		require.EqualValues(t, 250, sum)
	})
}

// A step that fails, or whose end is not known, is told as such and not stored.
// The retry goes on, and nothing happens twice.
func TestRetryAfterFailure(t *testing.T) {
	for _, card := range []string{"tok_timeout", "tok_lost"} {
		t.Run(card, func(t *testing.T) {
			forEachStore(t, func(t *testing.T, s *service) {
				body := strings.Replace(visa, "tok_visa", card, 1)
				failed := s.pay("order-1", body)
				require.Equal(t, http.StatusServiceUnavailable, failed.Code)
				require.Equal(t, "1", failed.Header().Get("Retry-After"))
				require.Empty(t, s.listed(t, "alice-secret"))
				requirePaysOnce(t, s, body)
			})
		})
	}
	t.Run("another amount after a charge", func(t *testing.T) {
		forEachStore(t, func(t *testing.T, s *service) {
			body := strings.Replace(visa, "tok_visa", "tok_lost", 1)
			require.Equal(t, http.StatusServiceUnavailable, s.pay("order-1", body).Code)
			// The key was let go of, but the card was charged under it.
			other := s.pay("order-1", strings.Replace(body, "1250", "9900", 1))
			require.Equal(t, http.StatusUnprocessableEntity, other.Code)
			require.Contains(t, other.Body.String(), "another amount")
			requirePaysOnce(t, s, body)
		})
	})
	t.Run("payment not recorded", func(t *testing.T) {
		payments := &brokenStore{store: &memoryStore{payments: make(map[[2]string]payment)}, broken: true}
		s := newService(idempotency.NewMemory(), payments)
		require.Equal(t, http.StatusServiceUnavailable, s.pay("order-1", visa).Code)
		require.Equal(t, http.StatusServiceUnavailable, s.send("GET", "/payments", "alice-secret", "", "").Code)
		require.Equal(t, http.StatusServiceUnavailable, s.send("GET", "/payments/pay_1", "alice-secret", "", "").Code)
		payments.broken = false
		requirePaysOnce(t, s, visa)
	})
}

// requirePaysOnce retries order-1.
func requirePaysOnce(t *testing.T, s *service, body string) {
	t.Helper()
	retry := s.pay("order-1", body)
	require.Equal(t, http.StatusCreated, retry.Code)
	require.Empty(t, retry.Header().Get("Idempotent-Replayed"), "the handler ran again")
	require.Equal(t, "true", s.pay("order-1", body).Header().Get("Idempotent-Replayed"))
	require.Len(t, s.listed(t, "alice-secret"), 1)
	times, _ := s.charged()
	require.Equal(t, 1, times)
}

// brokenStore is a store that can be broken.
type brokenStore struct {
	store
	broken, panics bool
}

var errBroken = errors.New("broken")

func (s *brokenStore) Update(ctx context.Context, account, id string, change func(*payment) error) (payment, error) {
	if s.panics {
		panic(errBroken)
	}
	if s.broken {
		return payment{}, errBroken
	}
	return s.store.Update(ctx, account, id, change)
}

func (s *brokenStore) List(ctx context.Context, account string) ([]payment, error) {
	if s.broken {
		return nil, errBroken
	}
	return s.store.List(ctx, account)
}

// If the store loses a record, the handler runs again, and repeats no step that was done.
func TestRunAgainAfterLoss(t *testing.T) {
	server := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer client.Close()
	s := newService(idempotency.NewRedis(client), redisStore{client})
	first := s.pay("order-1", visa)
	server.Del("idempotency:" + idempotency.NewKey("alice", "order-1").String())
	again := s.pay("order-1", visa)
	require.Equal(t, http.StatusCreated, again.Code)
	require.Empty(t, again.Header().Get("Idempotent-Replayed"))
	require.Equal(t, first.Body.String(), again.Body.String())
	times, _ := s.charged()
	require.Equal(t, 1, times)
}

// A handler that crashes after the charge leaves its key interrupted. The retry asks the
// processor, and answers with what it finds.
func TestRecovery(t *testing.T) {
	crash := strings.Replace(visa, "tok_visa", "tok_crash", 1)
	forEachStore(t, func(t *testing.T, s *service) {
		crashed := s.pay("order-1", crash)
		require.Equal(t, http.StatusInternalServerError, crashed.Code)
		require.Contains(t, crashed.Body.String(), "the same key")
		require.Contains(t, s.logged.String(), "the process dies")
		require.Empty(t, s.listed(t, "alice-secret"))
		require.Equal(t, counts{Runs: 1, Charges: 1}, s.counts(t, "alice-secret"))
		other := s.pay("order-1", strings.Replace(crash, "1250", "9900", 1))
		require.Equal(t, http.StatusUnprocessableEntity, other.Code, "the key is not free")

		retry := s.pay("order-1", crash)
		require.Equal(t, http.StatusCreated, retry.Code, retry.Body)
		require.Equal(t, "true", retry.Header().Get("Charge-Found"))
		require.Empty(t, retry.Header().Get("Idempotent-Replayed"))
		paid := decoded[payment](t, bytes.NewReader(retry.Body.Bytes()))
		require.EqualValues(t, 1250, paid.Amount)
		require.Equal(t, "EUR", paid.Currency)
		require.Equal(t, "order-1", paid.Reference)
		require.Contains(t, s.cards.moved, paid.Charge)
		require.Equal(t, []payment{paid}, s.listed(t, "alice-secret"))
		require.Contains(t, s.logged.String(), "outcome=stored recovered=true")

		again := s.pay("order-1", crash)
		require.Equal(t, retry.Body.String(), again.Body.String())
		require.Equal(t, "true", again.Header().Get("Idempotent-Replayed"))
		require.Equal(t, counts{Runs: 1, Charges: 1}, s.counts(t, "alice-secret"), "one run, and one charge")
	})
	t.Run("many retries at once", func(t *testing.T) {
		forEachStore(t, func(t *testing.T, s *service) {
			s.pay("order-1", crash)
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() { s.pay("order-1", crash) })
			}
			wg.Wait()
			require.Equal(t, http.StatusCreated, s.pay("order-1", crash).Code)
			require.Len(t, s.listed(t, "alice-secret"), 1)
			require.Equal(t, 1, strings.Count(s.logged.String(), "recovered=true"))
			require.Equal(t, counts{Runs: 1, Charges: 1}, s.counts(t, "alice-secret"))
		})
	})
	t.Run("payment not recorded", func(t *testing.T) {
		payments := &brokenStore{store: &memoryStore{payments: make(map[[2]string]payment)}}
		s := newService(idempotency.NewMemory(), payments)
		s.pay("order-1", crash)
		payments.broken = true
		require.Equal(t, http.StatusServiceUnavailable, s.pay("order-1", crash).Code)
		payments.broken = false
		require.Equal(t, "true", s.pay("order-1", crash).Header().Get("Charge-Found"), "it is recovered again")
		require.Equal(t, counts{Runs: 1, Charges: 1}, s.counts(t, "alice-secret"))
	})
	t.Run("a refund", func(t *testing.T) {
		payments := &brokenStore{store: &memoryStore{payments: make(map[[2]string]payment)}}
		s := newService(idempotency.NewMemory(), payments)
		path := s.pay("order-1", visa).Header().Get("Location") + "/refunds"
		payments.panics = true
		require.Equal(t, http.StatusInternalServerError, s.send("POST", path, "alice-secret", "refund-1", `{"amount": 250}`).Code)
		payments.panics = false
		retry := s.send("POST", path, "alice-secret", "refund-1", `{"amount": 250}`)
		require.Equal(t, http.StatusCreated, retry.Code)
		require.Empty(t, retry.Header().Get("Charge-Found"), "the handler ran again")
		_, sum := s.charged()
		require.EqualValues(t, 1000, sum)
	})
}

func TestDeclinedIsReplayed(t *testing.T) {
	s := inMemory(t)
	body := strings.Replace(visa, "tok_visa", "tok_declined", 1)
	require.Equal(t, http.StatusPaymentRequired, s.pay("order-1", body).Code)
	retry := s.pay("order-1", body)
	require.Equal(t, http.StatusPaymentRequired, retry.Code)
	require.Equal(t, "true", retry.Header().Get("Idempotent-Replayed"))
	times, _ := s.charged()
	require.Zero(t, times)
}

func TestScopesApart(t *testing.T) {
	forEachStore(t, func(t *testing.T, s *service) {
		alice := s.pay("order-1", visa)
		bob := s.send("POST", "/payments", "bob-secret", "order-1", visa)
		require.Equal(t, http.StatusCreated, bob.Code)
		require.Empty(t, bob.Header().Get("Idempotent-Replayed"))
		require.NotEqual(t, alice.Header().Get("Location"), bob.Header().Get("Location"))
		require.Len(t, s.listed(t, "alice-secret"), 1)
		require.Len(t, s.listed(t, "bob-secret"), 1)
		require.Equal(t, http.StatusNotFound, s.send("GET", alice.Header().Get("Location"), "bob-secret", "", "").Code)
		times, _ := s.charged()
		require.Equal(t, 2, times)
	})
}

func TestRefused(t *testing.T) {
	s := inMemory(t)
	for name, test := range map[string]struct {
		token, key, body string
		status           int
	}{
		"no token":       {"", "k", visa, http.StatusUnauthorized},
		"unknown token":  {"mallory", "k", visa, http.StatusUnauthorized},
		"no key":         {"alice-secret", "", visa, http.StatusBadRequest},
		"not JSON":       {"alice-secret", "k", "amount=1", http.StatusBadRequest},
		"no amount":      {"alice-secret", "k", `{"currency": "EUR", "card": "tok_visa"}`, http.StatusUnprocessableEntity},
		"too much":       {"alice-secret", "k", `{"amount": 100000001, "currency": "EUR", "card": "tok_visa"}`, http.StatusUnprocessableEntity},
		"no currency":    {"alice-secret", "k", `{"amount": 1, "currency": "euro", "card": "tok_visa"}`, http.StatusUnprocessableEntity},
		"a card in full": {"alice-secret", "k", `{"amount": 1, "currency": "EUR", "card": "4242424242424242"}`, http.StatusUnprocessableEntity},
		"too long":       {"alice-secret", "k", strings.Repeat(" ", maxBody) + visa, http.StatusRequestEntityTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			w := s.send("POST", "/payments", test.token, test.key, test.body)
			require.Equal(t, test.status, w.Code, w.Body)
			require.True(t, json.Valid(w.Body.Bytes()), w.Body)
		})
	}
	require.Empty(t, s.listed(t, "alice-secret"))
	require.Equal(t, http.StatusCreated, s.pay("k", visa).Code, "a refused request leaves its key free")
}
