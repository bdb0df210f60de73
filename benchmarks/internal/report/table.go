package report

import (
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Save writes a file into a directory, which it makes where there is none.
func Save(dir, name string, content []byte) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, name), content, 0o644)
}

// Table writes a table in Markdown, with an empty line after it. The first
// column, and those that are not numeric, are aligned to the left.
func Table(w io.Writer, head []string, numeric func(column int) bool, rows [][]string) {
	fmt.Fprintf(w, "| %s |\n|", strings.Join(head, " | "))
	for i := range head {
		if numeric(i) {
			fmt.Fprint(w, " ---: |")
		} else {
			fmt.Fprint(w, " --- |")
		}
	}
	fmt.Fprintln(w)
	for _, row := range rows {
		fmt.Fprintf(w, "| %s |\n", strings.Join(row, " | "))
	}
	fmt.Fprintln(w)
}

// Duration renders nanoseconds with three significant digits.
func Duration(ns float64) string {
	for _, unit := range []struct {
		ns   float64
		name string
	}{{1e9, "s"}, {1e6, "ms"}, {1e3, "µs"}} {
		if math.Abs(ns) >= unit.ns {
			return significant(ns/unit.ns) + " " + unit.name
		}
	}
	return fmt.Sprintf("%.0f ns", ns)
}

// Ratio renders a quotient.
func Ratio(r float64) string { return significant(r) + " ×" }

// significant renders x with three significant digits, at the least those
// before the point.
func significant(x float64) string {
	switch {
	case math.Abs(x) >= 99.95:
		return strconv.FormatFloat(x, 'f', 0, 64)
	case math.Abs(x) >= 9.995:
		return strconv.FormatFloat(x, 'f', 1, 64)
	default:
		return strconv.FormatFloat(x, 'f', 2, 64)
	}
}

// Count renders a number without its fraction, its thousands told apart.
func Count(x float64) string {
	digits := strconv.FormatFloat(math.Abs(x), 'f', 0, 64)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	if x < 0 && digits != "0" {
		return "-" + digits
	}
	return digits
}

// Median returns the middle one of values, or the mean of the two in the middle.
// It leaves values as they are, and panics if there are none.
func Median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}
