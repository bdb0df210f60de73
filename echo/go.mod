// The adapter stands in a module of its own, so that users of the library do not get Echo.
module github.com/idempotency-go/idempotency/echo

go 1.25.0

replace github.com/idempotency-go/idempotency => ../

require (
	github.com/idempotency-go/idempotency v0.1.0
	github.com/labstack/echo/v5 v5.4.4
	github.com/stretchr/testify v1.12.1
)

require (
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/google/uuid v1.6.0 // indirect
	github.com/redis/go-redis/v9 v9.22.0 // indirect
	go.uber.org/atomic v1.11.0 // indirect
	go.yaml.in/yaml/v3 v3.0.5 // indirect
	golang.org/x/sys v0.30.0 // indirect
	golang.org/x/time v0.15.0 // indirect
)
