package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"
)

// testLooks measures the page on all devices, before anything is sent and with
// every kind of row.
func testLooks(t *testing.T, p *tab) {
	measure := func(state string) {
		for _, scheme := range []string{"light", "dark"} {
			for _, width := range []int64{320, 390, 700, 1190, 1280} {
				t.Run(fmt.Sprintf("%s %s %d", state, scheme, width), func(t *testing.T) {
					at := &tab{T: t, ctx: p.ctx, url: p.url}
					at.emulate(width, 800, scheme)
					require.True(t, eval[bool](at, fmt.Sprintf(`matchMedia("(prefers-color-scheme: %s)").matches`, scheme)))
					require.Equal(t, scheme == "dark", eval[float64](at, colours+`return light(ground(document.body)); })()`) < 0.2, "the page is as dark as the user wants it")
					require.Equal(t, width, eval[int64](at, `innerWidth`), "the width that the page is laid out for")
					require.LessOrEqual(t, eval[int64](at, `document.scrollingElement.scrollWidth`), width, "no scrolling sideways")
					for _, look := range looks {
						require.Empty(t, eval[[]string](at, look.script), look.name)
					}
					testAccessibility(at, len(p.rows()))
				})
			}
		}
	}
	measure("empty")

	p.emulate(1280, 900, "light")
	fillTimeline(p)
	p.do(chromedp.SetValue(chromedp.ID("amount"), "999999.99"), chromedp.SetValue(chromedp.ID("card"), "tok_timeout"))
	p.press("pay")
	measure("full")

	// A request that is waited for looks its own way too.
	p.emulate(320, 800, "dark")
	p.do(chromedp.Click(chromedp.ID("hang-up")))
	p.until(`document.querySelector("tr[aria-busy=true]")`)
	for _, look := range looks {
		require.Empty(t, eval[[]string](p, look.script), look.name)
	}
	p.until(`!document.querySelector("tr[aria-busy]")`)
}

// testFirstScreen presses each button on a phone: what becomes of it is seen without
// scrolling.
func testFirstScreen(p *tab) {
	p.emulate(390, 844, "light")
	seen := func(button string) {
		p.Helper()
		require.Zero(p, eval[float64](p, `scrollY`), button)
		require.LessOrEqual(p, eval[float64](p, `document.getElementById("outcome").getBoundingClientRect().bottom`), 844.0,
			"%s: %s", button, p.outcome())
	}
	seen("none")
	for _, card := range []string{"tok_timeout", "tok_visa"} {
		p.do(chromedp.SetValue(chromedp.ID("amount"), "999999.99"), chromedp.SetValue(chromedp.ID("card"), card))
		for _, id := range []string{"pay", "retry", "crash", "retry", "other", "retry", "twice", "hang-up", "retry"} {
			p.press(id)
			seen(id)
		}
	}
}

// looks are scripts that return what is wrong with how the page looks.
var looks = []struct{ name, script string }{
	{"text has a contrast of 4.5 to 1", colours + `
		const wrong = [];
		const check = (el, style, what) => {
			const over = ground(el), ratio = contrast(mix(parse(style.color), over), over);
			if (ratio < 4.5) wrong.push(what + ": " + ratio.toFixed(2));
		};
		let checked = 0;
		const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
		while (walker.nextNode()) {
			const el = walker.currentNode.parentElement, said = walker.currentNode.textContent.trim();
			if (!said || !visible(el)) continue;
			checked++;
			check(el, getComputedStyle(el), said);
		}
		for (const el of document.querySelectorAll("body *")) {
			if (visible(el) && el.matches("input, select")) check(el, getComputedStyle(el), "#" + el.id);
			const label = getComputedStyle(el, "::before");
			if (visible(el) && !["none", "normal"].includes(label.content)) check(el, label, label.content);
		}
		if (checked < 25) wrong.push("only " + checked + " texts were found");
		return wrong; })()`},
	{"controls stand out by 3 to 1", colours + `
		const wrong = [];
		for (const el of document.querySelectorAll("button, input, select")) {
			const style = getComputedStyle(el), around = ground(el.parentElement);
			const ratio = contrast(mix(parse(style.borderTopColor), around), around);
			if (ratio < 3 || parseFloat(style.borderTopWidth) < 1) wrong.push("#" + el.id + ": " + ratio.toFixed(2));
		}
		return wrong; })()`},
	{"the focus is seen", colours + `
		const wrong = [];
		const had = document.activeElement;
		for (const el of document.querySelectorAll("button, input, select")) {
			el.focus({focusVisible: true, preventScroll: true});
			const style = getComputedStyle(el), around = ground(el.parentElement);
			const ratio = contrast(mix(parse(style.outlineColor), around), around);
			if (style.outlineStyle === "none" || parseFloat(style.outlineWidth) < 2 || ratio < 3) {
				wrong.push("#" + el.id + ": " + style.outline + " " + ratio.toFixed(2));
			}
		}
		had.focus();
		return wrong; })()`},
	{"controls are 44 pixels at least", `(() =>
		[...document.querySelectorAll("button, input, select, a")].flatMap(el => {
			const {width, height} = el.getBoundingClientRect();
			return width < 44 || height < 44 ? ["#" + el.id + ": " + width + " x " + height] : [];
		}))()`},
	{"nothing leaves its place", `(() =>
		[...document.querySelectorAll("body *")].flatMap(el => {
			if (el.closest("thead") && innerWidth < 800) return []; // It is there for screen readers.
			const {left, right} = el.getBoundingClientRect();
			const inside = el.matches("select") || el.scrollWidth <= el.clientWidth || getComputedStyle(el).display === "inline";
			return left < 0 || right > innerWidth || !inside ? [el.tagName + " #" + el.id + " ." + el.className + ": " + el.textContent] : [];
		}))()`},
	{"labels name their controls", `(() =>
		[...document.querySelectorAll("input, select")].flatMap(el => el.labels.length === 1 ? [] : ["#" + el.id]))()`},
	{"the document says what it is", `(() => [
		["language", document.documentElement.lang === "en"],
		["title", document.title.length > 10],
		["viewport", !!document.querySelector("meta[name=viewport][content*='width=device-width']:not([content*=user-scalable])")],
		["color scheme", getComputedStyle(document.documentElement).colorScheme === "light dark"],
		["one h1", document.querySelectorAll("h1").length === 1],
		["ids once", new Set([...document.querySelectorAll("[id]")].map(el => el.id)).size === document.querySelectorAll("[id]").length],
		["descriptions", [...document.querySelectorAll("[aria-describedby]")].every(el => document.getElementById(el.getAttribute("aria-describedby")))],
	].flatMap(([what, holds]) => holds ? [] : [what]))()`},
}

// colours begins a function with what WCAG 2 says of contrast. It throws at
// what it could only guess at.
const colours = `(() => {
	const parse = text => {
		const found = text.match(/^rgba?\(([\d.]+), ([\d.]+), ([\d.]+)(?:, ([\d.]+))?\)$/);
		if (!found) throw new Error("what colour is " + text);
		return [+found[1], +found[2], +found[3], +(found[4] ?? 1)];
	};
	const mix = (top, under) => [0, 1, 2].map(i => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
	const ground = el => {
		const layers = [];
		for (let at = el; at; at = at.parentElement) {
			const style = getComputedStyle(at);
			if (style.opacity !== "1" || style.backgroundImage !== "none" || style.filter !== "none") throw new Error("see through " + at.tagName);
			layers.push(parse(style.backgroundColor));
		}
		return layers.reduceRight((under, top) => mix(top, under), [255, 255, 255, 1]);
	};
	const light = colour => colour.slice(0, 3).map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
		.reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
	const contrast = (a, b) => {
		const [dark, bright] = [light(a), light(b)].sort((x, y) => x - y);
		return (bright + 0.05) / (dark + 0.05);
	};
	const visible = el => el.checkVisibility({visibilityProperty: true}) && el.getClientRects().length > 0 && !el.closest("noscript");
`

// testAccessibility reads the page as a screen reader does.
func testAccessibility(p *tab, rows int) {
	p.Helper()
	tree, err := chromedp.Run(p.ctx, func(ctx context.Context, t *chromedp.Target) (accessibility.GetFullAXTreeResult, error) {
		return cdp.Call(ctx, t, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{})
	})
	require.NoError(p, err)
	names := make(map[string][]string)
	for _, node := range tree.Nodes {
		if !node.Ignored {
			role := axText(p, node.Role)
			names[role] = append(names[role], axText(p, node.Name))
			switch role {
			case "button":
				require.NotEmpty(p, axText(p, node.Description), axText(p, node.Name))
				disabled := strings.Contains(axProperties(p, node), "disabled=true")
				require.Equal(p, rows == 0 && strings.Contains(strings.ToLower(axText(p, node.Name)), "same key"), disabled, axText(p, node.Name))
			case "status":
				require.Contains(p, axProperties(p, node), "live=polite")
			}
		}
	}
	require.Equal(p, []string{"Pay", "Retry with the same key", "Crash after the charge", "Send twice at once", "Same key, other amount", "Hang up half-way"}, names["button"])
	require.Equal(p, []string{"Amount in EUR"}, names["spinbutton"])
	require.Equal(p, []string{"Card"}, names["combobox"])
	require.Equal(p, []string{"Timeline newest first"}, names["table"])
	require.Equal(p, []string{"Request", "Sent", "Key", "Amount", "Status", "Replayed", "Took", "Runs", "Charges"}, names["columnheader"])
	require.Equal(p, []string{"Latest outcome"}, names["status"])
	require.Equal(p, []string{"Pay once, retry safely"}, names["heading"])
	require.Len(p, names["main"], 1)
	require.Equal(p, []string{"Requests"}, names["form"])
	require.Len(p, names["rowheader"], rows)
	require.Len(p, names["row"], rows+1)
	require.Len(p, names["cell"], 8*rows)
	for _, name := range append(names["rowheader"], names["cell"]...) {
		require.NotEmpty(p, name)
	}
}

func axText(p *tab, value *accessibility.Value) (text string) {
	p.Helper()
	if value != nil && len(value.Value) > 0 {
		require.NoError(p, json.Unmarshal(value.Value, &text))
	}
	return text
}

func axProperties(p *tab, node *accessibility.Node) string {
	var b strings.Builder
	for _, property := range node.Properties {
		fmt.Fprintf(&b, "%s=%s ", property.Name, strings.Trim(string(property.Value.Value), `"`))
	}
	return b.String()
}
