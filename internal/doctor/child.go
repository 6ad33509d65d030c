// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/sys"
)

// childWork is what could be done to a child of ours, step by step. A nil
// error means that the step worked.
type childWork struct {
	start  error // making the child at all
	attach error // ptrace
	read   error // process_vm_readv
	open   error // of a file, by /proc/PID/fd
	take   error // pidfd_getfd
	same   error // kcmp
}

var errNoChild = errors.New("no child to try it on")

// workOnChild starts a copy of ourselves that never runs: it is traced from
// its exec on, let go stopped, attached to again as faultline run would, and
// killed.
func workOnChild() childWork {
	// A tracer is a thread, not a process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	var w childWork
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return noWork(err, errNoChild)
	}
	defer null.Close()
	// A child that is stopped before exec holds us in vfork(2), where the job
	// cannot be stopped. After that it is out of the job, in a group of its own.
	mask, err := sys.BlockSignals(sys.StopSignals)
	if err != nil {
		return noWork(err, errNoChild)
	}
	pid, err := syscall.ForkExec("/proc/self/exe", []string{"faultline"}, &syscall.ProcAttr{
		Env:   []string{},
		Files: []uintptr{null.Fd(), null.Fd(), null.Fd()},
		Sys:   &syscall.SysProcAttr{Ptrace: true, Pdeathsig: syscall.SIGKILL, Setpgid: true},
	})
	sys.SetSignalMask(mask)
	if err != nil {
		// PTRACE_TRACEME and execve report through the same pipe. The
		// other steps still tell something when done to ourselves.
		w.attach = fmt.Errorf("start of a traced child: %w", err)
		w.stepsOn(os.Getpid(), int(null.Fd()))
		return w
	}
	defer reap(pid)
	if err := waitStop(pid); err != nil {
		return noWork(nil, err)
	}
	w.attach = reattach(pid)
	w.stepsOn(pid, 0)
	return w
}

// noWork is what comes of it if the child cannot be had.
func noWork(start, attach error) childWork {
	return childWork{start: start, attach: attach, read: errNoChild, open: errNoChild, take: errNoChild, same: errNoChild}
}

// reattach lets go of the child, which stays stopped by a SIGSTOP sent
// before, and seizes it.
func reattach(pid int) error {
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		return fmt.Errorf("kill(SIGSTOP): %w", err)
	}
	if err := unix.PtraceDetach(pid); err != nil {
		return fmt.Errorf("PTRACE_DETACH: %w", err)
	}
	if err := waitStop(pid); err != nil {
		return err
	}
	if err := unix.PtraceSeize(pid); err != nil {
		return fmt.Errorf("PTRACE_SEIZE: %w", err)
	}
	return nil
}

func waitStop(pid int) error {
	for {
		var ws unix.WaitStatus
		_, err := unix.Wait4(pid, &ws, unix.WUNTRACED, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return fmt.Errorf("wait for the child: %w", err)
		case ws.Stopped():
			return nil
		default:
			return fmt.Errorf("the child ended (status %#x) before it could be tried", uint32(ws))
		}
	}
}

// reap kills the child and waits until it is gone.
func reap(pid int) {
	_ = unix.Kill(pid, unix.SIGKILL)
	for {
		var ws unix.WaitStatus
		_, err := unix.Wait4(pid, &ws, 0, nil)
		if err == unix.EINTR || err == nil && ws.Stopped() {
			continue
		}
		return
	}
}

// stepsOn tries on a process what needs no ptrace attachment, only the
// permission to attach. Its descriptor fd is of the null device.
func (w *childWork) stepsOn(pid, fd int) {
	w.read, w.open, w.take, w.same = readFrom(pid), openFrom(pid, fd), takeFrom(pid), compareWith(pid)
}

func readFrom(pid int) error {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return err
	}
	start, _, _ := strings.Cut(string(text), "-")
	addr, err := strconv.ParseUint(start, 16, 64)
	if err != nil {
		return fmt.Errorf("/proc/%d/maps: %w", pid, err)
	}
	var b [1]byte
	local := []unix.Iovec{{Base: &b[0]}}
	local[0].SetLen(len(b))
	_, err = unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: uintptr(addr), Len: len(b)}}, 0)
	if err != nil {
		return fmt.Errorf("process_vm_readv: %w", err)
	}
	return nil
}

// openFrom opens what a descriptor of the process stands for.
func openFrom(pid, fd int) error {
	own, err := unix.Open(fmt.Sprintf("/proc/%d/fd/%d", pid, fd), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /proc/PID/fd: %w", err)
	}
	return unix.Close(own)
}

func takeFrom(pid int) error {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("pidfd_open: %w", err)
	}
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, 0, 0)
	if err != nil {
		return fmt.Errorf("pidfd_getfd: %w", err)
	}
	return unix.Close(fd)
}

func compareWith(pid int) error {
	errno := raw(unix.SYS_KCMP, uintptr(os.Getpid()), uintptr(pid), kcmpVM)
	if errno != 0 {
		return fmt.Errorf("kcmp: %w", errno)
	}
	return nil
}

// onChild turns one step into a finding. A refusal that the harmless call
// met too is put down to whatever stands in front of the kernel.
func (p *probe) onChild(err error, done string, names ...string) finding {
	for _, call := range names {
		if r, found := p.refusedCall(call); found {
			return p.gate(r)
		}
	}
	switch {
	case err == nil:
		return ok("%s", done)
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOMEM):
		return no("raise the limit on processes (ulimit -u) or free memory", "%v", err)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return no(p.allowPtrace(), "%v", err)
	default:
		return no("report this line to the authors of faultline", "%v", err)
	}
}

// allowPtrace is the remedy for a ptrace permission that is missing.
func (p *probe) allowPtrace() string {
	switch p.read(yamaFile) {
	case "2":
		if !p.status().has(unix.CAP_SYS_PTRACE) {
			return "sysctl -w kernel.yama.ptrace_scope=1, or run it as root"
		}
	case "3":
		return "set kernel.yama.ptrace_scope to 1 in /etc/sysctl.d and reboot: 3 cannot be undone"
	}
	if os.Geteuid() == 0 {
		return asRoot("CAP_SYS_PTRACE")
	}
	return "make the faultline binary readable to you (chmod a+r), or run it as root"
}

const yamaFile = "proc/sys/kernel/yama/ptrace_scope"

func yamaScope(p *probe) finding {
	scope := p.read(yamaFile)
	switch scope {
	case "":
		return ok("no Yama in this kernel")
	case "0", "1":
		return ok("kernel.yama.ptrace_scope=%s: a program may trace its children", scope)
	case "2":
		if p.status().has(unix.CAP_SYS_PTRACE) {
			return ok("kernel.yama.ptrace_scope=2, and we have CAP_SYS_PTRACE")
		}
		return no(p.allowPtrace(), "kernel.yama.ptrace_scope=2: only CAP_SYS_PTRACE may trace")
	case "3":
		return no(p.allowPtrace(), "kernel.yama.ptrace_scope=3: nobody may trace")
	}
	return warn("", "kernel.yama.ptrace_scope=%s, a value that faultline does not know", scope)
}
