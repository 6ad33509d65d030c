// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package tracee

import (
	"bufio"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// inherited is the set of signals (bit n-1 is signal n) that were ignored
// when this process was started: by nohup(1), by trap in a shell, in
// background jobs of a plain shell, by service managers. The program must
// ignore them too.
var inherited = sync.OnceValue(func() uint64 {
	set := ignoredNow()
	table, ok := findInherited()
	if !ok {
		return set
	}
	for sig, was := range table {
		if was == sigIgn {
			set |= 1 << (sig - 1)
		}
	}
	return set
})

// inheritIgnored ignores the signals that the program must inherit as
// ignored, where the runtime has put a handler in the place. A child gets
// that as it is, while signals that have a handler get their default back.
// The function that it returns goes back to the handlers.
//
// SIGPROF cannot be ignored this way: the runtime keeps it to itself.
func inheritIgnored() (restore func()) {
	var sigs []os.Signal
	set := inherited() &^ ignoredNow()
	for sig := range markSignal {
		if sig > 0 && set&(1<<(sig-1)) != 0 {
			sigs = append(sigs, syscall.Signal(sig))
		}
	}
	if len(sigs) == 0 {
		return func() {}
	}
	signal.Ignore(sigs...)
	return func() {
		ch := make(chan os.Signal, 1)
		signal.Notify(ch, sigs...)
		signal.Stop(ch)
	}
}

// ignoredNow returns the signals that are ignored at this moment.
func ignoredNow() uint64 {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	return statusField(string(b), "SigIgn:", 16)
}

// markSignal is used by findInherited alone.
const markSignal = 64

// findInherited finds the runtime's table of the dispositions that it found
// at start. There is no other trace of them: the runtime has put its own
// handlers in their place, for every signal but a few, before any code of
// ours ran, and offers no way to ask.
//
// The table has no name that we may link to, but we can make the runtime
// write a word of our choice into it: signal.Notify stores there what was
// set before, if it was not the runtime's own handler. So we set a
// handler address that nothing else in memory has, call Notify, and look
// where in the program's variables the word is found. If it is not found
// exactly once, or the words around do not look like the table, the answer
// is that we do not know.
func findInherited() (table map[int]uintptr, ok bool) {
	start, end, err := ownVariables()
	if err != nil {
		return nil, false
	}
	// Computed, so that it is no constant in our own data.
	mark := uintptr(unix.Getpid())<<32 ^ 0x5afe0f0d
	old, err := getAction(markSignal)
	if err != nil {
		return nil, false
	}
	signal.Ignore(syscall.Signal(markSignal)) // makes Notify look again
	marked := old
	marked.handler = mark
	if setAction(markSignal, marked) != nil {
		return nil, false
	}
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.Signal(markSignal))
	signal.Stop(ch)

	at, ok := findWord(start, end, mark)
	if !ok {
		return nil, false
	}
	const word = 8
	buf := make([]uintptr, markSignal+1)
	if readSelf(at-markSignal*word, buf) != len(buf) {
		return nil, false
	}
	table = map[int]uintptr{}
	for sig := 1; sig < markSignal; sig++ {
		// No handler survives exec: only these two values can be there.
		if buf[sig] != sigDfl && buf[sig] != sigIgn {
			return nil, false
		}
		table[sig] = buf[sig]
	}
	return table, true
}

// ownVariables returns the range of this program's initialised and zeroed
// variables: the writable part of the file's mapping and what follows it.
func ownVariables() (start, end uintptr, err error) {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return 0, 0, err
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		var lo, hi uintptr
		var perm string
		line := sc.Text()
		if n, _ := fmt.Sscanf(line, "%x-%x %s", &lo, &hi, &perm); n != 3 {
			continue
		}
		switch {
		case start == 0 && perm == "rw-p" && strings.HasSuffix(line, " "+exe):
			start, end = lo, hi
		case start != 0 && lo == end && perm == "rw-p" && len(strings.Fields(line)) == 5:
			return start, hi, nil
		case start != 0:
			return start, end, nil
		}
	}
	return 0, 0, fmt.Errorf("no variables of %s in /proc/self/maps", exe)
}
