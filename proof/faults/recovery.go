package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/internal/recoverytest"
)

// recoveryLease is longer than a server on a busy machine stands still.
const recoveryLease = 2 * time.Second

// openRecoveryStore opens the Redis at an address, for a server of a proof of recovery.
func openRecoveryStore(addr string) (recoverytest.Store, error) {
	client := redisTarget{Kind: targetSingle, Addrs: []string{addr}}.client()
	return recoverytest.Store{Backend: idempotency.NewRedis(client)}, nil
}

// recoveryProof is a part of the proof of recovery.
type recoveryProof struct {
	name   string
	repeat bool
	share  int // percent of the kills
	prove  func(p *recoverytest.Proof, n int, redis *node)
}

var recoveryProofs = []recoveryProof{
	{"payments, asked for by the recovery", false, 40, func(p *recoverytest.Proof, n int, _ *node) { p.Payments(n) }},
	{"the same, each claim sent twice", true, 15, func(p *recoverytest.Proof, n int, _ *node) { p.Payments(n) }},
	{"trips of three steps", false, 40, func(p *recoverytest.Proof, n int, _ *node) { p.Trips(n) }},
	{"late owners, and crowds", false, 5, func(p *recoverytest.Proof, n int, _ *node) {
		p.LateOwners(1 + n/40)
		p.Crowds(6 + n/2)
	}},
	{"Redis loses all", false, 5, func(p *recoverytest.Proof, n int, redis *node) { p.Losses(2+n/10, losing(redis)) }},
}

// losing returns what lets Redis lose all records: by FLUSHALL, or by a restart, in turn.
func losing(redis *node) func() error {
	turn := 0
	return func() error {
		if turn++; turn%2 == 0 {
			redis.process.kill()
			return redis.start()
		}
		return redis.client.FlushAll(context.Background()).Err()
	}
}

// proveRecovery kills servers about n times in all, and writes a table of what it counted.
func proveRecovery(ctx context.Context, n, lanes int, seed uint64, markdown string, stdout io.Writer) error {
	t := &table{header: []string{"proof", "kills", "keys", "runs", "recoveries", "steps kept", "effects", "other requests refused", "late owners", "losses",
		"doubled", "missing", "other violations"}}
	failed := 0
	for _, part := range recoveryProofs {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		began := time.Now()
		p, err := runRecovery(part, n*part.share/100, recoverytest.Settings{Lease: recoveryLease, Lanes: lanes, Seed: seed})
		if err != nil {
			return err
		}
		cells := []string{part.name}
		for _, what := range []string{recoverytest.Kills, "keys", "runs", "recoveries", "steps kept", "effects", "other requests", recoverytest.LateOwners, recoverytest.Losses} {
			cells = append(cells, strconv.Itoa(p.Count(what)))
		}
		doubled, missing, all := p.Found("doubled"), p.Found("missing"), p.Found("")
		t.add(append(cells, strconv.Itoa(doubled), strconv.Itoa(missing), strconv.Itoa(all-doubled-missing))...)
		fmt.Fprintf(stdout, "%s: %s, %v\n", part.name, p.Counted(), time.Since(began).Round(time.Second))
		for _, text := range p.Violations(5) {
			fmt.Fprintln(stdout, "  FAILED", text)
		}
		failed += all
	}
	if err := writeTables(stdout, markdown, t); err != nil {
		return err
	}
	if failed > 0 {
		return fmt.Errorf("%d promises were not kept", failed)
	}
	return nil
}

// runRecovery runs a part of the proof on a Redis of its own, which keeps nothing on disk.
func runRecovery(part recoveryProof, n int, s recoverytest.Settings) (*recoverytest.Proof, error) {
	dir, err := os.MkdirTemp("", "idempotency-recovery-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	redis, err := startNode(dir, nil, "appendonly no")
	if err != nil {
		return nil, err
	}
	defer redis.stop()
	s.Target, s.Repeat = redis.addr(), part.repeat
	p, err := recoverytest.New(s)
	if err != nil {
		return nil, err
	}
	defer p.Stop()
	part.prove(p, n, redis)
	return p, nil
}

// findBrokenRecoveries runs the broken builds of recovery, and adds to a table what was
// found. It returns how many were not.
func findBrokenRecoveries(seed uint64, stdout io.Writer, t *table) (missed int, err error) {
	for _, b := range recoverytest.Breakages {
		p, err := runBrokenRecovery(b, seed)
		if err != nil {
			return missed, fmt.Errorf("broken build %s: %w", b.Name, err)
		}
		found := p.Found(b.Finds)
		if b.Finds != "" && found == 0 || b.Finds == "" && found > 0 {
			missed++
		}
		fmt.Fprintf(stdout, "%s: check (%s) found %d violations: %s\n", b.Name, b.Finds, found, strings.Join(p.Violations(1), ""))
		t.add(b.Name, b.What, "recovery", b.Finds, strconv.Itoa(found), "")
	}
	return missed, nil
}

// runBrokenRecovery runs what must find a broken build.
func runBrokenRecovery(b recoverytest.Breakage, seed uint64) (*recoverytest.Proof, error) {
	part := recoveryProof{repeat: b.Repeat, prove: func(p *recoverytest.Proof, _ int, _ *node) { b.Prove(p) }}
	return runRecovery(part, 0, recoverytest.Settings{Lease: b.Lease(), Lanes: 8, Seed: seed, Broken: b.Name})
}
