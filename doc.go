// Package idempotency is HTTP middleware that makes retries safe. A client
// sends an Idempotency-Key with a POST or PATCH; the handler runs once, and a
// repeat of the request is answered with the stored response, marked
// Idempotent-Replayed: true.
//
//	backend := idempotency.NewRedis(client)
//	http.ListenAndServe(addr, idempotency.New(backend)(mux))
//
// It follows Stripe's idempotent requests and the IETF draft
// draft-ietf-httpapi-idempotency-key-header.
//
// # The way of a request
//
// A request in another method, or without a key, passes untouched. Otherwise
// the request claims its key, in one atomic step, and then:
//
//   - the claim is its own: the handler runs. Its response is stored, then sent;
//     a response that is not to be stored, and a panic, release the claim.
//   - the key has a response: it is replayed.
//   - the key belongs to a request that still runs: 409 [ErrOutstanding].
//   - the key belongs to a run that ended without an answer: 409
//     [ErrInterrupted], with [WithAtMostOnce]; the recovery runs, with
//     [WithRecovery]; without either, the key is free again.
//   - the key came before with another method, path, query or body: 422
//     [ErrKeyReused].
//   - the backend fails: 503 [ErrUnavailable], and the handler does not run.
//
// Before that a malformed key is refused with 422 [ErrKeyInvalid], and a body
// that breaks off with 400 [ErrBodyUnreadable].
//
// Only valid JSON responses are stored, for 24 hours; see the options. A backend
// that is a [Transactor] stores every type.
//
// # The handler
//
// While it runs, its claim is renewed. Its context has the request's values
// and deadline and does not end when the client goes away: what was begun runs
// to its end, and the retry finds the answer. It ends, with cause
// [ErrClaimLost], once another request is known to hold the claim. A handler
// that must bound its own time sets a time-out of its own.
//
// A response that will not be stored leaves nothing for a retry to find. Once its
// header is passed on, the context ends with the client, as without the
// middleware: an event stream does not outlive its client. [NoStore] alone does not
// begin that. With [WithAtMostOnce], [WithRecovery] and a [Transactor] the context never
// ends with the client.
//
// Its request says Accept-Encoding: identity unless every type is stored: what is
// encoded inside could not be stored, and compression belongs outside.
//
// Its ResponseWriter works with [http.NewResponseController]. A response that
// may still be stored is held back until the handler returns; one that will not
// be, because of its Content-Type for one, streams straight through. A flush of
// what is held back does nothing. A stream in both directions also needs
// [WithFingerprint] of nil.
//
// # What is promised
//
// Of any number of requests with one key at once, in any number of processes
// that share a [Backend], one runs its handler. It runs again only after a
// response that was not stored, a panic, or the loss of its claim: a process
// that died, or a store that lost data. With [WithAtMostOnce] it runs again,
// within the expiry, only after [NoStore] or if the store lost data. With
// [WithRecovery] a function of yours runs in its place, and a [Step] that was kept
// does not run again. The middleware cannot tell how far a handler came before its
// process died: pass [DeriveKey] on to what it calls.
package idempotency
