// SPDX-License-Identifier: Apache-2.0

package uffdtrace

import (
	"time"

	"github.com/faultline-go/faultline/uffd/uapi"
)

// Sink is told what happens. Times are since the trace began and, for one
// task, never go back. A Sink keeps nothing of what it is given.
type Sink interface {
	// Call says that a system call has ended.
	Call(*Call)
	// Descriptor says that a number has come to mean a userfaultfd, or has
	// ceased to.
	Descriptor(*Descriptor)
	// Process says that a process has begun, executed a program or ended.
	Process(*Process)
	// Note says what could not be seen, and why.
	Note(*Note)
}

// Task says who does something. The ids are those that the collector's
// process id namespace has for it.
type Task struct {
	PID, TID int
}

// File stands for an open userfaultfd. All duplicates of a descriptor, in
// whichever process, have the same; there is no File 0.
type File int

// Call is a system call about a userfaultfd.
type Call struct {
	Task
	Start, End time.Duration

	// Name is that of the system call, such as "ioctl", and Args what the
	// program has passed.
	Name string
	Args [6]uint64
	// File is what the call is made on, 0 for calls that are not made on a
	// userfaultfd but make one, or pass it on.
	File File

	// Before and After are the argument of an ioctl as it lay in memory when
	// the call began and when it had ended, nil if it could not be read. They
	// may be longer than the argument.
	Before, After []byte
	// Messages are what a read has returned.
	Messages []uapi.Msg
	// Passed are the numbers of the userfaultfds that a message has carried,
	// of sendmsg(2) those in the sender, of recvmsg(2) those in the receiver.
	Passed []int

	// Ret is the result, if Errno is 0. If the task has ended in the call, or
	// its memory was replaced by exec in another thread, there is neither.
	Ret   int64
	Errno Errno
	Ended bool
}

// fd returns the descriptor that the call is made on.
func (c *Call) fd() int { return int(int32(c.Args[0])) }

// request returns the request of an ioctl, and whether it is one.
func (c *Call) request() (uint32, bool) { return uint32(c.Args[1]), c.Name == "ioctl" }

// failed reports whether the call has ended with an error that the program
// sees.
func (c *Call) failed() bool { return !c.Ended && c.Errno != 0 && !c.Errno.restarts() }

// Descriptor is a change of what a descriptor number of a process means.
type Descriptor struct {
	At   time.Duration
	PID  int
	FD   int
	File File
	// Closed is false for a new number.
	Closed bool
	// Last is set if with this number the last one of the File is gone, as
	// far as the tree is concerned.
	Last bool
	// By says what has made or closed it: the name of a call, "start", "fork",
	// "exec", "exit", "FORK" for a message, and Found for what nothing was
	// seen of but the result.
	By string
}

// Found is in Descriptor.By.
const Found = "found"

// Change says what has become of a process.
type Change string

// Members of Change.
const (
	Started Change = "start" // the program that is traced, which begins
	Forked  Change = "fork"  // a child, which begins
	Execed  Change = "exec"  // it runs another program from now on
	Exited  Change = "exit"  // it has ended
)

// Process is something that happens to a process.
type Process struct {
	At     time.Duration
	PID    int
	Change Change
	Parent int // of a child
	// Holds are the numbers of the userfaultfds that it has from now on, and
	// Closed of those that it has lost by this.
	Holds, Closed []int
	// Code is the exit status, and Signal the name of the signal that has
	// killed the process instead, such as "SIGKILL".
	Code   int
	Signal string
}

// Note is something that could not be seen.
type Note struct {
	At   time.Duration
	PID  int
	Text string
}
