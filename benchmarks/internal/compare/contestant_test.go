package compare

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency/benchmarks/internal/work"
	"github.com/idempotency-go/idempotency/internal/redistest"
)

// running is a contestant that is ready for a test, and its handler.
type running struct {
	*session
	work.Client
	service *work.Service
}

// start makes a contestant ready. The server is that of its Redis, if it has one.
func start(t *testing.T, c contestant, server *redistest.Server, loopback bool, service *work.Service) running {
	t.Helper()
	service.Answer = work.Answer(work.AnswerSize)
	var s *session
	var err error
	if c.redis {
		s, err = c.open(service, server.Client(t), loopback)
	} else {
		s, err = c.open(service, nil, loopback)
	}
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.close()) })
	return running{s, s.newClient(), service}
}

// post posts a body under a key and returns the status and the answer.
func (r running) post(t *testing.T, key, body string) (int, string) {
	t.Helper()
	status, answer, err := r.Post(key, body)
	require.NoError(t, err)
	return status, string(answer)
}

func TestContestants(t *testing.T) {
	for _, c := range contestants {
		t.Run(c.name, func(t *testing.T) {
			var server *redistest.Server
			if c.redis {
				server = redistest.Start(t)
			}
			for set, way := range []string{"in process", "loopback"} {
				t.Run(way, func(t *testing.T) {
					r := start(t, c, server, way == "loopback", new(work.Service))
					want := string(work.Answer(work.AnswerSize))
					for i, step := range []struct {
						what string
						key  string
						runs int64 // of the handler, so far
					}{
						{"no key", "", 1},
						{"no key again", "", 2},
						{"first request", work.Key(uint32(set), 1), 3},
						{"replay", work.Key(uint32(set), 1), 3},
						{"another key", work.Key(uint32(set), 2), 4},
					} {
						status, answer := r.post(t, step.key, work.Body)
						require.Equal(t, work.Status, status, step.what)
						require.Equal(t, want, answer, step.what)
						require.Equal(t, []string{"application/json"}, r.Header("Content-Type"), step.what)
						runs := step.runs
						if c.name == c.bare {
							runs = int64(i + 1)
						}
						require.Equal(t, runs, r.service.Runs(), step.what)
					}
				})
			}
		})
	}
}
