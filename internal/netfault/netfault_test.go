package netfault_test

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/idempotency-go/idempotency/internal/netfault"
)

// echo starts a server that sends back what it gets, and a proxy before it.
func echo(t *testing.T) *netfault.Proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	p, err := netfault.Start("127.0.0.1:0", listener.Addr().String())
	require.NoError(t, err)
	t.Cleanup(p.Close)
	return p
}

func dial(t *testing.T, p *netfault.Proxy) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", p.Addr())
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// ask sends a byte.
func ask(t *testing.T, conn net.Conn) {
	t.Helper()
	_, err := conn.Write([]byte{1})
	require.NoError(t, err)
}

// requireAnswer demands that a byte comes back.
func requireAnswer(t *testing.T, conn net.Conn) {
	t.Helper()
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(20*time.Second)))
	_, err := io.ReadFull(conn, make([]byte, 1))
	require.NoError(t, err)
}

// requireSilence demands that nothing comes.
func requireSilence(t *testing.T, conn net.Conn) {
	t.Helper()
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
	_, err := conn.Read(make([]byte, 1))
	var timeout net.Error
	require.ErrorAs(t, err, &timeout)
	require.True(t, timeout.Timeout(), err)
}

func TestRefused(t *testing.T) {
	p := echo(t)
	conn := dial(t, p)
	ask(t, conn)
	requireAnswer(t, conn)
	require.NoError(t, p.Shut(netfault.Refused))
	_, err := conn.Read(make([]byte, 1))
	require.Error(t, err)
	_, err = net.Dial("tcp", p.Addr())
	require.Error(t, err)
	require.NoError(t, p.Open())
	conn = dial(t, p)
	ask(t, conn)
	requireAnswer(t, conn)
}

func TestHeld(t *testing.T) {
	for _, way := range []netfault.Way{netfault.Held, netfault.Late} {
		p := echo(t)
		before := dial(t, p)
		require.NoError(t, p.Shut(way))
		during := dial(t, p)
		ask(t, before)
		ask(t, during)
		requireSilence(t, before)
		requireSilence(t, during)
		require.NoError(t, p.Open())
		requireAnswer(t, before)
		requireAnswer(t, during)
	}
}

func TestDead(t *testing.T) {
	p := echo(t)
	before := dial(t, p)
	ask(t, before)
	requireAnswer(t, before)
	require.NoError(t, p.Shut(netfault.Dead))
	during := dial(t, p)
	ask(t, before)
	ask(t, during)
	requireSilence(t, during)
	require.NoError(t, p.Open())
	requireSilence(t, before)
	after := dial(t, p)
	ask(t, after)
	requireAnswer(t, after)
}

func TestStale(t *testing.T) {
	p := echo(t)
	before := dial(t, p)
	ask(t, before)
	requireAnswer(t, before)
	require.NoError(t, p.Shut(netfault.Stale))
	ask(t, before)
	requireSilence(t, before)
	after := dial(t, p)
	ask(t, after)
	requireAnswer(t, after)
}

// TestWays shuts the proxy in one way after another: what was held is delivered only
// if the proxy was not shut in another way before it was opened.
func TestWays(t *testing.T) {
	p := echo(t)
	conn := dial(t, p)
	ask(t, conn)
	requireAnswer(t, conn)
	require.NoError(t, p.Shut(netfault.Held))
	ask(t, conn)
	requireSilence(t, conn)
	require.NoError(t, p.Shut(netfault.Refused))
	require.NoError(t, p.Shut(netfault.Held))
	_, err := conn.Read(make([]byte, 1))
	require.Error(t, err)
	conn = dial(t, p)
	ask(t, conn)
	requireSilence(t, conn)
	require.NoError(t, p.Shut(netfault.Dead))
	require.NoError(t, p.Open())
	requireSilence(t, conn)
}
