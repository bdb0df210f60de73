package recoverytest

import (
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"
)

// downstream is what the handlers call: a payment processor, an airline and the like, in the
// process of the proof. It keeps what was done by the key that it is given, and can be asked.
type downstream struct {
	listener net.Listener
	mu       sync.Mutex
	orders   map[string]*order // by the client's key
}

// order is what was done, and noted, for one of the clients' keys.
type order struct {
	takesKeys  bool             // What comes again under one key is not done again.
	done       []deed           // in their order
	runs       []string         // that have begun, in their order
	kept       map[string]int   // the step, and how many runs had begun when it was first kept
	recoveries int              // runs that have recovered
	gates      map[string]*gate // at which late owners wait
	violations []violation
}

// deed is something that was done once.
type deed struct {
	ID   int    `json:"id"`
	Name string `json:"name"` // of the step
	key  string
}

// gate is where a late owner waits.
type gate struct {
	reached, open chan struct{}
	once          sync.Once // closes reached
}

func newDownstream() (*downstream, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	d := &downstream{listener: listener, orders: make(map[string]*order)}
	mux := http.NewServeMux()
	handle := func(path string, f func(o *order, q url.Values) any) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			q := r.URL.Query()
			d.mu.Lock()
			answer := f(d.order(q.Get("order")), q)
			d.mu.Unlock()
			if g, ok := answer.(*gate); ok {
				g.once.Do(func() { close(g.reached) })
				<-g.open
				answer = nil
			}
			_ = json.NewEncoder(w).Encode(answer) // The server may have died.
		})
	}
	handle("/do", func(o *order, q url.Values) any { return o.do(q.Get("key"), q.Get("name"), q.Get("run")) })
	handle("/ask", func(o *order, q url.Values) any { return o.find(q.Get("key"), q.Get("name")) })
	handle("/begin", func(o *order, q url.Values) any {
		o.runs = append(o.runs, q.Get("run"))
		if q.Get("recovers") != "" {
			o.recoveries++
		}
		return nil
	})
	handle("/kept", func(o *order, q url.Values) any {
		if _, before := o.kept[q.Get("name")]; !before {
			o.kept[q.Get("name")] = len(o.runs)
		}
		if q.Get("run") != o.runs[len(o.runs)-1] {
			o.violate("unfenced", "%s: a run whose claim is another's has kept step %s", q.Get("order"), q.Get("name"))
		}
		return nil
	})
	handle("/wait", func(o *order, q url.Values) any { return o.gate(q.Get("gate")) })
	go func() {
		_ = (&http.Server{Handler: mux, ReadHeaderTimeout: time.Minute, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}).Serve(listener)
	}()
	return d, nil
}

// order returns the order of a key. It is called with the lock.
func (d *downstream) order(key string) *order {
	o := d.orders[key]
	if o == nil {
		o = &order{kept: make(map[string]int), gates: make(map[string]*gate)}
		d.orders[key] = o
	}
	return o
}

// with calls f with the order of a key, which it may change.
func (d *downstream) with(key string, f func(o *order)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f(d.order(key))
}

// gateOf returns a gate of an order.
func (d *downstream) gateOf(key, name string) (g *gate) {
	d.with(key, func(o *order) { g = o.gate(name) })
	return g
}

func (o *order) gate(name string) *gate {
	if o.gates[name] == nil {
		o.gates[name] = &gate{reached: make(chan struct{}), open: make(chan struct{})}
	}
	return o.gates[name]
}

// find returns what was done under a key; the zero deed is nothing.
func (o *order) find(key, name string) deed {
	i := slices.IndexFunc(o.done, func(d deed) bool { return d.key == key && d.Name == name })
	if i < 0 {
		return deed{}
	}
	return o.done[i]
}

// do does something, and returns what it did.
func (o *order) do(key, name, run string) deed {
	if kept, ok := o.kept[name]; ok && slices.Index(o.runs, run) >= kept {
		o.violate("again", "step %s was kept, and a later run does it again", name)
	}
	if found := o.find(key, name); o.takesKeys && found.ID > 0 {
		return found
	}
	done := deed{ID: len(o.done) + 1, Name: name, key: key}
	o.done = append(o.done, done)
	return done
}
