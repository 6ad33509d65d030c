// SPDX-License-Identifier: Apache-2.0

// Package place puts a serving thread where the faults are.
//
// On a virtual machine the price of a fault is the price of waking a
// processor. If the thread that serves runs on the faulting thread's own
// processor, the two take turns there and no processor is woken: about 8 µs a
// fault, against 60 or more across idle processors (docs/benchmarks.md).
//
// Pinning the server there is only half of it. When the server installs the
// page and so wakes the faulting thread, the kernel looks for an idle
// processor for it, and the processor that the server occupies is not idle.
// Unless the server runs in the idle scheduling class: a processor that runs
// nothing but such threads counts as idle (since Linux 5.4), so the woken
// thread stays where it was, and goes on at once, before the server has
// even left its system call. The server then finds the next fault in the
// queue when it runs again: the two have become coroutines.
//
// The price is that an idle-class thread starves on a processor that is busy
// with others. So the class is entered only during a run of faults, and a
// guard takes a server out of it that makes no progress.
package place
