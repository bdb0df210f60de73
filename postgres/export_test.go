package postgres

import "time"

var (
	ErrInUse = errInUse
	ErrEnded = errEnded
	ErrRaced = errRaced
	Again    = again
	MayEnd   = mayEnd
)

func Microseconds(d time.Duration) int64 { return *microseconds(d) }
