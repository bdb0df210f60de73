package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/require"
)

// TestPage uses the example's page in a browser, against the example itself.
func TestPage(t *testing.T) {
	browser := startBrowser(t)
	program := buildPayments(t)

	for name, press := range map[string]func(p *tab, id string){
		"pointer":  func(p *tab, id string) { p.do(chromedp.Click(chromedp.ID(id))) },
		"keyboard": pressByKeyboard(),
	} {
		t.Run(name, func(t *testing.T) {
			url, _ := startPayments(t, program)
			testEveryButton(t, openTab(t, browser, url), press)
		})
	}
	t.Run("the form by keyboard", func(t *testing.T) {
		url, _ := startPayments(t, program)
		testForm(openTab(t, browser, url))
	})
	t.Run("looks and accessibility", func(t *testing.T) {
		url, _ := startPayments(t, program)
		testLooks(t, openTab(t, browser, url))
	})
	t.Run("a phone's first screen", func(t *testing.T) {
		url, _ := startPayments(t, program)
		testFirstScreen(openTab(t, browser, url))
	})
	t.Run("motion", func(t *testing.T) {
		url, _ := startPayments(t, program)
		p := openTab(t, browser, url)
		p.press("pay")
		require.Equal(t, "none", eval[string](p, `getComputedStyle(document.querySelector("tbody tr")).animationName`))
	})
	t.Run("the program is gone", func(t *testing.T) {
		url, kill := startPayments(t, program)
		p := openTab(t, browser, url)
		kill()
		require.Equal(t, row{request: "1 Pay", status: "No answer", replayed: "no", runs: "unknown", charges: "unknown", amount: "12.50 EUR"},
			p.press("pay")[0].told())
		require.Contains(t, p.outcome(), "could not be reached")
	})
}

// pressByKeyboard returns a way to press buttons by the keys that press them,
// in turn.
func pressByKeyboard() func(p *tab, id string) {
	keys := []string{kb.Enter, " "}
	return func(p *tab, id string) {
		p.tabTo(id)
		p.do(chromedp.KeyEvent(keys[0]))
		require.Equal(p, id, p.focus(), "the focus stays where it was")
		keys[0], keys[1] = keys[1], keys[0]
	}
}

// row is a request in the page's timeline.
type row struct {
	request, sent, key, amount, status, meaning, replayed, took, runs, charges string
}

// rows returns the timeline, newest first.
func (p *tab) rows() []row {
	p.Helper()
	var rows []row
	for _, cells := range eval[[]map[string]string](p, `[...document.querySelectorAll("tbody tr")].map(tr =>
		Object.fromEntries([...tr.cells].map(cell => [cell.dataset.label, cell.innerText])))`) {
		require.Len(p, cells, 9)
		status, meaning, _ := strings.Cut(cells["Status"], "\n")
		rows = append(rows, row{cells["Request"], cells["Sent"], cells["Key"], cells["Amount"], status, meaning,
			cells["Replayed"], cells["Took"], cells["Runs"], cells["Charges"]})
	}
	return rows
}

// told returns a row without what differs from run to run.
func (r row) told() row {
	r.sent, r.key, r.meaning, r.took = "", "", "", ""
	return r
}

// outcome is what the live region says.
func (p *tab) outcome() string {
	p.Helper()
	return eval[string](p, `document.querySelector("[aria-live=polite]").textContent`)
}

// press clicks a button, waits for its answers and returns the timeline.
func (p *tab) press(id string) []row {
	p.Helper()
	return p.pressBy(func(p *tab, id string) { p.do(chromedp.Click(chromedp.ID(id))) }, id)
}

// pressBy presses a button in some way, and waits for its answers.
func (p *tab) pressBy(press func(p *tab, id string), id string) []row {
	p.Helper()
	before, more := len(p.rows()), 1
	if id == "twice" {
		more = 2
	}
	said := p.outcome()
	press(p, id)
	p.until(fmt.Sprintf(`document.querySelectorAll("tbody tr").length >= %d && !document.querySelector("tr[aria-busy]")`, before+more))
	rows := p.rows()
	require.Len(p, rows, before+more, "one press, and no request more")
	require.NotEqual(p, said, p.outcome(), "the live region says what became of it")
	require.Contains(p, p.outcome(), "Request ")
	for _, r := range rows {
		require.Regexp(p, `^[0-9a-f]{16}$`, r.key)
		require.Regexp(p, `^\d\d:\d\d:\d\d$`, r.sent)
		require.Regexp(p, `^\d+ ms$`, r.took)
		require.NotEmpty(p, r.meaning)
	}
	return rows
}

// answerOf asks the program's API as curl would.
func answerOf[T any](t testing.TB, url string) (v T) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	require.NoError(t, err)
	r.Header.Set("Authorization", "Bearer alice-secret")
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	resp, err := client.Do(r)
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.NoError(t, json.NewDecoder(resp.Body).Decode(&v))
	return v
}

// payments returns the keys of the payments that the program has recorded.
func (p *tab) payments() (keys []string) {
	for _, paid := range answerOf[struct{ Payments []struct{ Reference string } }](p, p.url+"/payments").Payments {
		keys = append(keys, paid.Reference)
	}
	return keys
}

func testEveryButton(t *testing.T, p *tab, press func(p *tab, id string)) {
	for _, id := range []string{"retry", "other"} {
		said := p.outcome()
		press(p, id)
		require.Empty(t, p.rows(), "there is nothing to send again")
		require.NotEqual(t, said, p.outcome())
		require.Contains(t, p.outcome(), "no key yet")
		require.Equal(t, "true", eval[string](p, fmt.Sprintf(`document.getElementById(%q).ariaDisabled`, id)))
	}

	paid := p.pressBy(press, "pay")[0]
	require.Equal(t, row{request: "1 Pay", status: "201 Created", replayed: "no", amount: "12.50 EUR", runs: "1", charges: "1"}, paid.told())
	require.Equal(t, []string{paid.key}, p.payments())
	require.Equal(t, paid.key, eval[string](p, `document.getElementById("key").textContent`))

	again := p.pressBy(press, "retry")[0]
	require.Equal(t, row{request: "2 Retry with the same key", status: "201 Created", replayed: "yes", amount: "12.50 EUR", runs: "1", charges: "1"}, again.told())
	require.Equal(t, paid.key, again.key)
	require.Contains(t, p.outcome(), "replayed")

	other := p.pressBy(press, "other")[0]
	require.Equal(t, row{request: "3 Same key, other amount", status: "422 Unprocessable Entity", replayed: "no", amount: "13.50 EUR", runs: "1", charges: "1"}, other.told())
	require.Equal(t, paid.key, other.key)
	require.Contains(t, other.meaning, "Key reused")

	again = p.pressBy(press, "retry")[0]
	require.Equal(t, row{request: "4 Retry with the same key", status: "201 Created", replayed: "yes", amount: "12.50 EUR", runs: "1", charges: "1"}, again.told())

	// The client leaves; the payment is made all the same, and once.
	left := p.pressBy(press, "hang-up")[0]
	require.Equal(t, row{request: "5 Hang up half-way", status: "Hung up", replayed: "no", amount: "12.50 EUR", runs: "2", charges: left.charges}, left.told())
	require.Contains(t, []string{"1", "2"}, left.charges, "the slow card is charged meanwhile")
	require.NotEqual(t, paid.key, left.key)
	require.Contains(t, p.outcome(), "Press “Retry with the same key”")
	outstanding := p.pressBy(press, "retry")[0]
	require.Equal(t, row{request: "6 Retry with the same key", status: "409 Conflict", replayed: "no", amount: "12.50 EUR", runs: "2", charges: outstanding.charges}, outstanding.told())
	require.Contains(t, outstanding.meaning, "Outstanding")
	require.Contains(t, outstanding.meaning, "Retry-After: 1 s")
	answered := p.afterwards(press, left.key)
	require.Equal(t, row{status: "201 Created", replayed: "yes", amount: "12.50 EUR", runs: "2", charges: "2"}, answered)
	require.Equal(t, []string{paid.key, left.key}, p.payments())

	rows := p.pressBy(press, "twice")
	require.Equal(t, rows[0].key, rows[1].key)
	require.ElementsMatch(t, []string{"201 Created", "409 Conflict"}, []string{rows[0].status, rows[1].status})
	for _, r := range rows[:2] {
		require.Equal(t, "3", r.runs)
		require.Equal(t, "no", r.replayed)
		require.Equal(t, r.status == "409 Conflict", strings.Contains(r.meaning, "Retry-After: 1 s"), r.meaning)
	}
	require.Equal(t, row{status: "201 Created", replayed: "yes", amount: "12.50 EUR", runs: "3", charges: "3"}, p.afterwards(press, rows[0].key))

	for _, step := range []struct {
		card, button, status, replayed, runs, charges, meaning string
	}{
		{"tok_declined", "pay", "402 Payment Required", "no", "4", "3", "The answer is stored."},
		{"tok_declined", "retry", "402 Payment Required", "yes", "4", "3", "stored answer"},
		{"tok_timeout", "pay", "503 Service Unavailable", "no", "5", "3", "not stored"},
		{"tok_timeout", "retry", "201 Created", "no", "6", "4", "Paid."},
		{"tok_timeout", "retry", "201 Created", "yes", "6", "4", "Paid before"},
		{"tok_visa", "crash", "500 Internal Server Error", "no", "7", "5", "Crashed after the charge"},
		{"tok_visa", "other", "422 Unprocessable Entity", "no", "7", "5", "Key reused"},
		{"tok_visa", "retry", "201 Created", "no", "7", "5", "Recovered"},
		{"tok_visa", "retry", "201 Created", "yes", "7", "5", "Paid before"},
		{"tok_crash", "pay", "500 Internal Server Error", "no", "8", "6", "Crashed after the charge"},
		{"tok_crash", "retry", "201 Created", "no", "8", "6", "Recovered"},
	} {
		p.do(chromedp.SetValue(chromedp.ID("card"), step.card))
		told := p.pressBy(press, step.button)[0]
		require.Equal(t, []string{step.status, step.replayed, step.runs, step.charges},
			[]string{told.status, told.replayed, told.runs, told.charges}, step.card)
		require.Contains(t, told.meaning, step.meaning)
	}

	type counts struct{ Runs, Charges int }
	require.Equal(t, counts{8, 6}, answerOf[counts](t, p.url+"/counts"), "the page shows the program's counts")
	require.Equal(t, "8", eval[string](p, `document.getElementById("runs").textContent`))
	require.Equal(t, "6", eval[string](p, `document.getElementById("charges").textContent`))
	require.Len(t, p.payments(), 6)
}

// afterwards retries once the program has recorded the payment of a key, and
// returns the answer.
func (p *tab) afterwards(press func(p *tab, id string), key string) row {
	p.Helper()
	require.Eventually(p, func() bool {
		return strings.Contains(strings.Join(p.payments(), " "), key)
	}, patience, 20*time.Millisecond, "the payment is made")
	for range 100 {
		r := p.pressBy(press, "retry")[0]
		require.Equal(p, key, r.key)
		// The response is stored a moment after the payment is recorded.
		if r.status != "409 Conflict" {
			r.request = ""
			return r.told()
		}
	}
	require.Fail(p, "the first request never ends")
	return row{}
}

// testForm fills in the form and sends it as a keyboard alone can.
func testForm(p *tab) {
	p.tabTo("amount")
	for _, amount := range []string{"0", "-1", "1000000.01", ""} {
		eval[any](p, `document.activeElement.select()`)
		p.do(chromedp.KeyEvent(kb.Delete + amount))
		for _, id := range []string{"amount", "pay", "crash", "twice", "hang-up"} {
			p.tabTo(id)
			p.do(chromedp.KeyEvent(kb.Enter))
			require.Empty(p, p.rows(), "%q is no amount for %s", amount, id)
			require.Equal(p, "amount", p.focus(), "%s: what is wrong has the focus", id)
		}
	}
	p.do(chromedp.KeyEvent("0.29"))
	p.tabTo("card")
	p.do(chromedp.KeyEvent(kb.ArrowDown), chromedp.KeyEvent(kb.ArrowDown))
	p.tabTo("amount")
	told := p.pressBy(func(p *tab, _ string) { p.do(chromedp.KeyEvent(kb.Enter)) }, "amount")
	require.Equal(p, row{request: "1 Pay", status: "402 Payment Required", replayed: "no", amount: "0.29 EUR", runs: "1", charges: "0"}, told[0].told())
}
