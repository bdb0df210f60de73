package idempotency_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/idempotency-go/idempotency"
	"github.com/stretchr/testify/require"
)

var (
	oldSecret = []byte("an old secret of 32 random bytes")
	newSecret = []byte("a new secret of 32 random bytes.")
)

// tenant is the scope of the tests of sealed records.
var tenant = idempotency.WithScope(func(*http.Request) string { return "tenant" })

// storedBy returns what a backend holds for the key of the tests.
func storedBy(t *testing.T, b idempotency.Backend) idempotency.Record {
	t.Helper()
	rec, _, ok, err := b.(idempotency.Inspector).Lookup(t.Context(), idempotency.NewKey("tenant", "k"))
	require.NoError(t, err)
	require.True(t, ok)
	return rec
}

func TestEncryption(t *testing.T) {
	forEachBackend(t, func(t *testing.T, newBackend func(t *testing.T) idempotency.Backend) {
		backend, p := newBackend(t), &payments{}
		h := idempotency.New(backend, tenant, idempotency.WithEncryption(newSecret))(p)
		require.Equal(t, `{"payment":1}`, send(h, request("k", "b")).Body.String())
		requireReplayed(t, send(h, request("k", "b")), `{"payment":1}`)
		requireProblem(t, send(h, request("k", "c")), 422, "ErrKeyReused")
		rec := storedBy(t, backend)
		for _, plain := range []string{"payment", "application/json", "tenant"} {
			require.NotContains(t, string(rec.Response), plain)
		}
		response, err := rec.Open("tenant", "k", oldSecret, newSecret)
		require.NoError(t, err)
		require.Equal(t, `{"payment":1}`, string(response.Body))
		for name, open := range map[string]func() (*idempotency.Response, error){
			"no secret":      func() (*idempotency.Response, error) { return rec.Open("tenant", "k") },
			"another secret": func() (*idempotency.Response, error) { return rec.Open("tenant", "k", oldSecret) },
			"an empty one":   func() (*idempotency.Response, error) { return rec.Open("tenant", "k", nil) },
			"another key":    func() (*idempotency.Response, error) { return rec.Open("tenant", "l", newSecret) },
			"another scope":  func() (*idempotency.Response, error) { return rec.Open("tenan", "tk", newSecret) },
		} {
			_, err := open()
			require.ErrorIs(t, err, idempotency.ErrUnreadable, name)
		}
		require.EqualValues(t, 1, p.runs.Load())
	})
}

// The secrets are those of the call, whatever its caller does with the bytes afterwards.
func TestEncryptionCopiesItsSecrets(t *testing.T) {
	first, older := bytes.Clone(newSecret), bytes.Clone(oldSecret)
	option := idempotency.WithEncryption(first, older)
	clear(first)
	clear(older)
	for _, secret := range [][]byte{newSecret, oldSecret} {
		b := idempotency.NewMemory()
		send(idempotency.New(b, tenant, idempotency.WithEncryption(secret))(&payments{}), request("k", "b"))
		requireReplayed(t, send(idempotency.New(b, tenant, option)(&payments{}), request("k", "b")), `{"payment":1}`)
	}
}

// Two seals of one answer have nothing in common but their first byte and their length.
func TestEncryptionIsRandom(t *testing.T) {
	var sealed [2][]byte
	for i := range sealed {
		b := idempotency.NewMemory()
		send(idempotency.New(b, tenant, idempotency.WithEncryption(newSecret))(&payments{}), request("k", "b"))
		sealed[i] = storedBy(t, b).Response
	}
	require.Len(t, sealed[0], len(sealed[1]))
	require.NotEqual(t, sealed[0][1:33], sealed[1][1:33])
	require.NotEqual(t, sealed[0][33:], sealed[1][33:])
}

// A secret is rolled in two deploys, while processes of the deploy before still run.
func TestEncryptionIsRolled(t *testing.T) {
	deploys := []idempotency.Option{
		quiet, // no encryption
		idempotency.WithEncryption(oldSecret, nil),
		idempotency.WithEncryption(oldSecret, newSecret),
		idempotency.WithEncryption(newSecret, oldSecret),
		idempotency.WithEncryption(newSecret),
	}
	reads := map[[2]int]bool{
		{0, 0}: true, {0, 1}: true, {1, 1}: true, {1, 2}: true, {1, 3}: true,
		{2, 1}: true, {2, 2}: true, {2, 3}: true, {3, 2}: true, {3, 3}: true, {3, 4}: true, {4, 2}: true, {4, 3}: true, {4, 4}: true,
	}
	for wrote := range deploys {
		for read := range deploys {
			backend := idempotency.NewMemory()
			send(idempotency.New(backend, tenant, quiet, deploys[wrote])(&payments{}), request("k", "b"))
			p := &payments{}
			w := send(idempotency.New(backend, tenant, quiet, deploys[read])(p), request("k", "b"))
			if reads[[2]int{wrote, read}] {
				requireReplayed(t, w, `{"payment":1}`)
			} else {
				requireProblem(t, w, 503, "ErrUnreadable")
			}
			require.Zero(t, p.runs.Load(), "%d, read by %d", wrote, read)
		}
	}
}

// What was altered, moved, cut or made up is refused, and left as it is.
func TestEncryptionRefuses(t *testing.T) {
	with := func(opts ...idempotency.Option) idempotency.Record {
		b := idempotency.NewMemory()
		send(idempotency.New(b, append(opts, tenant)...)(&payments{}), request("k", "b"))
		return storedBy(t, b)
	}
	rec := with(idempotency.WithEncryption(newSecret))
	altered := make(map[string]idempotency.Record)
	for i := range rec.Response {
		other := rec
		other.Response = bytes.Clone(rec.Response)
		other.Response[i] ^= 1
		altered["a bit of byte "+string(rune('0'+i/100%10))+string(rune('0'+i/10%10))+string(rune('0'+i%10))] = other
		other.Response = rec.Response[:i]
		altered["cut after "+hex.EncodeToString([]byte{byte(i >> 8), byte(i)})] = other
	}
	change := func(name string, f func(*idempotency.Record)) {
		other := rec
		f(&other)
		altered[name] = other
	}
	change("lengthened", func(r *idempotency.Record) { r.Response = append(slices.Clip(r.Response), 0) })
	change("of another claim", func(r *idempotency.Record) { r.Claim.Token[15]++ })
	change("of any request", func(r *idempotency.Record) { r.Claim.Fingerprint = [32]byte{} })
	change("plain", func(r *idempotency.Record) { r.Response = with().Response })
	change("of another run", func(r *idempotency.Record) { r.Response = with(idempotency.WithEncryption(newSecret)).Response })
	for name, rec := range altered {
		backend := newHooked()
		backend.claim = func(context.Context, idempotency.Key, idempotency.Claim, idempotency.Terms) (idempotency.Record, bool, error) {
			return rec, false, nil
		}
		backend.release = func(context.Context, idempotency.Key, idempotency.Claim, time.Duration) error {
			t.Error("released")
			return nil
		}
		p := &payments{}
		w := send(idempotency.New(backend, tenant, quiet, idempotency.WithEncryption(newSecret, oldSecret))(p), request("k", "b"))
		requireProblem(t, w, 503, "ErrUnreadable")
		require.Zero(t, p.runs.Load(), name)
	}
}

// The results of steps are sealed too, and no response can take their place.
func TestEncryptionOfSteps(t *testing.T) {
	backend := idempotency.NewMemory()
	died := errors.New("died")
	again := idempotency.WithRecovery(func(next http.Handler) http.Handler { return next })
	runs := 0
	h := func(secret ...[]byte) http.Handler {
		return idempotency.New(backend, tenant, quiet, again, idempotency.WithEncryption(secret[0], secret[1:]...))(
			http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				result, err := idempotency.Step(r.Context(), "charge", func(context.Context) ([]byte, error) {
					runs++
					return []byte("charged"), nil
				})
				require.NoError(t, err)
				if r.Header.Get("Die") != "" {
					panic(died)
				}
				w.Header().Set("Content-Type", "application/json")
				_ = json.NewEncoder(w).Encode(string(result))
			}))
	}
	dies := request("k", "b")
	dies.Header.Set("Die", "1")
	require.PanicsWithValue(t, died, func() { send(h(oldSecret), dies) })
	rec := storedBy(t, backend)
	require.Equal(t, idempotency.StateInterrupted, rec.State)
	require.NotEmpty(t, rec.Progress)
	require.NotContains(t, string(rec.Progress), "charge")
	requireProblem(t, send(h(newSecret), request("k", "b")), 503, "ErrUnreadable")
	require.Equal(t, rec.State, storedBy(t, backend).State, "it is put back")
	require.Equal(t, rec.Progress, storedBy(t, backend).Progress)
	require.Equal(t, "\"charged\"\n", send(h(newSecret, oldSecret), request("k", "b")).Body.String())
	require.Equal(t, 1, runs)
	requireReplayed(t, send(h(newSecret), request("k", "b")), "\"charged\"\n")
}

// sealedVector is a response that others can seal and open alike; all but the texts are
// hexadecimal.
type sealedVector struct {
	Secret, Scope, Key, StorageKey, Fingerprint, Token, Salt, Plain, Sealed string
}

// TestSealedVectors reads testdata/sealed_v1.json, and makes its bytes once more by what the
// documents say of them.
func TestSealedVectors(t *testing.T) {
	text, err := os.ReadFile("testdata/sealed_v1.json")
	require.NoError(t, err)
	var vectors []sealedVector
	require.NoError(t, json.Unmarshal(text, &vectors))
	require.GreaterOrEqual(t, len(vectors), 3)
	for _, v := range vectors {
		bytesOf := func(text string) []byte {
			b, err := hex.DecodeString(text)
			require.NoError(t, err)
			return b
		}
		key := idempotency.NewKey(v.Scope, v.Key)
		require.Equal(t, v.StorageKey, hex.EncodeToString(key[:]))
		require.Equal(t, v.Sealed, hex.EncodeToString(sealedBySpec(t, v, bytesOf)))
		rec := idempotency.Record{State: idempotency.StateCompleted, Response: bytesOf(v.Sealed)}
		rec.Claim = idempotency.Claim{Token: idempotency.Token(bytesOf(v.Token)), Fingerprint: [32]byte(bytesOf(v.Fingerprint))}
		response, err := rec.Open(v.Scope, v.Key, bytesOf(v.Secret))
		require.NoError(t, err)
		plain, err := response.MarshalBinary()
		require.NoError(t, err)
		require.Equal(t, v.Plain, hex.EncodeToString(plain))
	}
}

// sealedBySpec seals a response as docs/ENCRYPTION.md has it.
func sealedBySpec(t *testing.T, v sealedVector, bytesOf func(string) []byte) []byte {
	t.Helper()
	var info []byte
	for _, text := range []string{v.Scope, v.Key} {
		info = append(binary.AppendUvarint(info, uint64(len(text))), text...)
	}
	material, err := hkdf.Key(sha256.New, bytesOf(v.Secret), bytesOf(v.Salt), string(info), 44)
	require.NoError(t, err)
	block, err := aes.NewCipher(material[:32])
	require.NoError(t, err)
	gcm, err := cipher.NewGCM(block)
	require.NoError(t, err)
	data := slices.Concat([]byte{0xe1, 'R'}, bytesOf(v.StorageKey), bytesOf(v.Fingerprint), bytesOf(v.Token))
	return gcm.Seal(append([]byte{0xe1}, bytesOf(v.Salt)...), material[32:], bytesOf(v.Plain), data)
}
