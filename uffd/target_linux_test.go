// SPDX-License-Identifier: Apache-2.0

package uffd_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/sys"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// targetEnv makes the test binary a target: a process that performs system
// calls on order, each on a thread of its own. It is the side that faults,
// and it does so inside system calls only (H1).
const targetEnv = "FAULTLINE_TEST_TARGET"

// Descriptors that a target inherits.
const (
	targetSocket = 3 // a UNIX socket for Send
	targetPipe   = 4 // where it writes memory that the test wants to see
)

type request struct {
	ID   int
	Op   string
	Args []uint64
}

type answer struct {
	ID    int
	R     uint64
	Errno syscall.Errno
	Text  string // of an error that is more than an errno
}

// targetMain serves orders from standard input until it ends.
func targetMain() {
	tg := targetSide{fds: map[int]*uffd.FD{}, out: json.NewEncoder(os.Stdout)}
	tg.send(answer{}) // ready, also after exec
	in := json.NewDecoder(os.Stdin)
	for {
		var rq request
		if in.Decode(&rq) != nil {
			os.Exit(0)
		}
		go func() {
			a := answer{ID: rq.ID}
			r, err := tg.do(rq.Op, append(rq.Args, make([]uint64, 7)...))
			a.R = r
			if err != nil {
				a.Text = err.Error()
				if !errors.As(err, &a.Errno) {
					a.Errno = syscall.EPROTO
				}
			}
			tg.send(a)
		}()
	}
}

type targetSide struct {
	mu  sync.Mutex
	out *json.Encoder    // protected by mu
	fds map[int]*uffd.FD // protected by mu
}

func (tg *targetSide) send(a answer) {
	tg.mu.Lock()
	defer tg.mu.Unlock()
	if tg.out.Encode(a) != nil {
		os.Exit(1)
	}
}

func (tg *targetSide) fd(raw uint64) *uffd.FD {
	tg.mu.Lock()
	defer tg.mu.Unlock()
	return tg.fds[int(raw)]
}

// errnoOrNil keeps a zero errno from becoming a non-nil error.
func errnoOrNil(errno syscall.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

func (tg *targetSide) do(op string, a []uint64) (uint64, error) {
	switch op {
	case "syscall":
		r, _, errno := syscall.Syscall6(uintptr(a[0]), uintptr(a[1]), uintptr(a[2]), uintptr(a[3]),
			uintptr(a[4]), uintptr(a[5]), uintptr(a[6]))
		return uint64(r), errnoOrNil(errno)
	case "open":
		f, err := uffd.Open(uffd.Options{NonBlock: a[0]&1 != 0, UserModeOnly: a[0]&2 != 0})
		if err != nil {
			return 0, err
		}
		tg.mu.Lock()
		defer tg.mu.Unlock()
		tg.fds[f.Raw()] = f
		return uint64(f.Raw()), nil
	case "handshake":
		return 0, tg.fd(a[0]).Handshake(uapi.Features(a[1]))
	case "probe":
		got, err := uffd.Probe()
		return uint64(got.Features), err
	case "close":
		return 0, tg.fd(a[0]).Close()
	case "move":
		done, errno := tg.fd(a[0]).Move(mem.Addr(a[1]), mem.Addr(a[2]), a[3], uapi.MoveMode(a[4]))
		return uint64(done), errnoOrNil(errno)
	case "copy":
		// Not FD.Copy: the source is served memory, which no Go slice may name.
		arg := uapi.Copy{Dst: a[1], Src: a[2], Len: a[3]}
		errno := sys.RawIoctl(int(a[0]), uapi.UFFDIO_COPY, &arg)
		return uint64(arg.Copy), errnoOrNil(errno)
	case "fork":
		return forkAndWrite(uintptr(a[0]), uintptr(a[1]))
	case "memfd":
		fd, err := unix.MemfdCreate("target", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
		if err != nil {
			return 0, err
		}
		return uint64(fd), unix.Ftruncate(fd, int64(a[0]))
	case "send":
		conn, err := net.FileConn(os.NewFile(uintptr(targetSocket), "socket"))
		if err != nil {
			return 0, err
		}
		defer conn.Close()
		return 0, uffd.Send(conn.(*net.UnixConn), []byte("hello"), tg.fd(a[0]))
	case "exec":
		return 0, unix.Exec("/proc/self/exe", os.Args, os.Environ())
	}
	return 0, fmt.Errorf("unknown order %q", op)
}

// forkAndWrite forks. The child, which has this thread only and no Go
// scheduler, writes n bytes at addr to the pipe and ends with the errno.
//
//go:norace
func forkAndWrite(addr, n uintptr) (uint64, error) {
	pid, _, errno := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno == 0 && pid == 0 {
		_, _, errno = syscall.RawSyscall(syscall.SYS_WRITE, targetPipe, addr, n)
		for {
			syscall.RawSyscall(syscall.SYS_EXIT_GROUP, uintptr(errno), 0, 0)
		}
	}
	return uint64(pid), errnoOrNil(errno)
}
