package idempotencytest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/idempotency-go/idempotency"
)

func hammer(t *tester) {
	const workers, turns, keys = 16, 40, 4
	var requests [keys]request
	var holders [keys]atomic.Int32
	for i := range requests {
		requests[i] = t.newRequest()
	}
	// What belongs together in a record can be told from its token.
	attempt := func(key string) (request, *idempotency.Response) {
		r := request{key, newClaim()}
		r.claim.Fingerprint = sha256.Sum256([]byte(r.claim.Token))
		return r, newResponse(key + r.claim.Token)
	}
	whole := func(key string, held idempotency.Record) string {
		want := idempotency.Record{Claim: held.Claim}
		want.Claim.Fingerprint = sha256.Sum256([]byte(held.Claim.Token))
		if held.Response != nil {
			want.Response = newResponse(key + held.Claim.Token)
		}
		return diff(held, want)
	}
	var mu sync.Mutex
	var seen []string
	report := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		if len(seen) < 3 {
			seen = append(seen, fmt.Sprintf(format, args...))
		}
	}
	ctx := t.Context()
	// hold uses a claim like a request does: its lease does not end in a test,
	// so that whatever befalls it was done by others.
	hold := func(holders *atomic.Int32, r request, resp *idempotency.Response) {
		if n := holders.Add(1); n != 1 {
			report("%d requests had claimed one key at the same time.", n)
		}
		for range rand.IntN(3) {
			if err := t.Renew(ctx, r.key, r.claim, long); err != nil {
				report("Renew by the holder of the key returned an error: %v", err)
			}
		}
		time.Sleep(rand.N(time.Millisecond))
		held, claimed, err := t.Claim(ctx, r.key, newClaim(), long)
		if err != nil || claimed || diff(held, r.record(nil)) != "" {
			report("Claim of a key that another request had claimed returned %s, %t and the error %v.", describe(held), claimed, err)
		}
		holders.Add(-1) // The calls below free the key before they return.
		if rand.IntN(2) == 0 {
			err = t.Complete(ctx, r.key, r.claim, resp, time.Millisecond)
		} else {
			err = t.Release(ctx, r.key, r.claim)
		}
		if err != nil {
			report("Complete or Release by the holder of the key returned an error: %v", err)
		}
	}
	atOnce(workers, func(worker int) {
		for range turns {
			i := rand.IntN(keys)
			r, resp := attempt(requests[i].key)
			var err error
			switch rand.IntN(8) {
			case 0: // Others, whose claim was lost or never made.
				err = t.Renew(ctx, r.key, r.claim, time.Millisecond)
			case 1:
				err = t.Complete(ctx, r.key, r.claim, resp, time.Millisecond)
			case 2:
				err = t.Release(ctx, r.key, r.claim)
			default:
				held, claimed, claimErr := t.Claim(ctx, r.key, r.claim, long)
				if err = claimErr; err != nil {
					break
				}
				if claimed {
					hold(&holders[i], r, resp)
				} else if d := whole(r.key, held); d != "" {
					report("A record was not what one request had put there: %s", d)
				}
			}
			if err != nil && !errors.Is(err, idempotency.ErrClaimLost) {
				report("A call returned an error: %v", err)
			}
		}
	})
	if len(seen) > 0 {
		t.broken("%s", strings.Join(seen, "\n"))
	}
}
