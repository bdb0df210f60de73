package work

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// Together lets workers work beside each other, each in a goroutine of its own,
// for d or until ctx ends or one of them fails. A worker calls do again and
// again, at least once, with its own number and with how often it has called it
// before.
// Together returns how often all of them have, and in what time.
func Together(ctx context.Context, d time.Duration, workers int, do func(worker int, n int64) error) (ops int64, elapsed time.Duration, err error) {
	var (
		stop  atomic.Bool
		wg    sync.WaitGroup
		mu    sync.Mutex
		begin = time.Now()
	)
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	defer context.AfterFunc(ctx, func() { stop.Store(true) })()
	for worker := range workers {
		wg.Go(func() {
			n, failed := int64(0), error(nil)
			for ; failed == nil && (n == 0 || !stop.Load()); n++ {
				failed = do(worker, n)
			}
			mu.Lock()
			defer mu.Unlock()
			ops += n
			if failed != nil {
				err = failed
				cancel() // The others need not go on.
			}
		})
	}
	wg.Wait()
	return ops, time.Since(begin), err
}
