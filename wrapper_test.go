package idempotency_test

import (
	"context"
	"testing"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

// A type that embeds one of this package's backends is a backend of its own:
// what it adds is used.
func TestEmbeddedBackend(t *testing.T) {
	backend := &noisy{Memory: idempotency.NewMemory()}
	h := idempotency.New(backend)(&payments{})
	send(h, request("k", "b"))
	send(h, request("k", "b"))
	require.Equal(t, []string{"claim", "complete", "claim"}, backend.calls)
}

// noisy is a Memory that notes what it is asked.
type noisy struct {
	*idempotency.Memory
	calls []string
}

func (b *noisy) Claim(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
	b.calls = append(b.calls, "claim")
	return b.Memory.Claim(ctx, key, claim, terms)
}

func (b *noisy) Complete(ctx context.Context, key idempotency.Key, claim idempotency.Claim, response []byte, expiry time.Duration) error {
	b.calls = append(b.calls, "complete")
	return b.Memory.Complete(ctx, key, claim, response, expiry)
}

// plain is a third party's wrapper: it has the verbs and nothing else.
type plain struct{ backend idempotency.Backend }

func (p plain) Claim(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms) (idempotency.Record, bool, error) {
	return p.backend.Claim(ctx, key, claim, terms)
}

func (p plain) Renew(ctx context.Context, key idempotency.Key, claim idempotency.Claim, terms idempotency.Terms, progress []byte) error {
	return p.backend.Renew(ctx, key, claim, terms, progress)
}

func (p plain) Complete(ctx context.Context, key idempotency.Key, claim idempotency.Claim, response []byte, expiry time.Duration) error {
	return p.backend.Complete(ctx, key, claim, response, expiry)
}

func (p plain) Release(ctx context.Context, key idempotency.Key, claim idempotency.Claim, trace time.Duration) error {
	return p.backend.Release(ctx, key, claim, trace)
}

// unwrapped is a wrapper that shows what it wraps.
type unwrapped struct{ plain }

func (u unwrapped) Unwrap() idempotency.Backend { return u.backend }

// unwrappedTransactor is one that is a Transactor itself.
type unwrappedTransactor struct{ unwrapped }

func (u unwrappedTransactor) Begin(ctx context.Context, key idempotency.Key, claim idempotency.Claim, expiry time.Duration) context.Context {
	for inner := u.backend; ; inner = inner.(interface{ Unwrap() idempotency.Backend }).Unwrap() {
		if transactor, ok := inner.(idempotency.Transactor); ok {
			return transactor.Begin(ctx, key, claim, expiry)
		}
	}
}

// New panics where a wrapper shows a Transactor that it hides.
func TestHiddenTransactor(t *testing.T) {
	l := newLedger(never)
	wrap := func(b idempotency.Backend) idempotency.Backend { return unwrapped{plain{b}} }
	of := func(b idempotency.Backend) idempotency.Backend { return unwrappedTransactor{unwrapped{plain{b}}} }
	for name, tt := range map[string]struct {
		backend idempotency.Backend
		hidden  bool
	}{
		"a Transactor":                         {l, false},
		"hidden":                               {wrap(l), true},
		"hidden twice":                         {wrap(wrap(l)), true},
		"hidden outside of one that shows it":  {wrap(of(l)), true},
		"shown":                                {of(l), false},
		"shown from within another":            {of(wrap(l)), false},
		"a wrapper that does not unwrap":       {plain{l}, false},
		"hidden behind one that does not":      {wrap(plain{l}), false},
		"a wrapper around Memory":              {wrap(idempotency.NewMemory()), false},
		"a wrapper around nothing":             {wrap(nil), false},
		"a wrapper around a wrapped Memory":    {wrap(wrap(idempotency.NewMemory())), false},
		"a Memory that is embedded":            {&noisy{Memory: idempotency.NewMemory()}, false},
		"a Transactor around what is not one":  {of(idempotency.NewMemory()), false},
		"a pointer to a wrapper of Transactor": {&unwrapped{plain{l}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.hidden {
				requirePanics(t, "wraps a Transactor and is none", func() { idempotency.New(tt.backend) })
				return
			}
			require.NotPanics(t, func() { idempotency.New(tt.backend)(&payments{}) })
		})
	}
	t.Run("what is shown is used", func(t *testing.T) {
		l := newLedger(never)
		h := idempotency.New(of(wrap(l)))(&attempt{answer: script{code(200), says("<p>")}})
		send(h, request("k", "b"))
		requireReplayed(t, send(h, request("k", "b")), "<p>")
		require.Equal(t, []string{"run 1"}, l.written)
	})
}
