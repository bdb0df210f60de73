package idempotency

import (
	"errors"
	"net/http"
	"reflect"
)

// setStorageKey sets the storage key. It returns the run around this request that
// serves the same key from the same header, or nil.
func (x *exchange) setStorageKey() *run {
	if x.key == "" {
		return nil
	}
	if x.h.scope != nil {
		x.scope = peek(&x.body, x.h.scope)
	}
	x.plainKey = NewKey(x.scope, x.key)
	x.storageKey = x.plainKey
	for o := x.outer; o != nil; o = o.outer {
		if o.plainKey != x.plainKey {
			continue
		}
		if o.h.header == x.h.header {
			return o
		}
		// The same key in another header is a request of its own: with the record
		// of the outer one it would wait for itself.
		x.scope = x.h.header + " " + x.scope
		x.storageKey = NewKey(x.scope, x.key)
	}
	return nil
}

// errNested is a set-up whose inner instance promises what the outer one does not.
var errNested = errors.New("idempotency: two instances in one chain serve the same key, and the inner one has another mode, or encryption or a Transactor that the outer one has not: give both the same")

// agrees returns an error if h, inside of outer, cannot step aside for it.
func (h *handler) agrees(outer *handler) error {
	otherMode := h.atMostOnce != outer.atMostOnce || h.terms.TakeOver != outer.terms.TakeOver
	unsealed := h.secrets != nil && outer.secrets == nil
	if otherMode || unsealed || h.transactor != nil && !same(h.transactor, outer.transactor) {
		return errNested
	}
	return nil
}

// same reports whether two interfaces hold the same value, of any type.
func same(a, b any) bool {
	return a != nil && b != nil && reflect.TypeOf(a).Comparable() && a == b
}

// stepAside lets the request pass. It gets the body that was read ahead.
func (x *exchange) stepAside(w http.ResponseWriter, r *http.Request) Event {
	if x.panicked != nil {
		*x.panicked = Event{}
	}
	if x.body.buffer == nil {
		x.h.next.ServeHTTP(w, r)
		return Event{}
	}
	restored := *r
	x.runNext(w, &restored)
	return Event{}
}
