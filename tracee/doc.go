// SPDX-License-Identifier: Apache-2.0

// Package tracee starts a program under ptrace(2) and follows its whole tree
// of processes and threads, so that the program cannot tell.
//
// One locked OS thread, the tracer thread, does all ptrace calls: the kernel
// accepts them from no other. It blocks in wait4(2) for the next event,
// handles it and resumes the thread that stopped. Every callback of a
// [Handler] and every function given to [Tracer.Do] or [Tracer.Stopped] runs
// on the tracer thread; while it runs, no other event of the tree is handled.
// Methods of [Thread], and those methods of [Process] and [Space] that say
// so, belong to that thread.
//
// The whole tree dies by SIGKILL with the supervisor (PTRACE_O_EXITKILL): a
// program whose pages are served by us must not run on without us.
//
// # What the program gets
//
// Descriptors, process group, session, terminal, directory, umask, limits,
// priority, signal mask and ignored signals are those that the supervisor
// was started with, or as near as the Go runtime lets us know: descriptors 0
// to 2 that were closed are open on /dev/null; SIGHUP, SIGINT, SIGQUIT,
// SIGABRT, SIGTERM, SIGURG, SIGCHLD, SIGPROF and the signals of faults are
// never blocked, and signals 27 and 64 never ignored. Its parent is the
// supervisor.
//
// # What the supervisor must not do
//
// It must not set CPU affinity or limits before [Start], since the program
// inherits them, nor use SIGCHLD or signals 63 and 64, nor call
// signal.Ignore before [Start].
package tracee
