package compare

import (
	"net"
	"net/http"

	"github.com/gofiber/fiber/v3"
	"github.com/gofiber/fiber/v3/client"
	fiberidempotency "github.com/gofiber/fiber/v3/middleware/idempotency"
	fiberredis "github.com/gofiber/storage/redis/v3"
	"github.com/redis/go-redis/v9"
	"github.com/valyala/fasthttp"

	"github.com/idempotency-go/idempotency/benchmarks/internal/work"
)

// fiberIdempotency returns Fiber's middleware as its documentation has it, but
// for the header's name: with a client on Fiber's storage in Redis, without one
// on its default, in memory. The lock is its default, in memory, on both.
func fiberIdempotency(redisClient *redis.Client) fiber.Handler {
	config := fiberidempotency.Config{KeyHeader: work.KeyHeader}
	if redisClient != nil {
		config.Storage = fiberredis.NewFromConnection(redisClient)
	}
	return fiberidempotency.New(config)
}

// onFiber returns the opener of a service on Fiber's server, reached with
// Fiber's client, with a middleware or, where it is nil, without one.
func onFiber(middleware func(*redis.Client) fiber.Handler) opener {
	return func(service *work.Service, redisClient *redis.Client, loopback bool) (*session, error) {
		app := fiber.New()
		if middleware != nil {
			app.Use(middleware(redisClient))
		}
		app.Post(work.Path, func(c fiber.Ctx) error {
			_ = c.Body() // Fiber has read it.
			c.Set(fiber.HeaderContentType, "application/json")
			c.Set(fiber.HeaderLocation, service.Run())
			return c.Status(work.Status).Send(service.Answer)
		})
		if !loopback {
			handler := app.Handler()
			return &session{
				newClient: func() work.Client { return newFiberDirect(handler) },
				close:     func() error { return nil },
			}, nil
		}
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		served := make(chan error, 1)
		go func() { served <- app.Listener(listener, fiber.ListenConfig{DisableStartupMessage: true}) }()
		http := client.NewWithClient(&fasthttp.Client{MaxConnsPerHost: idleConns})
		url := "http://" + listener.Addr().String() + work.Path
		return &session{
			url:       url,
			newClient: func() work.Client { return newFiberClient(http, url) },
			close: func() error {
				http.CloseIdleConnections()
				if err := app.Shutdown(); err != nil {
					return err
				}
				return <-served
			},
		}, nil
	}
}

// fiberClient is a [work.Client] by Fiber's client. It uses the client's Do,
// which hands a request to fasthttp without a goroutine and a copy for each.
type fiberClient struct {
	client   *client.Client
	request  *fasthttp.Request
	response *fasthttp.Response
}

func newFiberClient(c *client.Client, url string) *fiberClient {
	request := new(fasthttp.Request)
	request.Header.SetMethod(http.MethodPost)
	request.SetRequestURI(url)
	return &fiberClient{c, request, new(fasthttp.Response)}
}

func (c *fiberClient) Post(key, body string) (int, []byte, error) {
	setKey(&c.request.Header, key)
	c.request.SetBodyString(body)
	if err := c.client.Do(c.request, c.response); err != nil {
		return 0, nil, err
	}
	return c.response.StatusCode(), c.response.Body(), nil
}

func (c *fiberClient) Header(name string) []string { return headerValues(c.response, name) }

// fiberDirect is a [work.Client] that calls an app in this process, without a
// network. Its request's context is used again, as by fasthttp's server.
type fiberDirect struct {
	handler fasthttp.RequestHandler
	ctx     fasthttp.RequestCtx
}

func newFiberDirect(handler fasthttp.RequestHandler) *fiberDirect {
	d := &fiberDirect{handler: handler}
	d.ctx.Init(new(fasthttp.Request), nil, nil)
	d.ctx.Request.Header.SetMethod(http.MethodPost)
	d.ctx.Request.SetRequestURI(work.Path)
	d.ctx.Request.Header.SetHost("service.example")
	return d
}

func (d *fiberDirect) Post(key, body string) (int, []byte, error) {
	setKey(&d.ctx.Request.Header, key)
	d.ctx.Request.SetBodyString(body)
	d.ctx.Response.Reset()
	d.ctx.ResetUserValues()
	d.handler(&d.ctx)
	return d.ctx.Response.StatusCode(), d.ctx.Response.Body(), nil
}

func (d *fiberDirect) Header(name string) []string { return headerValues(&d.ctx.Response, name) }

func setKey(h *fasthttp.RequestHeader, key string) {
	if key == "" {
		h.Del(work.KeyHeader)
	} else {
		h.Set(work.KeyHeader, key)
	}
}

func headerValues(r *fasthttp.Response, name string) []string {
	var values []string
	for _, v := range r.Header.PeekAll(name) {
		values = append(values, string(v))
	}
	return values
}
