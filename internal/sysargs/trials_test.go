// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package sysargs

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// needs are the files that trials use.
type needs struct {
	dir, file         string // a directory, a file in it with an attribute
	zero, disk        int
	r, w              int // a pipe with bytes in it
	pair              [2]int
	udp               int
	epoll, timer      int
	tty               int
	xattr             bool
	posixTimer        uintptr
	inotify, listener int
}

// must fails the test on an error.
func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func prepared(t *testing.T) *needs {
	t.Helper()
	n := &needs{dir: t.TempDir()}
	n.file = filepath.Join(n.dir, "file")
	if err := os.WriteFile(n.file, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	n.xattr = unix.Setxattr(n.file, "user.x", []byte("12345678"), 0) == nil
	fd := must[int](t)
	n.zero = fd(unix.Open("/dev/zero", unix.O_RDWR|unix.O_CLOEXEC, 0))
	n.disk = fd(unix.Open(n.file, unix.O_RDWR|unix.O_CLOEXEC, 0))
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	n.r, n.w = p[0], p[1]
	n.pair = must[[2]int](t)(unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0))
	n.udp = fd(unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0))
	if err := unix.Bind(n.udp, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	at := must[unix.Sockaddr](t)(unix.Getsockname(n.udp))
	if err := unix.Connect(n.udp, at); err != nil {
		t.Fatal(err)
	}
	n.listener = fd(unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0))
	if err := unix.Bind(n.listener, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(n.listener, 100); err != nil {
		t.Fatal(err)
	}
	n.epoll = fd(unix.EpollCreate1(unix.EPOLL_CLOEXEC))
	if err := unix.EpollCtl(n.epoll, unix.EPOLL_CTL_ADD, n.udp, &unix.EpollEvent{Events: unix.EPOLLOUT}); err != nil {
		t.Fatal(err)
	}
	n.timer = fd(unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC))
	n.tty = fd(unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0))
	n.inotify = fd(unix.InotifyInit1(unix.IN_CLOEXEC))
	var id int32
	ev := [8]uint64{0, 1 << 32} // SIGEV_NONE
	if _, _, errno := unix.RawSyscall(unix.SYS_TIMER_CREATE, unix.CLOCK_MONOTONIC, uintptr(unsafe.Pointer(&ev)), uintptr(unsafe.Pointer(&id))); errno != 0 {
		t.Fatal(errno)
	}
	n.posixTimer = uintptr(id)
	t.Cleanup(func() {
		for _, fd := range []int{n.zero, n.disk, n.r, n.w, n.pair[0], n.pair[1], n.udp, n.listener, n.epoll, n.timer, n.tty, n.inotify} {
			_ = unix.Close(fd)
		}
	})
	return n
}

const here = unix.AT_FDCWD

// nowhere is a path that there is not, so that a call which would change
// something ends when it has read it.
const nowhere = "/no/such/directory/file"

func trials(t *testing.T) (all []trial) {
	n := prepared(t)
	for _, group := range [][]trial{n.files(), n.attributes(), n.control(), n.data(), n.vectors(), n.sockets(t), n.messages(),
		n.waits(t), n.futexes(), n.times(), n.processes(t), n.signals(), archTrials(n)} {
		all = append(all, group...)
	}
	for i := range all {
		if all[i].name == "" {
			all[i].name = "call " + strconv.Itoa(int(all[i].nr))
		}
	}
	return all
}

func (n *needs) files() []trial {
	p := text0(nowhere)
	var all []trial
	for _, nr := range []uintptr{unix.SYS_OPENAT, unix.SYS_FACCESSAT, unix.SYS_FACCESSAT2, unix.SYS_MKDIRAT,
		unix.SYS_MKNODAT, unix.SYS_UNLINKAT, unix.SYS_FCHMODAT, unix.SYS_FCHOWNAT} {
		all = append(all, trial{nr: nr, args: []value{num(here), p}})
	}
	for _, nr := range []uintptr{unix.SYS_CHDIR, unix.SYS_CHROOT, unix.SYS_TRUNCATE} {
		all = append(all, trial{nr: nr, args: []value{p}})
	}
	for _, nr := range []uintptr{unix.SYS_LINKAT, unix.SYS_RENAMEAT2, unix.SYS_RENAMEAT} {
		all = append(all, trial{nr: nr, args: []value{num(here), text0("/"), num(here), p}})
	}
	cwd, _ := os.Getwd()
	return append(all,
		trial{name: "openat2", nr: unix.SYS_OPENAT2, args: []value{num(here), p, words(0, 0, 0), num(24)}},
		trial{name: "newfstatat", nr: unix.SYS_NEWFSTATAT, args: []value{num(here), text0("/"), buf()}},
		trial{name: "fstat", nr: unix.SYS_FSTAT, args: []value{num(n.zero), buf()}},
		trial{name: "statx", nr: unix.SYS_STATX, args: []value{num(here), text0("/"), num(0), num(0x7ff), buf()}},
		trial{name: "statfs", nr: unix.SYS_STATFS, args: []value{text0("/"), buf()}},
		trial{name: "fstatfs", nr: unix.SYS_FSTATFS, args: []value{num(n.zero), buf()}},
		trial{name: "readlinkat", nr: unix.SYS_READLINKAT, args: []value{num(here), text0("/proc/self/exe"), buf(), num(4)}},
		trial{name: "getcwd", nr: unix.SYS_GETCWD, args: []value{buf(), num(len(cwd) + 1)}},
		trial{name: "symlinkat", nr: unix.SYS_SYMLINKAT, args: []value{p, num(here), p}},
		trial{name: "utimensat", nr: unix.SYS_UTIMENSAT, args: []value{num(here), p, words(0, 0, 0, 0)}},
		trial{name: "getdents64", nr: unix.SYS_GETDENTS64, prepare: func(a []value) { _, _ = unix.Seek(int(a[0].n), 0, 0) },
			args: []value{n.directory(), buf().but(least), num(1000)}},
		trial{name: "memfd_create", nr: unix.SYS_MEMFD_CREATE, args: []value{text0("name"), num(unix.MFD_CLOEXEC)}, fd: true},
		trial{name: "inotify_add_watch", nr: unix.SYS_INOTIFY_ADD_WATCH, args: []value{num(n.inotify), p, num(unix.IN_CREATE)}},
	)
}

// directory opens one that has something in it.
func (n *needs) directory() value {
	fd, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return num(-1)
	}
	return num(fd)
}

// attributes are tried on a file that has one, where there can be any.
func (n *needs) attributes() []trial {
	how := all
	if !n.xattr {
		how = quiet
	}
	file, name := text0(n.file), text0("user.x")
	none := text0("user.none")
	return []trial{
		{name: "getxattr", nr: unix.SYS_GETXATTR, args: []value{file, name, buf().but(how), num(8)}},
		{name: "lgetxattr", nr: unix.SYS_LGETXATTR, args: []value{file, name, buf().but(how), num(8)}},
		{name: "fgetxattr", nr: unix.SYS_FGETXATTR, args: []value{num(n.disk), name, buf().but(how), num(8)}},
		{name: "setxattr", nr: unix.SYS_SETXATTR, args: []value{file, name, words(1), num(8)}},
		{name: "lsetxattr", nr: unix.SYS_LSETXATTR, args: []value{file, name, words(1), num(8)}},
		{name: "fsetxattr", nr: unix.SYS_FSETXATTR, args: []value{num(n.disk), name, words(1), num(8)}},
		{name: "listxattr", nr: unix.SYS_LISTXATTR, args: []value{file, buf().but(how), num(7)}},
		{name: "llistxattr", nr: unix.SYS_LLISTXATTR, args: []value{file, buf().but(how), num(7)}},
		{name: "flistxattr", nr: unix.SYS_FLISTXATTR, args: []value{num(n.disk), buf().but(how), num(7)}},
		{name: "removexattr", nr: unix.SYS_REMOVEXATTR, args: []value{file, none}},
		{name: "lremovexattr", nr: unix.SYS_LREMOVEXATTR, args: []value{file, none}},
		{name: "fremovexattr", nr: unix.SYS_FREMOVEXATTR, args: []value{num(n.disk), none}},
	}
}

// control is fcntl and ioctl.
func (n *needs) control() []trial {
	lock := words(0, 0, 0, 0) // F_RDLCK
	fcntl := func(name string, cmd int, v value) trial {
		return trial{name: "fcntl " + name, nr: unix.SYS_FCNTL, args: []value{num(n.disk), num(cmd), v}}
	}
	tty := func(name string, req uint32, v value) trial {
		return trial{name: "ioctl " + name, nr: unix.SYS_IOCTL, args: []value{num(n.tty), num(int(req)), v}}
	}
	const ptyLock, ptyNumber = 0x40045431, 0x80045430
	return []trial{
		fcntl("F_GETLK", unix.F_GETLK, lock), fcntl("F_SETLK", unix.F_SETLK, lock), fcntl("F_SETLKW", unix.F_SETLKW, lock),
		fcntl("F_OFD_GETLK", unix.F_OFD_GETLK, lock), fcntl("F_OFD_SETLK", unix.F_OFD_SETLK, lock),
		fcntl("F_GETOWN_EX", unix.F_GETOWN_EX, buf()), fcntl("F_SETOWN_EX", unix.F_SETOWN_EX, words(0)),
		fcntl("F_GET_RW_HINT", unix.F_GET_RW_HINT, buf()), fcntl("F_SET_RW_HINT", unix.F_SET_RW_HINT, words(0)),
		tty("TCGETS", unix.TCGETS, buf()), tty("TIOCGWINSZ", unix.TIOCGWINSZ, buf()), tty("TIOCSWINSZ", unix.TIOCSWINSZ, words(0)),
		tty("TIOCSPTLCK", ptyLock, ints(1)), tty("TIOCGPTN", ptyNumber, buf()), tty("FIONBIO", fionbio, ints(0)),
		{name: "ioctl FIONREAD", nr: unix.SYS_IOCTL, args: []value{num(n.r), num(unix.TIOCINQ), buf()}},
	}
}

func (n *needs) data() []trial {
	return []trial{
		{name: "read", nr: unix.SYS_READ, args: []value{num(n.zero), buf(), num(100)}},
		{name: "write", nr: unix.SYS_WRITE, prepare: n.fill, args: []value{num(n.w), buf(), num(100)}},
		{name: "pread64", nr: unix.SYS_PREAD64, args: []value{num(n.disk), buf(), num(100), num(0)}},
		{name: "pwrite64", nr: unix.SYS_PWRITE64, args: []value{num(n.disk), buf(), num(100), num(0)}},
		{name: "sendfile", nr: unix.SYS_SENDFILE, prepare: n.fill, args: []value{num(n.w), num(n.disk), words(0), num(100)}},
		{name: "splice from a file", nr: unix.SYS_SPLICE, prepare: n.fill, args: []value{num(n.disk), words(0), num(n.w), num(0), num(100), num(0)}},
		{name: "splice to a file", nr: unix.SYS_SPLICE, prepare: n.fill, args: []value{num(n.r), num(0), num(n.disk), words(0), num(10), num(0)}},
		{name: "copy_file_range", nr: unix.SYS_COPY_FILE_RANGE, args: []value{num(n.disk), words(0), num(n.disk), words(2048), num(100), num(0)}},
		{name: "getrandom", nr: unix.SYS_GETRANDOM, args: []value{buf(), num(100), num(0)}},
		{name: "pipe2", nr: unix.SYS_PIPE2, args: []value{buf(), num(unix.O_CLOEXEC)}},
	}
}

// fill makes the pipe have some bytes in it, and room.
func (n *needs) fill([]value) {
	var b [4096]byte
	_, _ = unix.Read(n.r, b[:])
	_, _ = unix.Write(n.w, b[:64])
}

func (n *needs) vectors() (all []trial) {
	for _, c := range []struct {
		name    string
		nr      uintptr
		fd      int
		prepare func([]value)
	}{
		{"readv", unix.SYS_READV, n.zero, nil}, {"writev", unix.SYS_WRITEV, n.w, n.fill},
		{"preadv", unix.SYS_PREADV, n.disk, nil}, {"pwritev", unix.SYS_PWRITEV, n.disk, nil},
		{"preadv2", unix.SYS_PREADV2, n.disk, nil}, {"pwritev2", unix.SYS_PWRITEV2, n.disk, nil},
	} {
		// What comes of a vector after its first buffer is a short call.
		v := words(0, 100).with(0, buf())
		all = append(all, trial{name: c.name, nr: c.nr, prepare: c.prepare, args: []value{num(c.fd), v, num(1), num(0), num(0), num(0)}})
	}
	pid := num(os.Getpid())
	mine := func() value { return words(0, 100).with(0, buf()) }
	// What is of the other process fails the call alike; and is not told.
	other := words(uint64(uintptr(unsafe.Pointer(&target))), 100)
	return append(all,
		trial{name: "vmsplice", nr: unix.SYS_VMSPLICE, prepare: n.fill,
			args: []value{num(n.w), words(0, 100).with(0, buf().but(quiet)), num(1), num(0)}},
		trial{name: "process_vm_readv", nr: unix.SYS_PROCESS_VM_READV, args: []value{pid, mine(), num(1), other, num(1), num(0)}},
		trial{name: "process_vm_writev", nr: unix.SYS_PROCESS_VM_WRITEV, args: []value{pid, mine(), num(1), other, num(1), num(0)}})
}

var target [128]byte

func (n *needs) sockets(t *testing.T) []trial {
	bad := words(99, 0) // of no family
	datagram := func([]value) {
		var b [4096]byte
		for {
			if _, err := unix.Read(n.udp, b[:]); err != nil {
				break
			}
		}
		_, _ = unix.Write(n.udp, b[:100])
	}
	connect := func([]value) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return
		}
		at, err := unix.Getsockname(n.listener)
		if err == nil {
			_ = unix.Connect(fd, at)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
	}
	return []trial{
		{name: "bind", nr: unix.SYS_BIND, args: []value{num(n.udp), bad, num(16)}},
		{name: "connect", nr: unix.SYS_CONNECT, args: []value{num(n.listener), bad, num(16)}},
		{name: "sendto", nr: unix.SYS_SENDTO, args: []value{num(n.udp), buf(), num(100), num(0), n.self(t), num(16)}},
		{name: "recvfrom", nr: unix.SYS_RECVFROM, prepare: datagram, args: []value{num(n.udp), buf(), num(100), num(0), buf(), ints(16)}},
		{name: "accept", nr: unix.SYS_ACCEPT, prepare: connect, fd: true, args: []value{num(n.listener), buf(), ints(16)}},
		{name: "accept4", nr: unix.SYS_ACCEPT4, prepare: connect, fd: true, args: []value{num(n.listener), buf(), ints(16), num(unix.SOCK_CLOEXEC)}},
		{name: "getsockname", nr: unix.SYS_GETSOCKNAME, args: []value{num(n.udp), buf(), ints(16)}},
		{name: "getpeername", nr: unix.SYS_GETPEERNAME, args: []value{num(n.udp), buf(), ints(16)}},
		{name: "getsockopt", nr: unix.SYS_GETSOCKOPT, args: []value{num(n.udp), num(unix.SOL_SOCKET), num(unix.SO_TYPE), buf(), ints(4)}},
		{name: "setsockopt", nr: unix.SYS_SETSOCKOPT, args: []value{num(n.udp), num(unix.SOL_SOCKET), num(unix.SO_KEEPALIVE), ints(0), num(4)}},
		{name: "socketpair", nr: unix.SYS_SOCKETPAIR, args: []value{num(unix.AF_UNIX), num(unix.SOCK_STREAM | unix.SOCK_CLOEXEC), num(0), buf()}},
	}
}

// self is the address of the socket that is connected to itself.
func (n *needs) self(t *testing.T) value {
	at, err := unix.Getsockname(n.udp)
	if err != nil {
		t.Fatal(err)
	}
	port := at.(*unix.SockaddrInet4).Port
	return words(unix.AF_INET|uint64(port>>8&0xff)<<16|uint64(port&0xff)<<24|127<<32|1<<56, 0)
}

// header is a struct msghdr with one buffer.
func header() value {
	return words(0, 0, 0, 1, 0, 0, 0).with(16, words(0, 100).with(0, buf()))
}

func (n *needs) messages() []trial {
	// One message waits, always.
	one := func([]value) {
		var b [4096]byte
		for {
			if _, err := unix.Read(n.pair[1], b[:]); err != nil {
				break
			}
		}
		_, _ = unix.Write(n.pair[0], b[:100])
	}
	many := header()
	many.content = append(many.content, make([]byte, 8)...)
	return []trial{
		{name: "sendmsg", nr: unix.SYS_SENDMSG, prepare: one, args: []value{num(n.pair[0]), header(), num(0)}},
		{name: "recvmsg", nr: unix.SYS_RECVMSG, prepare: one, args: []value{num(n.pair[1]), header().but(least), num(0)}},
		// The kernel writes a count, which ends four bytes before the struct.
		{name: "sendmmsg", nr: unix.SYS_SENDMMSG, prepare: one, args: []value{num(n.pair[0]), many.but(least), num(1), num(0)}},
		{name: "recvmmsg", nr: unix.SYS_RECVMMSG, prepare: one, args: []value{num(n.pair[1]), many.but(least), num(1), num(0), words(1, 0)}},
	}
}

func (n *needs) waits(t *testing.T) []trial {
	fds := words(uint64(uint32(n.udp))|unix.POLLOUT<<32, uint64(uint32(n.udp))|unix.POLLOUT<<32)
	event := buf()
	event.content = make([]byte, 16)
	mask := words(0)
	// A child that has ended, anew for each try.
	child := func(arg int) func([]value) {
		return func(args []value) {
			p, err := os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{})
			if err != nil {
				t.Fatal(err)
			}
			var si [128]byte
			_, _, _ = unix.RawSyscall6(unix.SYS_WAITID, unix.P_PID, uintptr(p.Pid), uintptr(unsafe.Pointer(&si)), unix.WEXITED|unix.WNOWAIT, 0, 0)
			args[arg].n = uintptr(p.Pid)
			// What a try has not waited for is waited for here.
			t.Cleanup(func() { _, _ = p.Wait() })
		}
	}
	return []trial{
		{name: "ppoll", nr: unix.SYS_PPOLL, args: []value{fds, num(2), words(1, 0).but(quiet), mask, num(8)}},
		{name: "epoll_ctl", nr: unix.SYS_EPOLL_CTL, args: []value{num(n.epoll), num(unix.EPOLL_CTL_MOD), num(n.udp), ints(unix.EPOLLOUT, 0, 0, 0)}},
		{name: "epoll_pwait", nr: unix.SYS_EPOLL_PWAIT, args: []value{num(n.epoll), buf(), num(1), num(0), mask, num(8)}},
		{name: "epoll_pwait2", nr: unix.SYS_EPOLL_PWAIT2, args: []value{num(n.epoll), buf(), num(1), words(0, 0), mask, num(8)}},
		{name: "pselect6", nr: unix.SYS_PSELECT6, args: []value{num(64), words(0), words(1 << (uint(n.udp) % 64)), words(0), words(0, 0).but(quiet),
			words(0, 8).with(0, mask)}},
		{name: "wait4", nr: unix.SYS_WAIT4, prepare: child(0), args: []value{num(0), buf(), num(0), buf()}},
		{name: "waitid", nr: unix.SYS_WAITID, prepare: child(1), args: []value{num(unix.P_PID), num(0), buf().but(least), num(unix.WEXITED), buf()}},
		{name: "nanosleep", nr: unix.SYS_NANOSLEEP, args: []value{words(0, 1), buf().but(quiet)}},
	}
}

func (n *needs) futexes() []trial {
	const private = 128
	futex := func(name string, op int, args ...value) trial {
		return trial{name: "futex " + name, nr: unix.SYS_FUTEX, args: append([]value{args[0], num(op | private)}, args[1:]...)}
	}
	// One that is not aligned is refused for that.
	word := ints(5).but(least)
	return []trial{
		futex("wait", 0, word, num(4), words(0, 1)),
		futex("wait bitset", 9, word, num(4), words(0, 1), num(0), num(1)),
		futex("requeue", 3, word.but(quiet), num(1), num(1), word.but(quiet)),
		futex("cmp requeue", 4, word, num(1), num(1), word.but(quiet), num(5)),
		futex("wake op", 5, word.but(quiet), num(1), num(1), word, num(0)),
		futex("trylock pi", 8, ints(0).but(least), num(0)),
		futex("unlock pi", 7, word.but(quiet), num(0)),
	}
}

func (n *needs) times() []trial {
	zero := words(0, 0, 0, 0)
	return []trial{
		{name: "clock_gettime", nr: unix.SYS_CLOCK_GETTIME, args: []value{num(unix.CLOCK_MONOTONIC), buf()}},
		{name: "clock_settime", nr: unix.SYS_CLOCK_SETTIME, args: []value{num(unix.CLOCK_REALTIME), words(1<<63, 0)}},
		{name: "clock_getres", nr: unix.SYS_CLOCK_GETRES, args: []value{num(unix.CLOCK_MONOTONIC), buf()}},
		{name: "clock_nanosleep", nr: unix.SYS_CLOCK_NANOSLEEP, args: []value{num(unix.CLOCK_MONOTONIC), num(0), words(0, 1), buf().but(quiet)}},
		{name: "clock_adjtime", nr: unix.SYS_CLOCK_ADJTIME, args: []value{num(unix.CLOCK_REALTIME), timex()}},
		{name: "adjtimex", nr: unix.SYS_ADJTIMEX, args: []value{timex()}},
		{name: "gettimeofday", nr: unix.SYS_GETTIMEOFDAY, args: []value{buf(), buf()}},
		{name: "settimeofday time", nr: unix.SYS_SETTIMEOFDAY, args: []value{words(0, 1<<40), num(0)}},
		{name: "settimeofday zone", nr: unix.SYS_SETTIMEOFDAY, args: []value{num(0), ints(1<<20, 0)}},
		{name: "times", nr: unix.SYS_TIMES, args: []value{buf()}},
		{name: "getitimer", nr: unix.SYS_GETITIMER, args: []value{num(1), buf()}},
		{name: "setitimer", nr: unix.SYS_SETITIMER, args: []value{num(1), zero, buf()}},
		{name: "timer_create", nr: unix.SYS_TIMER_CREATE, args: []value{num(unix.CLOCK_MONOTONIC), words(0, 1<<32, 0, 0, 0, 0, 0, 0), buf()}},
		{name: "timer_settime", nr: unix.SYS_TIMER_SETTIME, args: []value{{n: n.posixTimer}, num(0), zero, buf()}},
		{name: "timer_gettime", nr: unix.SYS_TIMER_GETTIME, args: []value{{n: n.posixTimer}, buf()}},
		{name: "timerfd_settime", nr: unix.SYS_TIMERFD_SETTIME, args: []value{num(n.timer), num(0), zero, buf()}},
		{name: "timerfd_gettime", nr: unix.SYS_TIMERFD_GETTIME, args: []value{num(n.timer), buf()}},
	}
}

// timex asks for nothing.
func timex() value {
	v := buf()
	v.content = make([]byte, 208)
	return v
}

func (n *needs) processes(t *testing.T) []trial {
	const v3 = 0x20080522
	caps, err := capabilities()
	if err != nil {
		t.Fatal(err)
	}
	groups, _ := os.Getgroups()
	cpus := num(cpuBytes())
	sched := words(56, 0, 0, 0, 0, 0, 0)
	return []trial{
		{name: "uname", nr: unix.SYS_UNAME, args: []value{buf()}},
		{name: "sysinfo", nr: unix.SYS_SYSINFO, args: []value{buf()}},
		{name: "getrusage", nr: unix.SYS_GETRUSAGE, args: []value{num(0), buf()}},
		{name: "getrlimit", nr: unix.SYS_GETRLIMIT, args: []value{num(unix.RLIMIT_NOFILE), buf()}},
		{name: "setrlimit", nr: unix.SYS_SETRLIMIT, args: []value{num(unix.RLIMIT_NOFILE), words(2, 1)}},
		{name: "prlimit64 get", nr: unix.SYS_PRLIMIT64, args: []value{num(0), num(unix.RLIMIT_NOFILE), num(0), buf()}},
		{name: "prlimit64 set", nr: unix.SYS_PRLIMIT64, args: []value{num(0), num(unix.RLIMIT_NOFILE), words(2, 1), num(0)}},
		{name: "getgroups", nr: unix.SYS_GETGROUPS, args: []value{num(max(len(groups), 1)), buf().but(groupsSeen(groups))}},
		{name: "setgroups", nr: unix.SYS_SETGROUPS, args: []value{num(1), ints(1<<32 - 1)}},
		{name: "getresuid", nr: unix.SYS_GETRESUID, args: []value{buf(), buf(), buf()}},
		{name: "getresgid", nr: unix.SYS_GETRESGID, args: []value{buf(), buf(), buf()}},
		{name: "capget of another version", nr: unix.SYS_CAPGET, args: []value{ints(0, 0).but(least), num(0)}},
		{name: "capget", nr: unix.SYS_CAPGET, args: []value{ints(v3, 0).but(quiet), buf()}},
		{name: "capset", nr: unix.SYS_CAPSET, args: []value{ints(v3, 0), caps}},
		{name: "sched_getaffinity", nr: unix.SYS_SCHED_GETAFFINITY, args: []value{num(0), cpus, buf()}},
		{name: "sched_setaffinity", nr: unix.SYS_SCHED_SETAFFINITY, args: []value{num(0), num(8), words(^uint64(0))}},
		{name: "sched_getparam", nr: unix.SYS_SCHED_GETPARAM, args: []value{num(0), buf()}},
		{name: "sched_setparam", nr: unix.SYS_SCHED_SETPARAM, args: []value{num(0), ints(0)}},
		{name: "sched_setscheduler", nr: unix.SYS_SCHED_SETSCHEDULER, args: []value{num(0), num(0), ints(0)}},
		{name: "sched_getattr", nr: unix.SYS_SCHED_GETATTR, args: []value{num(0), buf(), num(56), num(0)}},
		{name: "sched_setattr", nr: unix.SYS_SCHED_SETATTR, args: []value{num(0), sched, num(0)}},
		{name: "getcpu", nr: unix.SYS_GETCPU, args: []value{buf(), buf(), num(0)}},
		{name: "get_robust_list", nr: unix.SYS_GET_ROBUST_LIST, args: []value{num(0), buf(), buf()}},
		{name: "mincore", nr: unix.SYS_MINCORE, args: []value{num(int(uintptr(unsafe.Pointer(&target)) &^ 4095)), num(4096), buf()}},
		{name: "prctl name", nr: unix.SYS_PRCTL, args: []value{num(unix.PR_SET_NAME), text0("fourteen-bytes")}},
		{name: "prctl long name", nr: unix.SYS_PRCTL, args: []value{num(unix.PR_SET_NAME), text0("more than fifteen bytes")}},
		{name: "prctl get name", nr: unix.SYS_PRCTL, args: []value{num(unix.PR_GET_NAME), buf()}},
		{name: "prctl death signal", nr: unix.SYS_PRCTL, args: []value{num(unix.PR_GET_PDEATHSIG), buf()}},
		{name: "prctl subreaper", nr: unix.SYS_PRCTL, args: []value{num(unix.PR_GET_CHILD_SUBREAPER), buf()}},
		{name: "syslog", nr: unix.SYS_SYSLOG, args: []value{num(3), buf().but(quiet), num(100)}},
	}
}

// groupsSeen is what is seen of getgroups, which writes nothing for nobody.
func groupsSeen(groups []int) how {
	if len(groups) == 0 {
		return quiet
	}
	return all
}

// capabilities are those that we have, so that setting them changes nothing.
func capabilities() (value, error) {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	if err := unix.Capget(&h, &d[0]); err != nil {
		return value{}, err
	}
	return ints(d[0].Effective, d[0].Permitted, d[0].Inheritable, d[1].Effective, d[1].Permitted, d[1].Inheritable), nil
}

// cpuBytes is how much of a mask of processors the kernel writes.
func cpuBytes() int {
	var b [1024]byte
	n, _, _ := unix.RawSyscall(unix.SYS_SCHED_GETAFFINITY, 0, uintptr(len(b)), uintptr(unsafe.Pointer(&b)))
	return int(n)
}

func (n *needs) signals() []trial {
	const none, size = 64, 8
	action := words(0, 0, 0, 0)
	info := buf()
	info.content = make([]byte, 128)
	info.content[8] = 0xff // SI_QUEUE, by a process itself
	for i := range 3 {
		info.content[9+i] = 0xff
	}
	return []trial{
		{name: "rt_sigaction", nr: unix.SYS_RT_SIGACTION, args: []value{num(none), action, buf(), num(size)}},
		{name: "rt_sigprocmask", nr: unix.SYS_RT_SIGPROCMASK, args: []value{num(0), words(0), buf(), num(size)}},
		{name: "rt_sigpending", nr: unix.SYS_RT_SIGPENDING, args: []value{buf(), num(size)}},
		{name: "rt_sigtimedwait", nr: unix.SYS_RT_SIGTIMEDWAIT, args: []value{words(0), buf().but(quiet), words(0, 0), num(size)}},
		{name: "rt_sigqueueinfo", nr: unix.SYS_RT_SIGQUEUEINFO, args: []value{num(os.Getpid()), num(0), info.but(least)}},
		{name: "sigaltstack", nr: unix.SYS_SIGALTSTACK, args: []value{num(0), buf()}},
		{name: "sigaltstack that is none", nr: unix.SYS_SIGALTSTACK, args: []value{words(0, 0x1234, 1<<20), num(0)}},
		{name: "signalfd4", nr: unix.SYS_SIGNALFD4, args: []value{num(-1), words(0), num(size), num(unix.SFD_CLOEXEC)}, fd: true},
	}
}
