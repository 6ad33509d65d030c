// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Package sandbox starts programs for tests in surroundings that refuse system
// calls: under a seccomp filter, in what is like a container, as a user without
// privilege.
//
// The test binary does it: started again, it puts itself into the surroundings
// and becomes the program by execve(2), so that the program's file is what it is
// anywhere.
package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/bpf"
)

const (
	// Nobody is a user without privilege.
	Nobody = 65534

	env = "FAULTLINE_TEST_SANDBOX"
	// failed is the status where the surroundings could not be made.
	failed = 120
)

// Refusal is what a filter answers to a system call.
type Refusal struct {
	Call  uint32
	Errno syscall.Errno
}

// Options are the surroundings. The zero value is those of the test.
type Options struct {
	// Refuse are answered by a filter.
	Refuse []Refusal
	// Container puts on a filter that refuses what container runtimes refuse
	// by default, and takes away the capabilities that they take away.
	Container bool
	// User is who the program is to be, Nobody for one. It has no capabilities
	// then, and no exec gives it any: it has no_new_privs.
	User int
}

// Main does not return where the binary has been started by [Command]. TestMain
// must call it first.
func Main() {
	text, found := os.LookupEnv(env)
	if !found {
		return
	}
	err := os.Unsetenv(env)
	var o Options
	if err == nil {
		err = json.Unmarshal([]byte(text), &o)
	}
	if err == nil {
		err = o.enter()
	}
	if err == nil {
		err = unix.Exec(os.Args[1], os.Args[1:], os.Environ())
	}
	fmt.Fprintf(os.Stderr, "sandbox: %v\n", err)
	os.Exit(failed)
}

// Command returns a command that starts the program at path in the
// surroundings. Its standard streams are those of the program, and its end is
// the program's.
func Command(ctx context.Context, o Options, path string, args ...string) (*exec.Cmd, error) {
	text, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	// By its link, since the file may have been removed.
	cmd := exec.CommandContext(ctx, "/proc/self/exe", append([]string{path}, args...)...)
	cmd.Env = append(os.Environ(), env+"="+string(text))
	cmd.Dir = "/" // where everybody may be
	return cmd, nil
}

// enter changes the thread that it runs on, which is the one that calls execve.
func (o *Options) enter() error {
	runtime.LockOSThread()
	if o.User != 0 || os.Geteuid() != 0 {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("set no_new_privs: %w", err)
		}
	}
	// As container runtimes do, before capabilities go: the filter is then
	// there without no_new_privs.
	if len(o.Refuse) != 0 {
		if err := install(refuse(o.Refuse)); err != nil {
			return err
		}
	}
	if o.Container {
		if err := install(container()); err != nil {
			return err
		}
		if err := keepCapabilities(containerCapabilities); err != nil {
			return err
		}
	}
	if o.User != 0 {
		return become(o.User)
	}
	return nil
}

// become changes the user of the calling thread alone. The change takes the
// capabilities away.
func become(uid int) error {
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
		return fmt.Errorf("leave the groups: %w", errno)
	}
	id := uintptr(uid)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, id, id, id); errno != 0 {
		return fmt.Errorf("become group %d: %w", uid, errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, id, id, id); errno != 0 {
		return fmt.Errorf("become user %d: %w", uid, errno)
	}
	return nil
}

// keepCapabilities takes all others away, from what an exec may give as well.
func keepCapabilities(keep []int) error {
	var mask uint64
	for _, c := range keep {
		mask |= 1 << c
	}
	for c := range 64 {
		if mask>>c&1 != 0 {
			continue
		}
		// EINVAL: the kernel knows no such capability.
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("read the capabilities: %w", err)
	}
	for i := range data {
		part := uint32(mask >> (32 * i))
		data[i].Effective &= part
		data[i].Permitted &= part
		data[i].Inheritable &= part
	}
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		return fmt.Errorf("set the capabilities: %w", err)
	}
	return nil
}

// refuse is a filter that allows everything else.
func refuse(calls []Refusal) []unix.SockFilter {
	var p bpf.Program
	native(&p)
	for _, r := range calls {
		p.RetIf(r.Call, answer(r.Errno))
	}
	p.Ret(unix.SECCOMP_RET_ALLOW)
	return p.Link()
}

// native lets calls of other ABIs go, and loads the number of the others.
func native(p *bpf.Program) {
	p.Load(bpf.OffArch)
	p.JumpIf(auditArch, "native")
	p.Ret(unix.SECCOMP_RET_ALLOW)
	p.Label("native")
	p.Load(bpf.OffNR)
}

func answer(errno syscall.Errno) uint32 { return unix.SECCOMP_RET_ERRNO | uint32(errno) }
