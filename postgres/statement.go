package postgres

import (
	"context"
	"regexp"
	"strings"
)

// note looks at a statement that the handler is about to send, while the
// transaction is locked. One that may end the transaction makes it suspect. Before
// one that may change the role, it asks for the role that the record is written
// under.
func (t *transaction) note(ctx context.Context, sql string) {
	if mayEnd(sql) {
		t.suspect = true
	}
	if t.role == "" && mentions(sql, "role") {
		// In a failed transaction there is no answer, and no need of one.
		_ = t.tx.QueryRow(ctx, "SHOW role").Scan(&t.role)
	}
}

// ends finds in a text of statements those that end a transaction, after comments.
var (
	ends = regexp.MustCompile(`(?is)(?:^|;)(?:\s|/\*.*?\*/|--[^\n]*\n)*(commit|end|rollback|abort|prepare\s+transaction)\b`)
	to   = regexp.MustCompile(`(?is)^(\s+(work|transaction))?\s+to\b`) // ROLLBACK TO a savepoint
)

// mayEnd reports whether a text of statements may end a transaction. It may be
// wrong about a text with quoted statements in it.
func mayEnd(sql string) bool {
	sql = strings.TrimLeft(sql, " \t\r\n;")
	// Most are one statement that begins with another word.
	if sql == "" || !strings.ContainsRune("CERAPcerap/-", rune(sql[0])) && !strings.Contains(sql, ";") {
		return false
	}
	for _, found := range ends.FindAllStringIndex(sql, -1) {
		if !to.MatchString(sql[found[1]:]) {
			return true
		}
	}
	return false
}

// mentions reports whether a text has a word of lower-case letters in it, in
// whatever case.
func mentions(text, word string) bool {
	for i := 0; i+len(word) <= len(text); i++ {
		if text[i]|0x20 == word[0] && strings.EqualFold(text[i:i+len(word)], word) {
			return true
		}
	}
	return false
}
