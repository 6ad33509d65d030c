// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package sysargs

import (
	"os"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/testutil"
	"github.com/faultline-go/faultline/mem"
)

// value is an argument of a call, or what one points to.
type value struct {
	n uintptr
	// pointer says that it is one, to content.
	pointer bool
	content []byte
	// behind are pointers in content, by their offset.
	behind map[int]value

	how how
}

// how says what can be seen of the kernel's use of a pointer.
type how uint8

const (
	all   how = iota
	least     // no more is used than is told, and perhaps less
	quiet     // the kernel says nothing where it cannot write back
)

func num(n int) value { return value{n: uintptr(n)} }

// buf is a buffer that is written, or that is read and has zeros.
func buf() value { return value{pointer: true} }

// bytes is a buffer with content, of which the first words are given.
func words(w ...uint64) value {
	v := buf()
	for _, x := range w {
		for i := range 8 {
			v.content = append(v.content, byte(x>>(8*i)))
		}
	}
	return v
}

func ints(w ...uint32) value {
	v := buf()
	for _, x := range w {
		for i := range 4 {
			v.content = append(v.content, byte(x>>(8*i)))
		}
	}
	return v
}

func text0(s string) value {
	v := buf()
	v.content = append([]byte(s), 0)
	return v
}

// with puts a pointer to x at an offset of v's content.
func (v value) with(off int, x value) value {
	if v.behind == nil {
		v.behind = make(map[int]value)
	}
	v.behind[off] = x
	return v
}

func (v value) but(h how) value {
	v.how = h
	return v
}

// trial is a call that is made again and again with its pointers elsewhere. Where
// they are good it must not come to EFAULT.
type trial struct {
	name string
	nr   uintptr
	args []value
	// prepare is called before each try, and may change args.
	prepare func(args []value)
	fd      bool // it makes a descriptor
}

// spot is where a pointer is put.
type spot struct {
	room room
	at   uintptr
}

// pointers lists the pointers of a trial, those behind others after them.
func (tr *trial) pointers() (all []*value) {
	var walk func(v *value)
	walk = func(v *value) {
		if v.pointer {
			all = append(all, v)
		}
		for _, off := range sortedKeys(v.behind) {
			b := v.behind[off]
			walk(&b)
		}
	}
	for i := range tr.args {
		walk(&tr.args[i])
	}
	return all
}

func sortedKeys(m map[int]value) (keys []int) {
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// arguments puts the pointers at spots, which are in the order of pointers.
func (tr *trial) arguments(spots []spot) (args [6]uintptr) {
	next := 0
	var place func(v *value) uintptr
	place = func(v *value) uintptr {
		if !v.pointer {
			return v.n
		}
		s := spots[next]
		next++
		content := slices.Clone(v.content)
		for _, off := range sortedKeys(v.behind) {
			b := v.behind[off]
			a := place(&b)
			for i := range 8 {
				content[off+i] = byte(a >> (8 * i))
			}
		}
		s.room.put(s.at, content)
		return s.at
	}
	for i := range tr.args {
		args[i] = place(&tr.args[i])
	}
	return args
}

// result is what a call returns.
type result struct {
	ret   uintptr
	errno unix.Errno
}

// try makes the call.
func (tr *trial) try(spots []spot) (args [6]uintptr, r result) {
	if tr.prepare != nil {
		tr.prepare(tr.args)
	}
	args = tr.arguments(spots)
	return args, tr.call(args)
}

func (tr *trial) call(args [6]uintptr) result {
	ret, errno := make6(tr.nr, args)
	// Go's scheduler sends signals. A call that ends so whenever it is made still does.
	for range 10 {
		if errno != unix.EINTR {
			break
		}
		ret, errno = make6(tr.nr, args)
	}
	if errno != 0 {
		return result{errno: errno}
	}
	if tr.fd {
		_ = unix.Close(int(ret))
		ret = 0
	}
	return result{ret: ret}
}

// run holds what is told of each pointer to what the kernel does.
func (tr *trial) run(t *testing.T) {
	runtime.LockOSThread() // some calls are about the thread
	defer runtime.UnlockOSThread()
	var rooms []room
	ptrs := tr.pointers()
	for range ptrs {
		rooms = append(rooms, newRoom(t))
	}
	good := func() (spots []spot) {
		for i, v := range ptrs {
			r := rooms[i]
			// Room behind it, for more than is told.
			spots = append(spots, spot{r, r.start + mem.PageSize - uintptr(len(v.content))&^7})
		}
		return spots
	}
	args, want := tr.try(good())
	if want.errno == unix.EFAULT {
		t.Fatalf("fails with EFAULT anyhow")
	}
	told := Ranges(nil, tr.nr, args, readMemory)
	for i, v := range ptrs {
		at := good()[i].at
		n, write := extent(told, at)
		if n == 0 {
			t.Errorf("pointer %d: nothing is told of it: %v", i, told)
			continue
		}
		if n > (roomPages-1)*mem.PageSize {
			t.Fatalf("pointer %d: %d bytes, more than there is room for", i, n)
		}
		move := func(a uintptr) result {
			spots := good()
			spots[i].at = a
			_, r := tr.try(spots)
			return r
		}
		end := rooms[i].end
		if r := move(end - n); r.errno != want.errno {
			t.Errorf("pointer %d: more than %d bytes are used: %v, want %v", i, n, r, want)
		}
		// A call that moves data does as much of it as it can.
		if r := move(end - n + 1); v.how == all && r.errno != unix.EFAULT && r == want {
			t.Errorf("pointer %d: not all of %d bytes are used: %v", i, n, r)
		}
		if v.how == quiet {
			continue
		}
		if r := move(end); r.errno != unix.EFAULT {
			t.Errorf("pointer %d: not used: %v", i, r)
		}
		tr.direction(t, i, rooms[i], good(), write, want)
	}
}

// extent returns how many bytes from at on are told of, and whether any is written.
func extent(told []Range, at uintptr) (n uintptr, write bool) {
	for _, r := range told {
		if uintptr(r.Start) == at+n {
			n += uintptr(r.Len())
			write = write || r.Write
		}
	}
	return n, write
}

// direction holds what is told of writing.
func (tr *trial) direction(t *testing.T, i int, r room, spots []spot, write bool, want result) {
	if tr.prepare != nil {
		tr.prepare(tr.args)
	}
	args := tr.arguments(spots)
	r.protect(unix.PROT_READ)
	got := tr.call(args)
	r.protect(unix.PROT_READ | unix.PROT_WRITE)
	switch {
	case write && got.errno != unix.EFAULT:
		t.Errorf("pointer %d: told to be written, and is not: %v", i, got)
	case !write && got.errno != want.errno:
		t.Errorf("pointer %d: told to be read alone, and is written: %v, want %v", i, got, want)
	}
}

// TestKernel holds the tables to the kernel: of each call whose pointers lie at
// the end of memory the kernel uses as many bytes as are told and no more, and it
// writes where that is told and nowhere else.
func TestKernel(t *testing.T) {
	testutil.Need(t, os.Geteuid() == 0, "some calls look at nothing unless root makes them")
	covered := make(map[uintptr]map[int]bool)
	for _, tr := range trials(t) {
		if covered[tr.nr] == nil {
			covered[tr.nr] = make(map[int]bool)
		}
		for i, v := range tr.args {
			if v.pointer {
				covered[tr.nr][i] = true
			}
		}
		t.Run(tr.name, tr.run)
	}
	for _, nr := range Calls() {
		for _, p := range Pointers(nr) {
			if !covered[nr][p.Arg] && !excused[nr] {
				t.Errorf("call %d: nothing tries argument %d", nr, p.Arg)
			}
		}
	}
}

// excused are calls that cannot be tried where a test runs, or whose pointers the
// kernel uses where nobody sees it.
var excused = map[uintptr]bool{
	unix.SYS_EXECVE: true, unix.SYS_EXECVEAT: true, unix.SYS_CLONE3: true, unix.SYS_RT_SIGSUSPEND: true,
}
