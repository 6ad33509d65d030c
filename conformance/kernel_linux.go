// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package conformance

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/conformance/internal/puppet"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// kernel is the running kernel. What happens on it happens in processes of
// package puppet.
type kernel struct {
	release string
	disk    string // a directory for regular files, if there is one
	huge    bool   // huge pages were asked for; protected by the mutex of sharedPool
	start   func() (*puppet.Process, error)
}

// Kernel returns the running kernel.
func Kernel() (Backend, error) { return newKernel() }

func newKernel() (*kernel, error) {
	b, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return nil, err
	}
	return &kernel{release: strings.TrimSpace(string(b)), disk: findDisk(), start: puppet.Start}, nil
}

// findDisk returns a directory whose files are not in memory: those of tmpfs
// are shared memory to a userfaultfd, and no regular files.
func findDisk() string {
	const ramfs = 0x858458f6 // has no name in x/sys
	for _, dir := range []string{"/var/tmp", os.TempDir(), "."} {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) == nil && st.Type != unix.TMPFS_MAGIC && st.Type != ramfs {
			if dir, err := filepath.Abs(dir); err == nil {
				return dir
			}
		}
	}
	return ""
}

// Lacks is true of OpenFile where there is no disk.
func (k *kernel) Lacks(call Call) bool { return call == OpenFile && k.disk == "" }

func (k *kernel) Name() string     { return "kernel" }
func (k *kernel) Seed() bool       { return false }
func (k *kernel) Release() string  { return k.release }
func (k *kernel) Privileged() bool { return os.Geteuid() == 0 }

func (k *kernel) Features() (uapi.Features, error) {
	return featuresOf(k)
}

func featuresOf(b Backend) (uapi.Features, error) {
	p, err := b.Start()
	if err != nil {
		return 0, err
	}
	defer p.Close()
	return probe(p)
}

func (k *kernel) Start() (Process, error) {
	p, err := k.start()
	if err != nil {
		return nil, err
	}
	return newKernelProcess(k, p), nil
}

type kernelProcess struct {
	*puppet.Process
	k    *kernel
	main *kernelTask
}

func newKernelProcess(k *kernel, p *puppet.Process) *kernelProcess {
	return &kernelProcess{Process: p, k: k, main: &kernelTask{Thread: p.Main(), disk: k.disk}}
}

func (p *kernelProcess) Main() Task { return p.main }

func (p *kernelProcess) Spawn(by Task) (Task, error) {
	t, err := p.Process.Spawn(by.(*kernelTask).Thread)
	if err != nil {
		return nil, err
	}
	return &kernelTask{Thread: t, disk: p.k.disk}, nil
}

func (p *kernelProcess) BeginFork(by Task) (func() (Process, error), error) {
	f, err := p.Process.BeginFork(by.(*kernelTask).Thread)
	if err != nil {
		return nil, err
	}
	return func() (Process, error) {
		child, err := f.Child()
		if err != nil {
			return nil, err
		}
		return newKernelProcess(p.k, child), nil
	}, nil
}

func (p *kernelProcess) Take(from Process, fd int) (int, error) {
	return p.Process.Take(from.(*kernelProcess).Process, fd)
}

func (p *kernelProcess) Handle(restart bool) error { return p.main.Handle(restart) }

func (p *kernelProcess) Scratch() mem.Range {
	start, b := p.Process.Scratch()
	return mem.MakeRange(start, uint64(len(b)))
}

func (p *kernelProcess) Poke(a mem.Addr, b []byte) {
	start, m := p.Process.Scratch()
	copy(m[a-start:], b)
}

func (p *kernelProcess) Peek(a mem.Addr, b []byte) {
	start, m := p.Process.Scratch()
	copy(b, m[a-start:])
}

func (p *kernelProcess) Maps(r mem.Range) ([]VMA, error) {
	vmas, err := p.Process.Maps(r)
	out := make([]VMA, len(vmas))
	for i, v := range vmas {
		out[i] = VMA(v)
	}
	return out, err
}

type kernelTask struct {
	*puppet.Thread
	disk string // immutable
}

func (t *kernelTask) State() State { return State(t.Thread.State()) }

func (t *kernelTask) Handled() int { return int(t.Thread.Handled()) }

func (t *kernelTask) Signal(sig int) error { return t.Thread.Signal(syscall.Signal(sig)) }

func (t *kernelTask) Wait(d time.Duration) { t.Thread.Wait(d) }

func (t *kernelTask) Result() Result {
	r := t.Thread.Result()
	return Result{Value: r.Value, Errno: Errno(r.Errno), Signal: int(r.Signal), Code: int(r.Code), Addr: r.Addr}
}

// Ptrace attaches to target, peeks at a word of it and lets it go.
func (p *kernelProcess) Ptrace(target Process, a mem.Addr) (errno Errno, err error) {
	th, pid := p.Process.Main(), uint64(target.PID())
	if _, err := th.Do(unix.SYS_PTRACE, unix.PTRACE_ATTACH, pid); err != nil {
		return 0, fmt.Errorf("PTRACE_ATTACH: %w", err)
	}
	if _, err := th.Do(unix.SYS_WAIT4, pid, 0, unix.WALL); err != nil {
		return 0, fmt.Errorf("wait for the tracee: %w", err)
	}
	_, peek := th.Do(unix.SYS_PTRACE, unix.PTRACE_PEEKDATA, pid, uint64(a), th.Text(make([]byte, 8)))
	if _, err := th.Do(unix.SYS_PTRACE, unix.PTRACE_DETACH, pid); err != nil {
		return 0, fmt.Errorf("PTRACE_DETACH: %w", err)
	}
	if n, ok := peek.(syscall.Errno); ok || peek == nil {
		return Errno(n), nil
	}
	return 0, peek
}
