package idempotency_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

func TestTwiceInOneChain(t *testing.T) {
	chain := func(outer, inner []idempotency.Option) (http.Handler, *payments, *counted, *events) {
		p, backend, es := &payments{}, newCounted(never), &events{}
		return idempotency.New(backend, append(outer, es.option())...)(idempotency.New(backend, append(inner, es.option())...)(p)), p, backend, es
	}
	header := func(name string) []idempotency.Option {
		return []idempotency.Option{idempotency.WithHeader(name)}
	}
	t.Run("the inner one steps aside", func(t *testing.T) {
		h, p, backend, es := chain(nil, nil)
		require.Equal(t, http.StatusCreated, send(h, request("k", "b")).Code)
		require.Equal(t, "true", send(h, request("k", "b")).Header().Get("Idempotent-Replayed"))
		require.EqualValues(t, 1, p.runs.Load())
		require.EqualValues(t, 2, backend.claims.Load())
		_, n := es.last(t)
		require.Equal(t, 2, n)
	})
	t.Run("between the two stands another", func(t *testing.T) {
		p, backend := &payments{}, newCounted(never)
		h := idempotency.New(backend)(idempotency.New(backend, idempotency.WithHeader("X-Key"))(idempotency.New(backend)(p)))
		r := request("k", "b")
		r.Header.Set("X-Key", "x")
		require.Equal(t, http.StatusCreated, send(h, r).Code)
		require.EqualValues(t, 2, backend.claims.Load())
	})
	for name, key := range map[string]string{"another key": "other", "the same key": "k"} {
		t.Run("another header is a request of its own, with "+name, func(t *testing.T) {
			h, p, backend, es := chain(header("Idempotency-Key"), header("X-Key"))
			both := func() *http.Request {
				r := request("k", "b")
				r.Header.Set("X-Key", key)
				return r
			}
			require.Equal(t, http.StatusCreated, send(h, both()).Code)
			require.EqualValues(t, 2, backend.claims.Load())
			_, n := es.last(t)
			require.Equal(t, 2, n)
			require.Equal(t, "true", send(h, both()).Header().Get("Idempotent-Replayed"))
			require.EqualValues(t, 1, p.runs.Load())
		})
	}
	t.Run("another key is a request of its own", func(t *testing.T) {
		p, backend := &payments{}, newCounted(never)
		inner := idempotency.New(backend)(p)
		h := idempotency.New(backend)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r.Header.Set("Idempotency-Key", "derived")
			inner.ServeHTTP(w, r)
		}))
		require.Equal(t, http.StatusCreated, send(h, request("k", "b")).Code)
		require.EqualValues(t, 2, backend.claims.Load())
	})
	t.Run("the same key in another header, with two around it", func(t *testing.T) {
		p, backend := &payments{}, newCounted(never)
		with := func(header string) func(http.Handler) http.Handler {
			return idempotency.New(backend, idempotency.WithHeader(header))
		}
		h := with("X-A")(with("X-B")(with("X-C")(p)))
		for _, replayed := range []string{"", "true"} {
			r := request("", "b")
			r.Header.Set("X-A", "k")
			r.Header.Set("X-B", "other")
			r.Header.Set("X-C", "k")
			w := send(h, r)
			require.Equal(t, http.StatusCreated, w.Code)
			require.Equal(t, replayed, w.Header().Get("Idempotent-Replayed"))
		}
	})
	t.Run("a refusal inside is no answer for good", func(t *testing.T) {
		p, inner := &payments{}, newCounted(func(verb string, before int) error {
			if verb == "claim" && before == 0 {
				return errDown
			}
			return nil
		})
		h := idempotency.New(idempotency.NewMemory(), idempotency.WithContentTypes("*"))(idempotency.New(inner, idempotency.WithHeader("X-Key"), quiet)(p))
		for _, status := range []int{http.StatusServiceUnavailable, http.StatusCreated} {
			r := request("k", "b")
			r.Header.Set("X-Key", "x")
			require.Equal(t, status, send(h, r).Code)
		}
	})
	t.Run("a refusal inside is one for good, where the handler must not start twice", func(t *testing.T) {
		p, starts := &payments{}, 0
		inner := idempotency.New(newCounted(func(verb string, before int) error {
			if verb == "claim" && before == 0 {
				return errDown
			}
			return nil
		}), idempotency.WithHeader("X-Key"), quiet)(p)
		h := idempotency.New(idempotency.NewMemory(), idempotency.WithContentTypes("*"), idempotency.WithAtMostOnce())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			starts++
			inner.ServeHTTP(w, r)
		}))
		for range 2 {
			r := request("k", "b")
			r.Header.Set("X-Key", "x")
			require.Equal(t, http.StatusServiceUnavailable, send(h, r).Code)
			require.Equal(t, 1, starts)
		}
	})
	t.Run("NoStore is for both", func(t *testing.T) {
		backend, runs := idempotency.NewMemory(), 0
		h := idempotency.New(backend)(idempotency.New(backend, idempotency.WithHeader("X-Key"))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			runs++
			idempotency.NoStore(r.Context())
			io.WriteString(w, "{}")
		})))
		for range 2 {
			r := request("k", "b")
			r.Header.Set("X-Key", "x")
			require.Equal(t, http.StatusOK, send(h, r).Code)
		}
		require.Equal(t, 2, runs)
	})
}

// An inner instance steps aside only for one that keeps its promise.
func TestNestedInstancesDisagree(t *testing.T) {
	l, other := newLedger(never), newLedger(never)
	memory, another := idempotency.NewMemory(), idempotency.NewMemory()
	once := with(idempotency.WithAtMostOnce())
	recovery := with(idempotency.WithRecovery(func(next http.Handler) http.Handler { return next }))
	xKey, sealing := idempotency.WithHeader("X-Key"), with(idempotency.WithEncryption(newSecret))
	tests := map[string]struct {
		outer, inner         idempotency.Backend
		outerOpts, innerOpts []idempotency.Option
		status               int
		runs                 int32
	}{
		"the same mode":                       {memory, memory, nil, nil, 201, 1},
		"at most once, both":                  {memory, memory, once, once, 201, 1},
		"another backend":                     {memory, another, nil, nil, 201, 1},
		"a Transactor, both":                  {l, l, nil, nil, 201, 1},
		"a Transactor outside":                {l, memory, nil, nil, 201, 1},
		"other settings":                      {memory, memory, nil, with(idempotency.WithExpiry(time.Hour), every), 201, 1},
		"at most once inside":                 {memory, memory, nil, once, 500, 0},
		"at most once outside":                {memory, memory, once, nil, 500, 0},
		"recovery, both":                      {memory, memory, recovery, recovery, 201, 1},
		"recovery inside":                     {memory, memory, nil, recovery, 500, 0},
		"recovery outside":                    {memory, memory, recovery, nil, 500, 0},
		"recovery inside at most once":        {memory, memory, once, recovery, 500, 0},
		"at most once inside recovery":        {memory, memory, recovery, once, 500, 0},
		"recovery inside, another header":     {memory, memory, nil, append(recovery, xKey), 201, 1},
		"encryption inside":                   {memory, memory, nil, sealing, 500, 0},
		"encryption outside":                  {memory, memory, sealing, nil, 201, 1},
		"encryption, both":                    {memory, memory, sealing, sealing, 201, 1},
		"a Transactor inside":                 {memory, l, nil, nil, 500, 0},
		"two Transactors":                     {other, l, nil, nil, 500, 0},
		"a wrapped Transactor inside":         {l, unwrappedTransactor{unwrapped{plain{l}}}, nil, nil, 500, 0},
		"another mode, another header":        {memory, memory, nil, append(once, xKey), 201, 1},
		"a Transactor inside, another header": {memory, l, nil, with(xKey), 201, 1},
	}
	n := 0
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			n++
			var log bytes.Buffer
			p, es := &payments{}, &events{}
			inner := idempotency.New(tt.inner, append(tt.innerOpts, es.option(), logInto(&log))...)(p)
			h := idempotency.New(tt.outer, append(tt.outerOpts, every, quiet)...)(inner)
			key := fmt.Sprint("secret-", n)
			w := send(h, requestWith(key, "X-Key", key))
			require.Equal(t, tt.status, w.Code, w.Body)
			require.Equal(t, tt.runs, p.runs.Load())
			if tt.status == http.StatusCreated {
				require.NotContains(t, log.String(), "ERROR")
				return
			}
			require.Equal(t, "application/problem+json", w.Header().Get("Content-Type"))
			require.Contains(t, log.String(), "request refused")
			require.Contains(t, log.String(), "two instances in one chain")
			require.NotContains(t, log.String(), key)
			e, count := es.last(t)
			require.Equal(t, 1, count)
			require.Equal(t, idempotency.Failed, e.Outcome)
			require.Equal(t, http.StatusInternalServerError, e.Status)
			require.Error(t, e.Err)
		})
	}
}

// The answer to a wrong set-up is not stored: it is mended by a deployment.
func TestNestedDisagreementIsNotStored(t *testing.T) {
	memory, p := idempotency.NewMemory(), &payments{}
	outer := idempotency.New(memory, every, quiet)
	require.Equal(t, http.StatusInternalServerError, send(outer(idempotency.New(memory, idempotency.WithAtMostOnce(), quiet)(p)), request("k", "b")).Code)
	require.Equal(t, http.StatusCreated, send(outer(idempotency.New(memory, quiet)(p)), request("k", "b")).Code)
}

// A validator inside judges before the set-up does.
func TestNestedDisagreementAfterTheKey(t *testing.T) {
	memory := idempotency.NewMemory()
	refuse := idempotency.WithKeyValidator(func(string) error { return errors.New("no") })
	h := idempotency.New(memory, quiet)(idempotency.New(memory, idempotency.WithAtMostOnce(), refuse, quiet)(&payments{}))
	requireRefused(t, h, http.StatusUnprocessableEntity, "ErrKeyInvalid")
}

// The innermost of three steps aside for the one around it, whose header it shares,
// though that has another storage key than its own would be.
func TestThreeInstances(t *testing.T) {
	backend, p := idempotency.NewMemory(), &payments{}
	other := idempotency.New(backend, idempotency.WithHeader("X-Other-Key"))
	h := idempotency.New(backend)(other(other(p)))
	r := request("k", "b")
	r.Header.Set("X-Other-Key", "k")
	require.Equal(t, http.StatusCreated, send(h, r).Code)
	require.EqualValues(t, 1, p.runs.Load())
}
