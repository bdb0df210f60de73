package idempotency_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/redis/go-redis/v9"
)

// post sends a request with a key to a handler and prints the answer.
func post(h http.Handler, key, body string) {
	r := httptest.NewRequest(http.MethodPost, "/payments", strings.NewReader(body))
	r.Header.Set("Idempotency-Key", key)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Header().Get("Content-Type") == "application/problem+json" {
		fmt.Println(w.Code, http.StatusText(w.Code))
		return
	}
	replayed := ""
	if w.Header().Get("Idempotent-Replayed") == "true" {
		replayed = " (replayed)"
	}
	fmt.Printf("%d %s%s\n", w.Code, w.Body, replayed)
}

func Example() {
	payments := 0
	mux := http.NewServeMux()
	mux.HandleFunc("POST /payments", func(w http.ResponseWriter, r *http.Request) {
		payments++
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, `{"payment":%d}`, payments)
	})
	h := idempotency.New(idempotency.NewMemory())(mux)

	post(h, "8e03978e", `{"amount":100}`)
	post(h, "8e03978e", `{"amount":100}`) // A retry.
	post(h, "8e03978e", `{"amount":999}`) // Another payment under the same key.
	post(h, "5f1c7d2a", `{"amount":100}`) // Another key.
	// Output:
	// 201 {"payment":1}
	// 201 {"payment":1} (replayed)
	// 422 Unprocessable Entity
	// 201 {"payment":2}
}

func ExampleNew() {
	// In main: idempotency.NewRedis(redis.NewClient(…)).
	withIdempotency := idempotency.New(idempotency.NewMemory(),
		idempotency.WithExpiry(72*time.Hour),
		idempotency.WithKeyValidator(idempotency.UUIDv4))
	h := withIdempotency(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, `{"ok":true}`)
	}))
	post(h, "f47ac10b-58cc-4372-a567-0e02b2c3d479", "")
	post(h, "monday", "")
	// Output:
	// 200 {"ok":true}
	// 422 Unprocessable Entity
}

func ExampleNewRedis() {
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:6379"})
	defer client.Close()
	backend := idempotency.NewRedis(client, idempotency.WithPrefix("payments:idempotency:"))
	_ = idempotency.New(backend)
}

func ExampleWithScope() {
	type account struct{} // What authentication, outside, has put into the context.
	h := idempotency.New(idempotency.NewMemory(), idempotency.WithScope(func(r *http.Request) string {
		name, _ := r.Context().Value(account{}).(string)
		return name
	}))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"paid by":%q}`, r.Context().Value(account{}))
	}))
	as := func(name string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), account{}, name)))
		})
	}
	post(as("alice"), "1", "")
	post(as("bob"), "1", "")
	post(as("alice"), "1", "")
	// Output:
	// 200 {"paid by":"alice"}
	// 200 {"paid by":"bob"}
	// 200 {"paid by":"alice"} (replayed)
}

func ExampleWithObserver() {
	h := idempotency.New(idempotency.NewMemory(), idempotency.WithObserver(func(_ context.Context, e idempotency.Event) {
		fmt.Println("observed:", e.Outcome, e.Status)
	}))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "{}")
	}))
	post(h, "1", "")
	post(h, "1", "")
	// Output:
	// observed: stored 200
	// 200 {}
	// observed: replayed 200
	// 200 {} (replayed)
}

func ExampleWithStoreIf() {
	// A retry after a server's error runs the handler again.
	runs := 0
	h := idempotency.New(idempotency.NewMemory(), idempotency.WithStoreIf(func(status int, _ http.Header) bool {
		return status < 500
	}))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		runs++
		if runs == 1 {
			w.WriteHeader(http.StatusBadGateway)
		}
		fmt.Fprintf(w, `{"run":%d}`, runs)
	}))
	post(h, "1", "")
	post(h, "1", "")
	post(h, "1", "")
	// Output:
	// 502 {"run":1}
	// 200 {"run":2}
	// 200 {"run":2} (replayed)
}

func ExampleWithAtMostOnce() {
	h := idempotency.New(idempotency.NewMemory(), idempotency.WithAtMostOnce())(
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Println("the lottery is drawn")
			panic("and then this")
		}))
	func() {
		defer func() { recover() }() // As net/http does.
		post(h, "1", "")
	}()
	post(h, "1", "")
	// Output:
	// the lottery is drawn
	// 409 Conflict
}

func ExampleWithErrorHandler() {
	h := idempotency.New(idempotency.NewMemory(), idempotency.WithErrorHandler(func(w http.ResponseWriter, r *http.Request, err error) {
		if errors.Is(err, idempotency.ErrKeyReused) {
			fmt.Println("a client has a bug")
		}
		idempotency.WriteError(w, r, err)
	}))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "{}")
	}))
	post(h, "1", "a")
	post(h, "1", "b")
	// Output:
	// 200 {}
	// a client has a bug
	// 422 Unprocessable Entity
}

func ExampleDeriveKey() {
	h := idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Println("charge:", idempotency.DeriveKey(r.Context(), "charge"))
		fmt.Println("mail:", idempotency.DeriveKey(r.Context(), "mail"))
		panic("the process dies")
	}))
	for range 2 { // Each attempt derives the same keys.
		func() {
			defer func() { recover() }()
			post(h, "1", "")
		}()
	}
	// Output:
	// charge: 1d5437e7-0d34-533f-9ec6-6b3b8909da88
	// mail: 094d509c-af47-5a1f-aaa5-f9354b2d722d
	// charge: 1d5437e7-0d34-533f-9ec6-6b3b8909da88
	// mail: 094d509c-af47-5a1f-aaa5-f9354b2d722d
}

func ExampleNoStore() {
	upstream := errors.New("connection refused") // Nothing was done.
	h := idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if upstream != nil {
			idempotency.NoStore(r.Context())
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprintf(w, `{"paid":%t}`, upstream == nil)
	}))
	post(h, "1", "")
	upstream = nil
	post(h, "1", "")
	// Output:
	// 503 {"paid":false}
	// 200 {"paid":true}
}

func ExampleKeyFromContext() {
	h := idempotency.New(idempotency.NewMemory())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key, ok := idempotency.KeyFromContext(r.Context())
		fmt.Fprintf(w, `{"key":%q,"ok":%t}`, key, ok)
	}))
	post(h, `"8e03978e"`, "")
	// Output:
	// 200 {"key":"8e03978e","ok":true}
}

// An operator looks up what a client got.
func ExampleRecord_Open() {
	backend := idempotency.NewMemory() // Or NewRedis with the prefix of the service.
	h := idempotency.New(backend)(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusCreated)
		fmt.Fprint(w, `{"payment":1}`)
	}))
	post(h, "8e03978e", "")

	const scope, key = "", "8e03978e"
	rec, left, ok, err := backend.Lookup(context.Background(), idempotency.NewKey(scope, key))
	if err != nil || !ok {
		fmt.Println("no record", err)
		return
	}
	response, err := rec.Open(scope, key)
	if err != nil {
		fmt.Println(rec.State, err)
		return
	}
	fmt.Println(rec.State, response.Status, string(response.Body), "kept for", left.Round(time.Hour))
	// Output:
	// 201 {"payment":1}
	// completed 201 {"payment":1} kept for 24h0m0s
}

func ExampleWithEncryption() {
	backend := idempotency.NewMemory()
	os.Setenv("IDEMPOTENCY_SECRET", "q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA=") // Where secrets are kept.
	secret, err := base64.StdEncoding.DecodeString(os.Getenv("IDEMPOTENCY_SECRET")) // 32 random bytes
	if err != nil {
		log.Fatal(err)
	}
	protect := idempotency.New(backend, idempotency.WithEncryption(secret))
	h := protect(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"payment":1}`)
	}))
	post(h, "8e03978e", "")
	post(h, "8e03978e", "")

	rec, _, _, _ := backend.Lookup(context.Background(), idempotency.NewKey("", "8e03978e"))
	_, err = rec.Open("", "8e03978e")
	fmt.Println(err)
	response, err := rec.Open("", "8e03978e", secret)
	fmt.Println(string(response.Body), err)
	// Output:
	// 200 {"payment":1}
	// 200 {"payment":1} (replayed)
	// idempotency: record unreadable: it is sealed, and no secret that is given opens it
	// {"payment":1} <nil>
}

func ExampleWithRecovery() {
	charged := make(map[string]int) // At the payment processor, which takes keys.
	pay := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		charged[idempotency.DeriveKey(r.Context(), "charge")] = 100
		fmt.Println("the card is charged")
		panic("and then the process dies")
	})
	ask := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			amount, ok := charged[idempotency.DeriveKey(r.Context(), "charge")]
			if !ok { // The run before did not come that far.
				next.ServeHTTP(w, r)
				return
			}
			fmt.Fprintf(w, `{"charged":%d}`, amount)
		})
	}
	h := idempotency.New(idempotency.NewMemory(), idempotency.WithRecovery(ask))(pay)
	func() {
		defer func() { recover() }() // As net/http does.
		post(h, "1", "")
	}()
	post(h, "1", "")
	post(h, "1", "")
	// Output:
	// the card is charged
	// 200 {"charged":100}
	// 200 {"charged":100} (replayed)
}

func ExampleStep() {
	// reserve is a call downstream, which does nothing twice under one key.
	reserve := func(_ context.Context, what, key string) ([]byte, error) {
		fmt.Println(what, "is reserved under", key)
		return []byte("number 7"), nil
	}
	dies := true
	book := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		flight, err := idempotency.Step(r.Context(), "flight", func(ctx context.Context) ([]byte, error) {
			return reserve(ctx, "a flight", idempotency.DeriveKey(ctx, "flight"))
		})
		if err != nil {
			panic(err) // A retry goes on from here.
		}
		if dies {
			panic("and then the process dies")
		}
		hotel, err := idempotency.Step(r.Context(), "hotel", func(ctx context.Context) ([]byte, error) {
			return reserve(ctx, "a hotel", idempotency.DeriveKey(ctx, "hotel"))
		})
		if err != nil {
			panic(err)
		}
		fmt.Fprintf(w, `{"flight":%q,"hotel":%q}`, flight, hotel)
	})
	again := func(next http.Handler) http.Handler { return next }
	h := idempotency.New(idempotency.NewMemory(), idempotency.WithRecovery(again))(book)
	func() {
		defer func() { recover() }() // As net/http does.
		post(h, "1", "")
	}()
	dies = false
	post(h, "1", "")
	// Output:
	// a flight is reserved under 21465394-6252-5bf1-9f24-7c2a9820f532
	// a hotel is reserved under c6140741-1e36-5aed-a5b0-ecb2caa085be
	// 200 {"flight":"number 7","hotel":"number 7"}
}
