// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

// Package watch sees what a program and all that it starts do with
// userfaultfd, and has package collect tell it to a sink of package uffdtrace.
// The kernel serves the program; nothing is changed but time.
//
// The calls are seen by seccomp filters that answer SECCOMP_RET_TRACE. The
// first one is there from the start and costs next to nothing: it reports
// userfaultfd(2), requests of its kind of ioctl(2), and pidfd_getfd(2). When a
// process gets a descriptor another is put upon it, which reports what is done
// with this number, and with numbers near it if there have been several
// before; so that there is never a great number of filters. When a descriptor
// is sent away by sendmsg(2) all processes get one for recvmsg(2), those that
// sleep in it included, before the message is on its way.
//
// Everything runs on the tracer's thread, so that there is no lock.
package watch
