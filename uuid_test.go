package idempotency_test

import (
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

func TestUUIDv4(t *testing.T) {
	for _, test := range []struct {
		name, key string
		valid     bool
	}{
		{"dashed", "8e03978e-40d5-43dd-bc93-6894a57f9324", true},
		{"32 digits", "8e03978e40d543ddbc936894a57f9324", true},
		{"upper case", "8E03978E-40D5-43DD-BC93-6894A57F9324", true},
		{"upper case, 32 digits", "8E03978E40D543DDBC936894A57F9324", true},
		{"mixed case", "8e03978E-40d5-43DD-bC93-6894a57F9324", true},
		{"variant 8", "8e03978e-40d5-43dd-8c93-6894a57f9324", true},
		{"variant 9", "8e03978e-40d5-43dd-9c93-6894a57f9324", true},
		{"variant a", "8e03978e-40d5-43dd-ac93-6894a57f9324", true},
		{"variant b", "8e03978e-40d5-43dd-bc93-6894a57f9324", true},
		{"variant 0, NCS", "8e03978e-40d5-43dd-0c93-6894a57f9324", false},
		{"variant 7, NCS", "8e03978e-40d5-43dd-7c93-6894a57f9324", false},
		{"variant c, Microsoft", "8e03978e-40d5-43dd-cc93-6894a57f9324", false},
		{"variant d, Microsoft", "8e03978e-40d5-43dd-dc93-6894a57f9324", false},
		{"variant e, future", "8e03978e-40d5-43dd-ec93-6894a57f9324", false},
		{"variant f, future", "8e03978e-40d5-43dd-fc93-6894a57f9324", false},
		{"version 0", "8e03978e-40d5-03dd-bc93-6894a57f9324", false},
		{"version 1", "8e03978e-40d5-13dd-bc93-6894a57f9324", false},
		{"version 2", "8e03978e-40d5-23dd-bc93-6894a57f9324", false},
		{"version 3", "8e03978e-40d5-33dd-bc93-6894a57f9324", false},
		{"version 5", "8e03978e-40d5-53dd-bc93-6894a57f9324", false},
		{"version 6", "8e03978e-40d5-63dd-bc93-6894a57f9324", false},
		{"version 7", "018f2e4c-5b5a-7c3d-9e2f-1a2b3c4d5e6f", false},
		{"version 8", "8e03978e-40d5-83dd-bc93-6894a57f9324", false},
		{"version f", "8e03978e-40d5-f3dd-bc93-6894a57f9324", false},
		{"version 1, 32 digits", "8e03978e40d513ddbc936894a57f9324", false},
		{"variant c, 32 digits", "8e03978e40d543ddcc936894a57f9324", false},
		{"nil UUID", "00000000-0000-0000-0000-000000000000", false},
		{"max UUID", "ffffffff-ffff-ffff-ffff-ffffffffffff", false},
		{"braces", "{8e03978e-40d5-43dd-bc93-6894a57f9324}", false},
		{"braces of another kind", "(8e03978e-40d5-43dd-bc93-6894a57f9324)", false},
		{"braces, 32 characters", "{8e03978e40d543ddbc936894a57f93}", false},
		{"URN", "urn:uuid:8e03978e-40d5-43dd-bc93-6894a57f9324", false},
		{"quotes", `"8e03978e-40d5-43dd-bc93-6894a57f9324"`, false},
		{"empty", "", false},
		{"too short, dashed", "8e03978e-40d5-43dd-bc93-6894a57f932", false},
		{"too long, dashed", "8e03978e-40d5-43dd-bc93-6894a57f93244", false},
		{"too short, 32 digits", "8e03978e40d543ddbc936894a57f932", false},
		{"too long, 32 digits", "8e03978e40d543ddbc936894a57f93244", false},
		{"36 digits", "8e03978e40d543ddbc936894a57f93240000", false},
		{"dashes in other places", "8e03978-e40d5-43dd-bc93-6894a57f9324", false},
		{"one dash missing, one too many", "8e03978e-40d5-43ddbc93-6894a57f-9324", false},
		{"a dash in 32 characters", "8e03978e-40d543ddbc936894a57f932", false},
		{"dashes in 32 characters", "8e03978e-40d5-43dd-bc93-6894a57f", false},
		{"underscores", "8e03978e_40d5_43dd_bc93_6894a57f9324", false},
		{"not a digit", "8e03978g-40d5-43dd-bc93-6894a57f9324", false},
		{"not a digit at the end", "8e03978e-40d5-43dd-bc93-6894a57f932g", false},
		{"not a digit, 32 characters", "8e03978e40d543ddbc936894a57f932g", false},
		{"spaces", " 8e03978e40d543ddbc936894a57f9324 ", false},
		{"some text", "payment-1", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := idempotency.UUIDv4(test.key)
			seventh := strings.NewReplacer("43dd", "73dd", "43DD", "73DD").Replace(test.key)
			require.Equal(t, test.valid || test.name == "version 7", idempotency.UUIDv7(seventh) == nil, seventh)
			if test.valid {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, "version 4 UUID")
			if test.key != "" {
				require.NotContains(t, err.Error(), test.key, "the error shows the key")
			}
		})
	}
	for range 100 {
		id := uuid.New()
		require.NoError(t, idempotency.UUIDv4(id.String()))
		require.NoError(t, idempotency.UUIDv4(strings.ReplaceAll(id.String(), "-", "")))
	}
	for range 100 {
		id := uuid.Must(uuid.NewV7())
		require.NoError(t, idempotency.UUIDv7(id.String()))
		require.NoError(t, idempotency.UUIDv7(strings.ReplaceAll(id.String(), "-", "")))
		require.ErrorContains(t, idempotency.UUIDv7(uuid.NewString()), "version 7 UUID")
	}
}
