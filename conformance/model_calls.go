// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"encoding/binary"
	"errors"
	"syscall"
	"time"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/vkernel"
)

func (t *modelTask) Start(call Call, a [6]uint64) {
	if call.Access() {
		t.begin(func() Result { return t.access(call, a) })
		return
	}
	f := modelCalls[call]
	t.begin(func() Result { return f(t, a) })
}

// access touches memory as the instructions of a puppet do.
func (t *modelTask) access(call Call, a [6]uint64) Result {
	ctx, addr := context.Background(), mem.Addr(a[0])
	switch call {
	case Load8, Load64:
		b := make([]byte, 8)
		if call == Load8 {
			b = b[:1]
		}
		err := t.th.Load(ctx, addr, b)
		return outcome(le64(append(b, make([]byte, 8)...)), err)
	case Store8:
		return outcome(0, t.th.Store(ctx, addr, []byte{byte(a[1])}))
	case Store64:
		return outcome(0, t.th.Store(ctx, addr, binary.LittleEndian.AppendUint64(nil, a[1])))
	case CAS64:
		swapped, err := t.th.CompareAndSwap(ctx, addr, a[1], a[2])
		if swapped || err != nil {
			return outcome(a[1], err)
		}
		b := make([]byte, 8)
		err = t.th.Load(ctx, addr, b)
		return outcome(le64(b), err)
	case CopyMem:
		b := make([]byte, a[2])
		err := t.th.Load(ctx, mem.Addr(a[1]), b)
		if err == nil {
			err = t.th.Store(ctx, addr, b)
		}
		return outcome(0, err)
	}
	panic("conformance: unknown access")
}

// outcome makes a result of how an access ended.
func outcome(v uint64, err error) Result {
	if s, ok := errors.AsType[*vkernel.Signal](err); ok {
		return Result{Signal: s.Signo, Code: s.Code, Addr: s.Addr}
	}
	if err != nil {
		return Result{Errno: ESRCH} // the process is dead, and nobody asks
	}
	return Result{Value: v}
}

// number makes a result of a call that returns one.
func number[T int | int64 | uint64 | mem.Addr](v T, errno syscall.Errno) Result {
	if errno != 0 {
		return Result{Errno: Errno(errno)}
	}
	return Result{Value: uint64(v)}
}

// fine makes a result of a call that returns nothing.
func fine(errno syscall.Errno) Result { return Result{Errno: Errno(errno)} }

// modelCalls are the calls that the model has.
var modelCalls = map[Call]func(*modelTask, [6]uint64) Result{
	Mmap: func(t *modelTask, a [6]uint64) Result {
		return number(t.th.Mmap(mem.Addr(a[0]), a[1], int(a[2]), int(a[3]), int(a[4]), a[5]))
	},
	Munmap: func(t *modelTask, a [6]uint64) Result { return fine(t.th.Munmap(mem.Addr(a[0]), a[1])) },
	Mprotect: func(t *modelTask, a [6]uint64) Result {
		return fine(t.th.Mprotect(mem.Addr(a[0]), a[1], int(a[2])))
	},
	Mremap: func(t *modelTask, a [6]uint64) Result {
		return number(t.th.Mremap(mem.Addr(a[0]), a[1], a[2], int(a[3]), mem.Addr(a[4])))
	},
	Madvise: func(t *modelTask, a [6]uint64) Result {
		return fine(t.th.Madvise(mem.Addr(a[0]), a[1], int(a[2])))
	},
	Mlock: func(t *modelTask, a [6]uint64) Result { return fine(t.th.Mlock(mem.Addr(a[0]), a[1])) },
	Mlock2: func(t *modelTask, a [6]uint64) Result {
		return fine(t.th.Mlock2(mem.Addr(a[0]), a[1], int(a[2])))
	},
	Mlockall:   func(t *modelTask, a [6]uint64) Result { return fine(t.th.Mlockall(int(a[0]))) },
	Munlock:    func(t *modelTask, a [6]uint64) Result { return fine(t.th.Munlock(mem.Addr(a[0]), a[1])) },
	Munlockall: func(t *modelTask, a [6]uint64) Result { return fine(t.th.Munlockall()) },
	Brk:        func(t *modelTask, a [6]uint64) Result { return number(t.th.Brk(mem.Addr(a[0])), 0) },
	MemfdCreate: func(t *modelTask, a [6]uint64) Result {
		// The model has one size of huge pages, which need not be asked for.
		return number(t.th.MemfdCreate("case", int(a[0]&(1<<26-1))))
	},
	Ftruncate: func(t *modelTask, a [6]uint64) Result { return fine(t.th.Ftruncate(int(a[0]), a[1])) },
	Fallocate: func(t *modelTask, a [6]uint64) Result {
		return fine(t.th.Fallocate(int(a[0]), int(a[1]), a[2], a[3]))
	},
	Userfaultfd: func(t *modelTask, a [6]uint64) Result { return number(t.th.Userfaultfd(int(a[0]))) },
	OpenDevice:  func(t *modelTask, a [6]uint64) Result { return number(t.th.OpenDevice()) },
	OpenFile:    func(t *modelTask, a [6]uint64) Result { return number(t.th.RegularFile("file", 0)) },
	Reopen:      func(t *modelTask, a [6]uint64) Result { return number(t.th.Reopen(int(a[0]), int(a[1]))) },
	Ioctl:       (*modelTask).ioctl,
	OpenPagemap: (*modelTask).openPagemap,
	SetNofile: func(t *modelTask, a [6]uint64) Result {
		t.proc.p.SetMaxFiles(int(a[0]))
		return Result{}
	},
	SetStack: func(t *modelTask, a [6]uint64) Result {
		t.proc.p.SetMaxStack(a[0])
		return Result{}
	},
	OpenSelfMem: func(t *modelTask, a [6]uint64) Result { return number(t.th.OpenMem(t.proc.p, int(a[0]))) },
	Mincore: func(t *modelTask, a [6]uint64) Result {
		return fine(t.th.Mincore(mem.Addr(a[0]), a[1], mem.Addr(a[2])))
	},
	Read: (*modelTask).read,
	Pread: func(t *modelTask, a [6]uint64) Result {
		return number(t.th.Pread(int(a[0]), mem.Addr(a[1]), a[2], int64(a[3])))
	},
	Readv:   func(t *modelTask, a [6]uint64) Result { return t.preadv2([6]uint64{a[0], a[1], a[2], ^uint64(0)}) },
	Preadv2: (*modelTask).preadv2,
	Write:   (*modelTask).write,
	Pwrite: func(t *modelTask, a [6]uint64) Result {
		return number(t.th.Pwrite(int(a[0]), mem.Addr(a[1]), a[2], int64(a[3])))
	},
	Lseek: func(t *modelTask, a [6]uint64) Result {
		return number(t.th.Lseek(int(a[0]), int64(a[1]), int(a[2])))
	},
	Select:      (*modelTask).selectFDs,
	Pipe:        (*modelTask).pipe,
	Poll:        (*modelTask).poll,
	EpollCreate: func(t *modelTask, a [6]uint64) Result { return number(t.th.EpollCreate()) },
	EpollCtl:    (*modelTask).epollCtl,
	EpollWait:   (*modelTask).epollWait,
	Close:       (*modelTask).closeFD,
	Dup:         func(t *modelTask, a [6]uint64) Result { return number(t.th.Dup(int(a[0]))) },
	Fcntl: func(t *modelTask, a [6]uint64) Result {
		return number(t.th.Fcntl(int(a[0]), int(a[1]), int(a[2])))
	},
	ProcessVMRead: (*modelTask).processVMRead,
}

func (t *modelTask) closeFD(a [6]uint64) Result {
	t.proc.mu.Lock()
	delete(t.proc.pagemap, a[0])
	delete(t.proc.pipes, a[0])
	t.proc.mu.Unlock()
	return fine(t.th.Close(int(a[0])))
}

func (t *modelTask) ioctl(a [6]uint64) Result {
	t.proc.mu.Lock()
	pagemap := t.proc.pagemap[a[0]]
	t.proc.mu.Unlock()
	if pagemap && a[1] == PagemapScan {
		return t.scan(mem.Addr(a[2]))
	}
	return number(t.th.Ioctl(int(a[0]), uint32(a[1]), mem.Addr(a[2])))
}

// openPagemap takes a number for what the model does without a descriptor.
func (t *modelTask) openPagemap([6]uint64) Result {
	fd, errno := t.th.MemfdCreate("pagemap", 0)
	t.proc.mu.Lock()
	defer t.proc.mu.Unlock()
	if errno == 0 {
		t.proc.pagemap[uint64(fd)] = true
	}
	return number(fd, errno)
}

// scan makes a PAGEMAP_SCAN of struct pm_scan_arg at a.
func (t *modelTask) scan(a mem.Addr) Result {
	const words = 12
	b := make([]byte, 8*words)
	t.proc.Peek(a, b)
	var w [words]uint64
	for i := range w {
		w[i] = le64(b[8*i:])
	}
	regions, end, errno := t.th.PagemapScan(t.proc.p, vkernel.PagemapScan{
		Flags: int(w[1]), Range: mem.Range{Start: mem.Addr(w[2]), End: mem.Addr(w[3])},
		Regions: int(w[6]), MaxPages: w[7], Inverted: vkernel.PageCategory(w[8]),
		Mask: vkernel.PageCategory(w[9]), AnyOf: vkernel.PageCategory(w[10]), Return: vkernel.PageCategory(w[11]),
		Nowhere: w[5] == 0 && w[6] != 0,
	})
	if end != 0 {
		binary.LittleEndian.PutUint64(b[32:], uint64(end))
		t.proc.Poke(a, b)
	}
	if errno != 0 {
		return fine(errno)
	}
	var out []byte
	for _, r := range regions {
		for _, v := range []uint64{uint64(r.Range.Start), uint64(r.Range.End), uint64(r.Categories)} {
			out = binary.LittleEndian.AppendUint64(out, v)
		}
	}
	if w[6] == 0 {
		return Result{} // where nobody is told, nothing is counted
	}
	if len(out) > 0 {
		t.proc.Poke(mem.Addr(w[5]), out)
	}
	return Result{Value: uint64(len(regions))}
}

func (t *modelTask) read(a [6]uint64) Result {
	if p := t.proc.pipeOf(a[0]); p != nil {
		p.mu.Lock()
		n := min(len(p.data), int(a[2]))
		b := p.data[:n:n]
		p.data = p.data[n:]
		p.mu.Unlock()
		n, err := t.th.CopyOut(context.Background(), mem.Addr(a[1]), b)
		errno, _ := errors.AsType[syscall.Errno](err)
		return number(n, errno)
	}
	for {
		n, errno := t.th.Read(int(a[0]), mem.Addr(a[1]), a[2])
		if errno != vkernel.EINTR || !t.proc.restart.Load() || t.proc.p.Dead() {
			return number(n, errno)
		}
	}
}

func (t *modelTask) write(a [6]uint64) Result {
	p := t.proc.pipeOf(a[0])
	if p == nil {
		return number(t.th.Write(int(a[0]), mem.Addr(a[1]), a[2]))
	}
	b := make([]byte, a[2])
	n, err := t.th.CopyIn(context.Background(), mem.Addr(a[1]), b)
	if err == nil {
		p.mu.Lock()
		p.data = append(p.data, b[:n]...)
		p.mu.Unlock()
	}
	errno, _ := errors.AsType[syscall.Errno](err)
	return number(n, errno)
}

func (p *modelProcess) pipeOf(fd uint64) *modelPipe {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pipes[fd]
}

// pipe takes two numbers for what we do ourselves.
func (t *modelTask) pipe(a [6]uint64) Result {
	var ends [2]int
	for i := range ends {
		fd, errno := t.th.MemfdCreate("pipe", 0)
		if errno != 0 {
			return fine(errno)
		}
		ends[i] = fd
	}
	p := &modelPipe{}
	t.proc.mu.Lock()
	t.proc.pipes[uint64(ends[0])], t.proc.pipes[uint64(ends[1])] = p, p
	t.proc.mu.Unlock()
	b := binary.LittleEndian.AppendUint32(nil, uint32(ends[0]))
	t.proc.Poke(mem.Addr(a[0]), binary.LittleEndian.AppendUint32(b, uint32(ends[1])))
	return Result{}
}

func (t *modelTask) preadv2(a [6]uint64) Result {
	n := uint32(a[2])
	if n > 1024 { // it is refused for that, and not read
		return number(t.th.Preadv2(int(a[0]), make([]vkernel.Segment, 1025), int64(a[3]), int(a[4])))
	}
	b := make([]byte, 16*n)
	t.proc.Peek(mem.Addr(a[1]), b)
	var to []vkernel.Segment
	for ; len(b) > 0; b = b[16:] {
		to = append(to, vkernel.Segment{Addr: mem.Addr(le64(b)), Len: le64(b[8:])})
	}
	return number(t.th.Preadv2(int(a[0]), to, int64(a[3]), int(a[4])))
}

// timeoutOf is milliseconds, for ever if negative.
func timeoutOf(ms uint64) time.Duration { return time.Duration(int64(ms)) * time.Millisecond }

func (t *modelTask) poll(a [6]uint64) Result {
	var b [8]byte
	t.proc.Peek(mem.Addr(a[0]), b[:])
	w := le64(b[:])
	fds := []vkernel.PollFD{{FD: int(uint32(w)), Events: int(uint16(w >> 32))}}
	n, errno := t.th.Poll(fds, timeoutOf(a[2]))
	if errno == 0 {
		w = w&(1<<48-1) | uint64(uint16(fds[0].Revents))<<48
		t.proc.Poke(mem.Addr(a[0]), binary.LittleEndian.AppendUint64(nil, w))
	}
	return number(n, errno)
}

// selectFDs is select(2) of up to 64 descriptors, without a wait, for what can
// be read and written.
func (t *modelTask) selectFDs(a [6]uint64) Result {
	ready := 0
	for i, want := range []int{vkernel.PollIn | vkernel.PollHup | vkernel.PollErr, vkernel.PollOut | vkernel.PollErr} {
		var b [8]byte
		t.proc.Peek(mem.Addr(a[1+i]), b[:])
		set := le64(b[:])
		for fd := range int(a[0]) {
			fds := []vkernel.PollFD{{FD: fd, Events: want}}
			if set&(1<<fd) == 0 {
				continue
			}
			if _, errno := t.th.Poll(fds, 0); errno != 0 {
				return fine(errno)
			}
			if fds[0].Revents&want == 0 {
				set &^= 1 << fd
			} else {
				ready++
			}
		}
		t.proc.Poke(mem.Addr(a[1+i]), binary.LittleEndian.AppendUint64(nil, set))
	}
	return number(ready, 0)
}

func (t *modelTask) epollCtl(a [6]uint64) Result {
	var b [4]byte
	t.proc.Peek(mem.Addr(a[3]), b[:])
	edge := binary.LittleEndian.Uint32(b[:])&EpollET != 0
	return fine(t.th.EpollAdd(int(a[0]), int(a[2]), edge))
}

func (t *modelTask) epollWait(a [6]uint64) Result {
	events, errno := t.th.EpollWait(int(a[0]), timeoutOf(a[3]))
	if errno != 0 || len(events) == 0 {
		return fine(errno)
	}
	t.proc.Poke(mem.Addr(a[1]), binary.LittleEndian.AppendUint32(nil, uint32(events[0].Events)))
	return Result{Value: 1}
}

func (t *modelTask) processVMRead(a [6]uint64) Result {
	m := t.proc.m
	m.mu.Lock()
	target := m.procs[int(a[0])]
	m.mu.Unlock()
	if target == nil {
		return Result{Errno: ESRCH}
	}
	b := make([]byte, a[3])
	n, errno := t.th.ProcessVMRead(target, mem.Addr(a[2]), b)
	if errno == 0 {
		t.proc.Poke(mem.Addr(a[1]), b[:n])
	}
	return number(n, errno)
}
