// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package sysargs

import (
	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/mem"
)

// vector follows an array of struct iovec.
func vector(at, n int, write bool) func(*walk) {
	return func(w *walk) { w.iovecs(uint64(w.args[at]), uint64(w.args[n]), write) }
}

// remote is for the calls that have a second array, of another process's
// memory.
func remote(write bool) func(*walk) {
	return func(w *walk) {
		w.iovecs(uint64(w.args[1]), uint64(w.args[2]), write)
		w.in(uint64(w.args[3]), sizeIovec*uint64(min(w.args[4], iovMax)))
	}
}

func (w *walk) iovecs(at, count uint64, write bool) {
	count = min(count, iovMax)
	w.in(at, sizeIovec*count)
	w.each(at, count, sizeIovec, w.outer[:], func(w *walk, b []byte) bool {
		w.add(u64(b, 0), u64(b, 8), write)
		return true
	})
}

// msghdr follows a struct msghdr. A receiver writes to it, too.
func (w *walk) msghdr(at uint64, write bool) {
	w.add(at, sizeMsghdr, write)
	b, ok := w.whole(at, sizeMsghdr)
	if !ok {
		return
	}
	name, nameLen := u64(b, 0), uint64(u32(b, 8))
	iov, iovLen := u64(b, 16), u64(b, 24)
	control, controlLen := u64(b, 32), u64(b, 40)
	w.add(name, min(nameLen, sizeSockaddr), write)
	w.add(control, min(controlLen, 1<<20), write)
	w.iovecs(iov, iovLen, write)
}

func (w *walk) mmsghdr(write bool) {
	for i := range uint64(min(uint32(w.args[2]), iovMax)) {
		at := uint64(w.args[1]) + i*sizeMmsghdr
		w.msghdr(at, write)
		w.out(at+sizeMsghdr, sizeMmsghdr-sizeMsghdr)
	}
}

// sockaddr is an address that is returned, as long as the caller says.
func (w *walk) sockaddr(at, lenAt uintptr) {
	if at == 0 {
		return
	}
	if n, ok := w.u32(uint64(lenAt)); ok && int32(n) > 0 {
		w.out(uint64(at), uint64(min(n, sizeSockaddr)))
	}
}

func (w *walk) fcntl() {
	switch int(w.args[1]) {
	case unix.F_GETLK, unix.F_OFD_GETLK:
		w.out(uint64(w.args[2]), sizeFlock)
	case unix.F_SETLK, unix.F_SETLKW, unix.F_OFD_SETLK, unix.F_OFD_SETLKW:
		w.in(uint64(w.args[2]), sizeFlock)
	case unix.F_GETOWN_EX, unix.F_GET_RW_HINT, unix.F_GET_FILE_RW_HINT:
		w.out(uint64(w.args[2]), 8)
	case unix.F_SETOWN_EX, unix.F_SET_RW_HINT, unix.F_SET_FILE_RW_HINT:
		w.in(uint64(w.args[2]), 8)
	}
}

// ttyRequests are requests whose number says nothing of their argument.
var ttyRequests = map[uint32]struct {
	size  uint64
	write bool
}{
	unix.TCGETS: {sizeTermios, true}, unix.TCSETS: {sizeTermios, false},
	unix.TCSETSW: {sizeTermios, false}, unix.TCSETSF: {sizeTermios, false},
	unix.TIOCGWINSZ: {8, true}, unix.TIOCSWINSZ: {8, false},
	unix.TIOCGPGRP: {4, true}, unix.TIOCSPGRP: {4, false}, unix.TIOCGSID: {4, true},
	unix.TIOCINQ: {4, true}, unix.TIOCOUTQ: {4, true}, fionbio: {4, false},
}

const fionbio = 0x5421

func (w *walk) ioctl() {
	req := uint32(w.args[1])
	if r, ok := ttyRequests[req]; ok {
		w.add(uint64(w.args[2]), r.size, r.write)
		return
	}
	const uffd = 0xaa
	const read = 2 // the caller reads, the kernel writes
	dir, size, kind := req>>30, uint64(req>>16&0x3fff), req>>8&0xff
	if dir == 0 || kind == uffd {
		return
	}
	w.add(uint64(w.args[2]), size, dir&read != 0)
}

func (w *walk) pselect() {
	n := uint64(max(int32(w.args[0]), 0))
	bytes := (min(n, nfdMax) + 63) / 64 * 8
	for i := 1; i <= 3; i++ {
		w.out(uint64(w.args[i]), bytes)
	}
	// The last argument is a pointer to a signal set and its size.
	if b, ok := w.whole(uint64(w.args[5]), 16); ok {
		w.in(u64(b, 0), sizeSigset)
	}
}

func (w *walk) futex() {
	const (
		wait, requeue, cmpRequeue, wakeOp            = 0, 3, 4, 5
		lock, unlock, try                            = 6, 7, 8
		waitBitset, waitRequeue, cmpRequeuePI        = 9, 11, 12
		lock2                                        = 13
		private                               uint32 = 128 | 256
	)
	op := uint32(w.args[1]) &^ private
	switch op {
	case lock, unlock, try, lock2:
		w.out(uint64(w.args[0]), 4)
	default:
		w.in(uint64(w.args[0]), 4)
	}
	switch op {
	case wait, lock, waitBitset, waitRequeue, lock2:
		w.in(uint64(w.args[3]), sizeTimespec)
	}
	switch op {
	case requeue, cmpRequeue:
		w.in(uint64(w.args[4]), 4)
	case wakeOp, waitRequeue, cmpRequeuePI:
		w.out(uint64(w.args[4]), 4)
	}
}

// strings follows an array of pointers to strings that ends with a nil one.
func (w *walk) strings(arg int) {
	at := uint64(w.args[arg])
	if at == 0 {
		return
	}
	const most = 1 << 17
	n := uint64(0)
	w.each(at, most, 8, w.outer[:], func(w *walk, b []byte) bool {
		n++
		s := u64(b, 0)
		if s != 0 {
			w.text(s, maxStrings)
		}
		return s != 0
	})
	w.in(at, 8*(n+1))
}

func (w *walk) mincore() {
	w.out(uint64(w.args[2]), (uint64(w.args[1])+mem.PageSize-1)/mem.PageSize)
}

func (w *walk) prctl() {
	switch w.args[0] {
	case unix.PR_SET_NAME:
		w.text(uint64(w.args[1]), 15)
	case unix.PR_GET_NAME:
		w.out(uint64(w.args[1]), 16)
	case unix.PR_GET_PDEATHSIG, unix.PR_GET_CHILD_SUBREAPER:
		w.out(uint64(w.args[1]), 4)
	}
}
