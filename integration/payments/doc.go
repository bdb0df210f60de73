// Package payments is a server that oapi-codegen has made of payments.yaml.
package payments

//go:generate go run github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2 -config config.yaml payments.yaml
