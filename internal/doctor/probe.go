// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// probe is one examination: what several checks share is found out once, and
// only if a check asks.
type probe struct {
	root    fs.FS  // the root directory, from which /proc and /sys are read
	release string // of the kernel

	status  func() status     // our own credentials
	child   func() childWork  // what may be done to another process
	gates   func() gates      // the ways to a descriptor
	refused func() []refusal  // system calls that a filter refuses
	uffd    func() abi        // what a descriptor says
	trap    func() unix.Errno // whether filters may trap
}

func newProbe() *probe {
	p := &probe{root: os.DirFS("/")}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		p.release = unix.ByteSliceToString(u.Release[:])
	}
	p.status = sync.OnceValue(func() status { return readStatus(p.root) })
	p.child = sync.OnceValue(workOnChild)
	p.gates = sync.OnceValue(tryGates)
	p.refused = sync.OnceValue(tryCalls)
	p.trap = trapAction
	p.uffd = sync.OnceValue(func() abi { return askABI(p.gates()) })
	return p
}

// read returns a file of /proc or /sys without surrounding space, empty when
// it cannot be read.
func (p *probe) read(path string) string {
	text, err := fs.ReadFile(p.root, path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// status is what /proc says about our own thread's privileges.
type status struct {
	known      bool // false when /proc is not mounted
	caps       uint64
	noNewPrivs bool
	seccomp    int // 0 none, 1 strict, 2 filter
	filters    string
}

// has reports whether capability c is effective. It counts as absent when
// /proc could not be read.
func (s status) has(c uint) bool { return s.caps&(1<<c) != 0 }

func readStatus(root fs.FS) status {
	// Credentials and filters belong to threads; those of the main thread
	// may differ from ours.
	text, err := fs.ReadFile(root, "proc/thread-self/status")
	if err != nil {
		return status{}
	}
	s := status{known: true}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch key {
		case "CapEff":
			s.caps, _ = strconv.ParseUint(value, 16, 64)
		case "NoNewPrivs":
			s.noNewPrivs = value == "1"
		case "Seccomp":
			s.seccomp, _ = strconv.Atoi(value)
		case "Seccomp_filters":
			s.filters = value
		}
	}
	return s
}

// asRoot is the remedy for a missing capability, for whoever we are.
func asRoot(capability string) string {
	if os.Geteuid() == 0 {
		return "in a container: docker run --cap-add " + strings.TrimPrefix(capability, "CAP_") +
			" ...; in a user namespace: run outside of it"
	}
	return "run it as root: sudo faultline ..."
}

// unconfined is the remedy for a system call that a seccomp filter refuses.
func unconfined(call string) string {
	return "allow " + call + " in the seccomp profile, for example docker run --security-opt seccomp=unconfined ..."
}
