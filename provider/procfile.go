// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package provider

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/bpf"
	"github.com/faultline-go/faultline/internal/inject"
	"github.com/faultline-go/faultline/internal/sysargs"
	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/tracee"
	"github.com/faultline-go/faultline/vkernel"
)

// Two files of /proc have to be seen whenever they are read or written: what the
// kernel says in pagemap of protection by a descriptor, and what it lets through
// by mem, is not so for registered memory.

// openWatched has the thread open such a file, and sees what is done with it from
// then on.
func (t *task) openWatched(name string) {
	if !t.run() {
		return
	}
	if fd := int(int32(t.call.Ret)); t.call.Errno == 0 {
		t.session("install a filter", func(s *inject.Session) error {
			if err := t.sp.plant(s); err != nil {
				return err
			}
			if err := t.arm(s, fd); err != nil {
				return err
			}
			f := t.p.filters[t.th.Process()]
			if f.proc == nil {
				f.proc = make(map[int]bool)
			}
			f.proc[fd] = true
			if name == "mem" && !f.written[fd] {
				if f.written == nil {
					f.written = make(map[int]bool)
				}
				f.written[fd] = true
				return s.Install(writeFilter(fd))
			}
			return nil
		})
	}
	t.resume(0)
}

// writeFilter sees what is written to a descriptor.
func writeFilter(fd int) []unix.SockFilter {
	p := &program{}
	p.only([]uintptr{unix.SYS_WRITE, unix.SYS_PWRITE64}, func() {
		p.Load(bpf.OffArg(0))
		p.RetIf(uint32(fd), trace)
	})
	return p.end()
}

// procJob returns what is to be done about a call on one of those files, nil for
// another one.
func (p *Provider) procJob(pr *tracee.Process, c tracee.Call) func(*task, tracee.Call) {
	if f := p.filters[pr]; f == nil || !f.proc[int(int32(c.Args[0]))] {
		return nil
	}
	return p.procFileJob(pr, c)
}

// procFileJob is procJob for a descriptor that may be of such a file.
func (p *Provider) procFileJob(pr *tracee.Process, c tracee.Call) func(*task, tracee.Call) {
	fd := int(int32(c.Args[0]))
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pr.Pid(), fd))
	if err != nil {
		return nil
	}
	of, rest := p.procPath(pr, link)
	if of == nil || len(rest) != 1 {
		return nil
	}
	sp := p.spaces[of.Space()]
	if sp == nil || len(sp.guarded) == 0 {
		return nil
	}
	switch {
	case rest[0] == "mem":
		return func(t *task, c tracee.Call) { t.transfer(sp, c) }
	case rest[0] == "pagemap" && c.Nr == unix.SYS_IOCTL:
		return func(t *task, c tracee.Call) { t.scan(sp, c) }
	case rest[0] == "pagemap":
		return func(t *task, c tracee.Call) { t.readPagemap(sp, c) }
	}
	return nil
}

// Where we manage the memory, calls are seen anyway, but to look what each reads from
// would cost. So that begins with the first descriptor that may be of such a file.

// openManaged makes a call that opens a file.
func (t *task) openManaged(c tracee.Call, o openCall) {
	if !t.p.watching {
		path := t.readString(addr(c.Args[o.path]))
		t.p.watching = path == "" || strings.HasSuffix(path, "mem")
	}
	t.use(c)
}

// findWatched looks for such files among those that a process has open.
func (p *Provider) findWatched(pr *tracee.Process) {
	dir := fmt.Sprintf("/proc/%d/fd", pr.Pid())
	list, _ := os.ReadDir(dir) // an error means that it has ended
	for _, e := range list {
		link, err := os.Readlink(filepath.Join(dir, e.Name()))
		p.watching = p.watching || err == nil && strings.HasSuffix(link, "/mem")
	}
}

// memJob returns what is to be done about a read or write where we manage the memory, nil
// if it is of another file. A position that is an address is looked at in any case: the
// descriptor may have come by a way that is not seen.
func (p *Provider) memJob(pr *tracee.Process, c tracee.Call) func(*task, tracee.Call) {
	at := c.Nr == unix.SYS_PREAD64 || c.Nr == unix.SYS_PWRITE64
	if p.watching || at && c.Args[3] >= inject.LowestMem {
		return p.procFileJob(pr, c)
	}
	return nil
}

// position returns where in the file a read or a write begins.
func (t *task) position(c tracee.Call) (uint64, bool) {
	switch c.Nr {
	case unix.SYS_PREAD64, unix.SYS_PWRITE64:
		return uint64(c.Args[3]), true
	case unix.SYS_READ, unix.SYS_WRITE:
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", t.th.Process().Pid(), int32(c.Args[0])))
		if err != nil {
			return 0, false
		}
		line, _, _ := bytes.Cut(b, []byte{'\n'})
		pos, err := strconv.ParseUint(string(bytes.TrimSpace(bytes.TrimPrefix(line, []byte("pos:")))), 10, 64)
		return pos, err == nil
	}
	return 0, false
}

// transfer reads or writes /proc/PID/mem up to the first page that nobody can have
// without waiting. Where we manage the memory, that is all of it, or a piece.
func (t *task) transfer(sp *space, c tracee.Call) {
	pos, ok := t.position(c)
	n := min(uint64(c.Args[2]), 1<<31)
	if !ok || pos > 1<<56 || !sp.touches(mem.MakeRange(mem.Addr(pos), n)) {
		t.use(c)
		return
	}
	write := c.Nr == unix.SYS_WRITE || c.Nr == unix.SYS_PWRITE64
	use := (*task).use
	if sp.managed != nil {
		t.ranges = sysargs.Ranges(t.ranges[:0], c.Nr, c.Args, t.sp.Load)
		if !t.hold() {
			return
		}
		r := mem.MakeRange(mem.Addr(pos), min(n, pieceSize))
		defer sp.pinned([]mem.Range{r})()
		// What may only be read is written all the same.
		if t.bringOf(sp, r, false); t.gone {
			return
		}
		use = func(t *task, c tracee.Call) { t.useThen(c, func() {}) } // which waits for its end
	}
	reach := t.v.Reach(sp.v, mem.Addr(pos), n, write)
	switch {
	case reach == n:
		use(t, c)
	case reach == 0:
		// Whether it may be done at all comes first.
		if t.instead(c.Nr, c.Args[0], c.Args[1], 0, c.Args[3]) {
			errno := t.call.Errno
			if errno == 0 {
				errno = unix.EIO
			}
			t.restore(c, negated(errno))
		}
	case t.instead(c.Nr, c.Args[0], c.Args[1], uintptr(reach), c.Args[3]):
		ret := int64(t.call.Ret)
		if t.call.Errno != 0 {
			ret = negated(t.call.Errno)
		}
		t.restore(c, ret)
	}
}

// Bits of pagemap(5) words that a mirror knows.
const (
	pagePresent = 1 << 63
	pageSwapped = 1 << 62
	pageGuarded = 1 << 57 // protected through a descriptor
)

// readPagemap has the thread read the pagemap, and adds what only the mirror knows.
func (t *task) readPagemap(sp *space, c tracee.Call) {
	const word = 8
	pos, ok := t.position(c)
	if !ok || pos > 1<<48 {
		t.use(c)
		return
	}
	t.useThen(c, func() {
		first := mem.Addr(pos / word << mem.PageShift)
		r := mem.MakeRange(first, uint64(t.call.Ret)/word<<mem.PageShift)
		for _, g := range sp.guarded {
			part := g.Intersect(r)
			if part.Empty() {
				continue
			}
			at := addr(c.Args[1]) + (part.Start-first)>>mem.PageShift*word
			b := make([]byte, part.Pages()*word)
			b = b[:t.sp.Load(at, b)&^(word-1)]
			for i := 0; i < len(b); i += word {
				w := binary.LittleEndian.Uint64(b[i:])
				known := sp.v.Pagemap(part.Start + mem.Addr(i/word<<mem.PageShift))
				if w&(pagePresent|pageSwapped) != 0 {
					known &= pageGuarded
				}
				binary.LittleEndian.PutUint64(b[i:], w|known)
			}
			t.sp.Store(at, b)
		}
	})
}

const (
	pagemapScan = 0xc0606610 // PAGEMAP_SCAN of ioctl(2), since Linux 6.7
	knownPages  = vkernel.PageHuge<<1 - 1
)

// scan answers PAGEMAP_SCAN for a range that has registered memory.
func (t *task) scan(sp *space, c tracee.Call) {
	var w [12]uint64 // struct pm_scan_arg
	arg := addr(c.Args[2])
	b := make([]byte, 8*len(w))
	if uint32(c.Args[1]) != pagemapScan || t.sp.Load(arg, b) < len(b) {
		t.use(c)
		return
	}
	for i := range w {
		w[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	r := mem.Range{Start: mem.Addr(w[2]), End: mem.Addr(w[3])}
	categories := vkernel.PageCategory(w[8] | w[9] | w[10] | w[11])
	if w[0] != uint64(len(b)) || r.End > 1<<56 || r.Empty() || !sp.touches(r) || categories&^knownPages != 0 {
		t.use(c) // the kernel's own answer is right, or all that there is
		return
	}
	sp.reflect(r)
	out, end, errno := t.v.PagemapScan(sp.v, vkernel.PagemapScan{
		Flags: int(w[1]), Range: r, Regions: int(w[6]), MaxPages: w[7],
		Inverted: vkernel.PageCategory(w[8]), Mask: vkernel.PageCategory(w[9]),
		AnyOf: vkernel.PageCategory(w[10]), Return: vkernel.PageCategory(w[11]),
		Nowhere: w[5] == 0 && w[6] != 0,
	})
	if w[1]&vkernel.ScanWPMatching != 0 {
		sp.apply(r)
	}
	// How far it came is told of one that fails too, unless it has not begun.
	told := binary.LittleEndian.AppendUint64(nil, uint64(end))
	if end != 0 && t.sp.Store(arg+4*8, told) < len(told) {
		errno = unix.EFAULT
	}
	if errno != 0 {
		t.skip(negated(errno))
		return
	}
	var vec []byte
	for _, region := range out[:min(len(out), int(w[6]))] {
		for _, v := range []uint64{uint64(region.Range.Start), uint64(region.Range.End), uint64(region.Categories)} {
			vec = binary.LittleEndian.AppendUint64(vec, v)
		}
	}
	if t.sp.Store(mem.Addr(w[5]), vec) < len(vec) {
		t.skip(negated(unix.EFAULT))
		return
	}
	t.skip(int64(len(vec) / (3 * 8)))
}

// watched are the files that have to be seen when they are used.
var watched = []string{"pagemap", "mem"}

func isWatched(rest []string) bool { return len(rest) == 1 && slices.Contains(watched, rest[0]) }
