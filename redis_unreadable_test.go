package idempotency_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// verb is one call of a Redis, of the claim "mine".
type verb struct {
	name string
	call func(ctx context.Context, b *idempotency.Redis, key idempotency.Key) error
}

func allVerbs() []verb {
	mine := claimOf("mine")
	claim := func(terms idempotency.Terms) func(ctx context.Context, b *idempotency.Redis, key idempotency.Key) error {
		return func(ctx context.Context, b *idempotency.Redis, key idempotency.Key) error {
			rec, claimed, err := b.Claim(ctx, key, mine, terms)
			if claimed || rec.Claim != (idempotency.Claim{}) || rec.State != 0 || rec.Progress != nil || rec.Response != nil {
				return fmt.Errorf("it gave a record: %v, %v, %v", rec, claimed, err) // It is not the error that is looked for.
			}
			return err
		}
	}
	renew := func(progress []byte) func(ctx context.Context, b *idempotency.Redis, key idempotency.Key) error {
		return func(ctx context.Context, b *idempotency.Redis, key idempotency.Key) error {
			return b.Renew(ctx, key, mine, traced(time.Minute, time.Minute), progress)
		}
	}
	complete := func(expiry time.Duration) func(ctx context.Context, b *idempotency.Redis, key idempotency.Key) error {
		return func(ctx context.Context, b *idempotency.Redis, key idempotency.Key) error {
			return b.Complete(ctx, key, mine, []byte("{}"), expiry)
		}
	}
	release := func(trace time.Duration) func(ctx context.Context, b *idempotency.Redis, key idempotency.Key) error {
		return func(ctx context.Context, b *idempotency.Redis, key idempotency.Key) error {
			return b.Release(ctx, key, mine, trace)
		}
	}
	return []verb{
		{"claim", claim(lease(time.Minute))},
		{"claim with a trace", claim(traced(time.Minute, time.Minute))},
		{"take over", claim(idempotency.Terms{Lease: time.Minute, Trace: time.Minute, TakeOver: true})},
		{"renew", renew(nil)},
		{"renew with progress", renew([]byte(strings.Repeat("step", 100)))},
		{"complete", complete(time.Minute)},
		{"complete for ever", complete(idempotency.Forever)},
		{"release", release(0)},
		{"release with a trace", release(time.Minute)},
		{"lookup", func(ctx context.Context, b *idempotency.Redis, key idempotency.Key) error {
			rec, left, ok, err := b.Lookup(ctx, key)
			if ok || left != 0 || rec.State != 0 {
				return fmt.Errorf("it gave a record: %v, %v, %v, %v", rec, left, ok, err)
			}
			return err
		}},
	}
}

// A record that cannot be read is an error to every verb, and stays as it is:
// another release may be able to read it, and a person may look at it.
func TestRedisUnreadableRecords(t *testing.T) {
	mine := claimOf("mine")
	ctx := t.Context()
	forEachRedis(t, func(t *testing.T, newClient func(t *testing.T) *redis.Client) {
		client := newClient(t)
		real := strings.HasSuffix(t.Name(), "/redis")
		prefix := freshPrefix(t, client)
		proven := provenRedis(t, client, idempotency.WithPrefix(prefix))
		nameOf := func(name string) string { return prefix + keyOf(name).String() }

		// Good records to damage, under the very token that is used and another's.
		good := make(map[string]string)
		for whose, claim := range map[string]idempotency.Claim{"own": mine, "another's": retryOf(mine, "other")} {
			for kind, put := range map[string]func(key idempotency.Key) error{
				"outstanding": func(key idempotency.Key) error {
					return proven.Renew(ctx, key, claim, traced(time.Hour, time.Hour), nil)
				},
				"completed": func(key idempotency.Key) error {
					return proven.Complete(ctx, key, claim, []byte("body"), time.Hour)
				},
			} {
				require.NoError(t, put(keyOf(whose+kind)))
				good[whose+" "+kind] = client.Get(ctx, nameOf(whose+kind)).Val()
			}
		}
		damaged := map[string]string{
			"nothing at all": "",
			"garbage":        "an answer that somebody else stored",
			"long garbage":   strings.Repeat("an answer that somebody else stored", 10),
			"JSON":           `{"status":200}`,
			"zeros":          strings.Repeat("\x00", 100),
			"ones":           strings.Repeat("\xff", 100),
		}
		for what, value := range good {
			require.Greater(t, len(value), 50, what)
			damaged[what+", later version"] = "\x02" + value[1:]
			damaged[what+", version 0"] = "\x00" + value[1:]
			damaged[what+", unknown kind"] = value[:1] + "\x03" + value[2:]
			damaged[what+", far kind"] = value[:1] + "\xff" + value[2:]
			for _, n := range []int{1, 2, 17, 18, 49} {
				damaged[fmt.Sprintf("%s, cut to %d bytes", what, n)] = value[:n]
			}
			if strings.HasSuffix(what, "outstanding") {
				for _, n := range []int{50, 51, 62} {
					damaged[fmt.Sprintf("%s, cut to %d bytes", what, n)] = value[:n]
				}
				for _, trace := range []string{"             ", "-000000000001", "0x00000000001", "1e00000000001", "000000000001."} {
					damaged[what+", with a trace of "+trace] = value[:50] + trace + value[63:]
				}
				damaged[what+" of 60 bytes, called taken over"] = value[:1] + "\x01" + value[2:60]
			}
		}
		for damage, value := range damaged {
			for i, verb := range allVerbs() {
				t.Run(verb.name+": "+damage, func(t *testing.T) {
					key, name := keyOf(t.Name()), nameOf(t.Name())
					require.NoError(t, client.Set(ctx, name, value, time.Hour).Err())
					b := proven
					if (len(value)+i)%2 == 0 {
						b = idempotency.NewRedis(client, idempotency.WithPrefix(prefix)) // Its first claim is made otherwise.
					}
					err := verb.call(ctx, b, key)
					got := client.Get(ctx, name)
					require.NoError(t, got.Err())
					require.Equal(t, value, got.Val())
					require.Greater(t, client.PTTL(ctx, name).Val(), 30*time.Minute)
					require.ErrorIs(t, err, idempotency.ErrUnreadable)
					require.NotErrorIs(t, err, idempotency.ErrClaimLost)
				})
			}
			t.Run("forget: "+damage, func(t *testing.T) {
				key, name := keyOf(t.Name()), nameOf(t.Name())
				require.NoError(t, client.Set(ctx, name, value, time.Hour).Err())
				for state := range idempotency.StateCompleted + 1 {
					forgotten, err := proven.Forget(ctx, key, idempotency.Record{Claim: mine, State: state})
					require.False(t, forgotten)
					require.NoError(t, err, "it is not the record that was seen")
					require.Equal(t, value, client.Get(ctx, name).Val())
				}
			})
		}
		// A key of another Redis type.
		for _, verb := range allVerbs() {
			t.Run(verb.name+": a list", func(t *testing.T) {
				key, name := keyOf(t.Name()), nameOf(t.Name())
				require.NoError(t, client.RPush(ctx, name, "a", "b").Err())
				for _, b := range []*idempotency.Redis{proven, idempotency.NewRedis(client, idempotency.WithPrefix(prefix))} {
					err := verb.call(ctx, b, key)
					require.ErrorContains(t, err, "WRONGTYPE")
					if real { // miniredis hides the cause in an error of the script.
						require.ErrorIs(t, err, idempotency.ErrUnreadable)
					}
					require.Equal(t, []string{"a", "b"}, client.LRange(ctx, name, 0, -1).Val())
				}
			})
		}
		t.Run("forget: a list", func(t *testing.T) {
			key, name := keyOf(t.Name()), nameOf(t.Name())
			require.NoError(t, client.RPush(ctx, name, "a", "b").Err())
			_, err := proven.Forget(ctx, key, idempotency.Record{Claim: mine, State: idempotency.StateOutstanding})
			require.ErrorContains(t, err, "WRONGTYPE")
			require.Equal(t, []string{"a", "b"}, client.LRange(ctx, name, 0, -1).Val())
		})
	})
}
