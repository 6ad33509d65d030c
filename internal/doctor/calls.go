// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// refusal is a system call that something in front of the kernel's own code
// turned down.
type refusal struct {
	call  string
	errno unix.Errno
}

func (r refusal) String() string { return r.call + " (" + errnoName(r.errno) + ")" }

// tries has one harmless call for each that faultline makes and that
// container profiles are known to refuse. The arguments are such that the
// kernel itself gives want, whatever our privileges: any other answer comes
// from a filter or a security module, or means that the kernel has no such
// call.
var tries = []struct {
	call string
	want unix.Errno
	try  func() unix.Errno
}{
	// With user-mode-only faults there is no privilege to lack, so the
	// unknown flag is what the kernel stumbles over.
	{"userfaultfd", unix.EINVAL, func() unix.Errno {
		return raw(unix.SYS_USERFAULTFD, userModeOnly|1<<30, 0, 0)
	}},
	// We are not our own tracee.
	{"ptrace", unix.ESRCH, func() unix.Errno {
		return raw(unix.SYS_PTRACE, unix.PTRACE_DETACH, uintptr(os.Getpid()), 0)
	}},
	{"process_vm_readv", 0, func() unix.Errno {
		return raw(unix.SYS_PROCESS_VM_READV, uintptr(os.Getpid()), 0, 0)
	}},
	{"process_vm_writev", 0, func() unix.Errno {
		return raw(unix.SYS_PROCESS_VM_WRITEV, uintptr(os.Getpid()), 0, 0)
	}},
	{"memfd_create", unix.EINVAL, func() unix.Errno {
		return raw(unix.SYS_MEMFD_CREATE, 0, 1<<30, 0)
	}},
	{"pidfd_open", unix.EINVAL, func() unix.Errno {
		return raw(unix.SYS_PIDFD_OPEN, uintptr(os.Getpid()), 1<<30, 0)
	}},
	{"pidfd_getfd", unix.EBADF, func() unix.Errno {
		return raw(unix.SYS_PIDFD_GETFD, ^uintptr(0), 0, 0)
	}},
	{"seccomp", 0, func() unix.Errno { return seccompAction(unix.SECCOMP_RET_TRACE) }},
	{"kcmp", 0, func() unix.Errno {
		pid := uintptr(os.Getpid())
		return raw(unix.SYS_KCMP, pid, pid, kcmpVM)
	}},
}

const (
	userModeOnly = 1 // UFFD_USER_MODE_ONLY, since Linux 5.11
	kcmpVM       = 1 // KCMP_VM: same address space?
)

// raw makes a call with at most three arguments that count and returns its
// errno.
func raw(trap, a, b, c uintptr) unix.Errno {
	_, _, errno := unix.Syscall6(trap, a, b, c, 0, 0, 0)
	return errno
}

func tryCalls() []refusal {
	var out []refusal
	for _, t := range tries {
		if errno := t.try(); errno != t.want {
			out = append(out, refusal{t.call, errno})
		}
	}
	return out
}

// refusedCall returns the refusal of one call, if there is one.
func (p *probe) refusedCall(call string) (refusal, bool) {
	for _, r := range p.refused() {
		if r.call == call {
			return r, true
		}
	}
	return refusal{}, false
}

// gate says who refused a call that the kernel itself would not refuse.
func (p *probe) gate(r refusal) finding {
	s := p.status()
	switch {
	case r.errno == unix.ENOSYS && s.seccomp == 0:
		return no("use a kernel or a sandbox that has it", "this kernel has no %s system call", r.call)
	case r.errno == unix.ENOSYS:
		return no(unconfined(r.call), "%s: ENOSYS: the kernel lacks it, or the seccomp filter that we run under hides it", r.call)
	case s.seccomp == 2:
		return no(unconfined(r.call), "%s: %s from the seccomp filter that we run under", r.call, errnoName(r.errno))
	default:
		return no("look for a denial of "+r.call+" in the audit log (ausearch -m avc, dmesg)",
			"%s: %s, though no seccomp filter is active: a security module refuses it", r.call, errnoName(r.errno))
	}
}

func seccompMode(p *probe) finding {
	s := p.status()
	refused := make([]string, 0, len(tries))
	for _, r := range p.refused() {
		refused = append(refused, r.String())
	}
	list := strings.Join(refused, ", ")
	switch {
	case !s.known:
		return warn("mount -t proc proc /proc", "could not tell: /proc is not mounted")
	case s.seccomp == 0 && len(refused) == 0:
		return ok("no filter")
	case s.seccomp == 0:
		return warn("see the checks of these names", "no filter, yet refused: %s", list)
	case len(refused) == 1 && p.refused()[0].call == "kcmp":
		return warn(unconfined("kcmp"), "a filter that refuses %s, which faultline can do without", list)
	case len(refused) == 0:
		return ok("a filter that lets through all that faultline calls")
	default:
		return no(unconfined(calls(p.refused())), "a filter that refuses %s", list)
	}
}

func calls(refused []refusal) string {
	names := make([]string, 0, len(refused))
	for _, r := range refused {
		names = append(names, r.call)
	}
	return strings.Join(names, ", ")
}

func seccompInstall(p *probe) finding {
	if r, found := p.refusedCall("seccomp"); found {
		if r.errno == unix.EOPNOTSUPP || r.errno == unix.EINVAL {
			return no("use a kernel with CONFIG_SECCOMP_FILTER", "the kernel has no RET_TRACE action")
		}
		return p.gate(r)
	}
	s := p.status()
	switch {
	case s.has(unix.CAP_SYS_ADMIN):
		return ok("filters with RET_TRACE, by CAP_SYS_ADMIN")
	case s.noNewPrivs:
		return ok("filters with RET_TRACE; no_new_privs is set already")
	default:
		return warn(asRoot("CAP_SYS_ADMIN"),
			"filters with RET_TRACE, but only together with no_new_privs: sudo and other setuid programs will not work inside")
	}
}

// errnoName returns the constant's name, which is what people search for.
func errnoName(e unix.Errno) string {
	if e == 0 {
		return "success"
	}
	if n := unix.ErrnoName(e); n != "" {
		return n
	}
	return e.Error()
}
