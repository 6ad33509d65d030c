// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package tracee

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/inject"
	"github.com/faultline-go/faultline/internal/sys"
)

// run is the tracer thread. It is never unlocked: a thread that has been a
// tracer ends with its goroutine.
func (t *Tracer) run(o Options, started chan<- error) {
	runtime.LockOSThread()
	t.tid = unix.Gettid()
	pid, err := launch(o)
	if err != nil {
		started <- err
		return
	}
	p := t.addProcess(pid, nil)
	th := t.addThread(p, pid)
	th.state = held
	p.compat.Store(isCompat(pid))
	t.root = p
	started <- nil
	t.loop()
}

// prepareSignals makes wakeSignal end a system call of the tracer thread, and
// keeps the kernel from sending SIGCHLD for each of the program's stops. It
// comes after the launch, so that the program does not inherit it.
func prepareSignals() error {
	if err := sys.UnblockSignals(1 << (wakeSignal - 1)); err != nil {
		return fmt.Errorf("unblock signal %d: %w", wakeSignal, err)
	}
	sa, err := getAction(int(wakeSignal))
	if err != nil {
		return fmt.Errorf("read the action of signal %d: %w", wakeSignal, err)
	}
	sa.flags &^= saRestart
	if err := setAction(int(wakeSignal), sa); err != nil {
		return fmt.Errorf("set the action of signal %d: %w", wakeSignal, err)
	}
	// The default of SIGCHLD is to do nothing, and a signal that does nothing
	// is not even sent; wait4 does not need it. With the runtime's handler
	// each ptrace stop would interrupt some thread of ours.
	if err := setAction(int(unix.SIGCHLD), sigaction{handler: sigDfl}); err != nil {
		return fmt.Errorf("set the action of SIGCHLD: %w", err)
	}
	return nil
}

// launching keeps two launches from changing signal dispositions under each
// other.
var launching sync.Mutex

// launch starts the program and leaves it seized in a PTRACE_EVENT_STOP
// before its first instruction.
//
// PTRACE_SEIZE cannot be had by the child for itself, and a child that waits
// to be seized before it calls exec would have to be a program of ours: the
// start of another Go runtime, which takes longer than all of this, and
// which loses signal dispositions and masks on its way. So the child is
// forked by the standard library, asks for PTRACE_TRACEME, and stops at the
// end of exec. Then it is exchanged: detached to sleep, and seized from there.
// It does not sleep in a group stop, since anybody may end that by SIGCONT,
// and the program would run with nobody to see it. Until it is seized
// PTRACE_O_EXITKILL is not there to end the program with the supervisor; the
// parent death signal does that, and is taken back at the end.
func launch(o Options) (pid int, err error) {
	argv := o.Argv
	if len(argv) == 0 {
		argv = []string{o.Path}
	}
	files := o.Files
	if files == nil {
		files = []uintptr{0, 1, 2}
	}
	launching.Lock()
	defer launching.Unlock()
	// A child that is stopped before exec holds its parent in vfork(2), where
	// that cannot be stopped, and a shell would wait for ever to see it so.
	old, err := sys.BlockSignals(sys.StopSignals)
	if err != nil {
		return 0, err
	}
	restore := inheritIgnored()
	pid, err = syscall.ForkExec(o.Path, argv, &syscall.ProcAttr{
		Dir:   o.Dir,
		Env:   o.Env,
		Files: files,
		Sys:   &syscall.SysProcAttr{Ptrace: true, Pdeathsig: unix.SIGKILL},
	})
	restore()
	sys.SetSignalMask(old)
	if err != nil {
		return 0, err
	}
	if err = exchange(pid, old); err == nil {
		err = forgetDeathSignal(pid)
	}
	if err == nil {
		err = prepareSignals()
	}
	if err != nil {
		_ = unix.Kill(pid, unix.SIGKILL)
		for {
			ws, werr := waitChild(pid)
			if werr != nil || ws.Exited() || ws.Signaled() {
				return 0, err
			}
		}
	}
	return pid, nil
}

// errKilled is returned if somebody kills the child while it is started.
var errKilled = errors.New("killed before its first instruction")

// exchange turns the traced child into a seized one, and gives it the signal
// mask that it would have inherited had we not changed ours.
func exchange(pid int, mask uint64) error {
	if err := await(pid, func(code int) bool { return code == int(unix.SIGTRAP) }); err != nil {
		return err
	}
	rest, err := inject.MakeRest(pid)
	if errors.Is(err, inject.ErrForeign) {
		return ErrCompat
	} else if err != nil {
		return err
	}
	if err := ptrace(unix.PTRACE_DETACH, pid, 0, 0); err != nil {
		return fmt.Errorf("detach from the new process: %w", err)
	}
	if err := ptrace(unix.PTRACE_SEIZE, pid, 0, options); err != nil {
		return fmt.Errorf("trace the new process (a set-user-id or unreadable program needs CAP_SYS_PTRACE): %w", err)
	}
	if err := ptrace(unix.PTRACE_INTERRUPT, pid, 0, 0); err != nil {
		return err
	}
	// In a group stop, if somebody stops it now: it stays there.
	if err := await(pid, func(code int) bool { return code>>8 == unix.PTRACE_EVENT_STOP }); err != nil {
		return err
	}
	if err := rest.Wake(); err != nil {
		return err
	}
	return setMask(pid, mask)
}

// forgetDeathSignal takes the parent death signal back, by a call made in the
// new process, which stands before its first instruction.
func forgetDeathSignal(pid int) error {
	s, err := inject.Open(pid)
	if err == nil {
		_, err = s.Syscall(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, 0)
		err = errors.Join(err, s.Close())
	}
	if err != nil && !errors.Is(err, inject.ErrFiltered) {
		return fmt.Errorf("take the parent death signal back: %w", err)
	}
	return nil
}

// await waits for a stop of the wanted code, a signal number with the event in
// the bits above 8, and lets the child go on from all others. A signal that
// comes from outside meanwhile takes its effect.
func await(pid int, wanted func(code int) bool) error {
	for {
		ws, err := waitChild(pid)
		switch {
		case err != nil:
			return err
		case !ws.Stopped():
			return errKilled
		}
		sig := stopCode(ws)
		if wanted(sig) {
			return nil
		}
		if sig>>8 != 0 {
			sig = 0
		}
		if err := ptrace(unix.PTRACE_CONT, pid, 0, uintptr(sig)); err != nil {
			return err
		}
	}
}

// stopCode returns the signal of a stop with the ptrace event in the bits
// above 8.
func stopCode(ws unix.WaitStatus) int { return int(ws>>8) & 0xffff }

func waitChild(pid int) (ws unix.WaitStatus, err error) {
	for {
		_, err = unix.Wait4(pid, &ws, unix.WALL, nil)
		if err != unix.EINTR {
			return ws, err
		}
	}
}

// isCompat reports whether the stopped thread runs in another mode than we
// do. A kernel too old to tell (before Linux 5.3) is taken to run our mode.
func isCompat(tid int) bool {
	info, err := getCallInfo(tid)
	return err == nil && info.arch != nativeArch
}
