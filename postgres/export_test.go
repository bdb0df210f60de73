package postgres

import "time"

var (
	ErrInUse = errInUse
	ErrEnded = errEnded
	MayEnd   = mayEnd
)

func Microseconds(d time.Duration) int64 { return *microseconds(d) }
