package idempotency

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The longest time that a record in Redis can have left is a time.Duration, with a
// trace that is a millisecond short of for ever.
func TestLongestTimeLeft(t *testing.T) {
	most := milliseconds(Forever)
	trace := most - 1
	_, left, err := decodeReply([]any{most + trace + 1, string(encodeClaim(Claim{}, time.Duration(trace)*time.Millisecond))}, Claim{})
	require.NoError(t, err)
	require.Equal(t, time.Duration(most+trace)*time.Millisecond, left)
	require.Greater(t, left, longest)
	require.Len(t, encodeClaim(Claim{}, Forever), progressStart)
	require.Equal(t, longest, time.Duration(most)*time.Millisecond, "a sum of two does not overflow")
}
