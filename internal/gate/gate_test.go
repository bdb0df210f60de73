package gate

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(2)
		enter := func(patience time.Duration) (leave func(), waited time.Duration) {
			start := time.Now()
			leave, ok := g.Enter(nil, patience)
			require.True(t, ok)
			return leave, time.Since(start)
		}
		first, waited := enter(time.Second)
		require.Zero(t, waited)
		second, waited := enter(time.Hour)
		require.Zero(t, waited)

		third, waited := enter(time.Hour) // in the place of the first, which hangs
		require.Equal(t, time.Second, waited)
		first() // It has no place any more.
		given := make(chan struct{})
		time.AfterFunc(time.Minute, func() { close(given) })
		start := time.Now()
		_, ok := g.Enter(given, time.Hour)
		require.False(t, ok)
		require.Equal(t, time.Minute, time.Since(start))

		time.AfterFunc(time.Second, second)
		fourth, waited := enter(time.Hour)
		require.Equal(t, time.Second, waited)
		third()
		fourth()
		fifth, ok := g.Enter(given, time.Hour)
		require.True(t, ok, "it need not wait")
		fifth()
		time.Sleep(2 * time.Hour) // Their patience is over too.
		for range 2 {
			_, waited = enter(time.Hour)
			require.Zero(t, waited)
		}
		_, waited = enter(time.Hour)
		require.Equal(t, time.Hour, waited, "a place is free once")
	})
}
