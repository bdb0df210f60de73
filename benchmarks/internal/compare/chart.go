package compare

import (
	"bytes"
	"fmt"
	"image/color"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// The chart's measures, and the colours of its operations, which can be told
// apart without seeing colours too: their lightness differs.
const (
	chartWidth  = 10.5 * vg.Inch
	chartHeight = 7 * vg.Inch
	barWidth    = vg.Length(13)

	legendHeight = vg.Length(40)
	legendWidth  = vg.Length(130) // of each operation
)

var operationColors = map[Operation]color.Color{
	NoKey:  color.RGBA{R: 0xb8, G: 0xc4, B: 0xd0, A: 0xff},
	First:  color.RGBA{R: 0xd9, G: 0x8a, B: 0x1e, A: 0xff},
	Replay: color.RGBA{R: 0x1f, G: 0x4e, B: 0x79, A: 0xff},
}

// chart draws, side by side, the time of a request and the requests a second.
func (c *comparison) chart() ([]byte, error) {
	left, err := c.panel("Time of a request over loopback, 1 client", "µs, less is better", 1,
		func(cell Cell) float64 { return c.median(cell, perOp) / 1e3 })
	if err != nil {
		return nil, err
	}
	right, err := c.panel(fmt.Sprintf("Requests a second over loopback, %d clients", c.Clients), "thousands a second, more is better", c.Clients,
		func(cell Cell) float64 { return c.median(cell, perSecond) / 1e3 })
	if err != nil {
		return nil, err
	}
	right.HideY()

	canvas := vgsvg.New(chartWidth, chartHeight)
	surface := draw.New(canvas)
	surface.SetColor(color.White) // GitHub's own may be dark.
	surface.Fill(surface.Rectangle.Path())
	if err := drawLegend(draw.Crop(surface, 12, 0, 0, -12)); err != nil {
		return nil, err
	}
	below := draw.Crop(surface, 0, 0, 0, -legendHeight)
	tiles := draw.Tiles{Rows: 1, Cols: 2, PadX: 20, PadTop: 4, PadBottom: 10, PadLeft: 10, PadRight: 14}
	for i, tile := range plot.Align([][]*plot.Plot{{left, right}}, tiles, below)[0] {
		[]*plot.Plot{left, right}[i].Draw(tile)
	}
	var svg bytes.Buffer
	if _, err := canvas.WriteTo(&svg); err != nil {
		return nil, err
	}
	// The font is not in the file: fonts of the same widths take its place.
	return bytes.ReplaceAll(svg.Bytes(), []byte("font-family:Liberation Sans"),
		[]byte("font-family:Liberation Sans,Arial,Helvetica,sans-serif")), nil
}

// panel draws one figure of every contestant as horizontal bars, a group for
// each contestant.
func (c *comparison) panel(title, unit string, clients int, value func(Cell) float64) (*plot.Plot, error) {
	p := plot.New()
	p.Title.Text, p.X.Label.Text = title, unit
	sans(&p.Title.TextStyle, 13)
	sans(&p.X.Label.TextStyle, 12)
	sans(&p.X.Tick.Label, 11)
	sans(&p.Y.Tick.Label, 12)
	p.X.Min = 0
	p.X.Padding, p.Title.Padding = 0, 8

	names := make([]string, len(contestants))
	most := 0.0
	for i, op := range operations {
		values := make(plotter.Values, len(contestants))
		labels := make([]string, len(contestants))
		for j, who := range contestants {
			// The first contestant stands at the top.
			at := len(contestants) - 1 - j
			values[at] = value(c.cell(who.name, op, true, clients))
			labels[at], names[at] = fmt.Sprintf("%.3g", values[at]), who.name
		}
		most = max(most, slices.Max(values))
		bars, err := newBars(op, values)
		if err != nil {
			return nil, err
		}
		bars.Offset = vg.Length(len(operations)-1-2*i) / 2 * (barWidth + 1)
		p.Add(bars)
		numbers, err := numbersBeside(values, labels, bars.Offset)
		if err != nil {
			return nil, err
		}
		p.Add(numbers)
	}
	p.X.Max = 1.15 * most // The longest bar's number stands beside it.
	p.NominalY(names...)
	return p, nil
}

// newBars returns the bars of an operation.
func newBars(op Operation, values plotter.Values) (*plotter.BarChart, error) {
	bars, err := plotter.NewBarChart(values, barWidth)
	if err != nil {
		return nil, err
	}
	bars.Horizontal = true
	bars.Color, bars.LineStyle.Width = operationColors[op], 0
	return bars, nil
}

// drawLegend names the operations beside each other at the top of a canvas.
func drawLegend(surface draw.Canvas) error {
	for i, op := range operations {
		bars, err := newBars(op, plotter.Values{0})
		if err != nil {
			return err
		}
		legend := plot.NewLegend()
		legend.Top, legend.Left = true, true
		legend.Padding = 4
		sans(&legend.TextStyle, 13)
		legend.Add(string(op), bars)
		legend.Draw(draw.Crop(surface, vg.Length(i)*legendWidth, 0, 0, 0))
	}
	return nil
}

// numbersBeside returns labels that stand at the ends of horizontal bars.
func numbersBeside(values plotter.Values, labels []string, offset vg.Length) (*plotter.Labels, error) {
	points := make(plotter.XYs, len(values))
	for i, v := range values {
		points[i] = plotter.XY{X: v, Y: float64(i)}
	}
	numbers, err := plotter.NewLabels(plotter.XYLabels{XYs: points, Labels: labels})
	if err != nil {
		return nil, err
	}
	for i := range numbers.TextStyle {
		sans(&numbers.TextStyle[i], 10)
		numbers.TextStyle[i].YAlign = draw.YCenter
	}
	numbers.Offset = vg.Point{X: 3, Y: offset}
	return numbers, nil
}

// sans sets a style to a sans-serif font of a size in points.
func sans(style *text.Style, size vg.Length) {
	style.Font = font.Font{Typeface: "Liberation", Variant: "Sans", Size: size}
}
