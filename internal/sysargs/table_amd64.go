// SPDX-License-Identifier: Apache-2.0

//go:build linux

package sysargs

import "golang.org/x/sys/unix"

const (
	sizeStat  = 144
	sizeEpoll = 12 // packed
	tagMask   = 0
)

// archCalls are those that newer architectures no longer have.
func archCalls() map[uintptr]call {
	return map[uintptr]call{
		unix.SYS_OPEN:       of(path(0)),
		unix.SYS_CREAT:      of(path(0)),
		unix.SYS_STAT:       of(path(0), out(1, sizeStat)),
		unix.SYS_LSTAT:      of(path(0), out(1, sizeStat)),
		unix.SYS_ACCESS:     of(path(0)),
		unix.SYS_READLINK:   of(path(0), outI(1, 2, 1)),
		unix.SYS_MKDIR:      of(path(0)),
		unix.SYS_RMDIR:      of(path(0)),
		unix.SYS_UNLINK:     of(path(0)),
		unix.SYS_SYMLINK:    of(path(0), path(1)),
		unix.SYS_LINK:       of(path(0), path(1)),
		unix.SYS_RENAME:     of(path(0), path(1)),
		unix.SYS_CHMOD:      of(path(0)),
		unix.SYS_CHOWN:      of(path(0)),
		unix.SYS_LCHOWN:     of(path(0)),
		unix.SYS_MKNOD:      of(path(0)),
		unix.SYS_UTIME:      of(path(0), in(1, 16)),
		unix.SYS_UTIMES:     of(path(0), in(1, 2*sizeTimeval)),
		unix.SYS_FUTIMESAT:  of(path(1), in(2, 2*sizeTimeval)),
		unix.SYS_GETDENTS:   of(outI(1, 2, 1)),
		unix.SYS_PIPE:       of(out(0, 8)),
		unix.SYS_POLL:       of(outI(0, 1, sizePollfd)),
		unix.SYS_SELECT:     of(maybe(1, nfdMax/8), maybe(2, nfdMax/8), maybe(3, nfdMax/8), out(4, sizeTimeval)).also((*walk).selects),
		unix.SYS_EPOLL_WAIT: of(outI(1, 2, sizeEpoll)),
		unix.SYS_TIME:       of(out(0, 8)),
		unix.SYS_SIGNALFD:   of(in(1, sizeSigset)),
		unix.SYS_ARCH_PRCTL: of(maybe(1, 8)).also((*walk).archPrctl),
	}
}

func (w *walk) selects() {
	n := uint64(max(int32(w.args[0]), 0))
	for i := 1; i <= 3; i++ {
		w.out(uint64(w.args[i]), (min(n, nfdMax)+63)/64*8)
	}
}

func (w *walk) archPrctl() {
	const getFS, getGS = 0x1003, 0x1004
	if w.args[0] == getFS || w.args[0] == getGS {
		w.out(uint64(w.args[1]), 8)
	}
}
