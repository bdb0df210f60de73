package model

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
)

// TestStore checks that a message does in the model what it does in a backend:
// each one, on each record that there can be.
func TestStore(t *testing.T) {
	const key = "key"
	token := func(i int) idempotency.Claim { return idempotency.Claim{Token: name(i)} }
	response, none := &idempotency.Response{Status: 201}, &idempotency.Response{}
	send := func(t *testing.T, b idempotency.Backend, i int, m message) phase {
		t.Helper()
		var err error
		switch m {
		case claim:
			held, claims, err := b.Claim(t.Context(), key, token(i), 0)
			require.NoError(t, err)
			switch {
			case claims:
				return claimed
			case held.Response == nil:
				return refused
			}
			return ended
		case renew:
			err = b.Renew(t.Context(), key, token(i), 0)
		case complete:
			err = b.Complete(t.Context(), key, token(i), response, 0)
		case mark:
			err = b.Complete(t.Context(), key, token(i), none, 0)
		case release:
			err = b.Release(t.Context(), key, token(i))
		}
		if err != nil {
			require.ErrorIs(t, err, idempotency.ErrClaimLost)
		}
		return claiming
	}
	look := func(t *testing.T, b idempotency.Backend) record {
		t.Helper()
		held, free, err := b.Claim(t.Context(), key, idempotency.Claim{Token: "probe"}, 0)
		require.NoError(t, err)
		if free {
			return record{}
		}
		owner := held.Claim.Token[0] - 'a'
		switch {
		case held.Response == nil:
			return record{outstanding, owner}
		case held.Response.Status == 0:
			return record{marked, owner}
		}
		return record{stored, owner}
	}
	made := map[record]message{{}: 0, {outstanding, 0}: claim, {stored, 0}: complete, {marked, 0}: mark}
	for before, by := range made {
		for _, m := range []message{claim, renew, complete, mark, release} {
			for i := range 2 {
				t.Run(fmt.Sprintf("message %d of %s, %s", m, name(i), before), func(t *testing.T) {
					b := idempotency.NewMemory()
					send(t, b, 0, by)
					s := state{record: before}
					s.requests[i] = request{phase: claiming, onWay: m}
					steps := Config{Requests: 2}.arrives(s, i, m)
					want := steps[len(steps)-1].to
					require.Equal(t, want.requests[i].phase, send(t, b, i, m))
					require.Equal(t, want.record, look(t, b))
				})
			}
		}
	}
}
