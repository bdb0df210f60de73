// Package report writes what the measurements found: tables in Markdown, and
// what of the machine belongs beside them.
package report

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// A Machine is where and when something was measured.
type Machine struct {
	CPU, System, Go, Redis string
	Cores                  int // that Go uses
	Date                   string
}

// Describe describes this machine, and the Redis that the options lead to.
func Describe(ctx context.Context, options *redis.Options) (Machine, error) {
	client := redis.NewClient(options)
	defer client.Close()
	info, err := client.Info(ctx, "server").Result()
	if err != nil {
		return Machine{}, err
	}
	version, found := InfoField(info, "redis_version")
	if !found {
		return Machine{}, errors.New("redis: no version in INFO")
	}
	return Machine{
		CPU:    cpuModel(),
		System: runtime.GOOS + "/" + runtime.GOARCH,
		Go:     runtime.Version(),
		Redis:  version,
		Cores:  runtime.GOMAXPROCS(0),
		Date:   time.Now().UTC().Format(time.DateOnly),
	}, nil
}

// InfoField returns a field of Redis's INFO.
func InfoField(info, name string) (value string, found bool) {
	for line := range strings.Lines(info) {
		if value, found = strings.CutPrefix(strings.TrimSpace(line), name+":"); found {
			return value, true
		}
	}
	return "", false
}

// Write writes the machine, and the versions of the modules named, as a list.
func (m Machine) Write(w io.Writer, modules ...string) {
	fmt.Fprintf(w, "- %s, %d cores, %s\n", m.CPU, m.Cores, m.System)
	fmt.Fprintf(w, "- %s, Redis %s on the same machine\n", m.Go, m.Redis)
	for _, path := range modules {
		fmt.Fprintf(w, "- %s %s\n", path, moduleVersion(path))
	}
	fmt.Fprintf(w, "- %s\n", m.Date)
}

// moduleVersion returns the version of a module that this program was built with.
func moduleVersion(path string) string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, module := range info.Deps {
			if module.Path == path {
				return module.Version
			}
		}
	}
	return "of an unknown version"
}

// cpuModel returns the processor's name where the system tells it.
func cpuModel() string {
	file, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return "processor of an unknown model"
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ":")
		if strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "processor of an unknown model"
}
