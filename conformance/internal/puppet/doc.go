// SPDX-License-Identifier: Apache-2.0

// Package puppet runs processes that do, step by step, what they are told,
// and nothing else.
//
// A puppet is a static program of some hundred bytes with no runtime in it:
// no collector that stops threads, no signal that a scheduler sends, no
// mapping that was not asked for. What is observed of its memory, its faults
// and its descriptors is thereby the kernel's doing alone. (A Go process is
// unfit for that: the signals by which it preempts goroutines restart faults
// and make extra messages, and a collection can stop whoever is to serve a
// fault.)
//
// The program is made in memory and executed from a memfd. Each of its
// threads serves one slot of a shared area, by which it is told to make a
// system call, to touch memory, or to make another thread or process, which
// then serves a slot of its own. A command may block for as long as the
// kernel likes; [Thread.State] says in what.
//
// A [Process] and its threads belong to one goroutine at a time.
package puppet
