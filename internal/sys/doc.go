// SPDX-License-Identifier: Apache-2.0

// Package sys holds the system calls that the descriptor code needs, typed,
// and the one place where it uses unsafe. Everything in it is Linux only.
//
// What is named Raw does not tell the scheduler that it enters the kernel: it
// costs less, must not block, and keeps its processor meanwhile.
package sys
