package recoverytest

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync/atomic"
	"time"

	"github.com/idempotency-go/idempotency"
)

// serverVariable has the configuration of a server: the program is one if it is set.
const serverVariable = "IDEMPOTENCY_RECOVERY_SERVER"

// config is what a server process is told when it starts.
type config struct {
	Target     string // what leads to the store
	Downstream string
	Lease      time.Duration
	Broken     string // names a deliberately broken build
	Repeat     bool   // Every claim is sent twice, and the first reply is lost.
}

// A Store is what a server keeps its records in.
type Store struct {
	Backend idempotency.Backend
	// Write writes that the order of a key was served, in the transaction of ctx; nil is
	// nothing.
	Write func(ctx context.Context, key string) error
}

// ServeIfAsked serves and does not return if this process was started as a server. open
// opens the store of a target.
func ServeIfAsked(open func(target string) (Store, error)) {
	text := os.Getenv(serverVariable)
	if text == "" {
		return
	}
	var c config
	err := json.Unmarshal([]byte(text), &c)
	if err == nil {
		err = c.serve(open)
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// server serves payments, at /pay, and trips of three steps, at /trip.
type server struct {
	config config
	store  Store
	runs   atomic.Int64
}

func (c config) serve(open func(target string) (Store, error)) error {
	store, err := open(c.Target)
	if err != nil {
		return err
	}
	s := &server{config: c, store: store}
	backend := watch(breakBackend(c.Broken, store.Backend), c)
	options := []idempotency.Option{idempotency.WithLease(c.Lease), idempotency.WithLogger(slog.New(slog.DiscardHandler))}
	serve := func(f func(ctx context.Context, v *visit, run url.Values) (any, error), recovery func(http.Handler) http.Handler) http.Handler {
		return idempotency.New(backend, append(options, idempotency.WithRecovery(recovery))...)(s.answer(f))
	}
	mux := http.NewServeMux()
	mux.Handle("POST /pay", s.visited(serve(s.pay, s.recover)))
	mux.Handle("POST /trip", s.visited(serve(s.trip, func(next http.Handler) http.Handler { return next })))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr())
	service := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	return service.Serve(listener)
}

// visited gives a request its visit.
func (s *server) visited(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v := &visit{die: r.Header.Get(headerDie), pause: r.Header.Get(headerPause),
			holds: r.Header.Get(headerHold) != "", key: r.Header.Get("Idempotency-Key"), server: s}
		next.ServeHTTP(answering{w, v}, r.WithContext(context.WithValue(r.Context(), visitKey{}, v)))
	})
}

// answer returns the handler that answers with what f returns.
func (s *server) answer(f func(ctx context.Context, v *visit, run url.Values) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v := visitOf(r.Context())
		v.at("begun")
		answer, err := f(r.Context(), v, s.begin(v, ""))
		s.respond(w, r, answer, err)
	})
}

// begin notes that a run has begun, and returns what tells of it.
func (s *server) begin(v *visit, recovers string) url.Values {
	run := url.Values{"order": {v.key}, "run": {fmt.Sprintf("%d.%d", os.Getpid(), s.runs.Add(1))}, "recovers": {recovers}}
	s.tell("/begin", run, nil)
	return run
}

// respond writes what was served, and answers. A run that fails leaves its key
// interrupted.
func (s *server) respond(w http.ResponseWriter, r *http.Request, answer any, err error) {
	v := visitOf(r.Context())
	if err == nil && s.store.Write != nil {
		err = s.store.Write(r.Context(), v.key)
	}
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(answer) // The client may be gone.
}

// pay is the handler of a payment. It does not ask.
func (s *server) pay(ctx context.Context, v *visit, run url.Values) (any, error) {
	charge := s.do(ctx, "charge", run)
	v.at("charged")
	return charge, nil
}

// recover is the recovery of a payment. It asks first.
func (s *server) recover(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v := visitOf(r.Context())
		v.at("recovering")
		s.begin(v, "true")
		var found deed
		s.tell("/ask", url.Values{"order": {v.key}, "name": {"charge"}, "key": {idempotency.DeriveKey(r.Context(), "charge")}}, &found)
		v.at("asked")
		if found.ID > 0 {
			s.respond(w, r, found, nil)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// trip takes three steps.
func (s *server) trip(ctx context.Context, v *visit, run url.Values) (any, error) {
	var booked []json.RawMessage
	for _, name := range []string{"flight", "hotel", "car"} {
		v.step = name
		v.at("before-" + name)
		result, err := idempotency.Step(ctx, name, func(ctx context.Context) ([]byte, error) {
			v.at("in-" + name)
			done := s.do(ctx, name, run)
			v.at("did-" + name)
			return json.Marshal(done)
		})
		if err != nil {
			return nil, err
		}
		s.tell("/kept", url.Values{"order": run["order"], "run": run["run"], "name": {name}}, nil)
		v.at("after-" + name)
		booked = append(booked, result)
	}
	return booked, nil
}

// do does something downstream, under the key that is derived for it.
func (s *server) do(ctx context.Context, name string, run url.Values) (done deed) {
	s.tell("/do", url.Values{"order": run["order"], "run": run["run"], "name": {name}, "key": {idempotency.DeriveKey(ctx, name)}}, &done)
	return done
}

// tell calls downstream, which is the process of the proof: without it nothing goes on.
func (s *server) tell(path string, q url.Values, answer any) {
	resp, err := http.Get(s.config.Downstream + path + "?" + q.Encode())
	if err == nil {
		defer resp.Body.Close()
		if answer == nil {
			answer = new(any)
		}
		err = json.NewDecoder(resp.Body).Decode(answer)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "downstream:", err)
		os.Exit(1)
	}
}
