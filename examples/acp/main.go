// Acp is a merchant's checkout service for agents: the four POSTs of the Agentic Commerce
// Protocol's checkout, and its GET. The middleware is all that it has for section 6 of the RFC
// (Idempotency, Retries & Concurrency): section6.go.
//
//	go run .
//	curl -i 127.0.0.1:8080/checkout_sessions -H 'Authorization: Bearer demo' -H 'API-Version: 2026-04-17' \
//		-H 'Idempotency-Key: 8e03978e' --json '{"items": [{"id": "item_123", "quantity": 1}]}'
//
// It prints more lines to try. Sessions and keys are in memory; with -postgres URL both are in
// PostgreSQL, and commit together. TLS, which the protocol asks for, belongs before it.
//
// The RFC: https://github.com/agentic-commerce-protocol/agentic-commerce-protocol, rfcs/rfc.agentic_checkout.md.
package main

import (
	"context"
	"crypto/rand"
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

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/postgres"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	addr := flag.String("addr", "127.0.0.1:8080", "`host:port` to listen on; port 0 is any free one")
	url := flag.String("postgres", "", "`URL` of a PostgreSQL to keep everything in")
	flag.Parse()
	if err := serve(ctx, *addr, *url, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "acp:", err)
		os.Exit(1)
	}
}

// serve serves the API until ctx ends, and then lets what was begun end.
func serve(ctx context.Context, addr, url string, stdout io.Writer) error {
	var backend idempotency.Backend = idempotency.NewMemory()
	a := &api{&memory{all: make(map[string]session)}, &cards{}, map[string]string{"demo": "agent_1", "other": "agent_2"}}
	if url != "" {
		pool, err := pgxpool.New(ctx, url)
		if err != nil {
			return errors.New("-postgres: no URL of a PostgreSQL") // The cause may quote a password.
		}
		defer pool.Close()
		keys, sessions := postgres.NewTransactional(pool, postgres.WithTable("acp_example_keys")), database{pool}
		if err := errors.Join(keys.Migrate(ctx), sessions.migrate(ctx)); err != nil {
			return err
		}
		go keys.SweepEvery(ctx, time.Minute, func(err error) { slog.Warn("old keys not swept", "error", err) })
		backend, a.sessions = keys, sessions
	}

	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: a.handler(backend), ReadTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	fmt.Fprint(stdout, strings.NewReplacer("URL", "http://"+listener.Addr().String(), "NUM", rand.Text()[:4]).Replace(intro))

	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
	defer cancel()
	return server.Shutdown(grace)
}

// intro is what a reader pastes into another terminal.
const intro = `Checkout at URL. Ctrl-C stops. To try, in one shell:

acp() { curl -si "URL/checkout_sessions$1" -H 'Authorization: Bearer demo' -H 'API-Version: 2026-04-17' \
  -H "Idempotency-Key: $2" --json "$3"; echo; }

# Create a session, twice: 201, and the second is replayed, although its JSON is spelled in another way.
acp '' create-NUM '{"items": [{"id": "item_123", "quantity": 1}], "fulfillment_details": {"name": "John"}}'
session=$(acp '' create-NUM '{"fulfillment_details": {"name": "John"}, "items": [{"quantity": 1.0, "id": "item_123"}]}' |
  tee /dev/stderr | sed -n 's/.*"id":"\(cs_[A-Z0-9]*\)".*/\1/p')

# The same key with another body: 422. No key: 400.
acp '' create-NUM '{"items": [{"id": "item_123", "quantity": 2}]}'
acp '' '' '{"items": [{"id": "item_123", "quantity": 1}]}'

# Pay, twice: 200 and one order.
acp "/$session/complete" pay-NUM '{"payment_data": {"instrument": {"credential": {"token": "spt_123"}}}}'
acp "/$session/complete" pay-NUM '{"payment_data": {"instrument": {"credential": {"token": "spt_123"}}}}'
`
