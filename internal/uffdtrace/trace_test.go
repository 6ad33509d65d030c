// SPDX-License-Identifier: Apache-2.0

package uffdtrace

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd/uapi"
)

const us = time.Microsecond

// words lays out the argument of an ioctl.
func words(ws ...uint64) (b []byte) {
	for _, w := range ws {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	return b
}

func neg(e Errno) uint64 { return -uint64(e) }

// script tells a Sink a story in which everything occurs that a line can have.
type script struct {
	Sink
	at time.Duration
}

// call tells of a call of thread 11 of process 10 that takes 7 µs.
func (s *script) call(c Call) {
	s.at += 100 * us
	c.Task = Task{PID: 10, TID: 11}
	c.Start, c.End = s.at, s.at+7*us
	s.Call(&c)
}

func (s *script) ioctl(request uint32, before, after []byte, errno Errno) {
	c := Call{Name: "ioctl", Args: [6]uint64{3, uint64(request), 0x7ff0}, File: 1, Before: before, After: after, Errno: errno}
	s.call(c)
}

func (s *script) read(events ...uapi.Event) {
	c := Call{Name: "read", Args: [6]uint64{3, 0x7ff8, 512}, File: 1, Ret: int64(len(events)) * uapi.MsgSize}
	for _, e := range events {
		c.Messages = append(c.Messages, e.Msg())
	}
	s.call(c)
}

func tell(sink Sink) {
	s := &script{Sink: sink}
	s.Process(&Process{PID: 10, Change: Started})
	s.makes()
	s.faults()
	s.events()
	s.passes()
	s.ends()
}

func (s *script) makes() {
	const flags = 0o2000000 | 0o4000 | 1
	s.call(Call{Name: "userfaultfd", Args: [6]uint64{flags}, Ret: 3})
	s.Descriptor(&Descriptor{At: s.at, PID: 10, FD: 3, File: 1, By: "userfaultfd"})
	s.call(Call{Name: "userfaultfd", Args: [6]uint64{0x40}, Errno: 1})
	s.call(Call{Name: "ioctl", Args: [6]uint64{4, uapi.USERFAULTFD_IOC_NEW, 0}, Ret: 5})
	s.Descriptor(&Descriptor{At: s.at, PID: 10, FD: 5, File: 2, By: "ioctl"})
	s.ioctl(uapi.UFFDIO_API, words(0xab, 0, 0), words(0, 0, 0), 22)
	s.ioctl(uapi.UFFDIO_API, words(0xaa, uint64(uapi.UFFD_FEATURE_THREAD_ID), 0),
		words(0xaa, uint64(uapi.UFFD_API_FEATURES), uint64(uapi.UFFD_API_IOCTLS)), 0)
	s.ioctl(uapi.UFFDIO_REGISTER, words(0x10000, 0x8000, 7, 0), words(0x10000, 0x8000, 7, 0x1fc), 0)
	s.ioctl(uapi.UFFDIO_REGISTER, words(0x10000, 0x8000, 8, 99), words(0x10000, 0x8000, 8, 99), 22)
	s.ioctl(0xaa77, nil, nil, 22)
	s.ioctl(uapi.UFFDIO_WAKE, nil, nil, 14)
	s.ioctl(uapi.UFFDIO_WAKE, words(0x10000, 0x1000), words(0x10000, 0x1000), 0)
}

// faults has faults of all kinds and every way in which they end.
func (s *script) faults() {
	wp := uapi.UFFD_PAGEFAULT_FLAG_WP | uapi.UFFD_PAGEFAULT_FLAG_WRITE
	s.read(uapi.PageFault{Addr: 0x10000, TID: 21}, uapi.PageFault{Addr: 0x10000, TID: 22, Flags: uapi.UFFD_PAGEFAULT_FLAG_WRITE},
		uapi.PageFault{Addr: 0x11000}, uapi.PageFault{Addr: 0x12000, TID: 23, Flags: wp})
	s.read(uapi.PageFault{Addr: 0x10000, TID: 21}, uapi.PageFault{Addr: 0x13000, TID: 24, Flags: uapi.UFFD_PAGEFAULT_FLAG_MINOR})
	// Nobody is woken by these.
	s.ioctl(uapi.UFFDIO_COPY, words(0x10000, 0x5000, 0x1000, 0, 0), words(0x10000, 0x5000, 0x1000, 0, neg(17)), 17)
	s.ioctl(uapi.UFFDIO_COPY, words(0x10000, 0x5000, 0x1000, 1, 0), words(0x10000, 0x5000, 0x1000, 1, 0x1000), 0)
	s.ioctl(uapi.UFFDIO_COPY, words(0x11000, 0x5000, 0x1000, 0, 0x1000), words(0x11000, 0x5000, 0x1000, 0, neg(11)), 11)
	s.ioctl(uapi.UFFDIO_WRITEPROTECT, words(0x12000, 0x1000, 1), words(0x12000, 0x1000, 1), 0)
	// And by these.
	s.ioctl(uapi.UFFDIO_WAKE, words(0x10000, 0x1000), words(0x10000, 0x1000), 0)
	s.ioctl(uapi.UFFDIO_COPY, words(0x11000, 0x5000, 0x2000, 0, 0x1000), words(0x11000, 0x5000, 0x2000, 0, 0x1000), 11)
	s.ioctl(uapi.UFFDIO_WRITEPROTECT, words(0x12000, 0x1000, 0), words(0x12000, 0x1000, 0), 0)
	s.ioctl(uapi.UFFDIO_CONTINUE, words(0x13000, 0x1000, 0, 0), words(0x13000, 0x1000, 0, 0x1000), 0)
	s.read(uapi.PageFault{Addr: 0x14000, TID: 21}, uapi.PageFault{Addr: 0x15000, TID: 22}, uapi.PageFault{Addr: 0x16000, TID: 23},
		uapi.PageFault{Addr: 0x17000, TID: 24}, uapi.PageFault{Addr: 0x18000, TID: 25}, uapi.PageFault{Addr: 0x19000, TID: 26},
		uapi.PageFault{Addr: 0x1a000, TID: 27}, uapi.PageFault{Addr: 0x1b000, TID: 28}, uapi.PageFault{Addr: 0x1c000, TID: 29, Flags: wp})
	s.ioctl(uapi.UFFDIO_ZEROPAGE, words(0x14000, 0x5000, 0, 0), words(0x14000, 0x5000, 0, 0x5000), 0)
	s.ioctl(uapi.UFFDIO_MOVE, words(0x19000, 0x50000, 0x1000, 2, 0), words(0x19000, 0x50000, 0x1000, 2, 0x1000), 0)
	s.ioctl(uapi.UFFDIO_POISON, words(0x1a000, 0x1000, 0, 0), nil, 0) // the answer could not be read
	s.ioctl(uapi.UFFDIO_UNREGISTER, words(0x1b000, 0x2000), words(0x1b000, 0x2000), 0)
}

func (s *script) events() {
	s.read(uapi.Fork{FD: 6}, uapi.Remap{From: 0x10000, To: 0x20000, Len: 0x1000}, uapi.Remove{Range: mem.MakeRange(0x20000, 0x1000)},
		uapi.Unmap{Range: mem.MakeRange(0x21000, 0x1000)}, uapi.Unknown{Raw: uapi.Msg{Event: 0x99, Word: [3]uint64{1, 2, 3}}})
	s.Descriptor(&Descriptor{At: s.at, PID: 10, FD: 6, File: 3, By: "FORK"})
	c := Call{Name: "readv", Args: [6]uint64{3, 0x7ff8, 2}, File: 1, Errno: erestartsys}
	s.call(c)
	c.Errno = 11
	s.call(c)
	c.Name, c.Args = "preadv2", [6]uint64{3, 0x7ff8, 2, ^uint64(0), ^uint64(0), 8}
	s.call(c)
	c.Name, c.Errno = "preadv", 29
	s.call(c)
	c.Name = "pread64"
	s.call(c)
}

func (s *script) passes() {
	s.call(Call{Name: "dup", Args: [6]uint64{3}, File: 1, Ret: 7})
	s.call(Call{Name: "dup2", Args: [6]uint64{3, 8}, File: 1, Ret: 8})
	s.call(Call{Name: "dup3", Args: [6]uint64{3, 9, 0o2000000}, File: 1, Ret: 9})
	s.call(Call{Name: "fcntl", Args: [6]uint64{3, 0, 10}, File: 1, Ret: 10})
	s.call(Call{Name: "fcntl", Args: [6]uint64{3, 1030, 10}, File: 1, Ret: 11})
	s.call(Call{Name: "sendmsg", Args: [6]uint64{15, 0x7fe0, 0x4000}, Passed: []int{3, 7}, Ret: 1})
	s.call(Call{Name: "recvmsg", Args: [6]uint64{16, 0x7fe0, 0}, Passed: []int{17}, Ret: 1})
	s.call(Call{Name: "sendmmsg", Args: [6]uint64{15, 0x7fe0, 2, 0}, Passed: []int{3}, Ret: 2})
	s.call(Call{Name: "recvmmsg", Args: [6]uint64{16, 0x7fe0, 4, 0x40000000, 0}, Passed: []int{18}, Ret: 1})
	s.call(Call{Name: "pidfd_getfd", Args: [6]uint64{19, 3, 0}, Ret: 20})
	s.Descriptor(&Descriptor{At: s.at, PID: 10, FD: 21, File: 4, By: Found})
	s.Descriptor(&Descriptor{At: s.at, PID: 10, FD: 21, File: 4, Closed: true, By: Found})
	s.Note(&Note{At: s.at, PID: 10, Text: "it has a filter of its own"})
}

func (s *script) ends() {
	s.Process(&Process{At: s.at, PID: 30, Change: Forked, Parent: 10, Holds: []int{3, 7}})
	s.Process(&Process{At: s.at, PID: 31, Change: Forked, Parent: 10})
	s.Process(&Process{At: s.at, PID: 30, Change: Execed, Holds: []int{7}, Closed: []int{3}})
	s.call(Call{Name: "close", Args: [6]uint64{5}, File: 2})
	s.Descriptor(&Descriptor{At: s.at, PID: 10, FD: 5, File: 2, Closed: true, Last: true, By: "close"})
	s.call(Call{Name: "close_range", Args: [6]uint64{6, 0xffffffff, 0}})
	s.call(Call{Name: "read", Args: [6]uint64{3, 0x7ff8, 512}, File: 1, Ended: true})
	s.Process(&Process{At: s.at, PID: 30, Change: Exited, Closed: []int{7}, Signal: "SIGKILL"})
	s.Process(&Process{At: s.at, PID: 31, Change: Exited})
	s.Process(&Process{At: s.at, PID: 10, Change: Exited, Closed: []int{3}, Code: 3})
	s.Descriptor(&Descriptor{At: s.at, PID: 10, FD: 3, File: 1, Closed: true, Last: true, By: "exit"})
}

// golden compares got with a file in testdata, or with FAULTLINE_UPDATE=1
// writes it.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if os.Getenv("FAULTLINE_UPDATE") != "" {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("%s: %s", name, d)
	}
}

func trace(t *testing.T, asJSON bool) []byte {
	var b bytes.Buffer
	tr := New(&b, asJSON)
	tell(tr)
	if err := tr.Finish(123456 * us); err != nil {
		t.Error(err)
	}
	return b.Bytes()
}

func TestText(t *testing.T) { golden(t, "trace.txt", trace(t, false)) }

// TestJSON pins the form that Schema names: a change that breaks its readers
// needs a new number.
func TestJSON(t *testing.T) {
	got := trace(t, true)
	golden(t, "trace.json", got)
	for line := range bytes.Lines(got) {
		var v struct{ Schema, Event string }
		if err := json.Unmarshal(line, &v); err != nil || v.Schema != Schema || v.Event == "" {
			t.Errorf("%q: %v", line, err)
		}
	}
}

// TestManNamesJSON keeps the manual and the program together: each member of
// each object is in the page, and the members that every object has.
func TestManNamesJSON(t *testing.T) {
	b, err := os.ReadFile("../../docs/man/faultline-trace.1")
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	for _, v := range []reflect.Type{
		reflect.TypeFor[jsonCall](), reflect.TypeFor[jsonMessage](), reflect.TypeFor[jsonFault](),
		reflect.TypeFor[jsonDescriptor](), reflect.TypeFor[jsonProcess](), reflect.TypeFor[jsonNote](),
		reflect.TypeFor[summary](), reflect.TypeFor[callSummary](), reflect.TypeFor[errorCount](),
		reflect.TypeFor[messageCount](), reflect.TypeFor[faultSummary](),
	} {
		for i := range v.NumField() {
			name, _, _ := strings.Cut(v.Field(i).Tag.Get("json"), ",")
			if !strings.Contains(page, "Va "+name) && !strings.Contains(page, ", "+name) {
				t.Errorf("faultline-trace(1) does not mention %s of %v", name, v)
			}
		}
	}
	if !strings.Contains(page, Schema) {
		t.Errorf("faultline-trace(1) does not name %s", Schema)
	}
}

// failing is a writer that has room for some lines.
type failing struct{ room, tried int }

var errFull = errors.New("full")

func (f *failing) Write(b []byte) (int, error) {
	f.tried++
	if f.room--; f.room < 0 {
		return 0, errFull
	}
	return len(b), nil
}

// A trace that cannot be written is not taken for one that could, and is not
// tried again with a hole in it.
func TestWriteError(t *testing.T) {
	f := &failing{room: 2}
	tr := New(f, false)
	tell(tr)
	if err := tr.Finish(0); !errors.Is(err, errFull) {
		t.Errorf("Finish: %v", err)
	}
	if f.tried != 3 {
		t.Errorf("%d tries to write, want 3", f.tried)
	}
}
