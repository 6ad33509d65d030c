// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"slices"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/size"
)

// runNeeds is the set SetRun. It holds only what nothing can replace.
var runNeeds = []string{
	"arch", "page-size",
	"userfaultfd", "event-fork", "event-remap", "event-remove", "event-unmap",
	"thread-id", "poison", "move", "ioctl-copy", "ioctl-move",
	"seccomp-install", "ptrace", "agent", "pidfd-getfd", "process-vm-readv",
}

// provideNeeds is the set SetProvide, in the same way.
var provideNeeds = []string{
	"arch", "page-size", "seccomp-install", "provide-call", "ptrace", "agent", "process-vm-readv",
}

// checks returns all checks in the order of a report: what everything rests
// on comes first.
func checks() []check {
	machine := []check{
		{"kernel", "faultline run needs 6.8, the first with UFFDIO_MOVE; only the probes below are proof", findKernel},
		{"arch", "system call numbers and the code planted in the program are per architecture", findArch},
		{"page-size", "faultline works in pages of 4 KiB", findPageSize},
	}
	privileges := []check{
		{"cap-sys-ptrace", "a descriptor for faults of kernel mode, and one that follows fork", capability(unix.CAP_SYS_PTRACE,
			"CAP_SYS_PTRACE", Warn, "userfaultfd decides below what is left")},
		{"cap-sys-admin", "installing a seccomp filter without no_new_privs", capability(unix.CAP_SYS_ADMIN,
			"CAP_SYS_ADMIN", Warn, "setuid programs will not gain privileges under faultline run")},
		{"cap-sys-nice", "threads that serve faults may take precedence", capability(unix.CAP_SYS_NICE,
			"CAP_SYS_NICE", Warn, "faults wait longer on a busy machine")},
		{"seccomp", "a filter that we run under, such as a container's, can refuse single system calls", seccompMode},
		{"seccomp-install", "run and provide see what the program calls by filters in it", seccompInstall},
	}
	descriptor := []check{
		{"userfaultfd-syscall", "the usual way to a descriptor", findSyscall},
		{"userfaultfd-device", "the other way to a descriptor, opened by file permission", findDevice},
		{"userfaultfd-sysctl", "decides whether the system call takes a privilege", findSysctl},
		{"userfaultfd", "page faults of the program are handed to us through it", findDescriptor},
		{"provide-call", "faultline provide gives programs the call where the kernel does not", findProvided},
	}
	control := []check{
		{"yama", "can forbid ptrace, without which neither run nor provide works", yamaScope},
		{"ptrace", "run and provide start and follow the program by it; tried on a child", func(p *probe) finding {
			return p.onChild(p.child().attach, "attached to a child", "ptrace")
		}},
		{"agent", "the task that run and provide plant in the program takes orders by memory shared with us; tried on a child", func(p *probe) finding {
			return p.onChild(p.child().open, "opened a file of a child", "memfd_create", "pidfd_open", "process_vm_writev")
		}},
		{"pidfd-getfd", "run takes the descriptor out of the program; tried on a child", func(p *probe) finding {
			return p.onChild(p.child().take, "took a descriptor from a child", "pidfd_open", "pidfd_getfd")
		}},
		{"process-vm-readv", "run and provide read the memory of the program; tried on a child", func(p *probe) finding {
			return p.onChild(p.child().read, "read a child's memory", "process_vm_readv")
		}},
		{"kcmp", "tells which processes share an address space", func(p *probe) finding {
			f := p.onChild(p.child().same, "compared a child with us", "kcmp")
			if f.status == No {
				f.status = Warn
			}
			return f
		}},
	}
	rest := []check{
		{"pagemap-scan", "finding the pages that are there without reading a word for each", findPagemapScan},
		{"populate-write", "bringing in fresh memory ahead of the program", findPopulate},
		{"hugepages", "memory taken as huge pages is left alone by run and not bounded", findHugepages},
		{"cgroup-memory", "a limit in percent refers to it; ours should be lower", findCgroupMemory},
		{"max-map-count", "registered memory under faultline provide has a mapping for each run of pages in the same state", findMaxMapCount},
		{"rlimit-nproc", "one more task for each process of the program", rlimit(unix.RLIMIT_NPROC, "-u", 256, count)},
		{"rlimit-nofile", "a few descriptors for each process of the program", rlimit(unix.RLIMIT_NOFILE, "-n", 1024, count)},
		{"rlimit-memlock", "what the program locks stays in memory, beyond the limit", rlimit(unix.RLIMIT_MEMLOCK, "-l", 0, size.Format)},
		{"store", "cold pages go to an unnamed file here by default", findStore},
	}
	return slices.Concat(machine, privileges, descriptor, featureChecks(), control, rest)
}
