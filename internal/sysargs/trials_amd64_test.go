// SPDX-License-Identifier: Apache-2.0

//go:build linux

package sysargs

import "golang.org/x/sys/unix"

// archTrials are of calls that newer architectures no longer have.
func archTrials(n *needs) (all []trial) {
	p := text0(nowhere)
	for _, nr := range []uintptr{unix.SYS_OPEN, unix.SYS_CREAT, unix.SYS_ACCESS, unix.SYS_MKDIR, unix.SYS_RMDIR, unix.SYS_UNLINK,
		unix.SYS_CHMOD, unix.SYS_CHOWN, unix.SYS_LCHOWN, unix.SYS_MKNOD} {
		all = append(all, trial{nr: nr, args: []value{p}})
	}
	for _, nr := range []uintptr{unix.SYS_SYMLINK, unix.SYS_LINK, unix.SYS_RENAME} {
		all = append(all, trial{nr: nr, args: []value{text0("/"), p}})
	}
	fds := words(uint64(uint32(n.udp)) | unix.POLLOUT<<32)
	return append(all,
		trial{name: "stat", nr: unix.SYS_STAT, args: []value{text0("/"), buf()}},
		trial{name: "lstat", nr: unix.SYS_LSTAT, args: []value{text0("/"), buf()}},
		trial{name: "readlink", nr: unix.SYS_READLINK, args: []value{text0("/proc/self/exe"), buf(), num(4)}},
		trial{name: "utime", nr: unix.SYS_UTIME, args: []value{p, words(0, 0)}},
		trial{name: "utimes", nr: unix.SYS_UTIMES, args: []value{p, words(0, 0, 0, 0)}},
		trial{name: "futimesat", nr: unix.SYS_FUTIMESAT, args: []value{num(here), p, words(0, 0, 0, 0)}},
		trial{name: "getdents", nr: unix.SYS_GETDENTS, prepare: func(a []value) { _, _ = unix.Seek(int(a[0].n), 0, 0) },
			args: []value{n.directory(), buf().but(least), num(1000)}},
		trial{name: "pipe", nr: unix.SYS_PIPE, args: []value{buf()}},
		trial{name: "poll", nr: unix.SYS_POLL, args: []value{fds, num(1), num(0)}},
		trial{name: "select", nr: unix.SYS_SELECT, args: []value{num(64), words(0), words(1 << (uint(n.udp) % 64)), words(0), words(0, 0).but(quiet)}},
		trial{name: "epoll_wait", nr: unix.SYS_EPOLL_WAIT, args: []value{num(n.epoll), buf(), num(1), num(0)}},
		trial{name: "time", nr: unix.SYS_TIME, args: []value{buf()}},
		trial{name: "signalfd", nr: unix.SYS_SIGNALFD, args: []value{num(-1), words(0), num(8)}, fd: true},
		trial{name: "arch_prctl", nr: unix.SYS_ARCH_PRCTL, args: []value{num(0x1003), buf()}},
	)
}
