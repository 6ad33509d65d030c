// SPDX-License-Identifier: Apache-2.0

// Package model plays small scripts on package vkernel and tells what
// happens: who faults, what is read, who is woken, and how the address space
// changes. It is how the subsystem is explained, and tried.
//
// [Parse] reads a script, one step a line, and knows every name before
// anything runs; its error is a [*ScriptError] that names the line. [Play]
// runs it on a profile and returns a [Run], the same one every time.
//
// # Why it is the same every time
//
// Every thread of a script is a goroutine while it is in a call. After each
// step all of them come to rest: idle, asleep in the machine, or held by a
// hook right after they were woken. Those that are held go on one at a time,
// in the order in which the script introduced them, and what each does then
// is told before the next one goes. So no two threads of a script ever run at
// once, but where one wakes a reader and then goes to sleep itself.
//
// The scripts of package internal/differential are another language on
// purpose: there an operation is a few numbers out of which any part still
// makes a script, for a machine to make and to shrink. These here have names,
// for people.
//
// # Locks
//
// There are none. A task's goroutine and the player share a few atomics and
// the channels by which one waits for the other.
package model
