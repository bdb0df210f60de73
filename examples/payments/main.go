// Payments is a small payments API whose clients may retry every request: it
// shows where the idempotency middleware stands in a service, and what its
// handlers do to be run again after a crash.
//
//	go run ./examples/payments
//	go run ./examples/payments -redis redis://127.0.0.1:6379/0 -addr 127.0.0.1:8081
//
// It prints curl lines to try, and serves a page at / that does the same by
// buttons. On Redis, several copies share one truth, but for the card processor, which
// each plays by itself.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"

	"github.com/idempotency-go/idempotency"
)

const (
	redisTimeout    = 3 * time.Second  // for Redis to answer at start
	shutdownTimeout = 15 * time.Second // longer than any handler takes
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	// What go-redis logs by itself repeats the errors that its calls return.
	logging.Disable()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run serves until ctx ends and returns the exit status: 1, after one line on
// stderr, for what keeps it from serving or from ending well.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("payments", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // The flag package would print the usage with each error.
	addr := flags.String("addr", "127.0.0.1:8080", "`host:port` to listen on; port 0 is any free one")
	redisURL := flags.String("redis", "", "`URL` of a Redis to keep everything in, such as redis://127.0.0.1:6379/0 (default this process's memory)")
	err := flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(stdout, "usage: payments [-addr host:port] [-redis URL]")
		flags.SetOutput(stdout)
		flags.PrintDefaults()
		return 0
	}
	if err == nil && flags.NArg() > 0 {
		// The argument is not shown: it may be a URL with a password.
		err = errors.New("unexpected argument; -h lists the flags")
	}
	if err == nil {
		err = serve(ctx, *addr, *redisURL, stdout, slog.New(slog.NewTextHandler(stderr, nil)))
	}
	if err != nil {
		fmt.Fprintln(stderr, "payments:", err)
		return 1
	}
	return 0
}

// serve serves the API until ctx ends, and then lets what was begun end.
func serve(ctx context.Context, addr, redisURL string, stdout io.Writer, log *slog.Logger) error {
	var backend idempotency.Backend = idempotency.NewMemory()
	var payments store = &memoryStore{payments: make(map[[2]string]payment)}
	where := "in memory"
	if redisURL != "" {
		client, err := connect(ctx, redisURL)
		if err != nil {
			return err
		}
		defer client.Close()
		backend, payments = idempotency.NewRedis(client), redisStore{client}
		where = "in Redis at " + client.Options().Addr
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	a := &api{payments, newProcessor(), log}
	server := &http.Server{
		Handler:           a.handler(backend),
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelError),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second, // the slowest handler, and storing its response
		IdleTimeout:       2 * time.Minute,
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	fmt.Fprint(stdout, strings.NewReplacer(
		"URL", "http://"+listener.Addr().String(), "WHERE", where, "NUM", uuid.NewString()[:4],
	).Replace(intro))

	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := server.Shutdown(grace); err != nil {
		return fmt.Errorf("shutdown: %w", err)
	}
	return nil
}

// connect returns a client of a Redis that answers.
func connect(ctx context.Context, url string) (*redis.Client, error) {
	opts, err := redis.ParseURL(url)
	if err != nil {
		// The cause may quote the URL, and with it a password.
		return nil, errors.New("-redis: not a Redis URL; it should look like redis://user:password@127.0.0.1:6379/0")
	}
	opts.DialTimeout = redisTimeout
	opts.ContextTimeoutEnabled = true
	client := redis.NewClient(opts)
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	if err := client.Ping(ctx).Err(); err != nil {
		client.Close()
		return nil, fmt.Errorf("no answer from Redis at %s: %w", opts.Addr, err)
	}
	return client, nil
}

// intro is what a reader pastes into another terminal. Its keys are new at each
// start, so that the answers are those that the comments tell.
const intro = `Payments at URL, kept WHERE. Ctrl-C stops. To try:

# The same by buttons, and what became of each request: open URL/ in a browser.

# Pay: 201.
curl -i URL/payments -H 'Authorization: Bearer alice-secret' -H 'Idempotency-Key: order-NUM-1' --json '{"amount": 1250, "currency": "EUR", "card": "tok_visa"}'

# The same again: the same payment, replayed.
curl -i URL/payments -H 'Authorization: Bearer alice-secret' -H 'Idempotency-Key: order-NUM-1' --json '{"amount": 1250, "currency": "EUR", "card": "tok_visa"}'

# The same key with another amount: 422.
curl -i URL/payments -H 'Authorization: Bearer alice-secret' -H 'Idempotency-Key: order-NUM-1' --json '{"amount": 9900, "currency": "EUR", "card": "tok_visa"}'

# Two at once, with a card that takes its time: one 409, one 201.
(for i in 1 2; do curl -si URL/payments -H 'Authorization: Bearer alice-secret' -H 'Idempotency-Key: order-NUM-2' --json '{"amount": 4200, "currency": "EUR", "card": "tok_slow"}' & done; wait)

# The card processor does not answer: 503, not stored. The retry pays: 201.
for i in 1 2; do curl -i URL/payments -H 'Authorization: Bearer alice-secret' -H 'Idempotency-Key: order-NUM-3' --json '{"amount": 700, "currency": "EUR", "card": "tok_timeout"}'; done

# The handler crashes after the charge: 500. The retry asks the card processor, finds the charge, and answers: 201.
for i in 1 2; do curl -i URL/payments -H 'Authorization: Bearer alice-secret' -H 'Idempotency-Key: order-NUM-4' --json '{"amount": 900, "currency": "EUR", "card": "tok_crash"}'; done

# So far 5 runs of the handler, and 4 charges: one for each of the payments.
curl -i URL/counts -H 'Authorization: Bearer alice-secret'

# Every payment.
curl -i URL/payments -H 'Authorization: Bearer alice-secret'

# Refund a part of the last one, however often this is sent: 201.
curl -i URL/payments/$(curl -s URL/payments -H 'Authorization: Bearer alice-secret' | grep -o 'pay_[0-9a-f-]*' | tail -n 1)/refunds -H 'Authorization: Bearer alice-secret' -H 'Idempotency-Key: refund-NUM-1' --json '{"amount": 500}'

Other cards: tok_declined, tok_lost. Another account: bob-secret.
`
