package proof

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/internal/leash"
)

// The headers by which a client tells a server what is to happen to one request,
// and by which the server tells what happened. They are no part of the
// fingerprint, so that a retry goes without.
const (
	headerDie    = "Proof-Die"    // the step at which the server kills itself
	headerPause  = "Proof-Pause"  // the step at which it stops itself
	headerDo     = "Proof-Do"     // how the handler ends
	headerLeave  = "Proof-Leave"  // the step at which the server waits until the client has left
	headerGate   = "Proof-Gate"   // names a gate: the handler waits there, after its write, for POST /open?gate=
	headerCommit = "Proof-Commit" // in an answer: what became of a COMMIT whose outcome was not known
)

// What headerCommit tells.
const (
	foundCommitted    = "found committed"
	foundNotCommitted = "found not committed"
	notFoundOut       = "not found out"
)

// steps are the points of a request at which a server may die, in their order.
var steps = []string{
	"claim-start",    // before the claim
	"claim-end",      // the key is claimed, and nobody knows
	"claimed",        // in the handler, before it asks for its transaction
	"begun",          // in the handler, before it does anything in the transaction
	"read",           // in the handler, before its write
	"written",        // in the handler, after its write
	"returned",       // after the handler
	"put-start",      // before the record gets its response
	"put-end",        // after that
	"commit-start",   // before COMMIT
	"commit-sent",    // COMMIT is sent and not answered
	"commit-end",     // COMMIT is answered
	"completed",      // the backend is done
	"answer",         // before the first byte of the answer
	"answer-halfway", // in the middle of it
}

// visit is a request on its way through a server.
type visit struct {
	die, pause string
	leave      string
	leaves     sync.Once
	client     context.Context        // the request's, which ends when its client leaves
	unknown    atomic.Bool            // the outcome of its COMMIT was not known
	found      atomic.Pointer[string] // what became of that
}

type visitKey struct{}

// visitOf returns the visit that ctx belongs to. The middleware keeps the values
// of a request's context in every call of its backend.
func visitOf(ctx context.Context) *visit {
	v, _ := ctx.Value(visitKey{}).(*visit)
	return v
}

// at dies or stops at a step, if that is what the request wants.
func (v *visit) at(step string) {
	switch {
	case v == nil:
	case v.die == step:
		leash.Die()
	case v.pause == step:
		if err := pauseSelf(); err != nil {
			panic(err)
		}
	case v.leave == step:
		v.leaves.Do(func() {
			left.Add(1)
			<-v.client.Done()
		})
	}
}

// left counts the requests that have come to the step at which their client is to
// leave.
var left atomic.Int64

// watched is a Transactor with steps before and after Complete.
type watched struct {
	idempotency.Transactor
	takeOver bool // Claim takes over what was interrupted.
	repeat   bool // Claim is sent twice, and its first outcome is not known.
}

// Claim implements [idempotency.Backend].
func (b watched) Claim(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
	terms.TakeOver = b.takeOver
	if b.repeat {
		_, claimed, err := b.Transactor.Claim(ctx, key, claim, terms)
		if err != nil {
			return idempotency.Record{}, false, err
		}
		if claimed {
			visitOf(ctx).at("repeated")
		}
	}
	return b.Transactor.Claim(ctx, key, claim, terms)
}

// completing marks the context of a Complete.
type completing struct{}

// Complete implements [idempotency.Transactor].
func (b watched) Complete(ctx context.Context, key idempotency.Key, claim idempotency.Claim, response []byte, expiry time.Duration) error {
	v := visitOf(ctx)
	v.at("returned")
	err := b.Transactor.Complete(context.WithValue(ctx, completing{}, true), key, claim, response, expiry)
	if v.unknown.Load() {
		found := notFoundOut
		switch {
		case err == nil:
			found = foundCommitted
		case errors.Is(err, idempotency.ErrNotCommitted):
			found = foundNotCommitted
		}
		v.found.Store(&found)
	}
	v.at("completed")
	return err
}

// tracer has steps before and after each statement.
type tracer struct{}

type statementKey struct{}

// TraceQueryStart implements [pgx.QueryTracer].
func (tracer) TraceQueryStart(ctx context.Context, conn *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	v := visitOf(ctx)
	if v == nil {
		return ctx
	}
	statement := statementOf(ctx, data.SQL)
	if statement == "commit" && v.die == "commit-sent" {
		conn.PgConn().Conn().(*mortal).armed.Store(true)
	}
	if statement == "claim" && v.leave == "claim-sent" {
		conn.PgConn().Conn().(*mortal).leaving.Store(v)
	}
	v.at(statement + "-start")
	return context.WithValue(ctx, statementKey{}, statement)
}

// TraceQueryEnd implements [pgx.QueryTracer].
func (tracer) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryEndData) {
	statement, _ := ctx.Value(statementKey{}).(string)
	var refused *pgconn.PgError
	if statement == "commit" && data.Err != nil && !errors.As(data.Err, &refused) {
		visitOf(ctx).unknown.Store(true)
	}
	visitOf(ctx).at(statement + "-end")
}

// statementOf tells the backend's statements apart by their text. Were that to
// change, servers would no longer die in them, and that is a violation.
func statementOf(ctx context.Context, sql string) string {
	switch {
	case sql == "commit":
		return "commit"
	case strings.Contains(sql, "WITH held AS"):
		return "claim"
	case strings.Contains(sql, "WITH written AS") && ctx.Value(completing{}) != nil:
		return "put"
	}
	return "other"
}

// mortal is a connection to PostgreSQL that kills the process when it has sent
// something, once it is armed, or waits until a client has left.
type mortal struct {
	net.Conn
	armed   atomic.Bool
	leaving atomic.Pointer[visit] // whose client is to leave when a statement is on its way
}

func (c *mortal) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if c.armed.Load() {
		leash.Die()
	}
	if len(b) > 0 && b[0] == 'B' { // Bind, and not what prepares the statement
		if v := c.leaving.Swap(nil); v != nil {
			v.at("claim-sent")
		}
	}
	return n, err
}

func dialMortal(ctx context.Context, network, addr string) (net.Conn, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &mortal{Conn: conn}, nil
}

// answering is the ResponseWriter outside of the middleware.
type answering struct {
	http.ResponseWriter
	visit *visit
}

func (w answering) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w answering) WriteHeader(status int) {
	w.visit.at("answer")
	if found := w.visit.found.Load(); found != nil {
		w.Header().Set(headerCommit, *found)
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w answering) Write(b []byte) (int, error) {
	if w.visit.die == "answer-halfway" {
		_, _ = w.ResponseWriter.Write(b[:len(b)/2])
		_ = http.NewResponseController(w.ResponseWriter).Flush()
		leash.Die()
	}
	return w.ResponseWriter.Write(b)
}
