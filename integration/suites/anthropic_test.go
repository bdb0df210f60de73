package suites

import (
	"context"
	"testing"
	"time"

	"github.com/anthropics/anthropic-sdk-go"
	"github.com/anthropics/anthropic-sdk-go/option"
)

func payByAnthropic(_ *testing.T, url string, timeout time.Duration) bool {
	client := anthropic.NewClient(option.WithBaseURL(url), option.WithAPIKey("k"), option.WithRequestTimeout(timeout))
	return client.Post(context.Background(), "payments", payment, nil) == nil
}

func payByAnthropicOnce(_ *testing.T, url string, timeout time.Duration) bool {
	client, ctx, key := anthropic.NewClient(option.WithBaseURL(url), option.WithAPIKey("k")), context.Background(), ownKey
	once := option.WithHeader("Idempotency-Key", key)
	each := option.WithRequestTimeout(timeout)
	err := client.Post(ctx, "payments", payment, nil, once, each)
	return err == nil
}
