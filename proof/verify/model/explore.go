package model

// Result is what an exploration found.
type Result struct {
	States int // different states
	Steps  int // between them
	// Broken is the rule that a step broke, and Trace the steps that led there, of
	// which there is no shorter list. Where the exploration looked for a state,
	// Trace leads to the first. Both are empty where there is none.
	Broken string
	Trace  []string
}

// visit is a state, and the one that it was reached from.
type visit struct {
	state state
	from  int
}

// explore visits every state that can be reached, the nearest first, until a
// step breaks a rule or leads to a state that is wanted; nil wants none.
func explore(c Config, wanted func(state) bool) Result {
	visits := []visit{{from: -1}}
	seen := map[state]bool{{}: true}
	var result Result
	for at := 0; at < len(visits); at++ {
		for _, step := range c.next(visits[at].state) {
			result.Steps++
			if step.broken != "" || wanted != nil && wanted(step.to) {
				result.States, result.Broken = len(visits), step.broken
				result.Trace = append(c.path(visits, at), step.what)
				return result
			}
			if !seen[step.to] {
				seen[step.to] = true
				visits = append(visits, visit{step.to, at})
			}
		}
	}
	result.States = len(visits)
	return result
}

// Explore explores a protocol until one of its rules is broken.
func Explore(c Config) Result { return explore(c, nil) }

// path returns the steps that led to a visit.
func (c Config) path(visits []visit, at int) []string {
	from := visits[at].from
	if from < 0 {
		return nil
	}
	steps := c.path(visits, from)
	for _, step := range c.next(visits[from].state) {
		if step.to == visits[at].state {
			return append(steps, step.what)
		}
	}
	panic("model: a visit that no step leads to")
}
