package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/internal/redistest"
)

// fill puts so many completed records into a store.
func fill(t *testing.T, s testStore, records int) {
	t.Helper()
	response := stored(t, "{}")
	var puts sync.WaitGroup
	for worker := range 8 {
		puts.Go(func() {
			for n := worker; n < records; n += 8 {
				claim := idempotency.Claim{Token: newToken(time.Now())}
				if err := s.Complete(t.Context(), idempotency.NewKey("fill", fmt.Sprint(n)), claim, response, time.Hour); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	puts.Wait()
}

func TestStats(t *testing.T) {
	eachStore(t, func(t *testing.T, s testStore) {
		require.Equal(t, result{0, "outstanding  0\ninterrupted  0\ncompleted    0\nunreadable   0\n", ""}, s.run(t, "stats"))

		const completed = 20 // A Cluster has some of them on each of its masters.
		fill(t, s, completed)
		for n := range 3 {
			put(t, s, idempotency.NewKey("interrupted", fmt.Sprint(n)), idempotency.StateInterrupted, nil)
		}
		var oldest idempotency.Token
		for n, hours := range []int{2, 7, 4} {
			claim := idempotency.Claim{Token: newToken(time.Now().Add(-time.Duration(hours) * time.Hour))}
			_, claimed, err := s.Claim(t.Context(), idempotency.NewKey("outstanding", fmt.Sprint(n)), claim, idempotency.Terms{Lease: time.Hour, Trace: time.Hour})
			require.NoError(t, err)
			require.True(t, claimed)
			if n == 1 {
				oldest = claim.Token
			}
		}
		s.spoil(t, idempotency.NewKey("", "spoilt"))
		oldestKey := idempotency.NewKey("outstanding", "1")

		r := s.run(t, "stats")
		require.Equal(t, fmt.Sprintf(`outstanding         3
interrupted         3
completed           %d
unreadable          1
oldest outstanding  %v
  claimed           T, T ago
`, completed, oldestKey), timeless(r.stdout), r)
		require.Equal(t, 0, r.status)

		r = s.run(t, "stats", "-json")
		require.Equal(t, 0, r.status, r)
		var counted map[string]any
		require.NoError(t, json.Unmarshal([]byte(r.stdout), &counted))
		require.Equal(t, map[string]any{
			"outstanding": 3.0, "interrupted": 3.0, "completed": float64(completed), "unreadable": 1.0, "over": 0.0, "foreign": 0.0,
			"oldest_outstanding": map[string]any{
				"storage_key": oldestKey.String(), "claim": oldest.String(), "claimed": oldest.Time().UTC().Format(time.RFC3339Nano),
			},
		}, counted)
	})
}

// Rows whose time is over are counted apart, until they are swept.
func TestStatsOver(t *testing.T) {
	s := newPostgres(t)
	put(t, s, idempotency.NewKey("", "k"), idempotency.StateCompleted, stored(t, "{}"))
	for n, state := range []string{"outstanding", "completed"} {
		key, claim := idempotency.NewKey("over", state), idempotency.Claim{Token: newToken(time.Now())}
		if n == 0 {
			_, _, err := s.Claim(t.Context(), key, claim, idempotency.Terms{Lease: time.Microsecond})
			require.NoError(t, err)
		} else {
			require.NoError(t, s.Complete(t.Context(), key, claim, stored(t, "{}"), time.Microsecond))
		}
	}
	r := s.run(t, "stats")
	require.Equal(t, result{0, `outstanding          0
interrupted          0
completed            1
unreadable           0
over, not swept yet  2
`, ""}, r)
}

// What PostgreSQL counts a row as is what Lookup says of it.
func TestStatsOfRowsByHand(t *testing.T) {
	const columns = "INSERT INTO TABLE (key, token, fingerprint, state, ends, trace, sweep_from, response) VALUES "
	for values, want := range map[string]string{
		`($1, $2, $3, 0, now() + '1h', 0, now(), NULL)`:                  "outstanding",
		`($1, $2, $3, 1, now() + '1h', 60000000, now(), NULL)`:           "outstanding",
		`($1, $2, $3, 0, now(), 3600000000, now(), NULL)`:                "interrupted",
		`($1, $2, $3, 1, now(), 3600000000, now(), NULL)`:                "interrupted",
		`($1, $2, $3, 2, now() + '1h', 0, now(), '')`:                    "completed",
		`($1, $2, $3, 2, 'infinity', 0, 'infinity', '\x01')`:             "completed",
		`($1, $2, $3, 2, now() + '1h', 0, now(), NULL)`:                  "unreadable",
		`($1, $2, $3, 3, now() + '1h', 0, now(), '')`:                    "unreadable",
		`($1, $2, $3::bytea || '\x00', 0, now() + '1h', 0, now(), NULL)`: "unreadable",
		`($1, $2, substr($3::bytea, 2), 2, now() + '1h', 0, now(), '')`:  "unreadable",
		`($1, $2, $3, 0, now(), 0, now(), NULL)`:                         "over",
		`($1, $2, $3, 3, now() - '1h'::interval, 1, now(), NULL)`:        "over",
	} {
		t.Run(values, func(t *testing.T) {
			s := newPostgres(t)
			db := openPostgres(t, s)
			key, token := idempotency.NewKey("", "k"), newToken(time.Now())
			_, err := db.pool.Exec(t.Context(), strings.Replace(columns, "TABLE", `"`+db.table+`"`, 1)+values, key[:], token.String(), make([]byte, 32))
			require.NoError(t, err)
			counted := &tally{}
			require.NoError(t, db.count(&command{timeout: time.Minute}, counted))
			require.Equal(t, map[string]int64{want: 1}, nonzero(counted.counts))
			require.Equal(t, want == "outstanding", counted.Oldest != nil)

			rec, _, ok, err := s.Lookup(t.Context(), key)
			looked := &tally{}
			require.NoError(t, looked.add(key, rec, ok, err))
			same := map[string]int64{want: 1}
			delete(same, "over") // Lookup does not see it.
			require.Equal(t, same, nonzero(looked.counts))
		})
	}
}

// A key of another length is no record's, and no reason to fail.
func TestStatsOfAKeyThatIsNone(t *testing.T) {
	s := newPostgres(t)
	db := openPostgres(t, s)
	_, err := db.pool.Exec(t.Context(), `INSERT INTO "`+db.table+`" (key, token, fingerprint, state, ends, trace, sweep_from)
		VALUES ('\x01', gen_random_uuid(), $1, 0, now() + '1h', 0, now())`, make([]byte, 32))
	require.NoError(t, err)
	require.Contains(t, s.run(t, "stats").stdout, "unreadable   1\n")
}

// Keys under the prefix that no backend has made are counted apart; other keys are not.
func TestStatsOfForeignKeys(t *testing.T) {
	prefix := prefixFor()
	s := realRedisStore(t, prefix)
	client := redistest.Client(t)
	name := idempotency.NewKey("", "k").String()
	set := []string{prefix, prefix + "v2:" + name, prefix + name[1:], prefix + name + "A"}
	// These would match the prefix if it was a pattern.
	for _, letters := range [][2]string{{"*", "xyz"}, {"[a-z]", "b"}, {"?", "a"}, {`\`, ""}} {
		set = append(set, strings.Replace(prefix, letters[0], letters[1], 1)+name)
	}
	for _, key := range set {
		require.NoError(t, client.Set(t.Context(), key, "", time.Hour).Err())
	}
	// A list is no record, under whatever name.
	require.NoError(t, client.RPush(t.Context(), prefix+name, "").Err())
	t.Cleanup(func() {
		require.NoError(t, client.Del(context.Background(), append(set, prefix+name)...).Err())
	})
	require.Equal(t, result{0, "outstanding   0\ninterrupted   0\ncompleted     0\nunreadable    1\nforeign keys  4\n", ""}, s.run(t, "stats"))
}

// A long count tells how far it is.
func TestStatsProgress(t *testing.T) {
	s := realRedisStore(t, prefixFor())
	fill(t, s, 2*scanBatch)
	c := new(command)
	require.NoError(t, c.parse("stats", s.flags, 0, c.storeFlags))
	opened, err := c.open()
	require.NoError(t, err)
	defer opened.close()
	var told strings.Builder
	counted := &tally{progress: &told}
	require.NoError(t, opened.count(c, counted))
	require.EqualValues(t, 2*scanBatch, counted.Completed)
	lines := strings.Split(strings.TrimSpace(told.String()), "\n")
	require.Greater(t, len(lines), 1)
	require.Equal(t, fmt.Sprintf("idempotency: %d keys so far", 2*scanBatch), lines[len(lines)-1])

	told.Reset()
	require.NoError(t, opened.count(c, &tally{progress: &told, every: time.Hour, told: time.Now()}))
	require.Empty(t, told.String(), "it is told from time to time, not of each batch")
}

// openPostgres opens a store as the program does.
func openPostgres(t *testing.T, s testStore) *postgresStore {
	t.Helper()
	c := new(command)
	require.NoError(t, c.parse("stats", s.flags, 0, c.storeFlags))
	opened, err := c.open()
	require.NoError(t, err)
	t.Cleanup(opened.close)
	return opened.(*postgresStore)
}

// nonzero returns the numbers that are not zero, by their names.
func nonzero(n counts) map[string]int64 {
	all := map[string]int64{"outstanding": n.Outstanding, "interrupted": n.Interrupted, "completed": n.Completed,
		"unreadable": n.Unreadable, "over": n.Over, "foreign": n.Foreign}
	for name, n := range all {
		if n == 0 {
			delete(all, name)
		}
	}
	return all
}
