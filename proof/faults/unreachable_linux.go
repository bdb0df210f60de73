package main

import (
	"errors"
	"net"
	"syscall"
	"time"
)

// listenUnreachable returns an address of which connections are never made: the
// queue of its listener is full, so that the kernel drops what comes, as a host
// that is gone does.
func listenUnreachable() (addr string, stop func(), err error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", nil, err
	}
	stop = func() { _ = syscall.Close(fd) }
	port, err := freePort()
	if err == nil {
		err = syscall.Bind(fd, &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
	}
	if err == nil {
		err = syscall.Listen(fd, 0)
	}
	if err != nil {
		stop()
		return "", nil, err
	}
	addr = loopback(port)
	for range 4 {
		conn, err := net.DialTimeout("tcp", addr, 100*time.Millisecond)
		if err != nil {
			return addr, stop, nil
		}
		close := stop
		stop = func() { conn.Close(); close() }
	}
	stop()
	return "", nil, errors.New("the listener takes all connections")
}
