package recoverytest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
)

// A Verdict is what was counted, and which promises were not kept. It is safe for
// concurrent use.
type Verdict struct {
	mu         sync.Mutex
	counts     map[string]int
	violations []violation
}

// violation is a promise that was not kept. Its kinds are
//
//	doubled    something was done twice
//	missing    an answer was given, and nothing was done
//	answer     two answers differ, or one tells of what was not done
//	stuck      a key did not come to its answer
//	status     an answer that nothing explains
//	another    another request under the same key was not refused
//	again      a step that was kept was done again
//	unfenced   a run whose claim is another's has kept a step
//	harness    the proof itself failed
type violation struct{ kind, text string }

func (o *order) violate(kind, format string, args ...any) {
	o.violations = append(o.violations, violation{kind, fmt.Sprintf(format, args...)})
}

func (v *Verdict) violate(kind, format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.violations = append(v.violations, violation{kind, fmt.Sprintf(format, args...)})
}

func (v *Verdict) count(what string, n int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.counts == nil {
		v.counts = make(map[string]int)
	}
	v.counts[what] += n
}

// Count returns how many there were of what was counted.
func (v *Verdict) Count(what string) int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.counts[what]
}

// Counted returns what was counted, but for the kills at each point.
func (v *Verdict) Counted() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	var told []string
	for _, what := range slices.Sorted(maps.Keys(v.counts)) {
		if !strings.HasPrefix(what, killsAt) {
			told = append(told, fmt.Sprintf("%d %s", v.counts[what], what))
		}
	}
	return strings.Join(told, ", ")
}

// Found returns how many promises of a kind were not kept; "" is of any.
func (v *Verdict) Found(kind string) (n int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, found := range v.violations {
		if kind == "" || found.kind == kind {
			n++
		}
	}
	return n
}

// Violations tells of the first promises that were not kept, at most of so many.
func (v *Verdict) Violations(most int) (told []string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, found := range v.violations[:min(most, len(v.violations))] {
		told = append(told, found.kind+": "+found.text)
	}
	return told
}
