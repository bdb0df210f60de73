package main

import (
	"context"
	"errors"
	"net/http"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/idempotency-go/idempotency/postgres"
)

// sessions is where the checkout sessions are. Its methods are safe for concurrent use.
type sessions interface {
	add(ctx context.Context, s session) error
	get(ctx context.Context, id string) (session, error)
	// change lets f change a session; if f fails nothing changes. Of one session one f runs at a time.
	change(ctx context.Context, id string, f func(s *session) error) (session, error)
}

var errNoSession = invalid(http.StatusNotFound, "not_found", "There is no such session")

// memory has the sessions in memory.
type memory struct {
	mu  sync.Mutex
	all map[string]session
}

func (m *memory) add(_ context.Context, s session) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.all[s.ID] = s
	return nil
}

func (m *memory) get(_ context.Context, id string) (session, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.all[id]
	if !ok {
		return session{}, errNoSession
	}
	return s, nil
}

func (m *memory) change(_ context.Context, id string, f func(s *session) error) (session, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.all[id]
	if !ok {
		return session{}, errNoSession
	}
	if err := f(&s); err != nil {
		return session{}, err
	}
	m.all[id] = s
	return s, nil
}

// database has the sessions in PostgreSQL. They are written in the transaction that commits
// together with the key's record, or not at all (6.8).
type database struct{ pool *pgxpool.Pool }

func (d database) migrate(ctx context.Context) error {
	_, err := d.pool.Exec(ctx, "CREATE TABLE IF NOT EXISTS acp_example (id text PRIMARY KEY, session jsonb NOT NULL)")
	return err
}

func (d database) add(ctx context.Context, s session) error {
	tx, err := postgres.Tx(ctx)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, "INSERT INTO acp_example (id, session) VALUES ($1, $2)", s.ID, s)
	return err
}

func (d database) get(ctx context.Context, id string) (s session, err error) {
	return scan(d.pool.QueryRow(ctx, "SELECT session FROM acp_example WHERE id = $1", id))
}

func (d database) change(ctx context.Context, id string, f func(s *session) error) (session, error) {
	tx, err := postgres.Tx(ctx)
	if err != nil {
		return session{}, err
	}
	s, err := scan(tx.QueryRow(ctx, "SELECT session FROM acp_example WHERE id = $1 FOR UPDATE", id))
	if err != nil {
		return session{}, err
	}
	if err := f(&s); err != nil {
		return session{}, err
	}
	_, err = tx.Exec(ctx, "UPDATE acp_example SET session = $2 WHERE id = $1", id, s)
	return s, err
}

func scan(row pgx.Row) (s session, err error) {
	err = row.Scan(&s)
	if errors.Is(err, pgx.ErrNoRows) {
		return session{}, errNoSession
	}
	return s, err
}

// processor authorizes payments. It takes a key: one key is one authorization.
type processor interface {
	authorize(ctx context.Context, key, token string, cents int64) (authorization []byte, err error)
}

// cards stands for the payment service provider.
type cards struct{ authorized sync.Map } // authorizations by their keys

func (c *cards) authorize(_ context.Context, key, token string, cents int64) ([]byte, error) {
	authorization, _ := c.authorized.LoadOrStore(key, []byte("auth_"+key))
	return authorization.([]byte), nil
}
