package idempotency

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"slices"
)

// Sealed bytes are, one after the other:
//
//	version (1), random (32), the bytes themselves under AES-256-GCM, its tag (16)
//
// Key (32) and nonce (12) are made by HKDF-SHA-256 (RFC 5869) of the secret; the random
// bytes are the salt, and info is the length of the scope, the scope, the length of the
// client's key, and that key. The associated data are the version, what it is (1: 'R' for a
// response, 'P' for progress), the storage key (32), the record's fingerprint (32), and of a
// response the claim's token (16). Lengths are uvarints.
const (
	sealVersion = 0xe1
	saltLength  = 32
	keyLength   = 32
	nonceLength = 12
	tagLength   = 16
	leastSecret = 16
)

// What is sealed.
const (
	sealedResponse = 'R'
	sealedProgress = 'P'
)

// origin is what the bytes of a record belong to. They can be opened only with it.
type origin struct {
	scope, key string
	storageKey Key
	claim      Claim
}

// seal seals bytes with a secret.
func (o origin) seal(secret []byte, what byte, plain []byte) []byte {
	sealed := make([]byte, 1+saltLength, 1+saltLength+len(plain)+tagLength)
	sealed[0] = sealVersion
	_, _ = rand.Read(sealed[1:]) // It never fails.
	aead, nonce := o.cipher(secret, sealed[1:])
	return aead.Seal(sealed, nonce, plain, o.associated(what))
}

// open opens bytes with that of the secrets that they were sealed with. Without secrets, or
// with an empty one among them, bytes that are not sealed pass.
func (o origin) open(secrets [][]byte, what byte, sealed []byte) (plain []byte, err error) {
	isSealed := len(sealed) > 0 && sealed[0] == sealVersion
	switch {
	case !isSealed && (len(secrets) == 0 || hasEmpty(secrets)):
		return sealed, nil
	case !isSealed:
		return nil, fmt.Errorf("%w: it is not sealed (see WithEncryption)", ErrUnreadable)
	case len(sealed) < 1+saltLength+tagLength:
		return nil, fmt.Errorf("%w: %d sealed bytes", ErrUnreadable, len(sealed))
	}
	salt, text := sealed[1:1+saltLength], sealed[1+saltLength:]
	for _, secret := range secrets {
		if len(secret) == 0 {
			continue
		}
		aead, nonce := o.cipher(secret, salt)
		if plain, err = aead.Open(nil, nonce, text, o.associated(what)); err == nil {
			return plain, nil
		}
	}
	return nil, fmt.Errorf("%w: it is sealed, and no secret that is given opens it", ErrUnreadable)
}

// cipher returns what seals and opens the bytes that have this salt.
func (o origin) cipher(secret, salt []byte) (aead cipher.AEAD, nonce []byte) {
	info := appendText(appendText(nil, o.scope), o.key)
	material, err := hkdf.Key(sha256.New, secret, salt, string(info), keyLength+nonceLength)
	if err != nil {
		panic("idempotency: WithEncryption: " + err.Error()) // The lengths are in order.
	}
	block, err := aes.NewCipher(material[:keyLength])
	if err == nil {
		aead, err = cipher.NewGCM(block)
	}
	if err != nil {
		panic("idempotency: WithEncryption: " + err.Error())
	}
	return aead, material[keyLength:]
}

// associated returns the associated data.
func (o origin) associated(what byte) []byte {
	data := append([]byte{sealVersion, what}, o.storageKey[:]...)
	data = append(data, o.claim.Fingerprint[:]...)
	if what == sealedResponse {
		data = append(data, o.claim.Token[:]...)
	}
	return data
}

func hasEmpty(secrets [][]byte) bool {
	return slices.ContainsFunc(secrets, func(secret []byte) bool { return len(secret) == 0 })
}

// sealed returns bytes as they are stored: sealed, under WithEncryption.
func (x *exchange) sealed(what byte, plain []byte) []byte {
	if x.h.secrets == nil {
		return plain
	}
	return x.origin(x.claim).seal(x.h.secrets[0], what, plain)
}

// opened returns the bytes of a record that are stored.
func (x *exchange) opened(held Record, what byte, stored []byte) ([]byte, error) {
	return x.origin(held.Claim).open(x.h.secrets, what, stored)
}

func (x *exchange) origin(claim Claim) origin {
	return origin{scope: x.scope, key: x.key, storageKey: x.storageKey, claim: claim}
}
