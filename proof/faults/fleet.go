package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// fleet is the server processes. It is safe for concurrent use, except that the
// faults of one server take turns.
type fleet struct {
	config serverConfig // of each, but for its name, address, ledger and way to Redis
	store  store
	dir    string
	client *http.Client
	log    *os.File

	mu      sync.Mutex
	servers []*member
	deaths  map[string]int64 // when each process was killed
}

// member is a server, in one process after another.
type member struct {
	addr     string
	name     string // of the process that runs, or ran last
	starts   int
	process  *process
	baseline serverState
	turn     sync.Mutex // held by a fault that befalls it
}

// startFleet starts n servers of a store.
func startFleet(dir string, n int, config serverConfig, s store, client *http.Client) (*fleet, error) {
	log, err := os.Create(filepath.Join(dir, "servers.log"))
	if err != nil {
		return nil, err
	}
	f := &fleet{config: config, store: s, dir: dir, client: client, log: log, deaths: make(map[string]int64)}
	for range n {
		port, err := freePort()
		if err == nil {
			f.servers = append(f.servers, &member{addr: loopback(port)})
			err = f.start(len(f.servers) - 1)
		}
		if err != nil {
			f.stop()
			return nil, err
		}
	}
	return f, nil
}

// start starts a process for a server, and returns when it answers.
func (f *fleet) start(i int) error {
	m := f.servers[i]
	m.starts++
	config := f.config
	config.Name = fmt.Sprintf("s%d.%d", i, m.starts)
	config.Addr, config.Redis = m.addr, f.store.target(i)
	config.Ledger = filepath.Join(f.dir, config.Name+".ledger")
	text, err := json.Marshal(config)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	p, err := startProcess(f.log, self, serverCommand, string(text))
	if err != nil {
		return err
	}
	f.mu.Lock()
	m.name, m.process = config.Name, p
	f.mu.Unlock()
	return eventually(20*time.Second, func(ctx context.Context) error {
		if p.ended() {
			return fmt.Errorf("server %s ended; see %s", config.Name, f.log.Name())
		}
		var err error
		m.baseline, err = readState(ctx, f.client, m.addr)
		return err
	})
}

// kill kills a server's process; to heal, it starts another.
func (f *fleet) kill(i int) (w window, heal func() error) {
	m := f.servers[i]
	m.turn.Lock()
	f.mu.Lock()
	name, p := m.name, m.process
	w = window{kind: faultKill, process: name, from: time.Now().UnixNano()}
	f.deaths[name] = w.from
	f.mu.Unlock()
	p.kill()
	return w, func() error {
		defer m.turn.Unlock()
		return f.start(i)
	}
}

// name returns the name of a server's process.
func (f *fleet) name(i int) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.servers[i].name
}

// pause stops a server's process; to heal, it lets it go on.
func (f *fleet) pause(i int) (w window, heal func() error, err error) {
	m := f.servers[i]
	m.turn.Lock()
	w = window{kind: faultPause, process: m.name, from: time.Now().UnixNano()}
	p := m.process
	err = p.signal(pauseSignal)
	return w, func() error {
		defer m.turn.Unlock()
		return p.signal(resumeSignal)
	}, err
}

// leftovers asks every server what it has left, once all is quiet. A server that
// does not come to rest within the time is reported as it is.
func (f *fleet) leftovers(within time.Duration) ([]leftover, error) {
	all := make([]leftover, len(f.servers))
	for i, m := range f.servers {
		l := &all[i]
		l.process, l.baseline = m.name, m.baseline
		err := eventually(within, func(ctx context.Context) error {
			f.client.CloseIdleConnections()
			state, err := readState(ctx, f.client, m.addr)
			if err != nil {
				return err // The last state that was read stands.
			}
			l.quiet = state
			if l.quiet.Outstanding > 0 || l.quiet.Goroutines > l.baseline.Goroutines+goroutineSlack {
				return fmt.Errorf("server %s is not quiet", m.name)
			}
			return nil
		})
		if err != nil && l.quiet == (serverState{}) {
			return nil, err
		}
	}
	time.Sleep(f.config.Lease) // Every claim would renew three times in a lease.
	for i, m := range f.servers {
		later, err := readState(context.Background(), f.client, m.addr)
		if err != nil {
			return nil, err
		}
		if all[i].quiet.Outstanding == 0 {
			all[i].renewed = later.Renewals - all[i].quiet.Renewals
		}
	}
	return all, nil
}

// stop kills all processes.
func (f *fleet) stop() {
	for _, m := range f.servers {
		if m.process != nil {
			m.process.kill()
		}
	}
	f.log.Close()
}
