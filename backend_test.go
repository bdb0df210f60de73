package idempotency_test

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

// All backends of this package can be asked by an operator.
var (
	_ idempotency.Inspector = (*idempotency.Memory)(nil)
	_ idempotency.Inspector = (*idempotency.Redis)(nil)
)

// RFC 9562, appendix A.6, has this version 7 UUID and its time.
func TestToken(t *testing.T) {
	token := idempotency.Token(uuid.MustParse("017F22E2-79B0-7CC3-98C4-DC0C0C07398F"))
	require.Equal(t, "017f22e2-79b0-7cc3-98c4-dc0c0c07398f", token.String())
	require.True(t, token.Time().Equal(time.Date(2022, time.February, 22, 19, 22, 22, 0, time.UTC)), token.Time())
	token[5] += 7
	require.True(t, token.Time().Equal(time.Date(2022, time.February, 22, 19, 22, 22, 7e6, time.UTC)), token.Time())
	require.True(t, idempotency.Token{}.Time().Equal(time.UnixMilli(0)))
	require.Equal(t, "00000000-0000-0000-0000-000000000000", idempotency.Token{}.String())

	before := time.Now().Truncate(time.Millisecond)
	token = idempotency.Token(uuid.Must(uuid.NewV7()))
	require.False(t, token.Time().Before(before))
	require.False(t, token.Time().After(time.Now()))
}

func TestStateString(t *testing.T) {
	for state, want := range map[idempotency.State]string{
		0:                            "none",
		idempotency.StateOutstanding: "outstanding",
		idempotency.StateInterrupted: "interrupted",
		idempotency.StateCompleted:   "completed",
		4:                            "State(4)",
		255:                          "State(255)",
	} {
		require.Equal(t, want, state.String())
	}
}

func TestForever(t *testing.T) {
	require.Equal(t, time.Duration(math.MaxInt64), idempotency.Forever)
}

// Times that cannot be meant are errors, and change nothing, on a free key and
// on a claim of the same token.
func TestTimesThatCannotBeMeant(t *testing.T) {
	const hour = time.Hour
	claim := claimOf("mine")
	claimWith := func(terms idempotency.Terms) func(t *testing.T, b idempotency.Backend, key idempotency.Key) error {
		return func(t *testing.T, b idempotency.Backend, key idempotency.Key) error {
			_, claimed, err := b.Claim(t.Context(), key, claim, terms)
			require.False(t, claimed)
			return err
		}
	}
	renewWith := func(terms idempotency.Terms) func(t *testing.T, b idempotency.Backend, key idempotency.Key) error {
		return func(t *testing.T, b idempotency.Backend, key idempotency.Key) error {
			return b.Renew(t.Context(), key, claim, terms, []byte("progress"))
		}
	}
	completeFor := func(expiry time.Duration) func(t *testing.T, b idempotency.Backend, key idempotency.Key) error {
		return func(t *testing.T, b idempotency.Backend, key idempotency.Key) error {
			return b.Complete(t.Context(), key, claim, []byte("{}"), expiry)
		}
	}
	forEachBackend(t, func(t *testing.T, newBackend func(t *testing.T) idempotency.Backend) {
		b := newBackend(t).(idempotency.Inspector)
		backend := b.(idempotency.Backend)
		for _, test := range []struct {
			name string
			call func(t *testing.T, b idempotency.Backend, key idempotency.Key) error
			text string
		}{
			{"claim without a lease", claimWith(traced(0, hour)), "lease of 0s: it must be positive"},
			{"claim with a negative lease", claimWith(lease(-1)), "lease of -1ns: it must be positive"},
			{"claim with a negative trace", claimWith(traced(hour, -1)), "trace of -1ns: it must not be negative"},
			{"renew without a lease", renewWith(traced(0, hour)), "lease of 0s: it must be positive"},
			{"renew with a negative lease", renewWith(lease(math.MinInt64)), "it must be positive"},
			{"renew with a negative trace", renewWith(traced(hour, math.MinInt64)), "it must not be negative"},
			{"complete without an expiry", completeFor(0), "expiry must be positive"},
			{"complete with a negative expiry", completeFor(-1), "expiry must be positive"},
			{"release with a negative trace", func(t *testing.T, b idempotency.Backend, key idempotency.Key) error {
				return b.Release(t.Context(), key, claim, -1)
			}, "trace of -1ns: it must not be negative"},
		} {
			t.Run(test.name, func(t *testing.T) {
				free, held := keyOf(test.name+" free"), keyOf(test.name+" held")
				require.ErrorContains(t, test.call(t, backend, free), test.text)
				require.Regexp(t, "^idempotency: ", test.call(t, backend, free).Error())
				_, _, ok, err := b.Lookup(t.Context(), free)
				require.NoError(t, err)
				require.False(t, ok)

				mustClaim(t, backend, held, claim, traced(hour, hour))
				require.ErrorContains(t, test.call(t, backend, held), test.text)
				rec, left, ok, err := b.Lookup(t.Context(), held)
				require.NoError(t, err)
				require.True(t, ok)
				require.Equal(t, idempotency.Record{Claim: claim, State: idempotency.StateOutstanding}, rec)
				require.InDelta(t, 2*hour, left, float64(hour/2))
			})
		}
	})
}

// A claim's token is its identity: its fingerprint is not a part of it.
func TestTokenIsTheClaim(t *testing.T) {
	claim := claimOf("mine")
	same := idempotency.Claim{Token: claim.Token, Fingerprint: [32]byte{2}}
	other := retryOf(claim, "other")
	key, terms := keyOf("k"), lease(time.Hour)
	forEachBackend(t, func(t *testing.T, newBackend func(t *testing.T) idempotency.Backend) {
		start := func(t *testing.T) idempotency.Backend {
			b := newBackend(t)
			mustClaim(t, b, key, claim, terms)
			return b
		}
		t.Run("claim", func(t *testing.T) { require.Zero(t, mustClaim(t, start(t), key, same, terms)) })
		t.Run("renew", func(t *testing.T) {
			b := start(t)
			require.NoError(t, b.Renew(t.Context(), key, same, terms, []byte("progress")))
			require.Equal(t, []byte("progress"), mustHold(t, b, key, other, terms).Progress)
		})
		t.Run("complete", func(t *testing.T) {
			b := start(t)
			require.NoError(t, b.Complete(t.Context(), key, same, []byte("{}"), time.Hour))
			require.Equal(t, idempotency.StateCompleted, mustHold(t, b, key, other, terms).State)
		})
		t.Run("release", func(t *testing.T) {
			b := start(t)
			require.NoError(t, b.Release(t.Context(), key, same, 0))
			mustClaim(t, b, key, other, terms)
		})
		t.Run("claim what it completed", func(t *testing.T) {
			b := start(t)
			require.NoError(t, b.Complete(t.Context(), key, claim, []byte("{}"), time.Hour))
			want := idempotency.Record{Claim: claim, State: idempotency.StateCompleted, Response: []byte("{}")}
			for _, terms := range []idempotency.Terms{terms, traced(time.Hour, time.Hour)} {
				require.Equal(t, want, mustHold(t, b, key, claim, terms))
			}
		})
		t.Run("another that would take over", func(t *testing.T) {
			b := start(t)
			for _, takeOver := range []idempotency.Terms{{Lease: time.Hour, TakeOver: true}, {Lease: time.Hour, Trace: time.Hour, TakeOver: true}} {
				require.Equal(t, idempotency.Record{Claim: claim, State: idempotency.StateOutstanding}, mustHold(t, b, key, other, takeOver))
			}
		})
		t.Run("another with the same fingerprint", func(t *testing.T) {
			b := start(t)
			require.ErrorIs(t, b.Renew(t.Context(), key, other, terms, nil), idempotency.ErrClaimLost)
			require.ErrorIs(t, b.Complete(t.Context(), key, other, []byte("{}"), time.Hour), idempotency.ErrClaimLost)
			require.NoError(t, b.Release(t.Context(), key, other, 0))
			require.NoError(t, b.Release(t.Context(), key, other, time.Hour))
			require.Equal(t, idempotency.Record{Claim: claim, State: idempotency.StateOutstanding}, mustHold(t, b, key, other, terms))
		})
	})
}

// Forget deletes the record that was seen, and no other.
func TestForgetWhatWasSeen(t *testing.T) {
	mine, hour := claimOf("mine"), time.Hour
	states := []idempotency.State{0, idempotency.StateOutstanding, idempotency.StateInterrupted, idempotency.StateCompleted}
	forEachBackend(t, func(t *testing.T, newBackend func(t *testing.T) idempotency.Backend) {
		b := newBackend(t)
		forget := func(key idempotency.Key, seen idempotency.Record) bool {
			t.Helper()
			forgotten, err := b.(idempotency.Inspector).Forget(t.Context(), key, seen)
			require.NoError(t, err)
			return forgotten
		}
		keys := make([]idempotency.Key, len(states))
		for _, state := range states {
			keys[state] = keyOf(state.String())
		}
		mustClaim(t, b, keys[idempotency.StateOutstanding], mine, traced(hour, hour))
		require.NoError(t, b.Release(t.Context(), keys[idempotency.StateInterrupted], mine, hour))
		require.NoError(t, b.Complete(t.Context(), keys[idempotency.StateCompleted], mine, []byte("{}"), hour))
		for _, held := range states {
			for _, seen := range states {
				require.False(t, forget(keys[held], idempotency.Record{Claim: claimOf("other"), State: seen}), "%v, seen %v", held, seen)
				if seen != held {
					require.False(t, forget(keys[held], idempotency.Record{Claim: mine, State: seen}), "%v, seen %v", held, seen)
				}
			}
			require.Equal(t, held != 0, forget(keys[held], idempotency.Record{Claim: mine, State: held}), held)
			require.False(t, forget(keys[held], idempotency.Record{Claim: mine, State: held}), "it is gone: %v", held)
			mustClaim(t, b, keys[held], claimOf("other"), lease(hour))
		}
	})
}

// The zero fingerprint matches any, and any matches it, in the store too.
func TestZeroFingerprintMatchesAny(t *testing.T) {
	takeOver := idempotency.Terms{Lease: time.Hour, Trace: time.Hour, TakeOver: true}
	one, other := claimOf("one"), claimOf("other")
	none, none2 := idempotency.Claim{Token: one.Token}, idempotency.Claim{Token: other.Token}
	response := []byte(strings.Repeat("{}", 100))
	forEachBackend(t, func(t *testing.T, newBackend func(t *testing.T) idempotency.Backend) {
		b := newBackend(t)
		for _, test := range []struct {
			name        string
			held, asked idempotency.Claim
			match       bool
		}{
			{"the same", one, retryOf(one, "retry"), true},
			{"none asked", one, none2, true},
			{"none held", none, other, true},
			{"none", none, none2, true},
			{"another", one, other, false},
		} {
			t.Run(test.name, func(t *testing.T) {
				completed, interrupted := keyOf(test.name+" completed"), keyOf(test.name+" interrupted")
				require.NoError(t, b.Complete(t.Context(), completed, test.held, response, time.Hour))
				for _, terms := range []idempotency.Terms{lease(time.Hour), traced(time.Hour, time.Hour), takeOver} {
					rec := mustHold(t, b, completed, test.asked, terms)
					require.Equal(t, test.held, rec.Claim)
					require.Equal(t, idempotency.StateCompleted, rec.State)
					if test.match || rec.Response != nil { // It may be missing, but not a part of it.
						require.Equal(t, response, rec.Response)
					}
				}
				require.NoError(t, b.Renew(t.Context(), interrupted, test.held, lease(time.Hour), []byte("step 1")))
				require.NoError(t, b.Release(t.Context(), interrupted, test.held, time.Hour))
				if !test.match {
					rec := mustHold(t, b, interrupted, test.asked, takeOver)
					require.Equal(t, test.held, rec.Claim)
					require.Equal(t, idempotency.StateInterrupted, rec.State)
					return
				}
				want := idempotency.Record{Claim: test.held, State: idempotency.StateInterrupted, Progress: []byte("step 1")}
				require.Equal(t, want, mustHold(t, b, interrupted, test.asked, lease(time.Hour)))
				want.Claim = test.asked
				for range 2 { // The progress stays with the key.
					require.Equal(t, want, mustClaim(t, b, interrupted, test.asked, takeOver))
				}
				require.NoError(t, b.Release(t.Context(), interrupted, test.asked, 0))
				require.Equal(t, want, mustHold(t, b, interrupted, retryOf(test.asked, "later"), lease(time.Hour)))
			})
		}
	})
}
