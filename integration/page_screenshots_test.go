package integration

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"
)

var screenshots = flag.String("screenshots", "", "write pictures of the example's page to this `directory`")

// fillTimeline gets each kind of answer from the program.
func fillTimeline(p *tab) {
	p.Helper()
	for _, id := range []string{"pay", "retry", "other"} {
		p.press(id)
	}
	left := p.press("hang-up")[0]
	require.Equal(p, "409 Conflict", p.press("retry")[0].status)
	p.afterwards(func(p *tab, id string) { p.do(chromedp.Click(chromedp.ID(id))) }, left.key)
	p.press("twice")
	p.press("crash")
	p.press("retry")
}

// TestPageScreenshots writes pictures of the page. The README shows one of them.
func TestPageScreenshots(t *testing.T) {
	if *screenshots == "" {
		t.Skip("SKIPPED: -screenshots=DIR names no directory to write the pictures of the page to.")
	}
	browser := startBrowser(t)
	url, _ := startPayments(t, buildPayments(t))
	p := openTab(t, browser, url)
	fillTimeline(p)
	p.do(chromedp.MouseEvent("mouseMoved", 1, 1))
	eval[any](p, `document.activeElement.blur()`)
	for _, scheme := range []string{"light", "dark"} {
		for _, width := range []int64{1280, 700, 390} {
			p.emulate(width, 900, scheme)
			p.emulate(width, eval[int64](p, `document.scrollingElement.scrollHeight`), scheme)
			ctx, cancel := context.WithTimeout(p.ctx, patience)
			picture, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
			cancel()
			require.NoError(t, err)
			picture = smaller(t, picture)
			name := filepath.Join(*screenshots, fmt.Sprintf("page-%s-%d.png", scheme, width))
			require.NoError(t, os.WriteFile(name, picture, 0o644))
			t.Logf("%s: %d bytes", name, len(picture))
		}
	}
}

// smaller packs a picture with a palette, which is enough for text on plain
// grounds and takes a third of the bytes.
func smaller(t *testing.T, picture []byte) []byte {
	t.Helper()
	decoded, err := png.Decode(bytes.NewReader(picture))
	require.NoError(t, err)
	bounds, seen := decoded.Bounds(), make(map[color.Color]int)
	for y := range bounds.Max.Y {
		for x := range bounds.Max.X {
			seen[decoded.At(x, y)]++
		}
	}
	var palette color.Palette
	for _, c := range slices.SortedFunc(maps.Keys(seen), func(a, b color.Color) int { return seen[b] - seen[a] }) {
		// What is all but there already must not crowd out the rarer colours.
		if len(palette) < 256 && (len(palette) == 0 || distance(c, palette.Convert(c)) > 6) {
			palette = append(palette, c)
		}
	}
	paletted := image.NewPaletted(bounds, palette)
	draw.Draw(paletted, bounds, decoded, image.Point{}, draw.Src)
	var b bytes.Buffer
	require.NoError(t, (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&b, paletted))
	return b.Bytes()
}

// distance returns how far apart two colours are in the channel that differs
// most, from 0 to 255.
func distance(a, b color.Color) int {
	x, y := color.NRGBAModel.Convert(a).(color.NRGBA), color.NRGBAModel.Convert(b).(color.NRGBA)
	apart := func(p, q uint8) int { return max(int(p)-int(q), int(q)-int(p)) }
	return max(apart(x.R, y.R), apart(x.G, y.G), apart(x.B, y.B))
}
