package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
)

// proxy is a Toxiproxy proxy in this process, between the servers and Redis.
type proxy struct {
	*toxiproxy.Proxy
	listen string // Toxiproxy's own writes to Listen when it starts again.
}

// startProxy starts a proxy on a free port.
func startProxy(upstream string) (*proxy, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	api := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	p := &proxy{toxiproxy.NewProxy(api, "redis", loopback(port), upstream), loopback(port)}
	return p, p.Start()
}

// toxics returns what Toxiproxy calls a fault of the network.
func toxics(f planned) []string {
	latency := func(ms float64) []string {
		return []string{fmt.Sprintf(`{"type":"latency","stream":"downstream","attributes":{"latency":%d,"jitter":%d}}`, int(ms), int(ms/3))}
	}
	switch f.kind {
	case faultCut:
		both := []string{`{"type":"timeout","stream":"upstream","attributes":{"timeout":0}}`,
			`{"type":"timeout","stream":"downstream","attributes":{"timeout":0}}`}
		if f.choice < 0.5 {
			return both[1:] // Redis hears and does, and its answers are dropped.
		}
		return both
	case faultReset:
		return []string{`{"type":"reset_peer","stream":"downstream","attributes":{"timeout":0}}`}
	case faultUneven:
		return []string{`{"type":"latency","stream":"upstream","attributes":{"latency":45,"jitter":45}}`}
	case faultSlow:
		return latency(20 + 50*f.choice)
	default: // faultLate
		return latency(500 + 500*f.choice)
	}
}

// inject begins a fault and returns what ends it.
func (p *proxy) inject(f planned) (heal func() error, err error) {
	if f.kind == faultRefuse {
		p.Stop()
		return p.Start, nil
	}
	var names []string
	for i, toxic := range toxics(f) {
		name := fmt.Sprintf("%s-%d", f.kind, i)
		named := strings.Replace(toxic, "{", fmt.Sprintf(`{"name":%q,`, name), 1)
		if _, err := p.Toxics.AddToxicJson(strings.NewReader(named)); err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	return func() error {
		for _, name := range names {
			if err := p.Toxics.RemoveToxic(context.Background(), name); err != nil {
				return err
			}
		}
		return nil
	}, nil
}
