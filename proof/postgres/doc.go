// Package proof has no code to import: its tests show that a payment made
// through [postgres.NewTransactional] is made exactly once, whatever ends the
// process, PostgreSQL or the connection between them.
//
// The test binary runs itself as servers. Their handler inserts into a table
// without a unique constraint, so that a second run shows, and each request
// tells them at which step to die. Clients retry until they have their answer;
// then the table is read. -rounds and -seed make longer and other runs:
//
//	go test . -v -rounds 40
//
// With WithRecovery, and with steps, servers die at every point of a run and of its
// recovery; package recoverytest has what these proofs share with those on Redis.
//
//	go test . -v -rounds 130 -run Recover
//
// The checks are shown to work by servers that are broken on purpose.
//
// [postgres.NewTransactional]: https://pkg.go.dev/github.com/idempotency-go/idempotency/postgres#NewTransactional
package proof
