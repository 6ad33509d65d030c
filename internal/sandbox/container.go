// SPDX-License-Identifier: Apache-2.0

//go:build linux

package sandbox

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/bpf"
)

// What Docker, containerd and Podman refuse by default is nearly the same. Here
// is what the profile of github.com/moby/profiles comes to, as of 2026, for a
// container with the default capabilities, on a kernel since 4.8. The profile
// says what is allowed, this says the rest.

// containerCapabilities are what root has in a container.
var containerCapabilities = []int{
	unix.CAP_AUDIT_WRITE, unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_KILL,
	unix.CAP_MKNOD, unix.CAP_NET_BIND_SERVICE, unix.CAP_NET_RAW, unix.CAP_SETFCAP, unix.CAP_SETGID, unix.CAP_SETPCAP,
	unix.CAP_SETUID, unix.CAP_SYS_CHROOT,
}

// containerRefused fail with EPERM.
var containerRefused = append([]uint32{
	unix.SYS_ACCT, unix.SYS_ADD_KEY, unix.SYS_BPF, unix.SYS_CLOCK_SETTIME, unix.SYS_DELETE_MODULE, unix.SYS_FANOTIFY_INIT,
	unix.SYS_FINIT_MODULE, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSOPEN, unix.SYS_FSPICK, unix.SYS_GET_MEMPOLICY,
	unix.SYS_INIT_MODULE, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER, unix.SYS_IO_URING_SETUP, unix.SYS_KCMP,
	unix.SYS_KEXEC_FILE_LOAD, unix.SYS_KEXEC_LOAD, unix.SYS_KEYCTL, unix.SYS_LOOKUP_DCOOKIE, unix.SYS_LSM_GET_SELF_ATTR,
	unix.SYS_LSM_LIST_MODULES, unix.SYS_LSM_SET_SELF_ATTR, unix.SYS_MBIND, unix.SYS_MIGRATE_PAGES, unix.SYS_MOUNT,
	unix.SYS_MOUNT_SETATTR, unix.SYS_MOVE_MOUNT, unix.SYS_MOVE_PAGES, unix.SYS_NFSSERVCTL, unix.SYS_OPEN_BY_HANDLE_AT,
	unix.SYS_OPEN_TREE, unix.SYS_PERF_EVENT_OPEN, unix.SYS_PIDFD_GETFD, unix.SYS_PIVOT_ROOT, unix.SYS_PROCESS_MADVISE,
	unix.SYS_QUOTACTL, unix.SYS_QUOTACTL_FD, unix.SYS_REBOOT, unix.SYS_REQUEST_KEY, unix.SYS_SETDOMAINNAME,
	unix.SYS_SETHOSTNAME, unix.SYS_SETNS, unix.SYS_SETTIMEOFDAY, unix.SYS_SET_MEMPOLICY, unix.SYS_SET_MEMPOLICY_HOME_NODE,
	unix.SYS_SWAPOFF, unix.SYS_SWAPON, unix.SYS_SYSLOG, unix.SYS_UMOUNT2, unix.SYS_UNSHARE, unix.SYS_USERFAULTFD,
	unix.SYS_VHANGUP,
}, containerRefusedHere...)

const (
	// containerLast is the last call that the profile knows. Later ones are
	// said not to be there, so that programs do without.
	containerLast = unix.SYS_REMOVEXATTRAT
	// newNamespaces are the flags of clone(2) that make one, of time aside.
	newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
		unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET
)

// container is the filter.
func container() []unix.SockFilter {
	const allow = unix.SECCOMP_RET_ALLOW
	no := answer(unix.EPERM)
	var p bpf.Program
	native(&p)
	for _, nr := range containerRefused {
		p.RetIf(nr, no)
	}
	// Its flags are in memory, where a filter does not see them.
	p.RetIf(unix.SYS_CLONE3, answer(unix.ENOSYS))
	p.JumpIf(unix.SYS_CLONE, "clone")
	p.JumpIf(unix.SYS_SOCKET, "socket")
	p.JumpIf(unix.SYS_PERSONALITY, "personality")
	p.JumpAtLeast(containerLast+1, "later")
	p.Ret(allow)

	p.Label("clone")
	p.Load(bpf.OffArg(0))
	p.And(newNamespaces)
	p.RetIf(0, allow)
	p.Ret(no)

	p.Label("socket")
	p.Load(bpf.OffArg(0))
	for _, family := range []uint32{12, 19, 20, 23, 25, 34, 37, 38, unix.AF_VSOCK} {
		p.RetIf(family, no)
	}
	p.JumpAtLeast(46, "refuse")
	p.Ret(allow)

	p.Label("personality")
	p.Load(bpf.OffArg(0))
	for _, persona := range []uint32{0, 8, 0x20000, 0x20008, 0xffffffff} {
		p.RetIf(persona, allow)
	}
	p.Label("refuse")
	p.Ret(no)

	p.Label("later")
	p.Ret(answer(unix.ENOSYS))
	return p.Link()
}

// install puts a filter on the calling thread.
func install(filter []unix.SockFilter) error {
	if err := setFilter(filter); err != nil {
		return fmt.Errorf("install a seccomp filter: %w", err)
	}
	return nil
}
