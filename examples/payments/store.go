package main

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

type payment struct {
	ID        string    `json:"id"`
	Amount    int64     `json:"amount"` // in the currency's smallest unit
	Currency  string    `json:"currency"`
	Charge    string    `json:"charge"`    // the card processor's name for it
	Reference string    `json:"reference"` // the client's name for it: its key
	Created   time.Time `json:"created"`
	Refunds   []refund  `json:"refunds"`
}

type refund struct {
	ID     string `json:"id"`
	Amount int64  `json:"amount"`
}

// store keeps the payments of accounts. It is safe for concurrent use.
type store interface {
	// Update changes one payment, atomically: change gets what is stored, or a
	// payment without an ID if there is none, and may be called again if others
	// write at the same time. If it fails nothing changes, and its error returns.
	Update(ctx context.Context, account, id string, change func(*payment) error) (payment, error)
	// List returns an account's payments, the oldest first.
	List(ctx context.Context, account string) ([]payment, error)
}

// memoryStore is a store for one process. Its keys are an account and an ID.
type memoryStore struct {
	mu       sync.Mutex
	payments map[[2]string]payment
}

func (s *memoryStore) Update(_ context.Context, account, id string, change func(*payment) error) (payment, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.payments[[2]string{account, id}]
	err := change(&p)
	if err == nil {
		s.payments[[2]string{account, id}] = p
	}
	return p, err
}

func (s *memoryStore) List(_ context.Context, account string) ([]payment, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	payments := []payment{}
	for key, p := range s.payments {
		if key[0] == account {
			payments = append(payments, p)
		}
	}
	sortByAge(payments)
	return payments, nil
}

// redisStore is a store that several processes share. It has one hash for each
// account: the JSON of its payments by their IDs.
type redisStore struct{ client *redis.Client }

const hashPrefix = "payments-example:"

func (s redisStore) Update(ctx context.Context, account, id string, change func(*payment) error) (p payment, err error) {
	hash := hashPrefix + account
	update := func(tx *redis.Tx) error {
		p = payment{}
		text, err := tx.HGet(ctx, hash, id).Bytes()
		if err == nil {
			err = json.Unmarshal(text, &p)
		}
		if err != nil && !errors.Is(err, redis.Nil) {
			return err
		}
		if err := change(&p); err != nil {
			return err
		}
		if text, err = json.Marshal(p); err != nil {
			return err
		}
		_, err = tx.TxPipelined(ctx, func(pipe redis.Pipeliner) error {
			return pipe.HSet(ctx, hash, id, text).Err()
		})
		return err
	}
	for {
		err = s.client.Watch(ctx, update, hash)
		// Where another process wrote first, the change is made to what it wrote.
		if !errors.Is(err, redis.TxFailedErr) {
			return p, err
		}
	}
}

func (s redisStore) List(ctx context.Context, account string) ([]payment, error) {
	texts, err := s.client.HVals(ctx, hashPrefix+account).Result()
	if err != nil {
		return nil, err
	}
	payments := make([]payment, len(texts))
	for i, text := range texts {
		if err := json.Unmarshal([]byte(text), &payments[i]); err != nil {
			return nil, err
		}
	}
	sortByAge(payments)
	return payments, nil
}

func sortByAge(payments []payment) {
	slices.SortFunc(payments, func(a, b payment) int { return a.Created.Compare(b.Created) })
}
