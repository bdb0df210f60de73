package integration

import (
	"bufio"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	browserlog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	browserruntime "github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/require"
)

// startPayments runs a copy of the example, and returns its address and a
// function that kills it. It is killed at the latest when the test is over.
func startPayments(t *testing.T, program string) (url string, kill func()) {
	t.Helper()
	cmd := exec.Command(program, "-addr", "127.0.0.1:0")
	cmd.Stderr = t.Output()
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	kill = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // Its error is that it was killed.
	})
	t.Cleanup(kill)
	line, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(t, err)
	url = regexp.MustCompile(`http://[0-9.:]+`).FindString(line)
	require.NotEmpty(t, url, line)
	return url, kill
}

// buildPayments builds the example, which is of the module above.
func buildPayments(t *testing.T) (program string) {
	t.Helper()
	program = filepath.Join(t.TempDir(), "payments")
	build := exec.Command("go", "build", "-o", program, "./examples/payments")
	build.Dir = ".."
	said, err := build.CombinedOutput()
	require.NoError(t, err, string(said))
	return program
}

// startBrowser starts Chromium with a profile of its own, which ends with the test.
func startBrowser(t *testing.T) context.Context {
	t.Helper()
	var program string
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			program = found
			break
		}
	}
	if program == "" {
		t.Skip("SKIPPED: there is no chromium on the PATH to show the page in; on Debian, apt-get install chromium.")
	}
	opts := []chromedp.ExecAllocatorOption{chromedp.ExecPath(program)}
	for _, flag := range []string{"headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
		"disable-background-networking", "disable-component-update", "disable-sync", "disable-dev-shm-usage", "hide-scrollbars"} {
		opts = append(opts, chromedp.Flag(flag, true))
	}
	allocator, stop := chromedp.NewExecAllocator(context.Background(), opts...)
	t.Cleanup(stop) // It waits until the process is over and its profile gone.
	browser, cancel := chromedp.NewContext(allocator)
	t.Cleanup(cancel)
	t.Cleanup(func() { _ = chromedp.Cancel(browser) }) // One that is asked to end leaves no files behind.
	require.NoError(t, chromedp.Do(browser))
	return browser
}

// tab is the page in a tab of its own.
type tab struct {
	*testing.T
	ctx context.Context
	url string

	mu    sync.Mutex
	wrong []string // what a page must never do
}

// openTab opens the page that a program at url serves. When the test is over,
// it fails if the page asked anybody else for anything, or wrote to the console.
func openTab(t *testing.T, browser context.Context, url string) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(browser)
	p := &tab{T: t, ctx: ctx, url: url}
	asked := 0
	require.NoError(t, chromedp.Listen(ctx, func(event any) {
		p.mu.Lock()
		defer p.mu.Unlock()
		switch e := event.(type) {
		case *network.EventRequestWillBeSent:
			asked++
			if !strings.HasPrefix(e.Request.URL, url+"/") && !strings.HasPrefix(e.Request.URL, "data:") {
				p.wrong = append(p.wrong, "a request to "+e.Request.URL)
			}
		case *network.EventWebSocketCreated:
			p.wrong = append(p.wrong, "a socket to "+e.URL)
		case *browserruntime.EventExceptionThrown:
			p.wrong = append(p.wrong, fmt.Sprintf("an exception: %+v", e.ExceptionDetails))
		case *browserruntime.EventConsoleAPICalled:
			p.wrong = append(p.wrong, fmt.Sprintf("a %s in the console", e.Type))
		case *browserlog.EventEntryAdded:
			// Chromium logs each answer of 400 and above under this source.
			if e.Entry.Source != browserlog.EntrySourceNetwork {
				p.wrong = append(p.wrong, fmt.Sprintf("%s: %s", e.Entry.Source, e.Entry.Text))
			}
		}
	}))
	t.Cleanup(func() {
		cancel()
		p.mu.Lock()
		defer p.mu.Unlock()
		require.Empty(t, p.wrong)
		require.NotZero(t, asked)
	})
	p.emulate(1280, 900, "light")
	p.do(chromedp.Navigate(url + "/"))
	p.until(`document.getElementById("runs").textContent !== "…"`)
	return p
}

func (p *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	require.NoError(p, chromedp.Do(ctx, steps...))
}

// eval returns the value of an expression on the page, or of its promise.
func eval[T any](p *tab, expression string) T {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	require.NoError(p, err, expression)
	return v
}

// until waits for a condition of the page's content.
func (p *tab) until(condition string) {
	p.Helper()
	met := eval[bool](p, fmt.Sprintf(`new Promise(done => {
		const end = value => { observer.disconnect(); clearTimeout(late); done(value); };
		const look = () => { if (%s) end(true); };
		const observer = new MutationObserver(look);
		const late = setTimeout(() => end(false), %d);
		observer.observe(document, {subtree: true, childList: true, attributes: true, characterData: true});
		look();
	})`, condition, (patience/2).Milliseconds()))
	if !met {
		require.True(p, met, "the page never got to %s, but to:\n%s", condition, eval[string](p, `document.body.innerText`))
	}
}

// emulate sets what of the user's device the page can see. Narrow ones are
// phones, which honour the viewport that a page declares. The user wants no
// motion: while a page moves, its colours are on their way.
func (p *tab) emulate(width, height int64, scheme string) {
	p.Helper()
	p.do(
		chromedp.EmulateViewport(width, height, func(m *emulation.SetDeviceMetricsOverrideParams, _ *emulation.SetTouchEmulationEnabledParams) {
			m.Mobile = width < 800
		}),
		func(ctx context.Context, t *chromedp.Target) (chromedp.Void, error) {
			_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
				{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"},
			}})
			return chromedp.Void{}, err
		})
}

// tabTo moves the focus to an element as a person does who has only a keyboard.
func (p *tab) tabTo(id string) {
	p.Helper()
	for range 12 {
		if p.focus() == id {
			return
		}
		p.do(chromedp.KeyEvent(kb.Tab))
	}
	require.Equal(p, id, p.focus(), "the Tab key does not get there")
}

func (p *tab) focus() string {
	p.Helper()
	return eval[string](p, `document.activeElement.id`)
}
