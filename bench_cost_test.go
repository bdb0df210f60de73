package idempotency_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/idempotency-go/idempotency/internal/redistest"
)

// BenchmarkJSONFingerprintBeside measures requests whose bodies are compared as JSON and,
// in turn, requests whose bodies are compared as bytes. On memory nothing else takes as long.
func BenchmarkJSONFingerprintBeside(b *testing.B) {
	bytes := idempotency.New(idempotency.NewMemory())(bareHandler(200))
	asJSON := idempotency.New(idempotency.NewMemory(), idempotency.WithFingerprint(idempotency.JSONFingerprint()))(bareHandler(200))
	for _, size := range []struct {
		name  string
		bytes int
		inRow int
	}{{"1kB", 1000, 100}, {"64kB", 64_000, 4}, {"1MiB", 1 << 20, 1}} {
		body := orderOf(size.bytes)
		c := newBenchClient(b)
		c.r.ContentLength = int64(len(body))
		send := func(h http.Handler, key func() string) func() { return func() { c.send(h, key(), body) } }
		stored := func() string { return size.name }
		beside(b, size.name+"/first", size.inRow, send(bytes, nextKey), send(asJSON, nextKey))
		c.send(bytes, size.name, body)
		c.send(asJSON, size.name, body)
		beside(b, size.name+"/replay", size.inRow, send(bytes, stored), send(asJSON, stored))
	}
}

// orderOf returns an order in JSON of so many bytes.
func orderOf(size int) string {
	var order strings.Builder
	order.WriteString(`{"currency":"EUR","lines":[`)
	for n := 0; ; n++ {
		line := fmt.Sprintf(`{"sku":"article-%06d","count":%d,"price":%d.%02d,"gift":false,"note":null},`, n, n%9+1, n, n%100)
		if order.Len()+len(line) > size-10 {
			break
		}
		order.WriteString(line)
	}
	order.WriteString(`{}]`)
	return order.String() + strings.Repeat(" ", size-order.Len()-1) + "}"
}

// BenchmarkEncryptionBeside measures requests whose answers are sealed and, in turn,
// requests whose answers are not.
func BenchmarkEncryptionBeside(b *testing.B) {
	secret := idempotency.WithEncryption([]byte(strings.Repeat("s", 32)))
	client := redistest.Client(b)
	for _, store := range []struct {
		name  string
		inRow int
		open  func() idempotency.Backend
	}{
		{"memory", 50, func() idempotency.Backend { return idempotency.NewMemory() }},
		{"Redis", 1, func() idempotency.Backend {
			return idempotency.NewRedis(client, idempotency.WithPrefix(freshPrefix(b, client)))
		}},
	} {
		for _, size := range benchSizes {
			plain := idempotency.New(store.open(), idempotency.WithExpiry(time.Hour))(bareHandler(size.bytes))
			sealed := idempotency.New(store.open(), idempotency.WithExpiry(time.Hour), secret)(bareHandler(size.bytes))
			c, name := newBenchClient(b), store.name+"/"+size.name
			send := func(h http.Handler, key func() string) func() { return func() { c.send(h, key(), benchBody) } }
			stored := func() string { return "stored" }
			beside(b, name+"/first", store.inRow, send(plain, nextKey), send(sealed, nextKey))
			c.send(plain, "stored", benchBody)
			c.send(sealed, "stored", benchBody)
			beside(b, name+"/replay", store.inRow, send(plain, stored), send(sealed, stored))
		}
	}
}
