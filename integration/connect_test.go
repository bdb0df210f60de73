package integration

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect"
	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

const chargeProcedure = "/payments.v1.PaymentService/Charge"

// connectOptions store the answers of unary calls, in JSON and in binary, and compare JSON by
// what it means.
func connectOptions() []idempotency.Option {
	return []idempotency.Option{
		idempotency.WithContentTypes("application/json", "application/proto", "application/grpc-web+proto"),
		idempotency.WithFingerprint(idempotency.JSONFingerprint()),
		idempotency.WithErrorHandler(connectErrors(connect.NewErrorWriter())),
	}
}

// connectHandlerOptions leave compression to what stands outside of the middleware: of a client
// that sends gzip connect-go takes it that it wants gzip, and what is encoded is not stored.
func connectHandlerOptions() connect.HandlerOption { return connect.WithCompressMinBytes(math.MaxInt) }

// connectErrors answers an RPC with an error of its protocol, and other requests as ever.
func connectErrors(errs *connect.ErrorWriter) func(w http.ResponseWriter, r *http.Request, err error) {
	return func(w http.ResponseWriter, r *http.Request, err error) {
		if !errs.IsSupported(r) {
			idempotency.WriteError(w, r, err)
			return
		}
		for _, known := range connectCodes {
			if errors.Is(err, known.err) {
				// The error itself may tell of the store: the client gets the sentinel.
				told := connect.NewError(known.code, known.err)
				if known.soon {
					told.Meta().Set("Retry-After", "1")
				}
				_ = errs.Write(w, r, told) // The client may be gone.
				return
			}
		}
		_ = errs.Write(w, r, connect.NewError(connect.CodeInternal, errors.New("the request could not be processed")))
	}
}

// connectCodes has the code that stands for each sentinel.
var connectCodes = []struct {
	err  error
	code connect.Code
	soon bool // Send the same again after a second.
}{
	{idempotency.ErrKeyInvalid, connect.CodeInvalidArgument, false},
	{idempotency.ErrKeyMissing, connect.CodeInvalidArgument, false},
	{idempotency.ErrKeyReused, connect.CodeAlreadyExists, false},
	{idempotency.ErrOutstanding, connect.CodeAborted, true},
	{idempotency.ErrClaimLost, connect.CodeAborted, true},
	{idempotency.ErrInterrupted, connect.CodeFailedPrecondition, false},
	{idempotency.ErrBodyUnreadable, connect.CodeInvalidArgument, false},
	{idempotency.ErrUnreadable, connect.CodeDataLoss, false},
	{idempotency.ErrNotCommitted, connect.CodeUnavailable, true},
	{idempotency.ErrUnavailable, connect.CodeUnavailable, true},
	{idempotency.ErrFull, connect.CodeUnavailable, true},
}

// stableProto is connect-go's binary codec, but for maps: their order stays.
type stableProto struct{}

func (stableProto) Name() string { return "proto" }

func (stableProto) Marshal(m any) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(m.(proto.Message))
}

func (stableProto) Unmarshal(b []byte, m any) error { return proto.Unmarshal(b, m.(proto.Message)) }

type chargeClient = connect.Client[structpb.Struct, structpb.Struct]

// charge calls the service with a key.
func charge(t *testing.T, c *chargeClient, key, to string) (*connect.Response[structpb.Struct], error) {
	t.Helper()
	fields := map[string]any{"to": to}
	for i := range 16 {
		fields[fmt.Sprint("field ", i)] = i // A map, whose order is random.
	}
	message, err := structpb.NewStruct(fields)
	require.NoError(t, err)
	request := connect.NewRequest(message)
	request.Header().Set("Idempotency-Key", key)
	return c.CallUnary(t.Context(), request)
}

// TestConnect calls a unary service as connect-go's clients do: each of them asks for gzip by
// itself, and some send it.
func TestConnect(t *testing.T) {
	for name, opts := range map[string][]connect.ClientOption{
		"JSON":               {connect.WithProtoJSON()},
		"JSON, gzip":         {connect.WithProtoJSON(), connect.WithSendGzip()},
		"proto":              {connect.WithCodec(stableProto{})},
		"proto, gzip":        {connect.WithCodec(stableProto{}), connect.WithSendGzip()},
		"gRPC-Web":           {connect.WithGRPCWeb(), connect.WithCodec(stableProto{})},
		"gRPC-Web with gzip": {connect.WithGRPCWeb(), connect.WithCodec(stableProto{}), connect.WithSendGzip()},
	} {
		t.Run(name, func(t *testing.T) {
			var runs atomic.Int64
			begun, end := make(chan bool, 8), make(chan struct{})
			o := newOrderTest(t, connectOptions()...)
			mux := http.NewServeMux()
			mux.Handle(chargeProcedure, connect.NewUnaryHandler(chargeProcedure,
				func(ctx context.Context, r *connect.Request[structpb.Struct]) (*connect.Response[structpb.Struct], error) {
					run := runs.Add(1)
					key, _ := idempotency.KeyFromContext(ctx)
					switch r.Msg.Fields["to"].GetStringValue() {
					case "slow":
						begun <- true
						hold(end)
					case "poor":
						return nil, connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("run %d", run))
					}
					answer, err := structpb.NewStruct(map[string]any{"run": run, "key": key})
					return connect.NewResponse(answer), err
				}, connectHandlerOptions()))
			s := o.serve(o.once(mux))
			release := sync.OnceFunc(func() { close(end) })
			t.Cleanup(release)
			c := connect.NewClient[structpb.Struct, structpb.Struct](http.DefaultClient, s.URL+chargeProcedure, opts...)

			first, err := charge(t, c, "k", "alice")
			require.NoError(t, err)
			require.Equal(t, idempotency.Stored, o.event().Outcome)
			retry, err := charge(t, c, "k", "alice")
			require.NoError(t, err)
			require.Equal(t, idempotency.Replayed, o.event().Outcome)
			require.Equal(t, "true", retry.Header().Get("Idempotent-Replayed"))
			require.EqualValues(t, 1, retry.Msg.Fields["run"].GetNumberValue())
			require.Equal(t, "k", retry.Msg.Fields["key"].GetStringValue())
			require.True(t, proto.Equal(first.Msg, retry.Msg))

			_, err = charge(t, c, "k", "bob")
			requireRefused(t, err, connect.CodeAlreadyExists, "")
			require.Equal(t, idempotency.Reused, o.event().Outcome)

			slow := make(chan error, 1)
			go func() {
				_, err := charge(t, c, "slow", "slow")
				slow <- err
			}()
			await(t, begun, "run")
			_, err = charge(t, c, "slow", "slow")
			requireRefused(t, err, connect.CodeAborted, "1")
			require.Equal(t, idempotency.Outstanding, o.event().Outcome)
			release()
			require.NoError(t, await(t, slow, "answer"))
			require.Equal(t, idempotency.Stored, o.event().Outcome)
			require.EqualValues(t, 2, runs.Load())

			// An error of the service is an answer too, and a retry gets the same.
			for _, outcome := range []idempotency.Outcome{idempotency.Stored, idempotency.Replayed} {
				_, err = charge(t, c, "poor", "poor")
				requireRefused(t, err, connect.CodeResourceExhausted, "")
				require.ErrorContains(t, err, "run 3")
				require.Equal(t, outcome, o.event().Outcome)
			}
		})
	}
}

// requireRefused requires an error with a code, and with a Retry-After or without.
func requireRefused(t *testing.T, err error, code connect.Code, retryAfter string) {
	t.Helper()
	var refused *connect.Error
	require.ErrorAs(t, err, &refused)
	require.Equal(t, code, refused.Code(), err)
	require.Equal(t, retryAfter, refused.Meta().Get("Retry-After"))
}

// TestConnectJSON calls the service without a client of connect-go's: JSON counts by what it means.
func TestConnectJSON(t *testing.T) {
	var runs atomic.Int64
	o := newOrderTest(t, connectOptions()...)
	s := o.serve(o.once(connect.NewUnaryHandler(chargeProcedure, chargeNothing(&runs))))
	first := s.send(http.MethodPost, chargeProcedure, "k", `{"to":"alice","amount":100}`, "Content-Type", "application/json")
	require.Equal(t, http.StatusOK, first.status)
	retry := s.send(http.MethodPost, chargeProcedure, "k", `{"amount": 100.0, "to": "alice"}`, "Content-Type", "application/json")
	require.True(t, retry.replayed)
	require.EqualValues(t, 1, runs.Load())
}

// Each sentinel has its code, which tells nothing of the store, and what is no RPC its problem.
func TestConnectErrors(t *testing.T) {
	var down atomic.Bool
	o := newOrderTest(t)
	once := idempotency.New(faulty{o.orderBackend, &down}, append(connectOptions(), idempotency.WithLogger(slog.New(slog.DiscardHandler)))...)
	s := o.serve(once(http.NotFoundHandler()))
	down.Store(true)
	c := connect.NewClient[structpb.Struct, structpb.Struct](http.DefaultClient, s.URL+chargeProcedure)
	_, err := charge(t, c, "k", "alice")
	requireRefused(t, err, connect.CodeUnavailable, "1")
	require.NotContains(t, err.Error(), "10.0.0.7")
	_, err = charge(t, c, "\x80", "alice")
	requireRefused(t, err, connect.CodeInvalidArgument, "")
	plain := s.post("/", "k")
	require.Equal(t, http.StatusServiceUnavailable, plain.status)
	require.Equal(t, "application/problem+json", plain.header.Get("Content-Type"))
}

// TestConnectEncodes shows what connect-go does by itself if a client sends gzip.
func TestConnectEncodes(t *testing.T) {
	var runs atomic.Int64
	o := newOrderTest(t, connectOptions()...)
	s := o.serve(o.once(connect.NewUnaryHandler(chargeProcedure, chargeNothing(&runs))))
	c := connect.NewClient[structpb.Struct, structpb.Struct](http.DefaultClient, s.URL+chargeProcedure, connect.WithSendGzip())
	_, err := charge(t, c, "k", "alice")
	require.NoError(t, err)
	require.Equal(t, idempotency.ReasonEncoded, o.event().Reason)
}

// chargeNothing counts its runs, and answers with nothing.
func chargeNothing(runs *atomic.Int64) func(context.Context, *connect.Request[structpb.Struct]) (*connect.Response[structpb.Struct], error) {
	return func(context.Context, *connect.Request[structpb.Struct]) (*connect.Response[structpb.Struct], error) {
		runs.Add(1)
		return connect.NewResponse(&structpb.Struct{}), nil
	}
}

// faulty is a store that can be down.
type faulty struct {
	*orderBackend
	down *atomic.Bool
}

func (b faulty) Claim(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
	if b.down.Load() {
		return idempotency.Record{}, false, errors.New("dial 10.0.0.7: refused")
	}
	return b.orderBackend.Claim(ctx, key, claim, terms)
}

// TestGRPC shows what the middleware does for gRPC itself, whose status is a trailer: it keeps
// two calls with one key from running at once, and no more.
func TestGRPC(t *testing.T) {
	var runs atomic.Int64
	o := newOrderTest(t, connectOptions()...)
	mux := http.NewServeMux()
	mux.Handle(chargeProcedure, connect.NewUnaryHandler(chargeProcedure, chargeNothing(&runs)))
	w := wireProtocols[2].start(t, o.once(mux))
	c := connect.NewClient[structpb.Struct, structpb.Struct](w.client, w.server.URL+chargeProcedure, connect.WithGRPC())
	for range 2 {
		_, err := charge(t, c, "k", "alice")
		require.NoError(t, err)
		e := o.event()
		require.Equal(t, idempotency.NotStored, e.Outcome)
		require.Equal(t, idempotency.ReasonContentType, e.Reason)
	}
	require.EqualValues(t, 2, runs.Load(), "the retry runs again")
}
