package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"time"

	"github.com/idempotency-go/idempotency"
)

// The functions here stand on docs/PROTOCOLS.md, word for word; clauses_test.go tests them.

// account returns whose request it is, as authentication has established it.
func account(r *http.Request) string {
	name, _ := r.Context().Value(accountKey{}).(string)
	return name
}

func withIETF(backend idempotency.Backend) func(http.Handler) http.Handler {
	return idempotency.New(backend,
		idempotency.WithRequired(),
		idempotency.WithScope(account),
		idempotency.WithKeyValidator(idempotency.UUIDv4),
		idempotency.WithExpiry(24*time.Hour),
		idempotency.WithDocumentation("https://developer.example.com/idempotency"),
	)
}

func withStripe(backend idempotency.Backend) func(http.Handler) http.Handler {
	return idempotency.New(backend,
		idempotency.WithMethods(http.MethodPost),
		idempotency.WithScope(account),
		idempotency.WithContentTypes("*"),
		idempotency.WithExpiry(24*time.Hour),
	)
}

// keyField takes the key from a field of a JSON body.
func keyField(name string) func(r *http.Request, body []byte) (string, error) {
	return func(_ *http.Request, body []byte) (key string, err error) {
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(body, &fields); err != nil {
			return "", errors.New("the body is not a JSON object")
		}
		if fields[name] != nil && json.Unmarshal(fields[name], &key) != nil {
			return "", fmt.Errorf("%s is not a string", name)
		}
		return key, nil
	}
}

const replayTTL = 24 * time.Hour // as get_adcp_capabilities declares it

var adcpKey = regexp.MustCompile(`^[A-Za-z0-9_.:-]{16,255}$`)

func withAdCP(backend idempotency.Backend, secret []byte) func(http.Handler) http.Handler {
	once := idempotency.New(backend,
		idempotency.WithKeyFunc(keyField("idempotency_key")),
		idempotency.WithKeyValidator(func(key string) error {
			if !adcpKey.MatchString(key) {
				return errors.New("idempotency_key must match " + adcpKey.String())
			}
			return nil
		}),
		idempotency.WithRequired(),
		idempotency.WithScope(account), // the agent and the account
		idempotency.WithFingerprint(idempotency.JSONFingerprint("/idempotency_key", "/context", "/governance_context",
			"/push_notification_config/authentication/credentials")),
		idempotency.WithStoreIf(func(status int, _ http.Header) bool { return status < 300 }),
		idempotency.WithExpiry(replayTTL+time.Minute), // rule 6: a clock-skew window of 60 s
		idempotency.WithEncryption(secret),
		idempotency.WithErrorHandler(refuseAdCP),
	)
	return func(next http.Handler) http.Handler { return envelope(once(next)) }
}

func refuseAdCP(w http.ResponseWriter, _ *http.Request, err error) {
	code, recovery, status, wait := "SERVICE_UNAVAILABLE", "transient", http.StatusServiceUnavailable, 1
	switch {
	case errors.Is(err, idempotency.ErrKeyMissing), errors.Is(err, idempotency.ErrKeyInvalid),
		errors.Is(err, idempotency.ErrBodyUnreadable):
		code, recovery, status, wait = "INVALID_REQUEST", "correctable", http.StatusBadRequest, 0
	case errors.Is(err, idempotency.ErrKeyReused):
		code, recovery, status, wait = "IDEMPOTENCY_CONFLICT", "correctable", http.StatusConflict, 0
	case errors.Is(err, idempotency.ErrOutstanding), errors.Is(err, idempotency.ErrClaimLost):
		code, status = "IDEMPOTENCY_IN_FLIGHT", http.StatusConflict
	}
	e := map[string]any{"code": code, "message": http.StatusText(status), "recovery": recovery}
	if wait > 0 {
		e["retry_after"] = wait
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []any{e}})
}

// envelope puts a payload, stored or not, into the protocol's envelope, which is made anew for
// each answer. It stands outside of the middleware.
func envelope(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		inner := &payload{header: make(http.Header), status: http.StatusOK}
		next.ServeHTTP(inner, r)
		maps.Copy(w.Header(), inner.header)
		body := inner.body.Bytes()
		if inner.status < 300 {
			body, _ = json.Marshal(struct {
				Status    string          `json:"status"`
				Replayed  bool            `json:"replayed"`
				Timestamp time.Time       `json:"timestamp"`
				Payload   json.RawMessage `json:"payload"`
			}{"completed", inner.header.Get("Idempotent-Replayed") == "true", time.Now().UTC(), body})
			w.Header().Del("Content-Length")
		}
		w.WriteHeader(inner.status)
		_, _ = w.Write(body)
	})
}

// payload is a response that is held in memory.
type payload struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (p *payload) Header() http.Header         { return p.header }
func (p *payload) WriteHeader(status int)      { p.status = status }
func (p *payload) Write(b []byte) (int, error) { return p.body.Write(b) }

func withUCP(backend idempotency.Backend) func(http.Handler) http.Handler {
	return idempotency.New(backend,
		idempotency.WithRequired(),
		idempotency.WithKeyValidator(func(key string) error {
			if idempotency.UUIDv7(key) == nil {
				return nil
			}
			return idempotency.UUIDv4(key)
		}),
		idempotency.WithScope(func(r *http.Request) string { return account(r) + " " + r.Pattern }),
		idempotency.WithExpiry(48*time.Hour),
		idempotency.WithErrorHandler(refuseUCP),
	)
}

func refuseUCP(w http.ResponseWriter, _ *http.Request, err error) {
	code, status := "service_unavailable", http.StatusServiceUnavailable
	switch {
	case errors.Is(err, idempotency.ErrKeyMissing), errors.Is(err, idempotency.ErrKeyInvalid),
		errors.Is(err, idempotency.ErrBodyUnreadable):
		code, status = "invalid_request", http.StatusBadRequest
	case errors.Is(err, idempotency.ErrKeyReused):
		code, status = "idempotency_key_reused", http.StatusConflict
	default: // What is outstanding too: a 409 says that the key was reused.
		w.Header().Set("Retry-After", "1")
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"code": code, "content": http.StatusText(status)})
}

const keyLifetime = 30 * time.Minute // as /v1/config tells it: "idempotency-key-lifetime": "PT30M"

func withIceberg(backend idempotency.Backend) func(http.Handler) http.Handler {
	return idempotency.New(backend,
		idempotency.WithMethods(http.MethodPost, http.MethodDelete),
		idempotency.WithScope(account),
		idempotency.WithKeyValidator(func(key string) error {
			if len(key) != 36 {
				return errors.New("the key must be a UUID of 36 characters")
			}
			return idempotency.UUIDv7(key)
		}),
		idempotency.WithContentTypes("*"), // a 204 too
		idempotency.WithStoreIf(func(status int, _ http.Header) bool {
			switch status {
			case http.StatusUnauthorized, http.StatusForbidden, http.StatusRequestTimeout, 419, http.StatusTooManyRequests:
				return false // not terminal: they can be otherwise for the same request
			}
			return status < 500
		}),
		idempotency.WithExpiry(keyLifetime+5*time.Minute), // a grace period
		idempotency.WithWait(10*time.Second),
		idempotency.WithErrorHandler(refuseIceberg),
	)
}

func refuseIceberg(w http.ResponseWriter, _ *http.Request, err error) {
	kind, status := "ServiceUnavailableException", http.StatusServiceUnavailable
	switch {
	case errors.Is(err, idempotency.ErrKeyInvalid), errors.Is(err, idempotency.ErrBodyUnreadable):
		kind, status = "BadRequestException", http.StatusBadRequest
	case errors.Is(err, idempotency.ErrKeyReused):
		kind, status = "UnprocessableEntityException", http.StatusUnprocessableEntity
	default: // What is outstanding too: a 409 is a commit that failed for good.
		w.Header().Set("Retry-After", "1")
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	e := map[string]any{"message": http.StatusText(status), "type": kind, "code": status}
	_ = json.NewEncoder(w).Encode(map[string]any{"error": e})
}

func withSquare(backend idempotency.Backend) func(http.Handler) http.Handler {
	return idempotency.New(backend,
		idempotency.WithKeyFunc(keyField("idempotency_key")),
		idempotency.WithKeyValidator(func(key string) error {
			if len(key) > 45 {
				return errors.New("idempotency_key has at most 45 characters")
			}
			return nil
		}),
		idempotency.WithRequired(),
		idempotency.WithScope(func(r *http.Request) string { return account(r) + " " + r.Pattern }),
		idempotency.WithFingerprint(idempotency.JSONFingerprint()),
		idempotency.WithErrorHandler(refuseSquare),
	)
}

func refuseSquare(w http.ResponseWriter, r *http.Request, err error) {
	if !errors.Is(err, idempotency.ErrKeyReused) {
		idempotency.WriteError(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusBadRequest)
	_, _ = w.Write([]byte(`{"errors":[{"category":"INVALID_REQUEST_ERROR","code":"IDEMPOTENCY_KEY_REUSED",` +
		`"detail":"The provided idempotency key has already been used."}]}`))
}

func withAIP155(backend idempotency.Backend) func(http.Handler) http.Handler {
	return idempotency.New(backend,
		idempotency.WithKeyFunc(keyField("request_id")),
		idempotency.WithKeyValidator(idempotency.UUIDv4),
		idempotency.WithScope(account),
		idempotency.WithStoreIf(func(status int, _ http.Header) bool { return status < 300 }),
	)
}
