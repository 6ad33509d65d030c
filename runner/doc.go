// SPDX-License-Identifier: Apache-2.0

// Package runner runs a program, and whatever it starts, in bounded resident
// memory: it puts together the tracer, a userfaultfd for every address space
// that needs one, the pager and a store.
//
// A program begins untouched. While the memory of its whole tree stays well
// below the limit, nothing is done but to look at its size now and then. When
// it comes near, the address spaces that make up the most of it are engaged:
//
//  1. A thread is stopped for a moment, an agent is planted in the address
//     space, and a filter installed that stops the calls which make anonymous
//     memory.
//  2. The agent opens a userfaultfd, which we take, and the pager begins to
//     serve it.
//  3. All private anonymous memory is registered; what is present is entered
//     in the pager's table. New memory is registered at the exit of the call
//     that made it, before the program learns its address.
//
// From then on the pager keeps the limit. A forked child of an engaged
// process is engaged from its first instruction, since pages of it are
// outside; after exec a process begins anew.
//
// Where the kernel's call cannot be used the engine of package provider takes its
// place: see [User]. It is told of all events of the tree, and has the memory of an
// engaged space as a pager.Descriptor of our own process's.
//
// If we die, the kernel kills the tree (PTRACE_O_EXITKILL): with its
// descriptor gone it would read zeros where data was.
package runner
