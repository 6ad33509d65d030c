// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package inject

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/mem"
)

// Values that the tracer reads with PTRACE_GETEVENTMSG at the seccomp stop of
// a call that Filter reports.
const (
	// TraceMmap is mmap of private anonymous memory.
	TraceMmap = 0xfa01 + iota
	// TraceBrk is brk.
	TraceBrk
	// TraceMadvise is madvise with an advice that changes how memory is
	// inherited by a child (DONTFORK, DOFORK, WIPEONFORK, KEEPONFORK) or that
	// sets or removes guards.
	TraceMadvise
	// TraceProcessMadvise is the same through process_madvise.
	TraceProcessMadvise
	// TraceForeign is a call that maps memory, made by a 32-bit or x32 program
	// or part of a program. Its arguments have not been looked at.
	TraceForeign
)

// Offsets in struct seccomp_data, whose 64-bit arguments are little-endian on
// both architectures.
const (
	offNR   = 0
	offArch = 4
	offArgs = 16
)

// advices are the kinds of madvise that the filter reports.
var advices = []uint32{
	unix.MADV_DONTFORK, unix.MADV_DOFORK,
	unix.MADV_WIPEONFORK, unix.MADV_KEEPONFORK,
	unix.MADV_GUARD_INSTALL, unix.MADV_GUARD_REMOVE,
}

// Filter returns the seccomp program. It allows everything, and reports to
// the tracer the calls that the Trace constants name. Without a tracer those
// fail with ENOSYS.
//
// For all other calls it looks at nothing but architecture and number. The
// kernel (since Linux 5.11) notices that when the filter is installed, and
// does not run it for them at all.
//
// It does not see private mappings of /dev/zero, which are anonymous memory
// too but cannot be served, nor MAP_DROPPABLE. Calls through io_uring are not
// system calls and are not seen either; io_uring has no mmap.
func Filter() []unix.SockFilter {
	var p program
	p.load(offArch)
	p.jumpUnless(nativeArch, "foreign")
	p.load(offNR)
	if x32 != 0 {
		p.jumpAtLeast(x32, "x32")
	}
	p.jumpIf(unix.SYS_MMAP, "mmap")
	p.jumpIf(unix.SYS_BRK, "brk")
	p.jumpIf(unix.SYS_MADVISE, "madvise")
	p.jumpIf(unix.SYS_PROCESS_MADVISE, "process_madvise")
	p.ret(unix.SECCOMP_RET_ALLOW)

	p.label("mmap")
	p.load(offArgs + 3*8)
	p.and(unix.MAP_TYPE | unix.MAP_ANONYMOUS)
	p.jumpIf(unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, "mmap!")
	p.ret(unix.SECCOMP_RET_ALLOW)
	p.label("mmap!")
	p.ret(unix.SECCOMP_RET_TRACE | TraceMmap)

	p.label("brk")
	p.ret(unix.SECCOMP_RET_TRACE | TraceBrk)

	p.adviceAt(offArgs+2*8, "madvise", TraceMadvise)
	p.adviceAt(offArgs+3*8, "process_madvise", TraceProcessMadvise)

	if x32 != 0 {
		p.label("x32")
		p.and(x32 - 1)
		p.anyOf(x32Calls)
	}
	p.label("foreign")
	p.jumpUnless(compatArch, "allow")
	p.load(offNR)
	p.anyOf(compatCalls)
	p.label("allow")
	p.ret(unix.SECCOMP_RET_ALLOW)
	return p.link()
}

// program is a filter under construction. Jumps go forward to labels.
type program struct {
	code   []unix.SockFilter
	labels map[string]int
	jumps  []jump
}

type jump struct {
	at     int
	to     string
	onTrue bool
}

func (p *program) emit(code uint16, k uint32) {
	p.code = append(p.code, unix.SockFilter{Code: code, K: k})
}

func (p *program) load(off uint32)  { p.emit(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, off) }
func (p *program) and(mask uint32)  { p.emit(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, mask) }
func (p *program) ret(value uint32) { p.emit(unix.BPF_RET|unix.BPF_K, value) }

func (p *program) jump(op uint16, k uint32, to string, onTrue bool) {
	p.jumps = append(p.jumps, jump{len(p.code), to, onTrue})
	p.emit(unix.BPF_JMP|op|unix.BPF_K, k)
}

func (p *program) jumpIf(k uint32, to string)      { p.jump(unix.BPF_JEQ, k, to, true) }
func (p *program) jumpUnless(k uint32, to string)  { p.jump(unix.BPF_JEQ, k, to, false) }
func (p *program) jumpAtLeast(k uint32, to string) { p.jump(unix.BPF_JGE, k, to, true) }

func (p *program) label(name string) {
	if p.labels == nil {
		p.labels = make(map[string]int)
	}
	p.labels[name] = len(p.code)
}

// adviceAt emits the part that reports a call whose argument at off is one of
// advices.
func (p *program) adviceAt(off uint32, name string, value uint32) {
	p.label(name)
	p.load(off)
	for _, a := range advices {
		p.jumpIf(a, name+"!")
	}
	p.ret(unix.SECCOMP_RET_ALLOW)
	p.label(name + "!")
	p.ret(unix.SECCOMP_RET_TRACE | value)
}

// anyOf emits a return that reports the loaded number if it is in list.
func (p *program) anyOf(list []uint32) {
	// Straight-line code: a label of its own per list would need a name.
	for _, nr := range list {
		p.code = append(p.code, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: nr})
		p.ret(unix.SECCOMP_RET_TRACE | TraceForeign)
	}
	p.ret(unix.SECCOMP_RET_ALLOW)
}

// link fills in the distances of the jumps.
func (p *program) link() []unix.SockFilter {
	for _, j := range p.jumps {
		dist := uint8(p.labels[j.to] - j.at - 1)
		if j.onTrue {
			p.code[j.at].Jt = dist
		} else {
			p.code[j.at].Jf = dist
		}
	}
	return p.code
}

// InstallFilter puts Filter on all threads of the program. It stays over fork
// and exec and cannot be taken off, so it must be done once per tree; from
// then on a tracer with PTRACE_O_TRACESECCOMP must be there.
//
// A program without CAP_SYS_ADMIN gets the no_new_privs attribute for this,
// which the kernel demands: set-user-id programs and file capabilities have
// no effect in it any more. (Under an unprivileged tracer they have none
// anyway.) NoNewPrivs tells whether that was done.
//
// The error matches ErrFiltered if a thread of the program has filters that
// the others have not; nothing is changed then.
func (s *Session) InstallFilter() error { return s.Install(Filter()) }

// Install is InstallFilter for any seccomp program.
func (s *Session) Install(prog []unix.SockFilter) error {
	buf := make([]byte, 16, 16+8*len(prog))
	for _, in := range prog {
		buf = binary.LittleEndian.AppendUint16(buf, in.Code)
		buf = append(buf, in.Jt, in.Jf)
		buf = binary.LittleEndian.AppendUint32(buf, in.K)
	}
	size := (uintptr(len(buf)) + mem.PageSize - 1) &^ (mem.PageSize - 1)
	at, err := call(s, "mmap", unix.SYS_MMAP, 0, size, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, ^uintptr(0), 0)
	if err != nil {
		return fmt.Errorf("install seccomp filter in thread %d: %w", s.tid, err)
	}
	// struct sock_fprog: the length, and the address of what follows.
	binary.LittleEndian.PutUint16(buf, uint16(len(prog)))
	binary.LittleEndian.PutUint64(buf[8:], uint64(at)+16)
	if _, err = s.WriteAt(buf, int64(at)); err == nil {
		err = s.seccomp(at)
	}
	if _, uerr := call(s, "munmap", unix.SYS_MUNMAP, at, size); err == nil {
		err = uerr
	}
	if err != nil {
		return fmt.Errorf("install seccomp filter in thread %d: %w", s.tid, err)
	}
	return nil
}

// seccomp installs the filter described at prog on all threads.
func (s *Session) seccomp(prog uintptr) error {
	install := func() (uintptr, error) {
		return call(s, "seccomp", unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
			unix.SECCOMP_FILTER_FLAG_TSYNC, prog)
	}
	tid, err := install()
	if errors.Is(err, unix.EACCES) {
		if _, err := call(s, "prctl(PR_SET_NO_NEW_PRIVS)", unix.SYS_PRCTL,
			unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return err
		}
		s.noNewPrivs = true
		tid, err = install()
	}
	if err != nil {
		return err
	}
	if tid != 0 {
		return fmt.Errorf("thread %d of the program (in its own numbering) has seccomp filters that the others have not: %w",
			tid, ErrFiltered)
	}
	return nil
}

// NoNewPrivs reports whether InstallFilter had to give the program the
// no_new_privs attribute.
func (s *Session) NoNewPrivs() bool { return s.noNewPrivs }
