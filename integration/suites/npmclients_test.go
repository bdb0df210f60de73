package suites

import (
	"context"
	"encoding/json"
	"io"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency"
)

// npmClients returns the clients of node/clients.mjs. One process runs them all.
func npmClients(t *testing.T) (clients []client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*patience) // It ends by itself once stdin does.
	t.Cleanup(cancel)
	program := exec.CommandContext(ctx, "node", filepath.Join(npmFolder(t), "clients.mjs"))
	stdin, err := program.StdinPipe()
	require.NoError(t, err)
	stdout, err := program.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, program.Start())
	p := &npmProgram{stdin: json.NewEncoder(stdin), answers: make(map[int]chan bool)}
	var reading sync.WaitGroup
	reading.Go(func() { p.read(stdout) })
	t.Cleanup(func() {
		stdin.Close()
		reading.Wait()
		require.NoError(t, program.Wait())
	})
	for _, name := range []string{"stripe", "axios, axios-retry", "got"} {
		for _, way := range []string{asItComes, withLines} {
			var server []idempotency.Option
			if name == "stripe" && way == withLines {
				server = []idempotency.Option{idempotency.WithErrorHandler(stripeErrors)}
			}
			clients = append(clients, client{name + " (npm)", way, server, func(t *testing.T, url string, timeout time.Duration) bool {
				return p.pay(t, npmPayment{Client: name, Safe: way == withLines, Key: ownKey, URL: url, Timeout: timeout.Milliseconds()})
			}})
		}
	}
	return clients
}

// npmProgram is node/clients.mjs: it reads payments and writes what became of them.
type npmProgram struct {
	mu      sync.Mutex
	stdin   *json.Encoder
	answers map[int]chan bool
}

type npmPayment struct {
	ID      int    `json:"id"`
	Client  string `json:"client"`
	Safe    bool   `json:"safe"`
	Key     string `json:"key"`
	URL     string `json:"url"`
	Timeout int64  `json:"timeout"` // in milliseconds
}

// pay tells whether the client was answered that it has paid.
func (p *npmProgram) pay(t *testing.T, payment npmPayment) (paid bool) {
	answer := make(chan bool, 1)
	p.mu.Lock()
	payment.ID = len(p.answers)
	p.answers[payment.ID] = answer
	_ = p.stdin.Encode(payment) // If the program is gone, no answer comes.
	p.mu.Unlock()
	select {
	case paid = <-answer:
	case <-time.After(2 * patience):
		t.Errorf("node/clients.mjs does not answer %+v", payment)
	}
	return paid
}

func (p *npmProgram) read(stdout io.Reader) {
	for answers := json.NewDecoder(stdout); ; {
		var answer struct {
			ID   int
			Paid bool
		}
		if answers.Decode(&answer) != nil {
			return
		}
		p.mu.Lock()
		p.answers[answer.ID] <- answer.Paid
		p.mu.Unlock()
	}
}
