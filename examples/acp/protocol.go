package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strings"
)

// apiVersion is the version of the protocol that the service speaks.
const apiVersion = "2026-04-17"

// common is what section 3.1 asks of every request.
func (a *api) common(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if id := r.Header.Get("Request-Id"); id != "" {
			w.Header().Set("Request-Id", id)
		}
		token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		who, known := a.identities[token]
		switch version := r.Header.Get("API-Version"); {
		case version == "":
			unsupported("missing_api_version", "API-Version header is required").write(w)
		case version != apiVersion:
			unsupported("unsupported_api_version", "This API-Version is not supported").write(w)
		case !known:
			w.Header().Set("WWW-Authenticate", "Bearer")
			invalid(http.StatusUnauthorized, "unauthorized", "Authorization must be a known bearer token").write(w)
		default:
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), identityKey{}, who)))
		}
	})
}

type identityKey struct{}

// identity returns who has been authenticated.
func identity(ctx context.Context) string {
	who, _ := ctx.Value(identityKey{}).(string)
	return who
}

// decode reads a JSON body; none is {}.
func decode(r *http.Request, into any) error {
	if r.ContentLength == 0 {
		return nil
	}
	if err := json.NewDecoder(r.Body).Decode(into); err != nil {
		return invalid(http.StatusBadRequest, "invalid", "The request body is not the JSON that this endpoint takes")
	}
	return nil
}

// answer answers with v, or with the error.
func answer(w http.ResponseWriter, status int, v any, err error) {
	var e *protocolError
	switch {
	case err == nil:
		writeJSON(w, status, v)
	case errors.As(err, &e):
		e.write(w)
	default:
		slog.Warn("not finished", "error", err)
		failed(http.StatusInternalServerError, "processing_error").write(w)
	}
}

// protocolError is an error in the RFC's form (3.1).
type protocolError struct {
	status            int
	Type              string   `json:"type"`
	Code              string   `json:"code"`
	Message           string   `json:"message"`
	Param             string   `json:"param,omitempty"`
	SupportedVersions []string `json:"supported_versions,omitempty"`
}

func (e *protocolError) Error() string { return e.Message }

func (e *protocolError) write(w http.ResponseWriter) {
	if e.status == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", http.MethodGet)
	}
	writeJSON(w, e.status, e)
}

func invalid(status int, code, message string) *protocolError {
	return &protocolError{status: status, Type: "invalid_request", Code: code, Message: message}
}

func failed(status int, kind string) *protocolError {
	return &protocolError{status: status, Type: kind, Code: "not_finished", Message: "Send the same request again"}
}

func unsupported(code, message string) *protocolError {
	e := invalid(http.StatusBadRequest, code, message)
	e.SupportedVersions = []string{apiVersion}
	return e
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // The client may have left.
}
