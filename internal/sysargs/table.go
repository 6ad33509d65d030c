// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package sysargs

import "golang.org/x/sys/unix"

// Sizes of the kernel's structs that both architectures have alike.
const (
	sizeIovec    = 16
	sizeMsghdr   = 56
	sizeMmsghdr  = 64
	sizePollfd   = 8
	sizeRlimit   = 16
	sizeRusage   = 144
	sizeSiginfo  = 128
	sizeAction   = 32
	sizeStack    = 24
	sizeStatfs   = 120
	sizeStatx    = 256
	sizeSysinfo  = 112
	sizeTimespec = 16
	sizeTimeval  = 16
	sizeTimer    = 32 // struct itimerspec and itimerval
	sizeTimezone = 8
	sizeTimex    = 208
	sizeTms      = 32
	sizeUtsname  = 390
	sizeFlock    = 32
	sizeSockaddr = 128
	sizeSigset   = 8
	sizeTermios  = 36
	sizeCaps     = 24
	sizeSched    = 56
)

// fileCalls name files, and tell of them.
func fileCalls() map[uintptr]call {
	return map[uintptr]call{
		unix.SYS_OPENAT:            of(path(1)),
		unix.SYS_OPENAT2:           of(path(1), inN(2, 3, 1)),
		unix.SYS_NEWFSTATAT:        of(path(1), out(2, sizeStat)),
		unix.SYS_FSTAT:             of(out(1, sizeStat)),
		unix.SYS_STATX:             of(path(1), out(4, sizeStatx)),
		unix.SYS_STATFS:            of(path(0), out(1, sizeStatfs)),
		unix.SYS_FSTATFS:           of(out(1, sizeStatfs)),
		unix.SYS_FACCESSAT:         of(path(1)),
		unix.SYS_FACCESSAT2:        of(path(1)),
		unix.SYS_READLINKAT:        of(path(1), outI(2, 3, 1)),
		unix.SYS_GETCWD:            of(outN(0, 1, 1).most(pathMax)),
		unix.SYS_CHDIR:             of(path(0)),
		unix.SYS_CHROOT:            of(path(0)),
		unix.SYS_MKDIRAT:           of(path(1)),
		unix.SYS_MKNODAT:           of(path(1)),
		unix.SYS_UNLINKAT:          of(path(1)),
		unix.SYS_SYMLINKAT:         of(path(0), path(2)),
		unix.SYS_LINKAT:            of(path(1), path(3)),
		unix.SYS_RENAMEAT2:         of(path(1), path(3)),
		unix.SYS_RENAMEAT:          of(path(1), path(3)),
		unix.SYS_FCHMODAT:          of(path(1)),
		unix.SYS_FCHOWNAT:          of(path(1)),
		unix.SYS_UTIMENSAT:         of(path(1), in(2, 2*sizeTimespec)),
		unix.SYS_TRUNCATE:          of(path(0)),
		unix.SYS_GETDENTS64:        of(outI(1, 2, 1)),
		unix.SYS_MEMFD_CREATE:      of(str(0, 256)),
		unix.SYS_INOTIFY_ADD_WATCH: of(path(1)),
		unix.SYS_GETXATTR:          of(path(0), str(1, 256), outN(2, 3, 1)),
		unix.SYS_LGETXATTR:         of(path(0), str(1, 256), outN(2, 3, 1)),
		unix.SYS_FGETXATTR:         of(str(1, 256), outN(2, 3, 1)),
		unix.SYS_SETXATTR:          of(path(0), str(1, 256), inN(2, 3, 1)),
		unix.SYS_LSETXATTR:         of(path(0), str(1, 256), inN(2, 3, 1)),
		unix.SYS_FSETXATTR:         of(str(1, 256), inN(2, 3, 1)),
		unix.SYS_LISTXATTR:         of(path(0), outN(1, 2, 1)),
		unix.SYS_LLISTXATTR:        of(path(0), outN(1, 2, 1)),
		unix.SYS_FLISTXATTR:        of(outN(1, 2, 1)),
		unix.SYS_REMOVEXATTR:       of(path(0), str(1, 256)),
		unix.SYS_LREMOVEXATTR:      of(path(0), str(1, 256)),
		unix.SYS_FREMOVEXATTR:      of(str(1, 256)),
		unix.SYS_FCNTL:             of(maybe(2, sizeFlock)).also((*walk).fcntl),
		unix.SYS_IOCTL:             of(maybe(2, 1<<14)).also((*walk).ioctl),
	}
}

// dataCalls move data.
func dataCalls() map[uintptr]call {
	return map[uintptr]call{
		unix.SYS_READ:              of(outN(1, 2, 1)),
		unix.SYS_WRITE:             of(inN(1, 2, 1)),
		unix.SYS_PREAD64:           of(outN(1, 2, 1)),
		unix.SYS_PWRITE64:          of(inN(1, 2, 1)),
		unix.SYS_READV:             of(array(1, 2, sizeIovec)).with(vector(1, 2, true)),
		unix.SYS_WRITEV:            of(array(1, 2, sizeIovec)).with(vector(1, 2, false)),
		unix.SYS_PREADV:            of(array(1, 2, sizeIovec)).with(vector(1, 2, true)),
		unix.SYS_PWRITEV:           of(array(1, 2, sizeIovec)).with(vector(1, 2, false)),
		unix.SYS_PREADV2:           of(array(1, 2, sizeIovec)).with(vector(1, 2, true)),
		unix.SYS_PWRITEV2:          of(array(1, 2, sizeIovec)).with(vector(1, 2, false)),
		unix.SYS_VMSPLICE:          of(array(1, 2, sizeIovec)).with(vector(1, 2, true)),
		unix.SYS_PROCESS_VM_READV:  of(array(1, 2, sizeIovec), array(3, 4, sizeIovec)).with(remote(true)),
		unix.SYS_PROCESS_VM_WRITEV: of(array(1, 2, sizeIovec), array(3, 4, sizeIovec)).with(remote(false)),
		unix.SYS_SENDFILE:          of(out(2, 8)),
		unix.SYS_SPLICE:            of(out(1, 8), out(3, 8)),
		unix.SYS_COPY_FILE_RANGE:   of(out(1, 8), out(3, 8)),
		unix.SYS_GETRANDOM:         of(outN(0, 1, 1)),
		unix.SYS_PIPE2:             of(out(0, 8)),
	}
}

// socketCalls are those of sockets.
func socketCalls() map[uintptr]call {
	named := func(c call, addr, n int) call {
		return c.also(func(w *walk) { w.sockaddr(w.args[addr], w.args[n]) })
	}
	return map[uintptr]call{
		unix.SYS_BIND:        of(inI(1, 2, 1).most(sizeSockaddr)),
		unix.SYS_CONNECT:     of(inI(1, 2, 1).most(sizeSockaddr)),
		unix.SYS_SENDTO:      of(inN(1, 2, 1), inI(4, 5, 1).most(sizeSockaddr)),
		unix.SYS_RECVFROM:    named(of(outN(1, 2, 1), maybe(4, sizeSockaddr), out(5, 4)), 4, 5),
		unix.SYS_ACCEPT:      named(of(maybe(1, sizeSockaddr), out(2, 4)), 1, 2),
		unix.SYS_ACCEPT4:     named(of(maybe(1, sizeSockaddr), out(2, 4)), 1, 2),
		unix.SYS_GETSOCKNAME: named(of(maybe(1, sizeSockaddr), out(2, 4)), 1, 2),
		unix.SYS_GETPEERNAME: named(of(maybe(1, sizeSockaddr), out(2, 4)), 1, 2),
		unix.SYS_GETSOCKOPT: of(maybe(3, 1<<16), out(4, 4)).also(func(w *walk) {
			if n, ok := w.u32(uint64(w.args[4])); ok {
				w.out(uint64(w.args[3]), uint64(min(n, 1<<16)))
			}
		}),
		unix.SYS_SETSOCKOPT: of(inI(3, 4, 1)),
		unix.SYS_SOCKETPAIR: of(out(3, 8)),
		unix.SYS_SENDMSG:    of(in(1, sizeMsghdr)).with(func(w *walk) { w.msghdr(uint64(w.args[1]), false) }),
		unix.SYS_RECVMSG:    of(out(1, sizeMsghdr)).with(func(w *walk) { w.msghdr(uint64(w.args[1]), true) }),
		unix.SYS_SENDMMSG:   of(array(1, 2, sizeMmsghdr)).with(func(w *walk) { w.mmsghdr(false) }),
		unix.SYS_RECVMMSG:   of(array(1, 2, sizeMmsghdr), out(4, sizeTimespec)).with(func(w *walk) { w.mmsghdr(true) }),
	}
}

// waitCalls wait for something.
func waitCalls() map[uintptr]call {
	return map[uintptr]call{
		unix.SYS_PPOLL:         of(outI(0, 1, sizePollfd), out(2, sizeTimespec), in(3, sizeSigset)),
		unix.SYS_EPOLL_CTL:     of(in(3, sizeEpoll)),
		unix.SYS_EPOLL_PWAIT:   of(outI(1, 2, sizeEpoll), in(4, sizeSigset)),
		unix.SYS_EPOLL_PWAIT2:  of(outI(1, 2, sizeEpoll), in(3, sizeTimespec), in(4, sizeSigset)),
		unix.SYS_PSELECT6:      of(maybe(1, nfdMax/8), maybe(2, nfdMax/8), maybe(3, nfdMax/8), out(4, sizeTimespec), in(5, 16)).with((*walk).pselect),
		unix.SYS_FUTEX:         of(maybe(0, 4), maybe(3, sizeTimespec), maybe(4, 4)).also((*walk).futex),
		unix.SYS_WAIT4:         of(out(1, 4), out(3, sizeRusage)),
		unix.SYS_WAITID:        of(out(2, sizeSiginfo), out(4, sizeRusage)),
		unix.SYS_NANOSLEEP:     of(in(0, sizeTimespec), out(1, sizeTimespec)),
		unix.SYS_RT_SIGSUSPEND: of(in(0, sizeSigset)),
	}
}

// timeCalls are those of clocks.
func timeCalls() map[uintptr]call {
	return map[uintptr]call{
		unix.SYS_CLOCK_GETTIME:   of(out(1, sizeTimespec)),
		unix.SYS_CLOCK_SETTIME:   of(in(1, sizeTimespec)),
		unix.SYS_CLOCK_GETRES:    of(out(1, sizeTimespec)),
		unix.SYS_CLOCK_NANOSLEEP: of(in(2, sizeTimespec), out(3, sizeTimespec)),
		unix.SYS_CLOCK_ADJTIME:   of(out(1, sizeTimex)),
		unix.SYS_ADJTIMEX:        of(out(0, sizeTimex)),
		unix.SYS_GETTIMEOFDAY:    of(out(0, sizeTimeval), out(1, sizeTimezone)),
		unix.SYS_SETTIMEOFDAY:    of(in(0, sizeTimeval), in(1, sizeTimezone)),
		unix.SYS_TIMES:           of(out(0, sizeTms)),
		unix.SYS_GETITIMER:       of(out(1, sizeTimer)),
		unix.SYS_SETITIMER:       of(in(1, sizeTimer), out(2, sizeTimer)),
		unix.SYS_TIMER_CREATE:    of(in(1, 64), out(2, 4)),
		unix.SYS_TIMER_SETTIME:   of(in(2, sizeTimer), out(3, sizeTimer)),
		unix.SYS_TIMER_GETTIME:   of(out(1, sizeTimer)),
		unix.SYS_TIMERFD_SETTIME: of(in(2, sizeTimer), out(3, sizeTimer)),
		unix.SYS_TIMERFD_GETTIME: of(out(1, sizeTimer)),
	}
}

// processCalls are those of processes, and of the system.
func processCalls() map[uintptr]call {
	return map[uintptr]call{
		unix.SYS_EXECVE:             of(path(0), maybe(1, 8), maybe(2, 8)).with(func(w *walk) { w.strings(1); w.strings(2) }),
		unix.SYS_EXECVEAT:           of(path(1), maybe(2, 8), maybe(3, 8)).with(func(w *walk) { w.strings(2); w.strings(3) }),
		unix.SYS_CLONE3:             of(inN(0, 1, 1)),
		unix.SYS_UNAME:              of(out(0, sizeUtsname)),
		unix.SYS_SYSINFO:            of(out(0, sizeSysinfo)),
		unix.SYS_GETRUSAGE:          of(out(1, sizeRusage)),
		unix.SYS_GETRLIMIT:          of(out(1, sizeRlimit)),
		unix.SYS_SETRLIMIT:          of(in(1, sizeRlimit)),
		unix.SYS_PRLIMIT64:          of(in(2, sizeRlimit), out(3, sizeRlimit)),
		unix.SYS_GETGROUPS:          of(outI(1, 0, 4)),
		unix.SYS_SETGROUPS:          of(inI(1, 0, 4)),
		unix.SYS_GETRESUID:          of(out(0, 4), out(1, 4), out(2, 4)),
		unix.SYS_GETRESGID:          of(out(0, 4), out(1, 4), out(2, 4)),
		unix.SYS_CAPGET:             of(out(0, 8), out(1, sizeCaps)),
		unix.SYS_CAPSET:             of(in(0, 8), in(1, sizeCaps)),
		unix.SYS_SCHED_GETAFFINITY:  of(outN(2, 1, 1)),
		unix.SYS_SCHED_SETAFFINITY:  of(inN(2, 1, 1)),
		unix.SYS_SCHED_GETPARAM:     of(out(1, 4)),
		unix.SYS_SCHED_SETPARAM:     of(in(1, 4)),
		unix.SYS_SCHED_SETSCHEDULER: of(in(2, 4)),
		unix.SYS_SCHED_GETATTR:      of(outI(1, 2, 1)),
		unix.SYS_SCHED_SETATTR:      of(in(1, sizeSched)),
		unix.SYS_GETCPU:             of(out(0, 4), out(1, 4)),
		unix.SYS_GET_ROBUST_LIST:    of(out(1, 8), out(2, 8)),
		unix.SYS_MINCORE:            of(maybe(2, 1)).also((*walk).mincore),
		unix.SYS_PRCTL:              of(maybe(1, 16)).also((*walk).prctl),
		unix.SYS_SYSLOG:             of(outI(1, 2, 1)),
	}
}

// signalCalls are those of signals.
func signalCalls() map[uintptr]call {
	return map[uintptr]call{
		unix.SYS_RT_SIGACTION:    of(in(1, sizeAction), out(2, sizeAction)),
		unix.SYS_RT_SIGPROCMASK:  of(in(1, sizeSigset), out(2, sizeSigset)),
		unix.SYS_RT_SIGPENDING:   of(out(0, sizeSigset)),
		unix.SYS_RT_SIGTIMEDWAIT: of(in(0, sizeSigset), out(1, sizeSiginfo), in(2, sizeTimespec)),
		unix.SYS_RT_SIGQUEUEINFO: of(in(2, sizeSiginfo)),
		unix.SYS_SIGALTSTACK:     of(in(0, sizeStack), out(1, sizeStack)),
		unix.SYS_SIGNALFD4:       of(in(1, sizeSigset)),
	}
}
