// SPDX-License-Identifier: Apache-2.0

// Package uffdtrace makes a trace of what programs do with userfaultfd: lines
// in the manner of strace(1), or JSON, and a summary.
//
// It makes no system call and does not know who answers the program's calls,
// nor how they are seen: whoever sees them tells a [Sink], of which [Trace] is
// the one that matters. What a collector has to give is what every collector
// has, registers and bytes of memory; the decoding is done here.
//
// # Faults
//
// A fault begins, as far as anybody can see it from outside, when a message
// about it has been read, and ends with the call that wakes the thread: a
// fill or a WRITEPROTECT that succeeds and does not say DONTWAKE, a WAKE, an
// UNREGISTER. The time between is its latency. Which faults a call wakes
// follows from its range and from the address in the message, as in the
// kernel, and only those of the same descriptor are looked at.
package uffdtrace
