package postgres

var ErrInUse = errInUse
