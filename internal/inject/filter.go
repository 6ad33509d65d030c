// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package inject

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/bpf"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
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
	// TraceRegister is the ioctl by which a program registers memory with a
	// userfaultfd of its own.
	TraceRegister
	// TraceMem is pread or pwrite at a position that is none of any file but
	// /proc/PID/mem, or so far into one that it hardly matters.
	TraceMem
	// TraceForeign is a call that maps memory, made by a 32-bit or x32 program
	// or part of a program. Its arguments have not been looked at.
	TraceForeign
)

// LowestMem is where the position of a pread is taken for an address: below the least
// that programs get where nobody has asked for another, which is the heap of Go's.
const LowestMem = 512 << 30

// advices are the kinds of madvise that the filter reports.
var advices = []uint32{
	unix.MADV_DONTFORK, unix.MADV_DOFORK,
	unix.MADV_WIPEONFORK, unix.MADV_KEEPONFORK,
	unix.MADV_GUARD_INSTALL, unix.MADV_GUARD_REMOVE,
}

// Filter returns the seccomp program. It allows everything but MADV_FREE, and
// reports to the tracer the calls that the Trace constants name. Without a tracer
// those fail with ENOSYS.
//
// MADV_FREE fails with EINVAL, as it does before Linux 4.5, and programs then do
// without or take MADV_DONTNEED. It raises the same event, UFFD_EVENT_REMOVE, but
// leaves the pages where they are, and what is written to them raises none. A page
// that leaves memory at this very moment would be taken for one that has been
// dropped, and what was written for what was there before: a lost write.
//
// For all other calls it looks at nothing but architecture and number. The
// kernel (since Linux 5.11) notices that when the filter is installed, and
// does not run it for them at all.
//
// It does not see private mappings of /dev/zero, which are anonymous memory
// too but cannot be served, nor MAP_DROPPABLE. Calls through io_uring are not
// system calls and are not seen either; io_uring has no mmap, but MADV_FREE.
func Filter() []unix.SockFilter {
	var p bpf.Program
	p.Load(bpf.OffArch)
	p.JumpUnless(nativeArch, "foreign")
	p.Load(bpf.OffNR)
	if x32 != 0 {
		p.JumpAtLeast(x32, "x32")
	}
	p.JumpIf(unix.SYS_MMAP, "mmap")
	p.JumpIf(unix.SYS_BRK, "brk")
	p.JumpIf(unix.SYS_MADVISE, "madvise")
	p.JumpIf(unix.SYS_PROCESS_MADVISE, "process_madvise")
	p.JumpIf(unix.SYS_IOCTL, "ioctl")
	p.JumpIf(unix.SYS_PREAD64, "positioned")
	p.JumpIf(unix.SYS_PWRITE64, "positioned")
	p.Ret(unix.SECCOMP_RET_ALLOW)

	p.Label("mmap")
	p.Load(bpf.OffArg(3))
	p.And(unix.MAP_TYPE | unix.MAP_ANONYMOUS)
	p.RetIf(unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, unix.SECCOMP_RET_TRACE|TraceMmap)
	p.Ret(unix.SECCOMP_RET_ALLOW)

	p.Label("brk")
	p.Ret(unix.SECCOMP_RET_TRACE | TraceBrk)

	p.Label("madvise")
	reportAdvice(&p, bpf.OffArg(2), TraceMadvise)
	p.Label("process_madvise")
	reportAdvice(&p, bpf.OffArg(3), TraceProcessMadvise)

	p.Label("ioctl")
	p.Load(bpf.OffArg(1))
	p.RetIf(uapi.UFFDIO_REGISTER, unix.SECCOMP_RET_TRACE|TraceRegister)
	p.Ret(unix.SECCOMP_RET_ALLOW)

	p.Label("positioned")
	p.Load(bpf.OffArgHigh(3))
	p.IfAtLeast(LowestMem>>32, func() { p.Ret(unix.SECCOMP_RET_TRACE | TraceMem) })
	p.Ret(unix.SECCOMP_RET_ALLOW)

	if x32 != 0 {
		p.Label("x32")
		p.And(x32 - 1)
		reportForeign(&p, x32Calls)
	}
	p.Label("foreign")
	p.JumpUnless(compatArch, "allow")
	p.Load(bpf.OffNR)
	reportForeign(&p, compatCalls)
	p.Label("allow")
	p.Ret(unix.SECCOMP_RET_ALLOW)
	return p.Link()
}

// reportAdvice ends the filter for a call whose argument at off may be one of
// advices.
func reportAdvice(p *bpf.Program, off, value uint32) {
	p.Load(off)
	p.RetIf(unix.MADV_FREE, unix.SECCOMP_RET_ERRNO|uint32(unix.EINVAL))
	for _, a := range advices {
		p.RetIf(a, unix.SECCOMP_RET_TRACE|value)
	}
	p.Ret(unix.SECCOMP_RET_ALLOW)
}

// reportForeign ends the filter for calls whose number, which is loaded, may be
// in list.
func reportForeign(p *bpf.Program, list []uint32) {
	for _, nr := range list {
		p.RetIf(nr, unix.SECCOMP_RET_TRACE|TraceForeign)
	}
	p.Ret(unix.SECCOMP_RET_ALLOW)
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
