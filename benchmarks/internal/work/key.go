package work

// Key returns the nth key of a set, in the form of a UUID: 36 characters, as
// Fiber's middleware asks for. Keys of different sets differ.
func Key(set uint32, n uint64) string {
	key := [36]byte([]byte("00000000-0000-4000-8000-000000000000"))
	putHex(key[:8], uint64(set))
	putHex(key[24:], n)
	return string(key[:])
}

// putHex writes n in hexadecimal, right-aligned over the zeros in b.
func putHex(b []byte, n uint64) {
	for i := len(b) - 1; i >= 0 && n > 0; i-- {
		b[i] = "0123456789abcdef"[n&15]
		n >>= 4
	}
}
