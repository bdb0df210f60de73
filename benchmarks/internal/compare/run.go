package compare

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/idempotency-go/idempotency/benchmarks/internal/report"
)

// Config is what a comparison is made by.
type Config struct {
	Rounds  int           // how often each measurement is taken
	Time    time.Duration // of each measurement
	Clients int           // how many are many clients
	Redis   *redis.Options
	// Measure takes a measurement: [Measure], or the same in a process of its own.
	Measure func(ctx context.Context, cell Cell, redis *redis.Options) (Result, error)
	// Progress is told of each measurement.
	Progress io.Writer
	// Out is the directory that compare.md and compare.svg are written to.
	Out string
}

// comparison is a comparison with its results, one of each round.
type comparison struct {
	Config
	machine report.Machine
	results map[Cell][]Result
}

// Run takes all measurements, round by round, and writes the report. The
// contestants take turns, so that what slows the machine down for a while slows
// all of them.
func Run(ctx context.Context, config Config) error {
	switch {
	case config.Rounds < 1:
		return errors.New("rounds: fewer than 1")
	case config.Time <= 0:
		return errors.New("time: not positive")
	case config.Clients < 2:
		return errors.New("clients: fewer than 2")
	}
	machine, err := report.Describe(ctx, config.Redis)
	if err != nil {
		return err
	}
	c := &comparison{Config: config, machine: machine, results: make(map[Cell][]Result)}
	if err := c.measureAll(ctx); err != nil {
		return err
	}
	return c.write()
}

// cell returns a measurement of this comparison.
func (c *comparison) cell(contestant string, op Operation, loopback bool, clients int) Cell {
	return Cell{contestant, op, loopback, clients, c.Time}
}

// cells returns all measurements of a round, in their order.
func (c *comparison) cells() []Cell {
	var cells []Cell
	for _, series := range []struct {
		loopback bool
		clients  int
	}{{false, 1}, {true, 1}, {true, c.Clients}} {
		for _, op := range operations {
			for _, who := range contestants {
				cells = append(cells, c.cell(who.name, op, series.loopback, series.clients))
			}
		}
	}
	return cells
}

func (c *comparison) measureAll(ctx context.Context) error {
	cells := c.cells()
	total := c.Rounds * len(cells)
	fmt.Fprintf(c.Progress, "%d measurements of %v\n", total, c.Time)
	done := 0
	for range c.Rounds {
		for _, cell := range cells {
			result, err := c.Measure(ctx, cell, c.Redis)
			if err == nil {
				err = ctx.Err() // Cut short, it is no measurement.
			}
			if err != nil {
				return fmt.Errorf("%v: %w", cell, err)
			}
			c.results[cell] = append(c.results[cell], result)
			done++
			fmt.Fprintf(c.Progress, "[%d/%d] %v: %s, %s/s\n",
				done, total, cell, report.Duration(result.PerOp), report.Count(result.PerSecond))
		}
	}
	return nil
}

// String names the measurement.
func (c Cell) String() string {
	way := "in process"
	if c.Loopback {
		way = "loopback"
	}
	return fmt.Sprintf("%s, %s, %d at once: %s", c.Contestant, way, c.Clients, c.Operation)
}

// median returns the median over the rounds of one figure of a measurement.
func (c *comparison) median(cell Cell, figure func(Result) float64) float64 {
	var values []float64
	for _, r := range c.results[cell] {
		values = append(values, figure(r))
	}
	return report.Median(values)
}

// ratio returns the median over the rounds of the quotient of a figure and the
// same figure of the same server without idempotency, taken in the same round.
func (c *comparison) ratio(cell Cell, figure func(Result) float64) float64 {
	var values []float64
	bare := c.results[bareOf(cell)]
	for i, r := range c.results[cell] {
		values = append(values, figure(r)/figure(bare[i]))
	}
	return report.Median(values)
}

// bareOf returns the same measurement of the same server without idempotency.
func bareOf(cell Cell) Cell {
	if who, found := contestantNamed(cell.Contestant); found {
		cell.Contestant = who.bare
	}
	return cell
}

func perOp(r Result) float64     { return r.PerOp }
func perSecond(r Result) float64 { return r.PerSecond }
func allocs(r Result) float64    { return r.Allocs }

// write writes the report and its chart.
func (c *comparison) write() error {
	chart, err := c.chart()
	if err != nil {
		return err
	}
	return errors.Join(
		report.Save(c.Out, "compare.svg", chart),
		report.Save(c.Out, "compare.md", c.markdown()),
	)
}
