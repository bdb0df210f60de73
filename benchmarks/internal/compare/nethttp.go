package compare

import (
	"bytes"
	"errors"
	"net"
	"net/http"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/idempotency-go/idempotency/benchmarks/internal/work"
)

// idleConns is how many connections a client keeps: more than it ever has.
const idleConns = 1024

// onNetHTTP returns the opener of a service on net/http's server, reached with
// net/http's client, with what wrap puts around the handler.
func onNetHTTP(wrap func(next http.Handler, client *redis.Client) http.Handler) opener {
	return func(service *work.Service, client *redis.Client, loopback bool) (*session, error) {
		h := wrap(service, client)
		if !loopback {
			return &session{
				newClient: func() work.Client { return work.NewDirect(h) },
				close:     func() error { return nil },
			}, nil
		}
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		server := &http.Server{Handler: h}
		served := make(chan error, 1)
		go func() { served <- server.Serve(listener) }()
		transport := &http.Transport{MaxIdleConns: idleConns, MaxIdleConnsPerHost: idleConns}
		url := "http://" + listener.Addr().String() + work.Path
		return &session{
			url:       url,
			newClient: func() work.Client { return &httpClient{client: &http.Client{Transport: transport}, url: url} },
			close: func() error {
				transport.CloseIdleConnections()
				err := server.Close()
				if failed := <-served; !errors.Is(failed, http.ErrServerClosed) {
					err = errors.Join(err, failed)
				}
				return err
			},
		}, nil
	}
}

// httpClient is a [work.Client] by net/http.
type httpClient struct {
	client *http.Client
	url    string
	header http.Header
	answer bytes.Buffer
}

func (c *httpClient) Post(key, body string) (int, []byte, error) {
	request, err := http.NewRequest(http.MethodPost, c.url, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	if key != "" {
		request.Header.Set(work.KeyHeader, key)
	}
	resp, err := c.client.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	c.header = resp.Header
	c.answer.Reset()
	if _, err := c.answer.ReadFrom(resp.Body); err != nil {
		return 0, nil, err
	}
	return resp.StatusCode, c.answer.Bytes(), nil
}

func (c *httpClient) Header(name string) []string { return c.header.Values(name) }
