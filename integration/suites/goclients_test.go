package suites

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/go-resty/resty/v2"
	"github.com/hashicorp/go-retryablehttp"
	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/stretchr/testify/require"
	"github.com/stripe/stripe-go/v85"

	"github.com/idempotency-go/idempotency"
)

var goClients = []client{
	{"stripe-go", asItComes, nil, payByStripe(func(*stripe.ChargeCreateParams) {})},
	{"stripe-go", withLines, []idempotency.Option{idempotency.WithErrorHandler(stripeErrors)}, payByStripe(func(params *stripe.ChargeCreateParams) {
		key := ownKey
		params.SetIdempotencyKey(key)
	})},
	{"openai-go", asItComes, nil, func(_ *testing.T, url string, timeout time.Duration) bool {
		client := openai.NewClient(option.WithBaseURL(url), option.WithAPIKey("k"), option.WithRequestTimeout(timeout))
		return client.Post(context.Background(), "payments", payment, nil) == nil
	}},
	{"openai-go", withLines, nil, func(_ *testing.T, url string, timeout time.Duration) bool {
		client, ctx, key := openai.NewClient(option.WithBaseURL(url), option.WithAPIKey("k")), context.Background(), ownKey
		once := option.WithHeader("Idempotency-Key", key)
		each := option.WithHTTPClient(&http.Client{Timeout: timeout})
		err := client.Post(ctx, "payments", payment, nil, once, each)
		return err == nil
	}},
	{"anthropic-sdk-go", asItComes, nil, payByAnthropic},
	{"anthropic-sdk-go", withLines, nil, payByAnthropicOnce},
	{"go-retryablehttp", asItComes, nil, func(t *testing.T, url string, timeout time.Duration) bool {
		client := newPatientRetrying(timeout)
		return is201(client.Post(url, "application/json", []byte(`{"amount":100}`)))
	}},
	{"go-retryablehttp", withLines, nil, func(t *testing.T, url string, timeout time.Duration) bool {
		key := ownKey
		client := newPatientRetrying(timeout)
		req, err := retryablehttp.NewRequest(http.MethodPost, url, []byte(`{"amount":100}`))
		require.NoError(t, err)
		req.Header.Set("Idempotency-Key", key)
		client.CheckRetry, client.Backoff = retryAsTold, waitAsTold
		return is201(client.Do(req))
	}},
	{"resty", asItComes, nil, func(t *testing.T, url string, timeout time.Duration) bool {
		resp, err := resty.New().SetTimeout(timeout).SetLogger(silent{}).R().SetBody(payment).Post(url)
		return err == nil && resp.StatusCode() == http.StatusCreated
	}},
	{"resty", withLines, nil, func(t *testing.T, url string, timeout time.Duration) bool {
		key := ownKey
		client := resty.New().SetTimeout(timeout).SetLogger(silent{})
		client.SetRetryCount(4).AddRetryCondition(retryResty).SetRetryAfter(waitResty)
		resp, err := client.R().SetHeader("Idempotency-Key", key).SetBody(payment).Post(url)
		return err == nil && resp.StatusCode() == http.StatusCreated
	}},
}

// stripeErrors is an error handler that answers in Stripe's form. Its clients need that: if
// there is no error object, the one for Go sends anything again, and the one for Node.js
// takes anything for a success.
func stripeErrors(w http.ResponseWriter, _ *http.Request, err error) {
	status, code, retry := http.StatusConflict, "idempotency_error", "false"
	if errors.Is(err, idempotency.ErrOutstanding) || errors.Is(err, idempotency.ErrUnavailable) {
		status, code, retry = http.StatusTooManyRequests, "lock_timeout", "true"
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Stripe-Should-Retry", retry)
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"error":{"type":"idempotency_error","code":%q,"message":%q}}`, code, err)
}

// payment is the body of a request.
var payment = map[string]any{"amount": 100}

// payByStripe returns a client whose charge has what set gives it.
func payByStripe(set func(*stripe.ChargeCreateParams)) func(*testing.T, string, time.Duration) bool {
	return func(_ *testing.T, url string, timeout time.Duration) bool {
		backend := stripe.GetBackendWithConfig(stripe.APIBackend, &stripe.BackendConfig{
			URL:               stripe.String(url),
			HTTPClient:        &http.Client{Timeout: timeout},
			LeveledLogger:     &stripe.LeveledLogger{},
			MaxNetworkRetries: stripe.Int64(stripe.DefaultMaxNetworkRetries),
		})
		params := &stripe.ChargeCreateParams{Amount: stripe.Int64(100)}
		set(params)
		client := stripe.NewClient("k", stripe.WithBackends(&stripe.Backends{API: backend}))
		_, err := client.V1Charges.Create(context.Background(), params)
		return err == nil
	}
}

// newPatientRetrying returns a go-retryablehttp client as it comes, but silent, and with
// pauses that are short unless the server tells one.
func newPatientRetrying(timeout time.Duration) *retryablehttp.Client {
	client := retryablehttp.NewClient()
	client.Logger = nil
	client.HTTPClient.Timeout = timeout
	client.RetryWaitMin, client.RetryWaitMax = 10*time.Millisecond, 2*time.Second
	return client
}

func is201(resp *http.Response, err error) bool {
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusCreated
}

// silent is a logger for resty.
type silent struct{}

func (silent) Errorf(string, ...any) {}
func (silent) Warnf(string, ...any)  {}
func (silent) Debugf(string, ...any) {}

// retryResty is a retry condition.
func retryResty(resp *resty.Response, err error) bool {
	if err != nil || resp.Header().Get("X-Should-Retry") == "true" {
		return true
	}
	failed := resp.StatusCode() == http.StatusTooManyRequests || resp.StatusCode() >= http.StatusInternalServerError
	return failed && resp.Header().Get("X-Should-Retry") != "false"
}

// waitResty returns how long to wait, or 0 for resty's own pause.
func waitResty(_ *resty.Client, resp *resty.Response) (time.Duration, error) {
	seconds, _ := strconv.Atoi(resp.Header().Get("Retry-After"))
	return time.Duration(seconds) * time.Second, nil
}
