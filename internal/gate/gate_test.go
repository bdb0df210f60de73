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
			return g.Enter(patience), time.Since(start)
		}
		first, waited := enter(time.Second)
		require.Zero(t, waited)
		second, waited := enter(time.Hour)
		require.Zero(t, waited)

		third, waited := enter(time.Hour) // in the place of the first, which hangs
		require.Equal(t, time.Second, waited)
		first() // It has no place any more.
		time.AfterFunc(time.Second, second)
		fourth, waited := enter(time.Hour)
		require.Equal(t, time.Second, waited)
		third()
		fourth()
		time.Sleep(2 * time.Hour) // Their patience is over too.
		for range 2 {
			_, waited = enter(time.Hour)
			require.Zero(t, waited)
		}
		_, waited = enter(time.Hour)
		require.Equal(t, time.Hour, waited, "a place is free once")
	})
}
