// SPDX-License-Identifier: Apache-2.0

package model

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// play plays a text on both profiles.
func play(t *testing.T, name, text string) *Timeline {
	t.Helper()
	s, err := Parse(name, text)
	if err != nil {
		t.Fatal(err)
	}
	tl, err := s.Play("")
	if err != nil {
		var b strings.Builder
		if werr := tl.Write(&b); werr != nil {
			t.Fatal(werr)
		}
		t.Fatalf("%v\n%s", err, &b)
	}
	return tl
}

// TestShipped plays the scripts that come with the program, and compares the
// timelines with those that were looked at: FAULTLINE_UPDATE=1 writes them.
func TestShipped(t *testing.T) {
	scripts := ShippedScripts()
	if len(scripts) != 6 {
		t.Fatalf("%d scripts, want 6", len(scripts))
	}
	for _, s := range scripts {
		t.Run(s.Name, func(t *testing.T) {
			var got bytes.Buffer
			if err := play(t, s.Name, s.Text).Write(&got); err != nil {
				t.Fatal(err)
			}
			golden(t, s.Name+".timeline", got.Bytes())
		})
	}
}

// golden compares got with a file in testdata.
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

// TestSameEveryTime: with several threads woken at once, too.
func TestSameEveryTime(t *testing.T) {
	text := "profile both\nmap heap 8\nopen u\napi u THREAD_ID\nregister u heap MISSING\n"
	for i := range 8 {
		text += fmt.Sprintf("thread t%d\nt%d: load heap[%d]\n", i, i, 7-i)
	}
	// All fault anew, and the order of that shows in what is read.
	text += "read u 4\nwake u heap\n[linux-6.18] expect t3 asleep\nread u 64\nclose u\n"
	var first bytes.Buffer
	for i := range 50 {
		var got bytes.Buffer
		if err := play(t, "same", text).Write(&got); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = got
		} else if d := cmp.Diff(first.String(), got.String()); d != "" {
			t.Fatalf("run %d: %s", i, d)
		}
	}
}

// TestEnds: a run that ends with threads asleep everywhere leaves none behind.
func TestEnds(t *testing.T) {
	const text = `map heap 2
open u blocking
api u EVENT_UNMAP
register u heap MISSING
thread a
thread b
thread c
a: load heap[0]
b: munmap heap[1]
open v blocking
api v
c: read v
expect a asleep
expect b asleep
expect c asleep
`
	s, err := Parse("ends", text)
	if err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	if _, err = s.Play("linux-6.18"); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
	}
}

// TestErrors has for each mistake in a script what is said of it.
func TestErrors(t *testing.T) {
	for _, tc := range []struct{ text, want string }{
		{"", "x:0: the script does nothing"},
		{"# only this\n", "x:1: the script does nothing"},
		{"map heap 1\njump heap", `x:2: there is no command "jump"`},
		{"load heap", `x:1: there is no memory "heap"`},
		{"map heap", "x:1: usage: map NAME N [anon] [shmem] [private-shmem] [hugetlb] [private-hugetlb] [read-only] [populate]"},
		{"map heap 0", "x:1: heap has 0 pages; it may have 1 to 256"},
		{"map heap 9 hugetlb", "x:1: heap has 9 pages; it may have 1 to 8"},
		{"map heap one", `x:1: "one" is no number`},
		{"map 1st 1", `x:1: "1st" is no name: use letters, digits, - and _`},
		{"map main 1", `x:1: "main" is the name of a thread already`},
		{"map heap 1 tall", `x:1: "tall" is one word too many, usage: map NAME N [anon] [shmem] [private-shmem] [hugetlb] [private-hugetlb] [read-only] [populate]`},
		{"t: fork c", `x:1: there is no thread "t": write "thread t" before`},
		{"map a 1\nload a[", `x:2: "a[" is no place: write NAME, NAME[PAGE], NAME[FROM:TO], or for an address NAME[PAGE]+OFFSET`},
		{"map a 1\nmunmap a+1", `x:2: "a+1" is no place: write NAME, NAME[PAGE], NAME[FROM:TO], or for an address NAME[PAGE]+OFFSET`},
		{"map a 1\nstore a text", "x:2: text is no text of 1 to 64 bytes in double quotes"},
		{"map a 1\nstore a \"te", `x:2: "te has no closing quote`},
		{"map a 1\nload a 0", "x:2: 0 bytes cannot be loaded; 1 to 16384 can"},
		{"map a 1\nmadvise a", "x:2: usage: madvise RANGE [DONTNEED] [FREE] [REMOVE] [DONTFORK] [DOFORK] [POPULATE_READ] [POPULATE_WRITE], with one of them"},
		{"map a 1\nmadvise a FREE REMOVE", "x:2: usage: madvise RANGE [DONTNEED] [FREE] [REMOVE] [DONTFORK] [DOFORK] [POPULATE_READ] [POPULATE_WRITE], with one of them"},
		{"open u\nread u 65", "x:2: a read has room for 1 to 64 messages, not 65"},
		{"[vax] open u", "x:1: [vax] is no condition: write [seed] or [linux-6.18]"},
		{"[seed]", "x:1: the line does nothing"},
		{"profile vax", "x:1: usage: profile seed|linux-6.18|both"},
		{"open u\nprofile seed", "x:2: profile is given once, before everything else"},
		{"open u\nexpect", "x:2: usage: " + strings.Join(expectUsage, "; ")},

		// What shows only when it is played.
		{"open u\nexpect EBADF", "x:2: on linux-6.18: expected EBADF, but it is ok"},
		{"open u\napi u\nread u\nexpect message FORK", "x:4: on linux-6.18: expected a message with FORK, but what was read is nothing"},
		{"open u\npoll u\nexpect message POLLIN", "x:3: on linux-6.18: expected a message with POLLIN, but what was read is POLLERR"},
		{"map a 2\nexpect vma a[0] rw-p", "x:2: on linux-6.18: expected vma a[0] rw-p, but there is 10000000-10002000 rw-p          a[0:2]"},
		{"map a 2\nexpect page a zero", "x:2: on linux-6.18: expected zero, but it is none"},
		{"map a 2\nexpect no-vma a", "x:2: on linux-6.18: expected no-vma a[0:2], but there is 10000000-10002000 rw-p          a[0:2]"},
		{"expect ok", "x:1: on linux-6.18: no call has ended whose result could be expected"},
		{"adopt c", "x:1: on linux-6.18: no FORK message was read whose descriptor could be adopted"},
		{"[seed] open u\napi u", "x:2: on linux-6.18: descriptor u is not open: on this profile nothing has made it"},
		{"[seed] thread t\nt: fork c", "x:2: on linux-6.18: thread t is not there: on this profile nothing has made it"},
		{"map a 1\nalias b a", "x:2: on linux-6.18: a maps no file, of which there could be an alias"},
		{"open u blocking\napi u\nthread t\nt: read u\nread u", "x:5: on linux-6.18: t sleeps in a read already: which of the two gets a message is anybody's"},
		{"open u blocking\napi u\nthread t\nt: read u\nt: read u", "x:5: on linux-6.18: t still sleeps in its call of line 4"},
		{"thread t\nkill t\nt: fork c", "x:3: on linux-6.18: the process of t is dead"},
	} {
		s, err := Parse("x", tc.text)
		if err == nil {
			_, err = s.Play("")
		}
		if se, ok := errors.AsType[*ScriptError](err); !ok || se.Error() != tc.want {
			t.Errorf("%q: %v, want %s", tc.text, err, tc.want)
		}
	}
}

// everything has the commands that no shipped script has.
const everything = `map ro 1 read-only populate
expect page ro[0] zero
store ro "x"
expect main SIGSEGV
map a 4 private-shmem
syscall-store a[1]+0x20 "deep"
syscall-load a[1]+0x20
expect main "deep"
load a[1] 64
map h 2 private-hugetlb
store h[1] "huge"
expect page h[1] present
mprotect a[3] read
expect vma a[3] r--p
mprotect a[3] none
load a[3]
expect main SIGSEGV
syscall-load a[3]
expect main EFAULT
mremap a[0:2] moved DONTUNMAP
expect vma moved[0:2] rw-p
expect vma a[0:3] rw-p
mremap moved[0:2] b 3
expect vma b[0:3] rw-p
expect no-vma moved
mremap-over b[1] a[0]
load a[0]+0x20
expect main "deep"
madvise a[0] DONTFORK
open u blocking
api u SIGBUS
register u b[0] MISSING
madvise b[0] DONTNEED
load b[0]
expect main SIGBUS
open v blocking
api v POISON MOVE WP_ASYNC THREAD_ID EXACT_ADDRESS
register v b[2] MISSING
fork child
child: load a[0]
expect child SIGSEGV
maps child
pages b child
thread t
child: read v
expect child asleep
t: load b[2]+0x123
expect child done
fdinfo v
kill child
expect t asleep
close v
expect t ""
fdinfo v
`

// TestEveryCommand: each command of the language is in a shipped script or in
// everything, in which something comes of it.
func TestEveryCommand(t *testing.T) {
	play(t, "every", everything)
	all := everything
	for _, s := range ShippedScripts() {
		all += s.Text
	}
	for _, line := range Usage() {
		name, _, _ := strings.Cut(line, " ")
		if !strings.Contains(all, name+" ") {
			t.Errorf("no script has %q", name)
		}
	}
}

// FuzzParse: a script is refused with its line, or can be played to an end.
func FuzzParse(f *testing.F) {
	for _, s := range ShippedScripts() {
		f.Add(s.Text)
	}
	f.Add("map heap 4\n[seed] load heap[0:2]+0x10 7 # x\nstore heap \"a\\x00b\"\n")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse("fuzz", text)
		if err != nil {
			se, ok := errors.AsType[*ScriptError](err)
			if lines := strings.Count(text, "\n") + 1; !ok || se.Line < 0 || se.Line > lines || se.Why == "" {
				t.Fatalf("%#v", err)
			}
			return
		}
		if len(s.steps) > 100 {
			return // the parser is what is tested
		}
		tl, err := s.Play(Both)
		if _, ok := errors.AsType[*ScriptError](err); err != nil && !ok {
			t.Fatal(err)
		}
		var b strings.Builder
		if err := tl.Write(&b); err != nil || b.Len() == 0 {
			t.Fatalf("%v, %d bytes", err, b.Len())
		}
	})
}
