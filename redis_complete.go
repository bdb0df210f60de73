package idempotency

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

// Complete implements [Backend].
func (b *Redis) Complete(ctx context.Context, key Key, claim Claim, response []byte, expiry time.Duration) error {
	if expiry <= 0 {
		return errExpiry
	}
	ms := int64(0)
	if expiry != Forever {
		ms = milliseconds(expiry)
	}
	return b.persist(ctx, func(ctx context.Context, client redis.UniversalClient) error {
		return b.update(ctx, client, completeScript, key, claim, encodeHead(claim, kindCompleted), response, ms)
	})
}

// persist sends what must not be lost by the client, and elsewhere too if that gets no answer,
// or none for some time. It returns the first answer.
func (b *Redis) persist(ctx context.Context, send func(context.Context, redis.UniversalClient) error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("idempotency: redis: %w", context.Cause(ctx))
	}
	byClient := make(chan error, 1)
	go func() { byClient <- guard(func() error { return send(ctx, b.client) }) }()
	late := time.NewTimer(hurry)
	defer late.Stop()
	select {
	case err := <-byClient:
		if !isOfConnection(err) {
			return err
		}
		byClient = nil
	case <-late.C:
	case <-ctx.Done():
		return fmt.Errorf("idempotency: redis: %w", context.Cause(ctx))
	}
	elsewhere := make(chan error, 1)
	go func() { elsewhere <- guard(func() error { return b.sendElsewhere(ctx, send) }) }()
	for {
		select {
		case err := <-byClient:
			if !isOfConnection(err) || elsewhere == nil {
				return err
			}
			byClient = nil
		case err := <-elsewhere:
			if !isOfConnection(err) || byClient == nil {
				return err
			}
			elsewhere = nil
		case <-ctx.Done():
			return fmt.Errorf("idempotency: redis: %w", context.Cause(ctx))
		}
	}
}

// sendElsewhere sends over connections that are like those of renewals, and do not hold those
// up: the client's are silent, or it says still that Redis refuses them. A try that hangs is
// followed by another, which has more time, for callTime.
func (b *Redis) sendElsewhere(ctx context.Context, send func(context.Context, redis.UniversalClient) error) error {
	ctx, stop := context.WithTimeout(ctx, callTime)
	defer stop()
	client := b.renewalsOf(ofPersist).client
	for time := firstTry; ; time *= 2 {
		try, end := context.WithTimeout(ctx, time)
		err := send(try, client)
		hung := try.Err() != nil
		end()
		if !isOfConnection(err) || ctx.Err() != nil || !hung {
			return err
		}
	}
}

// isOfConnection reports whether err is no answer of Redis, but tells that there was none.
func isOfConnection(err error) bool {
	var reply redis.Error
	answered := errors.As(err, &reply) || errors.Is(err, ErrClaimLost) || errors.Is(err, ErrUnreadable)
	return err != nil && !answered && !errors.Is(err, redis.ErrClosed)
}
