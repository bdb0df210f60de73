package batch

import (
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestLeases(t *testing.T) {
	var l Leases[*int]
	failed := errors.New("failed")
	_, err := l.Get(time.Second, func() (*int, error) { return new(int), failed })
	require.ErrorIs(t, err, failed)
	made := 0
	get := func(lease time.Duration) *int {
		of, err := l.Get(lease, func() (*int, error) { made++; return new(int), nil })
		require.NoError(t, err)
		return of
	}
	var all sync.WaitGroup
	for range 100 {
		all.Go(func() { get(time.Second); get(time.Minute) })
	}
	all.Wait()
	require.Equal(t, 2, made, "each is made once, and not kept after an error")
	require.Same(t, get(time.Second), get(time.Second))
	require.NotSame(t, get(time.Second), get(time.Minute))
	before := get(time.Second)
	require.Len(t, l.Take(), 2)
	require.Empty(t, l.Take())
	require.NotSame(t, before, get(time.Second))
}
