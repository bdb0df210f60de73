package main

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// processor plays the card processor, in a real service another company's API. Its
// charges stand in a table that is written past the handler's transaction: no rollback
// undoes them, and they outlive this process. Like a real one it takes idempotency keys,
// and can be asked what it did for one.
type processor struct{ pool *pgxpool.Pool }

type charge struct {
	Key     string    `json:"key"`
	Amount  int64     `json:"amount"`
	Created time.Time `json:"created"`
}

func (p processor) migrate(ctx context.Context) error {
	_, err := p.pool.Exec(ctx, `CREATE TABLE IF NOT EXISTS payments_example_charges (
		key     text PRIMARY KEY,
		amount  bigint NOT NULL,
		created timestamptz NOT NULL DEFAULT now()
	)`)
	return err
}

// charge charges once for each key.
func (p processor) charge(ctx context.Context, key string, amount int64) error {
	const insert = "INSERT INTO payments_example_charges (key, amount) VALUES ($1, $2) ON CONFLICT DO NOTHING"
	_, err := p.pool.Exec(ctx, insert, key, amount)
	return err
}

// find returns the amount that was charged for a key, if it was.
func (p processor) find(ctx context.Context, key string) (amount int64, ok bool, err error) {
	err = p.pool.QueryRow(ctx, "SELECT amount FROM payments_example_charges WHERE key = $1", key).Scan(&amount)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, false, nil
	}
	return amount, err == nil, err
}
