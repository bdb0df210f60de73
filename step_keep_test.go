package idempotency_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

// sending is a Memory that notes each progress that it gets. unseen, if it is not nil, is
// called after a Renew that has taken effect, and its error is returned.
type sending struct {
	*counted
	mu     sync.Mutex
	sent   [][]byte // but nil
	plain  int      // renewals without progress
	fails  func(n int) error
	unseen func(n int) error
}

func newSending() *sending {
	b := &sending{counted: newCounted(never)}
	renew := b.renew
	b.renew = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms, progress []byte) error {
		b.mu.Lock()
		n := len(b.sent)
		if progress == nil {
			b.plain++
		} else {
			b.sent = append(b.sent, progress)
		}
		b.mu.Unlock()
		if progress != nil && b.fails != nil {
			if err := b.fails(n); err != nil {
				return err
			}
		}
		err := renew(ctx, key, claim, terms, progress)
		if err == nil && progress != nil && b.unseen != nil {
			return b.unseen(n)
		}
		return err
	}
	return b
}

// until returns err n times.
func until(n int, err error) func(int) error {
	return func(before int) error {
		if before < n {
			return err
		}
		return nil
	}
}

// A store that fails is tried for 5 s. What no retry mends is not tried again. Either is an
// error after f had its effect; a later Step of the run tries again to keep the result.
func TestStepNotKept(t *testing.T) {
	tests := map[string]struct {
		err   error
		times int // how often it fails
		sent  int // by the first Step
		kept  bool
		took  time.Duration
	}{
		"once":            {errDown, 1, 2, true, 50 * time.Millisecond},
		"four times":      {errDown, 4, 5, true, 750 * time.Millisecond},
		"for long":        {errDown, 1 << 30, 9, false, 5 * time.Second},
		"full":            {fmt.Errorf("oom: %w", idempotency.ErrFull), 1 << 30, 1, false, 0},
		"an odd record":   {idempotency.ErrUnreadable, 1 << 30, 1, false, 0},
		"full for a time": {idempotency.ErrFull, 1, 1, false, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				backend, runs := newSending(), 0
				backend.fails = until(tt.times, tt.err)
				interruptIn(t, backend, func(ctx context.Context) {
					begun := time.Now()
					got, err := idempotency.Step(ctx, "s", does(&runs, "r"))
					require.Equal(t, tt.took, time.Since(begun))
					require.Len(t, backend.sent, tt.sent)
					if tt.kept {
						require.NoError(t, err)
						require.Equal(t, "r", string(got))
					} else {
						require.ErrorIs(t, err, tt.err)
						require.ErrorContains(t, err, `result of step "s" not kept`)
						require.Nil(t, got)
					}
					require.NoError(t, ctx.Err())
					backend.fails = nil
					requireStep(t, ctx, "s", "r", does(&runs, "again"))
				})
				require.Equal(t, 1, runs)
				runIn(backend, func(ctx context.Context) { requireStep(t, ctx, "s", "r", nil) })
			})
		})
	}
}

// What the store did not get runs again in a later run.
func TestStepNotKeptAtAll(t *testing.T) {
	backend, runs := newSending(), 0
	backend.fails = until(1, idempotency.ErrFull)
	interruptIn(t, backend, func(ctx context.Context) {
		_, err := idempotency.Step(ctx, "s", does(&runs, "1"))
		require.ErrorIs(t, err, idempotency.ErrFull)
	})
	runIn(backend, func(ctx context.Context) { requireStep(t, ctx, "s", "2", does(&runs, "2")) })
	require.Equal(t, 2, runs)
}

// A result whose record may be there, or not, is part of all that is sent later: neither
// replaces the other, in whatever order they land.
func TestStepOfUnknownOutcome(t *testing.T) {
	for name, landed := range map[string]bool{"kept": true, "not kept": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				backend, runs := newSending(), 0
				if landed {
					backend.unseen = until(9, errDown)
				} else {
					backend.fails = until(9, errDown)
				}
				interruptIn(t, backend, func(ctx context.Context) {
					_, err := idempotency.Step(ctx, "long", does(&runs, strings.Repeat("r", 100)))
					require.ErrorIs(t, err, errDown)
					requireStep(t, ctx, "b", "2", does(&runs, "2"))
				})
				runIn(backend, func(ctx context.Context) {
					requireStep(t, ctx, "b", "2", nil)
					requireStep(t, ctx, "long", strings.Repeat("r", 100), nil)
				})
				require.Equal(t, 2, runs)
			})
		})
	}
}

// One Renew with progress is under way at a time, and each contains the one before. Those
// that wait for it are sent together.
func TestStepsTogether(t *testing.T) {
	const steps = 50
	synctest.Test(t, func(t *testing.T) {
		backend := newSending()
		underWay := 0
		backend.fails = func(int) error {
			underWay++
			require.Equal(t, 1, underWay)
			time.Sleep(time.Second)
			underWay--
			return nil
		}
		all := func(ctx context.Context, f func(context.Context) ([]byte, error)) {
			var wg sync.WaitGroup
			for n := range steps {
				wg.Go(func() { requireStep(t, ctx, fmt.Sprint(n), "r", f) })
			}
			wg.Wait()
		}
		begun := time.Now()
		interruptIn(t, backend, func(ctx context.Context) {
			all(ctx, func(context.Context) ([]byte, error) { return []byte("r"), nil })
		})
		require.Equal(t, 2*time.Second, time.Since(begun), "all but the first share one round trip")
		for n := range backend.sent[1:] {
			require.Greater(t, len(backend.sent[n+1]), len(backend.sent[n]))
			require.True(t, bytes.HasPrefix(backend.sent[n+1][2:], backend.sent[n][2:]))
		}
		runIn(backend, func(ctx context.Context) { all(ctx, nil) })
		require.Len(t, backend.sent, 2, "what is there costs nothing")
	})
}

// A Renew that does not end, though its context has, holds up no other step for more than 5 s.
func TestStepBehindOneThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend, hangs := newSending(), make(chan struct{})
		backend.fails = func(n int) error {
			if n == 0 {
				<-hangs
			}
			return nil
		}
		interruptIn(t, backend, func(ctx context.Context) {
			go idempotency.Step(ctx, "a", func(context.Context) ([]byte, error) { return []byte("1"), nil })
			synctest.Wait()
			begun := time.Now()
			_, err := idempotency.Step(ctx, "b", func(context.Context) ([]byte, error) { return []byte("2"), nil })
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.Equal(t, 5*time.Second, time.Since(begun))
			close(hangs)
			requireStep(t, ctx, "a", "1", nil)
			requireStep(t, ctx, "b", "2", nil)
		})
		require.Len(t, backend.sent, 2)
	})
}

// Names and results together are at most the buffer limit, with those of the runs before.
func TestStepTooLarge(t *testing.T) {
	forEachBackend(t, func(t *testing.T, newBackend func(*testing.T) idempotency.Backend) {
		backend, limit, runs := newBackend(t), idempotency.WithBufferLimit(100), 0
		large := func(ctx context.Context, size int) {
			t.Helper()
			for range 2 { // It does not run twice in one run.
				_, err := idempotency.Step(ctx, "large", does(&runs, strings.Repeat("x", size)))
				require.ErrorContains(t, err, `result of step "large" not kept`)
				require.ErrorContains(t, err, "limit of WithBufferLimit")
			}
		}
		interruptIn(t, backend, func(ctx context.Context) {
			large(ctx, 96)
			requireStep(t, ctx, "half", strings.Repeat("y", 46), does(&runs, strings.Repeat("y", 46)))
			requireStep(t, ctx, "half", strings.Repeat("y", 46), nil)
		}, limit)
		interruptIn(t, backend, func(ctx context.Context) { large(ctx, 46) }, limit)
		require.Equal(t, 3, runs)
		interruptIn(t, backend, func(ctx context.Context) {
			requireStep(t, ctx, "large", strings.Repeat("x", 45), does(&runs, strings.Repeat("x", 45)))
			_, err := idempotency.Step(ctx, "x", does(&runs, ""))
			require.ErrorContains(t, err, "limit")
			requireStep(t, ctx, "", "", does(&runs, ""))
		}, limit)
		// A process with another limit can read it all.
		runIn(backend, func(ctx context.Context) {
			requireStep(t, ctx, "large", strings.Repeat("x", 45), nil)
			requireStep(t, ctx, "half", strings.Repeat("y", 46), nil)
			_, err := idempotency.Step(ctx, "x", does(&runs, ""))
			require.ErrorContains(t, err, "limit")
		}, idempotency.WithBufferLimit(5))
	})
}

// A run that has lost its claim keeps nothing more, and runs no further step. What the
// recovery has kept stays.
func TestStepOfALateOwner(t *testing.T) {
	t.Parallel()
	forEachBackend(t, func(t *testing.T, newBackend func(*testing.T) idempotency.Backend) {
		backend := newBackend(t)
		cutOff := newHooked() // Its lease runs out while it waits.
		cutOff.claim, cutOff.complete, cutOff.release = backend.Claim, backend.Complete, backend.Release
		cutOff.renew = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms, progress []byte) error {
			if progress == nil {
				return errDown
			}
			return backend.Renew(ctx, key, claim, terms, progress)
		}
		opts := with(idempotency.WithLease(500*time.Millisecond), idempotency.WithWait(time.Minute))
		running, goOn, returned := make(chan struct{}), make(chan struct{}), make(chan struct{})
		go func() {
			defer close(returned)
			runIn(cutOff, func(ctx context.Context) {
				requireStep(t, ctx, "a", "first", does(new(int), "first"))
				_, err := idempotency.Step(ctx, "b", func(context.Context) ([]byte, error) {
					close(running)
					<-goOn
					return []byte("late, and longer than the other"), nil
				})
				require.ErrorIs(t, err, idempotency.ErrClaimLost)
				require.ErrorIs(t, context.Cause(ctx), idempotency.ErrClaimLost)
				for _, ctx := range []context.Context{ctx, context.WithoutCancel(ctx)} {
					_, err = idempotency.Step(ctx, "c", func(context.Context) ([]byte, error) { panic("it runs") })
					require.ErrorIs(t, err, idempotency.ErrClaimLost)
				}
				requireStep(t, ctx, "a", "first", nil)
			}, opts...)
		}()
		<-running
		interruptIn(t, backend, func(ctx context.Context) {
			requireStep(t, ctx, "a", "first", nil)
			requireStep(t, ctx, "b", "recovery's", does(new(int), "recovery's"))
			close(goOn)
			<-returned
		}, opts...)
		runIn(backend, func(ctx context.Context) { requireStep(t, ctx, "b", "recovery's", nil) }, opts...)
	})
}

// NoStore leaves the key interrupted once a step was kept, or may have been.
func TestStepAndNoStore(t *testing.T) {
	fails := func(context.Context) ([]byte, error) { return nil, errDown }
	tests := map[string]struct {
		step  func(context.Context) ([]byte, error) // nil is none
		fails func(int) error
		state idempotency.State
		times int32 // that the claim is released: again after a Renew that may land later
	}{
		"no step":      {nil, nil, 0, 1},
		"an error":     {fails, nil, 0, 1},
		"too large":    {does(new(int), strings.Repeat("x", 1<<20)), nil, 0, 1},
		"kept":         {does(new(int), "r"), nil, idempotency.StateInterrupted, 1},
		"may be kept":  {does(new(int), "r"), until(1<<30, errDown), idempotency.StateInterrupted, 2},
		"may be, full": {does(new(int), "r"), until(1<<30, idempotency.ErrFull), idempotency.StateInterrupted, 2},
	}
	for name, tt := range tests {
		for _, panics := range []any{nil, "boom"} {
			t.Run(fmt.Sprint(name, ", panics: ", panics), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					backend := newSending()
					backend.fails = tt.fails
					h := idempotency.New(backend, resumes, quiet)(handlerOf(func(ctx context.Context) {
						idempotency.NoStore(ctx)
						if tt.step != nil {
							_, _ = idempotency.Step(ctx, "s", tt.step)
						}
						if panics != nil {
							panic(panics)
						}
					}))
					sendAnd(t, panics, h, request("k", "b"))
					time.Sleep(time.Minute)
					require.Equal(t, tt.times, backend.releases.Load())
					rec := lookup(t, backend, "k")
					if tt.state == 0 {
						require.Nil(t, rec)
						return
					}
					require.Equal(t, tt.state, rec.State)
					backend.fails = nil
					requireProblem(t, send(h, request("k", "other")), http.StatusUnprocessableEntity, "ErrKeyReused")
					runIn(backend, func(ctx context.Context) { requireStep(t, ctx, "s", "r", does(new(int), "r")) })
				})
			})
		}
	}
}

// What comes after the handler is not kept: a late Renew could claim the key again.
func TestStepAfterTheHandler(t *testing.T) {
	for name, noStore := range map[string]bool{"stored": false, "released": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				backend, goOn, over := newSending(), make(chan struct{}), make(chan struct{})
				runIn(backend, func(ctx context.Context) {
					if noStore {
						idempotency.NoStore(ctx)
					}
					go func() {
						defer close(over)
						_, err := idempotency.Step(ctx, "begun", func(context.Context) ([]byte, error) {
							<-goOn
							return []byte("r"), nil
						})
						require.ErrorContains(t, err, "handler has returned")
						for _, ctx := range []context.Context{ctx, context.WithoutCancel(ctx)} {
							_, err = idempotency.Step(ctx, "other", nil)
							require.ErrorContains(t, err, "handler has returned")
						}
					}()
					synctest.Wait()
				})
				close(goOn)
				<-over
				require.Zero(t, backend.renews.Load())
				require.Equal(t, noStore, lookup(t, backend, "k") == nil)
			})
		})
	}
}

// A Renew that is under way is waited for before the claim is released. If it does not
// end, or what it did is not known, the claim is released again afterwards.
func TestStepUnderWayAtTheEnd(t *testing.T) {
	tests := map[string]struct {
		takes    time.Duration
		heeds    bool // its context
		waited   time.Duration
		releases int32
	}{
		"it ends":           {2 * time.Second, true, 2 * time.Second, 1},
		"it ends late":      {3 * time.Second, true, 3 * time.Second, 2}, // It may have been sent twice.
		"it is ended":       {time.Hour, true, 5 * time.Second, 2},
		"it does not end":   {time.Hour, false, 5 * time.Second, 2},
		"it ends after all": {7 * time.Second, false, 5 * time.Second, 2},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				backend := newSending()
				renew := backend.renew
				backend.renew = func(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms, progress []byte) error {
					if progress == nil {
						return renew(ctx, key, claim, terms, progress)
					}
					ended := ctx.Done()
					if !tt.heeds {
						ended = nil
					}
					select {
					case <-ended: // And lands later.
						time.AfterFunc(4*time.Second, func() { _ = renew(context.WithoutCancel(ctx), key, claim, terms, progress) })
						return context.Cause(ctx)
					case <-time.After(tt.takes):
						return renew(context.WithoutCancel(ctx), key, claim, terms, progress)
					}
				}
				begun := time.Now()
				h := idempotency.New(backend, resumes, quiet)(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					go idempotency.Step(r.Context(), "s", func(context.Context) ([]byte, error) { return []byte("r"), nil })
					synctest.Wait()
					io.WriteString(w, "<p>not stored")
				}))
				send(h, request("k", "b"))
				require.Equal(t, tt.waited, time.Since(begun))
				time.Sleep(15 * time.Second)
				require.Equal(t, tt.releases, backend.releases.Load())
				require.Equal(t, idempotency.StateInterrupted, lookup(t, backend, "k").State)
				time.Sleep(2 * time.Hour)
			})
		})
	}
}

// A store that fails is not tried again once the handler has returned.
func TestStepTriedAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend, begun := newSending(), time.Now()
		backend.fails = until(1<<30, errDown)
		runIn(backend, func(ctx context.Context) {
			idempotency.NoStore(ctx)
			go idempotency.Step(ctx, "s", func(context.Context) ([]byte, error) { return []byte("r"), nil })
			time.Sleep(100 * time.Millisecond)
		})
		require.Equal(t, 150*time.Millisecond, time.Since(begun), "when the third try would have come")
		require.Len(t, backend.sent, 2)
	})
}

// Renewals go on beside the steps, at their times, and without progress.
func TestStepsAndRenewals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		plain := func(stepEvery time.Duration) int {
			backend := newSending()
			runIn(backend, func(ctx context.Context) {
				time.Sleep(time.Second / 4) // No renewal is due as the handler returns.
				for n := range 60 {
					time.Sleep(time.Minute)
					if stepEvery > 0 {
						requireStep(t, ctx, fmt.Sprint(n), "r", does(new(int), "r"))
					}
				}
			})
			require.Len(t, backend.sent, map[bool]int{true: 60}[stepEvery > 0])
			return backend.plain
		}
		require.Equal(t, plain(0), plain(time.Minute))
	})
}

// A store that has lost the record gets all that the run knows with the next step.
func TestStepAfterALoss(t *testing.T) {
	backend, runs := newSending(), 0
	interruptIn(t, backend, func(ctx context.Context) { requireStep(t, ctx, "a", "1", does(&runs, "1")) })
	interruptIn(t, backend, func(ctx context.Context) {
		requireStep(t, ctx, "b", "2", does(&runs, "2"))
		forgotten, err := backend.Forget(ctx, keyOf("k"), *lookup(t, backend, "k"))
		require.NoError(t, err)
		require.True(t, forgotten)
		requireStep(t, ctx, "c", "3", does(&runs, "3"))
	})
	runIn(backend, func(ctx context.Context) {
		requireStep(t, ctx, "a", "1", nil)
		requireStep(t, ctx, "b", "2", nil)
		requireStep(t, ctx, "c", "3", nil)
	})
	require.Equal(t, 3, runs)
}

// A claim that was answered late is sent again: the progress of the second reply counts.
func TestStepAfterALateClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		backend, runs := newSending(), 0
		interruptIn(t, backend, func(ctx context.Context) { requireStep(t, ctx, "a", "1", does(&runs, "1")) })
		claim := backend.claim
		backend.claim = func(ctx context.Context, key idempotency.Key, c idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
			held, claimed, err := claim(ctx, key, c, terms)
			if backend.claims.Load() > 2 {
				return held, claimed, err
			}
			// Meanwhile another takes over, keeps a step more, and dies.
			time.Sleep(4 * time.Second)
			other := retryOf(c, "retry")
			mustClaim(t, backend.Memory, key, other, terms)
			require.NoError(t, backend.Memory.Renew(ctx, key, other, terms, []byte("\x01\x02\x01a\x011\x01b\x012")))
			require.NoError(t, backend.Memory.Release(ctx, key, other, time.Hour))
			return held, claimed, err
		}
		require.Equal(t, 200, runIn(backend, func(ctx context.Context) {
			requireStep(t, ctx, "b", "2", nil)
			requireStep(t, ctx, "a", "1", nil)
		}, idempotency.WithLease(time.Second)).Code)
		require.EqualValues(t, 3, backend.claims.Load())
	})
}
