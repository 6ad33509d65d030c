// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"errors"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
	"github.com/faultline-go/faultline/vkernel"
)

// model is package vkernel as a backend.
type model struct {
	k    *vkernel.Kernel
	name string
	seed bool
	gate gate // of the seed's

	mu    sync.Mutex
	procs map[int]*vkernel.Process // by number; protected by mu
}

// modelHugePages is the pool of a model, which is memory only where it is
// written.
const modelHugePages = 256

// Model returns package vkernel with the profile of Linux 6.18, and a page of zeros
// unless the running kernel has none.
func Model() (Backend, error) {
	options := []vkernel.Option{vkernel.WithHugePages(modelHugePages)}
	if !zeroPage() {
		options = append(options, vkernel.WithoutZeroPage())
	}
	return newModel(vkernel.New(vkernel.Linux618, options...), "vkernel", false), nil
}

// SeedModel returns package vkernel with the profile of the 2015 patch.
func SeedModel() (Backend, error) {
	m := newModel(nil, "seed", true)
	m.k = vkernel.New(vkernel.Seed, vkernel.WithHugePages(modelHugePages), vkernel.WithHooks(vkernel.Hooks{Reach: m.gate.reach}))
	return m, nil
}

func newModel(k *vkernel.Kernel, name string, seed bool) *model {
	return &model{k: k, name: name, seed: seed, procs: map[int]*vkernel.Process{}}
}

func (m *model) Name() string     { return m.name }
func (m *model) Seed() bool       { return m.seed }
func (m *model) Privileged() bool { return true }
func (m *model) Huge(int) error   { return nil }
func (m *model) Close() error     { return nil }

func (m *model) Release() string {
	if m.seed {
		return "2015"
	}
	return "6.18"
}

// Lacks is true of what the model is not about.
func (m *model) Lacks(call Call) bool {
	_, has := modelCalls[call]
	return !has && !call.Access()
}

func (m *model) Features() (uapi.Features, error) {
	p, err := m.Start()
	if err != nil {
		return 0, err
	}
	defer p.Close()
	return probe(p)
}

// modelFamily is what a process and its children share.
type modelFamily struct {
	mu      sync.Mutex
	members []*modelProcess // protected by mu
}

type modelProcess struct {
	m      *model
	p      *vkernel.Process
	family *modelFamily
	main   *modelTask
	// restart is whether SIGUSR1 restarts the calls that it interrupts.
	restart atomic.Bool

	mu      sync.Mutex
	tasks   []*modelTask          // protected by mu
	outside *vkernel.Thread       // to look at scratch memory by; used under mu
	pipes   map[uint64]*modelPipe // by either descriptor; protected by mu
	pagemap map[uint64]bool       // descriptors of it; protected by mu
}

// modelPipe stands in for a pipe, of which cases want no more than that a
// system call touches memory.
type modelPipe struct {
	mu   sync.Mutex
	data []byte // protected by mu
}

// The scratch memory is where a puppet has its own.
const (
	modelScratch     mem.Addr = 0x10_0040_0000
	modelScratchSize          = 60 << 20
	modelScratchFD            = 3
)

func (m *model) Start() (Process, error) {
	p := m.k.NewProcess(vkernel.ProcessOptions{Privileged: true})
	for _, sig := range []int{17, 23, 28} { // SIGCHLD, SIGURG and SIGWINCH do nothing by default
		p.Ignore(sig, true)
	}
	mp := newModelProcess(m, p, &modelFamily{}, nil)
	th := mp.main.th
	// The descriptors that a puppet begins with.
	for range modelScratchFD {
		if _, errno := th.MemfdCreate("null", 0); errno != 0 {
			return nil, errors.New("memfd_create: " + Errno(errno).String())
		}
	}
	fd, errno := th.MemfdCreate("scratch", 0)
	if errno == 0 {
		errno = th.Ftruncate(fd, modelScratchSize)
	}
	if errno != 0 {
		return nil, errors.New("scratch memory: " + Errno(errno).String())
	}
	return mp, mp.mapScratch()
}

func newModelProcess(m *model, p *vkernel.Process, f *modelFamily, pipes map[uint64]*modelPipe) *modelProcess {
	mp := &modelProcess{m: m, p: p, family: f, pipes: map[uint64]*modelPipe{}, pagemap: map[uint64]bool{}}
	maps.Copy(mp.pipes, pipes)
	m.mu.Lock()
	m.procs[p.PID()] = p
	m.mu.Unlock()
	mp.main = mp.newTask()
	mp.outside = p.NewThread()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.members = append(f.members, mp)
	return mp
}

func (p *modelProcess) mapScratch() error {
	_, errno := p.main.th.Mmap(modelScratch, modelScratchSize, ProtRead|ProtWrite, MapShared|MapFixed, modelScratchFD, 0)
	if errno != 0 {
		return errors.New("mmap of scratch memory: " + Errno(errno).String())
	}
	return nil
}

func (p *modelProcess) PID() int   { return p.p.PID() }
func (p *modelProcess) Main() Task { return p.main }

func (p *modelProcess) Spawn(Task) (Task, error) { return p.newTask(), nil }

func (p *modelProcess) BeginFork(by Task) (func() (Process, error), error) {
	t := by.(*modelTask)
	p.mu.Lock()
	pipes := maps.Clone(p.pipes)
	p.mu.Unlock()
	var child *modelProcess
	t.begin(func() Result {
		c, errno := t.th.Fork()
		if errno != 0 {
			return Result{Errno: Errno(errno)}
		}
		child = newModelProcess(p.m, c, p.family, pipes)
		return Result{Value: uint64(c.PID())}
	})
	return func() (Process, error) {
		for deadline := time.Now().Add(budget); t.State() != Idle; t.Wait(time.Millisecond) {
			if time.Now().After(deadline) {
				return nil, errors.New("the fork does not end: it is " + t.Describe())
			}
		}
		if r := t.Result(); r.Errno != OK {
			return nil, errors.New("fork: " + r.Errno.String())
		}
		return child, nil
	}, nil
}

func (p *modelProcess) Exec() error {
	if errno := p.main.th.Exec(); errno != 0 {
		return errors.New("exec: " + Errno(errno).String())
	}
	return p.mapScratch()
}

func (p *modelProcess) Take(from Process, fd int) (int, error) {
	f := from.(*modelProcess)
	f.mu.Lock()
	n, errno := f.outside.PassFD(fd, p.p)
	f.mu.Unlock()
	if errno != 0 {
		return -1, errors.New("passing a descriptor: " + Errno(errno).String())
	}
	return n, nil
}

func (p *modelProcess) DropPrivilege() error {
	p.p.SetPrivileged(false)
	return nil
}

func (p *modelProcess) Handle(restart bool) error {
	p.restart.Store(restart)
	return nil
}

func (p *modelProcess) Ptrace(target Process, a mem.Addr) (Errno, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var b [8]byte
	_, errno := p.outside.PtracePeek(target.(*modelProcess).p, a, b[:])
	return Errno(errno), nil
}

// Kill returns when every thread has ended, as the end of a process does.
func (p *modelProcess) Kill() error {
	p.p.Kill()
	p.mu.Lock()
	tasks := p.tasks
	p.mu.Unlock()
	for _, t := range tasks {
		for deadline := time.Now().Add(budget); !t.done.Load(); t.Wait(time.Millisecond) {
			if time.Now().After(deadline) {
				return errors.New("a thread survives SIGKILL: it is " + t.Describe())
			}
		}
	}
	return nil
}

func (p *modelProcess) Exited() bool { return p.p.Dead() }

func (p *modelProcess) Close() error {
	p.family.mu.Lock()
	members := p.family.members
	p.family.mu.Unlock()
	var errs []error
	for _, m := range members {
		errs = append(errs, m.Kill())
		m.m.mu.Lock()
		delete(m.m.procs, m.p.PID())
		m.m.mu.Unlock()
	}
	return errors.Join(errs...)
}

func (p *modelProcess) Scratch() mem.Range { return mem.MakeRange(modelScratch, modelScratchSize) }

func (p *modelProcess) Poke(a mem.Addr, b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.outside.Store(context.Background(), a, b); err != nil {
		panic("scratch memory cannot be written: " + err.Error())
	}
}

func (p *modelProcess) Peek(a mem.Addr, b []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.outside.Load(context.Background(), a, b); err != nil {
		panic("scratch memory cannot be read: " + err.Error())
	}
}

func (p *modelProcess) Maps(r mem.Range) ([]VMA, error) {
	return parseSmaps(p.p.Smaps(), r)
}

func (p *modelProcess) Fdinfo(fd int) (string, error) { return p.p.Fdinfo(fd), nil }

func (p *modelProcess) Pagemap(r mem.Range) ([]uint64, error) {
	var words []uint64
	for a := r.Start; a < r.End; a += mem.PageSize {
		words = append(words, p.p.Pagemap(a))
	}
	return words, nil
}

// modelTask is a thread and the goroutine that is in it during a call.
type modelTask struct {
	proc   *modelProcess
	th     *vkernel.Thread
	done   atomic.Bool
	ended  chan struct{} // closed when the last call has ended
	result Result        // of the last call; valid once done is true
}

func (p *modelProcess) newTask() *modelTask {
	t := &modelTask{proc: p, th: p.p.NewThread()}
	t.done.Store(true)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tasks = append(p.tasks, t)
	return t
}

func (t *modelTask) TID() int { return t.th.TID() }

// begin starts a call in a goroutine of its own, which ends with it. Should
// nothing end the call, that of its process does.
func (t *modelTask) begin(call func() Result) {
	if !t.done.Swap(false) {
		panic("conformance: a call is started while another is " + t.State().String())
	}
	ended := make(chan struct{})
	t.ended = ended
	go func() {
		t.result = call()
		t.done.Store(true)
		close(ended)
	}()
}

func (t *modelTask) State() State {
	if t.done.Load() {
		return t.rested()
	}
	s := t.th.State()
	// The call may have ended between the two looks.
	if t.done.Load() {
		return t.rested()
	}
	switch s {
	case vkernel.InFault:
		return InFault
	case vkernel.InEvent:
		return InEvent
	case vkernel.InRead, vkernel.InPoll:
		return Asleep
	}
	return Running
}

// rested is the state between two calls.
func (t *modelTask) rested() State {
	if t.proc.p.Dead() {
		return Gone
	}
	return Idle
}

func (t *modelTask) Wait(d time.Duration) {
	if t.done.Load() {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-t.ended:
	case <-timer.C:
	}
}

func (t *modelTask) Result() Result { return t.result }

func (t *modelTask) Signal(sig int) error {
	t.th.Signal(sig)
	return nil
}

func (t *modelTask) Handled() int { return t.th.Handled() }

func (t *modelTask) Describe() string {
	return t.State().String() + " (" + t.th.State().String() + ")"
}
