package postgres_test

import (
	"crypto/rand"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency/postgres"
)

func TestBadOptions(t *testing.T) {
	pool := newPool(t)
	for text, f := range map[string]func(){
		"nil pool":    func() { postgres.New(nil) },
		"nil option":  func() { postgres.NewTransactional(pool, nil) },
		"WithTable":   func() { postgres.New(pool, postgres.WithTable("")) },
		"schema.name": func() { postgres.New(pool, postgres.WithTable("a.b.c")) },
		"at most 52":  func() { postgres.New(pool, postgres.WithTable("billing."+rand.Text()+rand.Text()+"1234")) },
		"read only":   func() { postgres.WithTxOptions(pgx.TxOptions{AccessMode: pgx.ReadOnly}) },
		"interval":    func() { postgres.New(pool).SweepEvery(t.Context(), 0, nil) },
	} {
		t.Run(text, func(t *testing.T) {
			defer func() { require.Contains(t, recover(), text) }()
			f()
		})
	}
}
