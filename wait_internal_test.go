package idempotency

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// Nothing is left of requests that wait no more, and one that comes after the answer
// waits for another.
func TestWaitsAreForgotten(t *testing.T) {
	var s waits
	key := waitKey{key: NewKey("", "k")}
	first := s.join(key)
	require.Same(t, first, s.join(key))
	require.NotSame(t, first, s.join(waitKey{key: key.key, fingerprint: [32]byte{1}}))
	require.Len(t, s.all, 2)
	<-first.turn
	s.pass(first, false)
	<-first.turn
	s.pass(first, true)
	second := s.join(key)
	require.NotSame(t, first, second)
	s.leave(first)
	s.leave(first)
	require.Same(t, second, s.join(key))
	s.leave(second)
	s.leave(second)
	require.Len(t, s.all, 1)
}
