// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/uffd/uapi"
)

const devicePath = "/dev/userfaultfd"

// gates says which ways to a descriptor are open. There are three locks in
// front of it, and each answers EPERM or EACCES: a filter refuses the system
// call, the system call wants a privilege, or the device node wants a
// permission. Telling them apart is the point.
type gates struct {
	call     error // the system call, for faults of user and kernel mode
	userOnly error // the system call, for faults of user mode alone
	device   error // the device node, for faults of both
}

// open makes a descriptor in the best way there is. One that is not full has
// no faults of kernel mode; it answers questions all the same.
func (g gates) open() (fd int, full bool, err error) {
	switch {
	case g.call == nil:
		fd, err = openCall(0)
		return fd, true, err
	case g.device == nil:
		fd, err = openDevice()
		return fd, true, err
	case g.userOnly == nil:
		fd, err = openCall(uapi.UFFD_USER_MODE_ONLY)
		return fd, false, err
	}
	return -1, false, g.call
}

func tryGates() gates {
	closed := func(fd int, err error) error {
		if err == nil {
			err = unix.Close(fd)
		}
		return err
	}
	return gates{
		call:     closed(openCall(0)),
		userOnly: closed(openCall(uapi.UFFD_USER_MODE_ONLY)),
		device:   closed(openDevice()),
	}
}

func openCall(flags uintptr) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, flags|unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

func openDevice() (int, error) {
	dev, err := unix.Open(devicePath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: devicePath, Err: err}
	}
	defer unix.Close(dev)
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(dev), uapi.USERFAULTFD_IOC_NEW, unix.O_CLOEXEC|unix.O_NONBLOCK)
	if errno != 0 {
		return -1, fmt.Errorf("USERFAULTFD_IOC_NEW: %w", errno)
	}
	return int(fd), nil
}

// sysctlFile decides whether the system call needs a privilege.
const sysctlFile = "proc/sys/vm/unprivileged_userfaultfd"

func findSyscall(p *probe) finding {
	if r, found := p.refusedCall("userfaultfd"); found {
		return p.gate(r)
	}
	g := p.gates()
	switch {
	case g.call == nil:
		return ok("opens for faults of user and kernel mode")
	case errors.Is(g.call, unix.EPERM) && g.userOnly == nil:
		return warn("sysctl -w vm.unprivileged_userfaultfd=1, or "+asRoot("CAP_SYS_PTRACE"),
			"opens for faults of user mode only: EPERM for all, because vm.unprivileged_userfaultfd is %s and we lack CAP_SYS_PTRACE",
			or(p.read(sysctlFile), "unreadable"))
	case errors.Is(g.call, unix.EMFILE), errors.Is(g.call, unix.ENFILE):
		return no("raise the limit on open files (ulimit -n)", "%v", g.call)
	default:
		return no("report this line to the authors of faultline", "%v", g.call)
	}
}

func findDevice(p *probe) finding {
	err := p.gates().device
	switch {
	case err == nil:
		return ok("%s opens", devicePath)
	case errors.Is(err, unix.ENOENT):
		return warn("none needed where the system call works; since Linux 6.1: mknod "+devicePath+" c 10 MINOR, with MINOR from /proc/misc",
			"%s does not exist", devicePath)
	case errors.Is(err, unix.EACCES):
		return warn("setfacl -m u:$USER:rw "+devicePath, "%s exists, but we may not open it (EACCES)", devicePath)
	case errors.Is(err, unix.EPERM):
		return warn("allow the device 10:MINOR in the container, for example docker run --device "+devicePath+" ...",
			"%s exists, but the device control group or a filter refuses it (EPERM)", devicePath)
	default:
		return warn("use the system call", "%v", err)
	}
}

func findSysctl(p *probe) finding {
	switch v := p.read(sysctlFile); {
	case v == "1":
		return ok("vm.unprivileged_userfaultfd=1: everyone may")
	case p.status().has(unix.CAP_SYS_PTRACE):
		return ok("vm.unprivileged_userfaultfd=%s, which does not bind us: we have CAP_SYS_PTRACE", or(v, "unreadable"))
	case v == "":
		return warn("", "vm.unprivileged_userfaultfd is not there: Linux before 5.2, no userfaultfd, or no /proc")
	default:
		return warn("sysctl -w vm.unprivileged_userfaultfd=1", "vm.unprivileged_userfaultfd=%s: only with CAP_SYS_PTRACE", v)
	}
}

func findDescriptor(p *probe) finding {
	g := p.gates()
	switch {
	case g.call == nil:
		return ok("by the system call")
	case g.device == nil:
		return ok("by %s; the system call: %s", devicePath, findSyscall(p).found)
	}
	byCall, byDevice := findSyscall(p), findDevice(p)
	fix := byCall.fix
	if byCall.status == No && byDevice.fix != "" {
		fix += "; or " + byDevice.fix
	}
	return no(fix, "neither way: system call: %s; device: %s", byCall.found, byDevice.found)
}

// abi is what a descriptor says about itself.
type abi struct {
	err      error         // the handshake failed, or there is no descriptor
	features uapi.Features // of the kernel
	fork     error         // asking for EVENT_FORK
	anon     uapi.Ioctls   // on private memory
	shared   uapi.Ioctls   // on shared memory, with minor faults
	move     error         // one page, moved for real
}

// askABI uses a new descriptor for each question: UFFDIO_API works once.
func askABI(g gates) abi {
	var a abi
	if a.features, a.err = withDescriptor(g, func(fd int) (uapi.Features, error) {
		return handshake(fd, 0)
	}); a.err != nil {
		return a
	}
	_, a.fork = withDescriptor(g, func(fd int) (uapi.Features, error) {
		return handshake(fd, uapi.UFFD_FEATURE_EVENT_FORK)
	})
	mode := uapi.UFFDIO_REGISTER_MODE_MISSING
	if a.features.Has(uapi.UFFD_FEATURE_PAGEFAULT_FLAG_WP) {
		mode |= uapi.UFFDIO_REGISTER_MODE_WP
	}
	a.anon = ioctlsOf(g, unix.MAP_PRIVATE, mode)
	if a.features.Has(uapi.UFFD_FEATURE_MINOR_SHMEM) {
		a.shared = ioctlsOf(g, unix.MAP_SHARED, uapi.UFFDIO_REGISTER_MODE_MINOR)
	}
	a.move = tryMove(g)
	return a
}

func withDescriptor[T any](g gates, ask func(fd int) (T, error)) (T, error) {
	fd, _, err := g.open()
	if err != nil {
		var zero T
		return zero, err
	}
	defer unix.Close(fd)
	return ask(fd)
}

// ioctlsOf registers two pages that are never touched and returns what the
// kernel would do to them.
func ioctlsOf(g gates, sharing int, mode uapi.RegisterMode) uapi.Ioctls {
	set, _ := withMapping(g, sharing, func(fd int, b []byte) (uapi.Ioctls, error) {
		return register(fd, b, mode)
	})
	return set
}

func withMapping(g gates, sharing int, ask func(fd int, b []byte) (uapi.Ioctls, error)) (uapi.Ioctls, error) {
	return withDescriptor(g, func(fd int) (uapi.Ioctls, error) {
		b, err := unix.Mmap(-1, 0, 2*os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|sharing)
		if err != nil {
			return 0, fmt.Errorf("mmap: %w", err)
		}
		defer unix.Munmap(b)
		if _, err := handshake(fd, 0); err != nil {
			return 0, err
		}
		return ask(fd, b)
	})
}

// tryMove moves a page and looks whether it arrived.
func tryMove(g gates) error {
	_, err := withMapping(g, unix.MAP_PRIVATE, func(fd int, b []byte) (uapi.Ioctls, error) {
		src, dst := b[:len(b)/2], b[len(b)/2:]
		// Only dst is registered and only src is touched before the move,
		// so this process cannot wait for a fault that it serves itself.
		src[0] = 0xfa
		set, err := register(fd, dst, uapi.UFFDIO_REGISTER_MODE_MISSING)
		if err != nil {
			return 0, err
		}
		if err := move(fd, dst, src); err != nil {
			return 0, err
		}
		if dst[0] != 0xfa {
			return 0, errors.New("the moved page holds other bytes")
		}
		return set, nil
	})
	return err
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
