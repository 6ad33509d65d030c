// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/inject"
	"github.com/faultline-go/faultline/internal/place"
	"github.com/faultline-go/faultline/internal/procmem"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/tracee"
	"github.com/faultline-go/faultline/vkernel"
)

// space is an address space of the tree in which the call was used, and the
// [vkernel.Outside] of its mirror.
type space struct {
	p      *Provider
	ts     *tracee.Space
	v      *vkernel.Process
	keeper *vkernel.Thread
	agent  *inject.Agent // nil until needed
	placed bool          // the agent is bound to our processor
	slots  slots         // of the agent's data
	mem    *os.File      // /proc/PID/mem
	heir   int           // see copy
	pm     *procmem.Pagemap
	cur    *task // whose call is being decided
	action action
	// cache is memory of the program's as it was just read, for the request
	// that is being decided.
	cacheAt mem.Addr
	cache   []byte

	// guarded is the registered memory as it was last seen, in order.
	guarded []mem.Range
	kernel  bool // system calls wait for some of it
	prot    protections
	ops     []inject.Op // on their way to the agent
	aliases []alias
	moved   []mem.Range // from where a request has moved pages

	gate gate

	growing []mem.Addr // ends of memory that grows downwards, if we manage
	seals   bool       // pages that leave are sealed
	managed *managed   // nil where the program manages its memory itself
}

// alias is a second mapping of shared memory, ours, by which pages get their
// content before the program can see them.
type alias struct {
	mem.Range
	at mem.Addr
}

func (p *Provider) space(ts *tracee.Space) *space {
	if sp := p.spaces[ts]; sp != nil {
		return sp
	}
	sp := &space{p: p, ts: ts}
	sp.adopt(p.k.NewProcess(vkernel.ProcessOptions{Privileged: true, MaxFiles: 1 << 20, MaxStack: math.MaxUint64}))
	return sp
}

// adopt makes v the mirror of the space.
func (sp *space) adopt(v *vkernel.Process) {
	sp.v = v
	v.SetOutside(sp)
	sp.keeper = v.NewThread()
	sp.p.spaces[sp.ts] = sp
}

// close ends the space.
func (sp *space) close() {
	if sp.agent != nil {
		sp.agent.Release()
	}
	if sp.mem != nil {
		sp.mem.Close()
	}
	if sp.pm != nil {
		sp.pm.Close()
	}
	for _, f := range sp.p.files {
		delete(f.handles, sp)
	}
	sp.v.Kill()
}

// plant makes the agent.
func (sp *space) plant(s *inject.Session) error {
	if sp.agent != nil {
		return nil
	}
	a, err := inject.Plant(s)
	if err != nil {
		return err
	}
	sp.agent = a
	if sp.p.hooks != nil {
		// Whoever is served waits for it, and so do we.
		place.UrgentThread(a.Tid())
	}
	sp.p.tracer.Adopt(a.Tid(), func(tracee.Status) { a.Exited() })
	return nil
}

// open opens what we look into the space by.
func (sp *space) open() error {
	if sp.mem != nil {
		return nil
	}
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", procmem.Task(sp.ts.Pid())), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	pm, err := procmem.OpenPagemap(sp.ts.Pid())
	if err != nil {
		f.Close()
		return err
	}
	sp.mem, sp.pm = f, pm
	return nil
}

// do runs calls in the space that cannot fail but for reasons that leave its
// memory wrong.
func (sp *space) do(what string, ops []inject.Op) bool {
	if sp.agent == nil {
		sp.p.fatal(what, fmt.Errorf("pid %d has no agent", sp.ts.Pid()))
		return false
	}
	for len(ops) > 0 {
		part := ops[:min(len(ops), inject.MaxOps)]
		ops = ops[len(part):]
		if err := sp.agent.Run(part); err != nil {
			if !gone(err) || sp.ts.Pid() != 0 {
				sp.p.fatal(what, err)
			}
			return false
		}
		for i := range part {
			if err := part[i].Err(); err != nil {
				sp.p.fatal(fmt.Sprintf("%s at %#x+%#x", what, part[i].Args[0], part[i].Args[1]), err)
				return false
			}
		}
	}
	return true
}

// Load implements [vkernel.Outside].
func (sp *space) Load(a mem.Addr, dst []byte) int {
	if off := uint64(a - sp.cacheAt); len(sp.cache) != 0 && off < uint64(len(sp.cache)) && len(dst) <= len(sp.cache)-int(off) {
		return copy(dst, sp.cache[off:])
	}
	n := sp.copy(inject.ReadMemory, a, dst)
	if n < len(dst) && sp.mem != nil && sp.writeOnly(a+mem.Addr(n)) {
		// The processor reads what may only be written, and that call does not.
		more, _ := unix.Pread(int(sp.mem.Fd()), dst[n:], int64(a)+int64(n))
		n += max(more, 0)
	}
	return n
}

// writeOnly reports whether memory at a may be written and not read.
func (sp *space) writeOnly(a mem.Addr) bool {
	vmas, err := procmem.Maps(sp.ts.Pid())
	return err == nil && slices.ContainsFunc(vmas, func(v procmem.VMA) bool { return v.Contains(a) && v.Write && !v.Read })
}

// Store implements [vkernel.Outside].
func (sp *space) Store(a mem.Addr, src []byte) int {
	sp.cache = nil
	return sp.copy(inject.WriteMemory, a, src)
}

// copy reads or writes memory by the id of a thread that is there: a process may have
// ended before others that share its memory, and its first thread before its others.
func (sp *space) copy(how func(pid int, a mem.Addr, b []byte) (int, error), a mem.Addr, b []byte) int {
	tid := sp.ts.Pid()
	if sp.heir != 0 {
		tid = sp.heir
	}
	n, err := how(tid, a, b)
	for _, pr := range sp.ts.Processes() {
		if !errors.Is(err, inject.ErrGone) {
			break
		}
		sp.heir = procmem.Task(pr.Pid())
		n, err = how(sp.heir, a, b)
	}
	return n
}

var zeros [mem.PageSize]byte

// Fill implements [vkernel.Outside]. Nothing can touch a page that is absent,
// since it has no permissions until the mirror has it: it is filled past those.
func (sp *space) Fill(a mem.Addr, src []byte) syscall.Errno {
	if al := sp.alias(a); al != 0 {
		if src == nil {
			src = zeros[:]
		}
		if sp.copy(inject.WriteMemory, al, src) < len(src) {
			return unix.ENOMEM
		}
		return 0
	}
	if src == nil {
		return 0 // what has no page reads as zeros
	}
	if len(src) == vkernel.HugePageSize {
		return sp.fillHuge(a, src)
	}
	if n, err := unix.Pwrite(int(sp.mem.Fd()), src, int64(a)); err != nil || n < len(src) {
		// What has come must not be there when the page is wanted to have zeros. An
		// error means that the process has died, and its pages with it.
		_, _ = sp.agent.Call(unix.SYS_MADVISE, uintptr(a), uintptr(len(src)), unix.MADV_DONTNEED)
		return unix.ENOMEM
	}
	return 0
}

// alias returns where shared memory at a can be written, 0 for private memory.
func (sp *space) alias(a mem.Addr) mem.Addr {
	for _, al := range sp.aliases {
		if al.Contains(a) {
			return al.at + (a - al.Start)
		}
	}
	return 0
}

// Move implements [vkernel.Outside]. No thread may write to the source on the
// way.
func (sp *space) Move(dst, src mem.Addr) syscall.Errno {
	closed := []inject.Op{{NR: unix.SYS_MPROTECT, Args: [6]uintptr{uintptr(src), mem.PageSize, unix.PROT_NONE}}}
	if !sp.do("move a page", closed) {
		return unix.ENOMEM
	}
	from := mem.MakeRange(src, mem.PageSize)
	sp.prot.set(from, unix.PROT_NONE)
	if last := len(sp.moved) - 1; last >= 0 && sp.moved[last].End == src {
		sp.moved[last].End = from.End
	} else {
		sp.moved = append(sp.moved, from)
	}
	var page [mem.PageSize]byte
	if _, err := unix.Pread(int(sp.mem.Fd()), page[:], int64(src)); err != nil {
		return unix.EFAULT
	}
	if errno := sp.Fill(dst, page[:]); errno != 0 {
		return errno
	}
	drop := inject.Op{NR: unix.SYS_MADVISE, Args: [6]uintptr{uintptr(src), mem.PageSize, unix.MADV_DONTNEED}}
	if _, err := sp.agent.Call(drop.NR, drop.Args[:3]...); err == nil {
		return 0
	}
	drop.Args[2] = unix.MADV_DONTNEED_LOCKED // both are locked then
	if !sp.do("move a page", []inject.Op{drop}) {
		return unix.ENOMEM
	}
	return 0
}

// locked reports whether mlock(2) keeps the memory that begins with r. There is
// advice that the kernel refuses for such, and that does next to nothing else.
func (sp *space) locked(r mem.Range) bool {
	if sp.agent == nil {
		return false
	}
	_, err := sp.agent.Call(unix.SYS_MADVISE, uintptr(r.Start), mem.PageSize, unix.MADV_COLD)
	return errors.Is(err, unix.EINVAL)
}

// Resident implements [vkernel.Outside].
func (sp *space) Resident(r mem.Range, there func(a mem.Addr, own bool)) {
	err := sp.pm.Pages(r, func(part mem.Range, own bool) {
		for a := part.Start; a < part.End; a += mem.PageSize {
			there(a, own)
		}
	})
	if err != nil && sp.ts.Pid() != 0 {
		sp.p.fatal("look for pages", err)
	}
}

// Cached implements [vkernel.Outside].
func (sp *space) Cached(r mem.Range, there func(a mem.Addr)) {
	const step = scratch * mem.PageSize
	for r.Start < r.End {
		part := mem.Range{Start: r.Start, End: min(r.End, r.Start+step)}
		_, err := sp.agent.Call(unix.SYS_MINCORE, uintptr(part.Start), uintptr(part.Len()), uintptr(sp.agent.DataAddr()))
		switch {
		case errors.Is(err, unix.ENOMEM) && part.Pages() > 1:
			// Not all of it is mapped: what nobody has registered is another
			// by now than the mirror knows.
			for a := part.Start; a < part.End; a += mem.PageSize {
				sp.Cached(mem.MakeRange(a, mem.PageSize), there)
			}
			r.Start = part.End
			continue
		case errors.Is(err, unix.ENOMEM):
			return
		case err != nil:
			if !gone(err) {
				sp.p.fatal(fmt.Sprintf("look for pages of %v", part), err)
			}
			return
		}
		for i, b := range sp.agent.Data()[:part.Pages()] {
			if b&1 != 0 {
				there(part.Start + mem.Addr(i)<<mem.PageShift)
			}
		}
		r.Start = part.End
	}
}

// Blank implements [vkernel.Outside].
func (sp *space) Blank(a mem.Addr) bool {
	mine := false
	sp.Resident(mem.MakeRange(a, mem.PageSize), func(_ mem.Addr, own bool) { mine = mine || own })
	if mine {
		return true // it hides the object's
	}
	var page [mem.PageSize]byte
	_, err := unix.Pread(int(sp.mem.Fd()), page[:], int64(a))
	return err == nil && page == zeros
}

// Opened implements [vkernel.Outside].
func (sp *space) Opened(a mem.Addr) { sp.apply(mem.MakeRange(a.Down(), mem.PageSize)) }

// Install implements [vkernel.Outside].
func (sp *space) Install(h int) (int, syscall.Errno) {
	fd := sp.cur.number(h, sp.v.Flags(h), false)
	if fd < 0 {
		return -1, syscall.Errno(-fd)
	}
	return int(fd), 0
}

// reflect brings what the mirror knows of the mappings in r up to date, which
// is not watched where nobody has registered it. It reports whether all that is
// mapped there is private anonymous memory.
func (sp *space) reflect(r mem.Range) (private bool) {
	if r.Empty() {
		return true
	}
	vmas, err := procmem.Maps(sp.ts.Pid())
	if err != nil {
		return true // the process is gone
	}
	private = true
	for _, v := range vmas {
		// A huge page cannot be cut.
		if v.Overlaps(r) && procmem.HugePageSize(v.Dev) != 0 {
			r = mem.Range{Start: min(r.Start, v.Start), End: max(r.End, v.End)}
		}
	}
	var maps []vkernel.Mapping
	for _, v := range vmas {
		if part := v.Range.Intersect(r); !part.Empty() && !sp.owned(v.Range) {
			private = private && v.Anonymous()
			m := sp.mapping(v)
			m.Locked = (v.Anonymous() || m.Shmem) && sp.locked(part)
			maps = append(maps, m)
		}
	}
	sp.v.Reflect(r, maps)
	return private
}

// grown prepares the mirror for a mapping that is longer than it was: the object may
// be larger than what was mapped of it, and what the mirror knows of memory behind
// it that nobody has registered is no longer so.
func (sp *space) grown(old, now mem.Range) {
	vmas, err := procmem.Maps(sp.ts.Pid())
	if err != nil {
		return // the process is gone
	}
	for _, v := range vmas {
		if v.Overlaps(now) {
			sp.mapping(v)
		}
	}
	if old.Start == now.Start {
		sp.v.Reflect(mem.Range{Start: old.End, End: now.End}, nil)
	}
}

// relax has locked memory of r stay locked, and not be brought in by a change of
// its permissions.
func (sp *space) relax(r mem.Range) bool {
	if procmem.Locked(sp.ts.Pid()) == 0 {
		return true
	}
	vmas, err := procmem.Maps(sp.ts.Pid())
	if err != nil {
		return false // the process is gone
	}
	var ops []inject.Op
	for _, v := range vmas {
		if l := v.Intersect(r); !l.Empty() && sp.locked(l) {
			ops = append(ops, inject.Op{NR: unix.SYS_MLOCK2, Args: [6]uintptr{uintptr(l.Start), uintptr(l.Len()), unix.MLOCK_ONFAULT}})
		}
	}
	return sp.do("keep memory locked", ops)
}

// aliased reports whether r is an alias.
func (sp *space) aliased(r mem.Range) bool {
	return slices.ContainsFunc(sp.aliases, func(al alias) bool { return r.Overlaps(mem.MakeRange(al.at, al.Len())) })
}

// owned reports whether r is memory of ours in the program.
func (sp *space) owned(r mem.Range) bool {
	if sp.agent == nil {
		return false
	}
	over := func(x mem.Range) bool { return !x.Intersect(r).Empty() }
	return slices.ContainsFunc(sp.agent.Ranges(), over)
}

// mapping describes a VMA for the mirror.
func (sp *space) mapping(v procmem.VMA) vkernel.Mapping {
	m := vkernel.Mapping{Range: v.Range, Shared: v.Shared, Off: v.Offset, Size: v.Offset + v.Len()}
	for _, b := range []struct {
		on   bool
		prot int
	}{{v.Read, vkernel.ProtRead}, {v.Write, vkernel.ProtWrite}, {v.Exec, vkernel.ProtExec}} {
		if b.on {
			m.Prot |= b.prot
		}
	}
	if v.Inode == 0 {
		if special(v.Name) || sp.droppable(v) {
			m.Object = vkernel.Object{Dev: math.MaxUint64, Ino: uint64(v.Start)}
		}
		return m
	}
	m.Object = vkernel.Object{Dev: v.Dev, Ino: v.Inode}
	m.Shmem = shmem(v.Name) && procmem.HugePageSize(v.Dev) == 0
	m.Huge = sp.hugeMapping(v)
	if m.Shmem || m.Huge {
		if size, ok := procmem.FileSize(sp.ts.Pid(), v); ok {
			m.Size = size
			sp.p.k.Truncate(m.Object, size) // nothing tells when it changes
		}
	}
	if m.Shared && !v.Write {
		// Whether it could be made writable only smaps tells.
		m.Fixed = !sp.flagged(v.Start, "mw")
	}
	return m
}

// droppable reports whether memory is such as the kernel may drop (MAP_DROPPABLE, since
// Linux 6.11), which cannot be registered.
func (sp *space) droppable(v procmem.VMA) bool {
	for _, pr := range sp.ts.Processes() {
		if f := sp.p.filters[pr]; f != nil && f.droppable && sp.managed == nil {
			return sp.flagged(v.Start, "dp")
		}
	}
	return false
}

// flagged reports whether the mapping at a has a flag of proc_pid_smaps(5).
func (sp *space) flagged(a mem.Addr, flag string) bool {
	all, err := procmem.Flagged(sp.ts.Pid(), flag)
	return err == nil && slices.ContainsFunc(all, func(r mem.Range) bool { return r.Contains(a) })
}

// special reports whether memory of this name is the kernel's own, as the vDSO
// is: it has no object, and yet cannot be registered.
func special(name string) bool {
	return strings.HasPrefix(name, "[v") || name == "[uprobes]"
}

// shmem reports whether a file of this name is memory that can be registered.
func shmem(name string) bool {
	return strings.HasPrefix(name, "/memfd:") || strings.HasPrefix(name, "/dev/shm/") ||
		name == "/dev/zero (deleted)" || strings.HasPrefix(name, "/SYSV")
}
