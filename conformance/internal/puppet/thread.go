// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package puppet

import (
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/mem"
)

// Budget is how long anything that has to happen may take. It is only ever
// waited for in full by what is going to fail.
const Budget = 5 * time.Second

// Op is what a command does.
type Op uint32

// Operations. Accesses have the address as first argument.
const (
	Syscall Op = iota // system call nr with six arguments
	clone             // with flags and a slot's address
	Load8
	Load64
	Store8  // the value is the second argument
	Store64 // the value is the second argument
	CAS64   // the old and the new value; the result is the value found
	Copy    // to, from, length: through user mode, byte by byte
)

// Thread is a thread of a puppet.
type Thread struct {
	proc     *Process // immutable, but its pid changes with exec of a thread
	slot     *slot    // immutable
	slotAddr mem.Addr // immutable; of slot, in the puppet
	index    int      // immutable
}

// Result is how a command ended.
type Result struct {
	Value uint64 // of the access or the system call, if it did not fail
	Errno syscall.Errno
	// Signal is SIGSEGV or SIGBUS if the access raised it, with its si_code
	// and si_addr.
	Signal syscall.Signal
	Code   int32
	Addr   mem.Addr
}

// TID returns the kernel's number of the thread.
func (t *Thread) TID() int { return int(t.slot.tid) }

// Handled returns how many signals but SIGSEGV and SIGBUS the thread has
// handled.
func (t *Thread) Handled() uint32 { return t.slot.count.Load() }

// Start begins a command. The last one must have ended.
func (t *Thread) Start(op Op, nr uint64, args [6]uint64) {
	if !t.slot.finished() {
		panic("puppet: a command is started while another is " + t.State().String())
	}
	t.slot.op, t.slot.nr, t.slot.args = uint32(op), nr, args
	t.slot.publish()
}

// Finished reports whether the last command has ended.
func (t *Thread) Finished() bool { return t.slot.finished() }

// Wait returns when the last command is done, or after d, or for no reason:
// look at State then.
func (t *Thread) Wait(d time.Duration) { t.slot.wait(d) }

// Result returns how the last command, which has ended, did so.
func (t *Thread) Result() Result {
	s := t.slot
	if s.signal != 0 {
		return Result{Signal: syscall.Signal(s.signal), Code: s.code, Addr: mem.Addr(s.addr)}
	}
	if Op(s.op) <= clone && int64(s.result) < 0 && int64(s.result) > -4096 {
		return Result{Errno: syscall.Errno(-int64(s.result))}
	}
	return Result{Value: s.result}
}

// Finish waits for the last command. It fails if that is not done within
// [Budget].
func (t *Thread) Finish() (Result, error) {
	for deadline := time.Now().Add(Budget); !t.slot.finished(); {
		if t.State() == Gone || time.Now().After(deadline) {
			return Result{}, fmt.Errorf("command %d of thread %d does not end: it is %s", t.slot.op, t.slot.tid, t.Describe())
		}
		t.slot.wait(20 * time.Millisecond)
	}
	return t.Result(), nil
}

// Do performs a system call that does not block.
func (t *Thread) Do(nr uintptr, args ...uint64) (uint64, error) {
	var a [6]uint64
	copy(a[:], args)
	t.Start(Syscall, uint64(nr), a)
	r, err := t.Finish()
	if err == nil && r.Errno != 0 {
		err = r.Errno
	}
	return r.Value, err
}

// Signal sends a signal to the thread.
func (t *Thread) Signal(sig syscall.Signal) error {
	return unix.Tgkill(t.proc.pid, t.TID(), sig)
}

// tail is the part of a slot that commands pass structs in.
const tailOff = 0x800

func (t *Thread) tail() ([]byte, mem.Addr) {
	off := t.index*slotSize + tailOff
	return t.proc.area.b[off : t.index*slotSize+altStackOff], t.slotAddr + tailOff
}

// Text puts what a command needs in memory there, and returns the address.
// It stays until the next.
func (t *Thread) Text(text []byte) uint64 {
	b, addr := t.tail()
	copy(b, text)
	return uint64(addr)
}

// arm gives the thread its stack for signal handlers.
func (t *Thread) arm() error {
	b, addr := t.tail()
	put64(b, uint64(t.slotAddr)+altStackOff, 0, slotSize-altStackOff) // stack_t
	_, err := t.Do(unix.SYS_SIGALTSTACK, uint64(addr), 0)
	return named("sigaltstack", err)
}

// Flags of sigaction(2).
const (
	saSiginfo  = 0x4
	saOnStack  = 0x08000000
	saRestorer = 0x04000000
	saRestart  = 0x10000000
)

// action installs our handler for a signal.
func (t *Thread) action(sig syscall.Signal, flags uint64) error {
	b, addr := t.tail()
	put64(b, handler, flags|saSiginfo|saOnStack|saRestorer, restorer, 0)
	_, err := t.Do(unix.SYS_RT_SIGACTION, uint64(sig), uint64(addr), 0, 8)
	return named("rt_sigaction", err)
}

// Handle chooses whether the system calls that SIGUSR1 interrupts are
// restarted.
func (t *Thread) Handle(restart bool) error {
	flags := uint64(0)
	if restart {
		flags = saRestart
	}
	return t.action(syscall.SIGUSR1, flags)
}

// settle makes of a fresh program a puppet: handlers, and an end with ours.
func (t *Thread) settle() error {
	for _, sig := range []syscall.Signal{syscall.SIGSEGV, syscall.SIGBUS, syscall.SIGUSR1} {
		if err := t.action(sig, 0); err != nil {
			return err
		}
	}
	if err := t.arm(); err != nil {
		return err
	}
	_, err := t.Do(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uint64(syscall.SIGKILL))
	return named("prctl(PR_SET_PDEATHSIG)", err)
}
