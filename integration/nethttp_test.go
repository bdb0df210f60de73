package integration

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

// TestServeMux puts the middleware around a whole ServeMux and on one route. A
// replay from around the mux has no pattern: the mux never saw it.
func TestServeMux(t *testing.T) {
	const pattern = "POST /accounts/{account}/payments"
	for _, test := range []struct {
		name     string
		build    func(once layer, h http.Handler) http.Handler
		replayed string
	}{
		{"around the mux", func(once layer, h http.Handler) http.Handler {
			mux := http.NewServeMux()
			mux.Handle(pattern, h)
			return once(mux)
		}, ""},
		{"on the route", func(once layer, h http.Handler) http.Handler {
			mux := http.NewServeMux()
			mux.Handle(pattern, once(h))
			return mux
		}, pattern},
	} {
		t.Run(test.name, func(t *testing.T) {
			seen := make(chan string, 2)
			metrics := func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					next.ServeHTTP(w, r)
					seen <- r.Pattern
				})
			}
			var runs atomic.Int64
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				_, _ = fmt.Fprintf(w, `{"run":%d,"account":%q,"pattern":%q}`, runs.Add(1), r.PathValue("account"), r.Pattern)
			})
			o := newOrderTest(t)
			s := o.serve(metrics(test.build(o.once, h)))
			for _, want := range []struct {
				outcome idempotency.Outcome
				pattern string
			}{{idempotency.Stored, pattern}, {idempotency.Replayed, test.replayed}} {
				answer := s.post("/accounts/7/payments", "k")
				require.Equal(t, `{"run":1,"account":"7","pattern":"`+pattern+`"}`, answer.body)
				e := o.event()
				require.Equal(t, want.outcome, e.Outcome)
				require.Equal(t, want.pattern, e.Request.Pattern)
				require.Equal(t, want.pattern, await(t, seen, "pattern"), "a layer outside sees the same")
			}
		})
	}
}

// TestStripPrefix mounts one handler at two prefixes. They are two paths to the
// default fingerprint in either order; to one that is made of r.URL.Path, only
// inside.
func TestStripPrefix(t *testing.T) {
	byPath := idempotency.WithFingerprint(func(r *http.Request, body []byte) []byte {
		return append([]byte(r.URL.Path+"\n"), body...)
	})
	mount := func(next http.Handler) http.Handler {
		mux := http.NewServeMux()
		mux.Handle("/v1/", http.StripPrefix("/v1", next))
		mux.Handle("/v2/", http.StripPrefix("/v2", next))
		return mux
	}
	for _, test := range []struct {
		name  string
		order string
		opts  []idempotency.Option
		mixed bool
	}{
		{"outside", outside, nil, false},
		{"inside", inside, nil, false},
		{"outside, fingerprint of r.URL.Path", outside, []idempotency.Option{byPath}, true},
		{"inside, fingerprint of r.URL.Path", inside, []idempotency.Option{byPath}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			o, till := newOrderTest(t, test.opts...), &paymentTill{}
			var paths []string
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				paths = append(paths, r.URL.Path)
				till.ServeHTTP(w, r)
			})
			s := o.serve(orderStack(test.order, h, o.once, mount))
			first, retry := s.twice("/v1/pay", idempotency.Stored, idempotency.Replayed)
			require.Equal(t, first.body, retry.body)
			other := s.post("/v2/pay", "k")
			require.Equal(t, test.mixed, other.replayed)
			if !test.mixed {
				require.Equal(t, http.StatusUnprocessableEntity, other.status)
			}
			s.Server.Close()
			require.Equal(t, []string{"/pay"}, paths)
		})
	}
}

// TestMaxBytesHandler sends more than is allowed. Outside, the middleware
// refuses before anything is claimed. Inside, it has read the body already, and
// the handler answers as it does without the middleware.
func TestMaxBytesHandler(t *testing.T) {
	limit := func(next http.Handler) http.Handler { return http.MaxBytesHandler(next, 10) }
	for _, order := range orders {
		t.Run(order, func(t *testing.T) {
			var runs atomic.Int64
			till := &paymentTill{}
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				runs.Add(1)
				if err := r.ParseForm(); err != nil {
					http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
					return
				}
				till.ServeHTTP(w, r)
			})
			o := newOrderTest(t)
			s := o.serve(orderStack(order, h, o.once, limit))
			large := s.send(http.MethodPost, "/", "k", "amount=1000000", "Content-Type", "application/x-www-form-urlencoded")
			require.Equal(t, http.StatusRequestEntityTooLarge, large.status)
			e := o.event()
			require.Equal(t, http.StatusRequestEntityTooLarge, e.Status)
			if order == outside {
				require.Equal(t, idempotency.Rejected, e.Outcome)
				require.ErrorIs(t, e.Err, idempotency.ErrBodyUnreadable)
				require.Equal(t, "application/problem+json", large.header.Get("Content-Type"))
				require.Zero(t, runs.Load())
			} else {
				require.Equal(t, idempotency.NotStored, e.Outcome)
				require.Equal(t, "http: request body too large\n", large.body)
				require.EqualValues(t, 1, runs.Load())
			}
			small := s.send(http.MethodPost, "/", "k", "amount=1", "Content-Type", "application/x-www-form-urlencoded")
			require.Equal(t, `{"payment":1}`, small.body, "in neither order is the key used up")
		})
	}
}

// slowTill is a till whose first run waits until the test lets it finish.
type slowTill struct {
	paymentTill
	running chan context.Context
	finish  chan struct{}
	paid    chan struct{} // a slow one has finished
}

func newSlowTill() *slowTill {
	return &slowTill{running: make(chan context.Context, 1), finish: make(chan struct{}), paid: make(chan struct{}, 1)}
}

func (s *slowTill) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Slow") != "" {
		s.running <- r.Context()
		hold(s.finish)
		defer func() { s.paid <- struct{}{} }()
	}
	s.paymentTill.ServeHTTP(w, r)
}

// timeoutOfSlow is an http.TimeoutHandler that runs out for slow requests and
// not for others.
func timeoutOfSlow(message string) layer {
	return func(next http.Handler) http.Handler {
		short := http.TimeoutHandler(next, 200*time.Millisecond, message)
		long := http.TimeoutHandler(next, time.Minute, message)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Slow") != "" {
				short.ServeHTTP(w, r)
			} else {
				long.ServeHTTP(w, r)
			}
		})
	}
}

// TestTimeoutHandlerOutside shows the good order: the client is told 503 while
// the handler goes on under its claim, and the retry finds its answer.
func TestTimeoutHandlerOutside(t *testing.T) {
	till, o := newSlowTill(), newOrderTest(t)
	s := o.serve(stack(till, timeoutOfSlow("too slow"), o.once))
	first := s.post("/", "k", "Slow", "yes")
	require.Equal(t, http.StatusServiceUnavailable, first.status)
	require.Equal(t, "too slow", first.body)
	ctx := await(t, till.running, "run")
	await(t, ctx.Done(), "end of the handler's context")
	require.ErrorIs(t, ctx.Err(), context.DeadlineExceeded)

	during := s.post("/", "k")
	require.Equal(t, http.StatusConflict, during.status)
	require.Equal(t, "1", during.header.Get("Retry-After"))
	require.Equal(t, idempotency.Outstanding, o.event().Outcome)

	close(till.finish)
	e := o.event()
	require.Equal(t, idempotency.Stored, e.Outcome)
	require.Equal(t, http.StatusCreated, e.Status, "the middleware does not know that its client has had a 503")
	retry := s.post("/", "k")
	require.True(t, retry.replayed)
	require.Equal(t, `{"payment":1}`, retry.body)
	require.EqualValues(t, 1, till.runs.Load())
	o.requireStored(http.StatusCreated, `{"payment":1}`, "Content-Type", "application/json")
}

// TestTimeoutHandlerInside shows the bad order. The middleware sees a handler
// that has returned with a 503, while it goes on.
func TestTimeoutHandlerInside(t *testing.T) {
	t.Run("text: a retry runs beside the first", func(t *testing.T) {
		till, o := newSlowTill(), newOrderTest(t)
		s := o.serve(stack(till, o.once, timeoutOfSlow("too slow")))
		first := s.post("/", "k", "Slow", "yes")
		require.Equal(t, http.StatusServiceUnavailable, first.status)
		require.Equal(t, idempotency.NotStored, o.event().Outcome)
		ctx := await(t, till.running, "run")
		await(t, ctx.Done(), "end of the handler's context")

		retry := s.post("/", "k")
		require.Equal(t, http.StatusCreated, retry.status, "the key was let go of")
		require.EqualValues(t, 1, till.runs.Load(), "the first has not paid yet")
		close(till.finish)
		await(t, till.paid, "end of the first")
		require.EqualValues(t, 2, till.runs.Load(), "it pays too")
	})
	t.Run("JSON: the 503 is the answer from now on", func(t *testing.T) {
		till, o := newSlowTill(), newOrderTest(t)
		s := o.serve(stack(till, o.once, timeoutOfSlow(`{"error":"too slow"}`)))
		s.post("/", "k", "Slow", "yes")
		require.Equal(t, idempotency.Stored, o.event().Outcome)
		close(till.finish)
		retry := s.post("/", "k")
		require.True(t, retry.replayed)
		require.Equal(t, http.StatusServiceUnavailable, retry.status)
		// TimeoutHandler names no type: it counts by what it is.
		require.Equal(t, `{"error":"too slow"}`, string(o.stored().Body))
	})
	t.Run("WithAtMostOnce: the answer is lost", func(t *testing.T) {
		till, o := newSlowTill(), newOrderTest(t, idempotency.WithAtMostOnce())
		s := o.serve(stack(till, o.once, timeoutOfSlow("too slow")))
		s.post("/", "k", "Slow", "yes")
		require.Equal(t, idempotency.NotStored, o.event().Outcome)
		close(till.finish)
		require.Equal(t, http.StatusConflict, s.post("/", "k").status)
		require.Equal(t, idempotency.Interrupted, o.event().Outcome)
	})
}

// TestTimeoutHandlerInTime shows that one that does not run out changes nothing
// in what is stored.
func TestTimeoutHandlerInTime(t *testing.T) {
	for _, order := range orders {
		t.Run(order, func(t *testing.T) {
			o, till := newOrderTest(t), &paymentTill{}
			s := o.serve(orderStack(order, till, o.once, timeoutOfSlow("too slow")))
			first, retry := s.twice("/", idempotency.Stored, idempotency.Replayed)
			require.Equal(t, http.StatusCreated, first.status)
			require.Equal(t, first.body, retry.body)
			o.requireStored(http.StatusCreated, `{"payment":1}`, "Content-Type", "application/json")
		})
	}
}

// TestCrossOriginProtection sends a stored request again from another site.
// Inside, the replay has nobody check where it goes.
func TestCrossOriginProtection(t *testing.T) {
	for _, order := range orders {
		t.Run(order, func(t *testing.T) {
			o, till := newOrderTest(t), &paymentTill{}
			s := o.serve(orderStack(order, till, o.once, http.NewCrossOriginProtection().Handler))
			same, cross := []string{"Sec-Fetch-Site", "same-origin"}, []string{"Sec-Fetch-Site", "cross-site"}

			require.Equal(t, http.StatusForbidden, s.post("/", "forged", cross...).status)
			if order == inside {
				require.Equal(t, idempotency.NotStored, o.event().Outcome, "it is text")
			}
			require.Equal(t, `{"payment":1}`, s.post("/", "forged", same...).body, "the forged request has not used up the key")
			require.Equal(t, idempotency.Stored, o.event().Outcome)

			forged := s.post("/", "forged", cross...)
			require.Equal(t, order == inside, forged.replayed)
			if order == outside {
				require.Equal(t, http.StatusForbidden, forged.status)
				require.Empty(t, o.events)
			}
		})
	}
}

// TestAuthentication repeats Alice's request with her key and without her
// password. Inside, the answer is handed to anyone who has the key.
func TestAuthentication(t *testing.T) {
	type userKey struct{}
	passwords := map[string]string{"alice": "a", "bob": "b"}
	authenticate := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			user, password, _ := r.BasicAuth()
			if password == "" || passwords[user] != password {
				http.Error(w, "who are you?", http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), userKey{}, user)))
		})
	}
	account := func(r *http.Request) string {
		user, _ := r.Context().Value(userKey{}).(string)
		return user
	}
	alice, bob := []string{"Authorization", "Basic YWxpY2U6YQ=="}, []string{"Authorization", "Basic Ym9iOmI="}
	for _, test := range []struct {
		name            string
		order           string
		opts            []idempotency.Option
		stranger, toBob string // the statuses and bodies of what they get
	}{
		{"outside, with a scope", outside, []idempotency.Option{idempotency.WithScope(account)}, "401 who are you?", `201 {"payment":2}`},
		{"outside, without a scope", outside, nil, "401 who are you?", `201 {"payment":1}`},
		{"inside", inside, nil, `201 {"payment":1}`, `201 {"payment":1}`},
		{"inside, with a scope that comes too late", inside, []idempotency.Option{idempotency.WithScope(account)}, `201 {"payment":1}`, `201 {"payment":1}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			o, till := newOrderTest(t, test.opts...), &paymentTill{}
			s := o.serve(orderStack(test.order, till, o.once, authenticate))
			require.Equal(t, `{"payment":1}`, s.post("/", "k", alice...).body)
			retry := s.post("/", "k", alice...)
			require.True(t, retry.replayed)
			require.Equal(t, `{"payment":1}`, retry.body)
			for who, want := range map[*[]string]string{{}: test.stranger, &bob: test.toBob} {
				got := s.post("/", "k", *who...)
				require.Equal(t, want, fmt.Sprint(got.status, " ", strings.TrimSpace(got.body)))
			}
		})
	}
}

// TestAuthenticationInJSON has a client mend its token. Inside, a refusal in
// JSON is the key's answer, and the right token comes too late.
func TestAuthenticationInJSON(t *testing.T) {
	authenticate := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") == "Bearer fresh" {
				next.ServeHTTP(w, r)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = w.Write([]byte(`{"error":"expired"}`))
		})
	}
	for _, order := range orders {
		t.Run(order, func(t *testing.T) {
			o, till := newOrderTest(t), &paymentTill{}
			s := o.serve(orderStack(order, till, o.once, authenticate))
			require.Equal(t, http.StatusUnauthorized, s.post("/", "k", "Authorization", "Bearer stale").status)
			mended := s.post("/", "k", "Authorization", "Bearer fresh")
			if order == outside {
				require.Equal(t, http.StatusCreated, mended.status)
				return
			}
			require.True(t, mended.replayed)
			require.Equal(t, http.StatusUnauthorized, mended.status)
			require.Zero(t, till.runs.Load())
		})
	}
}
