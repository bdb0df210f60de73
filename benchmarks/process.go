package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"

	"github.com/redis/go-redis/v9"

	"github.com/idempotency-go/idempotency/benchmarks/internal/compare"
)

// measureCommand takes one measurement, which it reads from stdin.
const measureCommand = "measure"

// measurement is what measureCommand reads.
type measurement struct {
	Cell           compare.Cell
	Addr, Password string // of the Redis
}

// measureInProcess takes a measurement in a process of its own: what one
// contestant leaves behind, in memory above all, is no load for the next.
func measureInProcess(ctx context.Context, cell compare.Cell, options *redis.Options) (compare.Result, error) {
	program, err := os.Executable()
	if err != nil {
		return compare.Result{}, err
	}
	input, err := json.Marshal(measurement{cell, options.Addr, options.Password})
	if err != nil {
		return compare.Result{}, err
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, program, measureCommand)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return compare.Result{}, errors.Join(err, errors.New(stderr.String()))
	}
	var result compare.Result
	if err := json.Unmarshal(stdout.Bytes(), &result); err != nil {
		return compare.Result{}, fmt.Errorf("result: %w", err)
	}
	return result, nil
}

// runMeasure is the other end of measureInProcess.
func runMeasure(ctx context.Context, stdin io.Reader, stdout io.Writer) error {
	var m measurement
	if err := json.NewDecoder(stdin).Decode(&m); err != nil {
		return fmt.Errorf("measurement: %w", err)
	}
	result, err := compare.Measure(ctx, m.Cell, &redis.Options{Addr: m.Addr, Password: m.Password})
	if err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(result)
}
