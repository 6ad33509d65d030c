// SPDX-License-Identifier: Apache-2.0

package provided

import (
	"regexp"
	"sync"
)

// excuses are the cases that cannot pass, by the reason, as patterns of all of
// their titles. That each of them does fail is tested.
var excuses = []struct{ why, titles string }{
	{"the event of fork(2) is there for everybody, by intent", `handshake/fork-needs-privilege`},
	{"the call and the device are there for everybody, by intent", `create/(device-without-privilege|privilege-before-flags)`},
	{"its processes are traced by us, and nothing can be traced by two", `delivery/ptrace/.*`},
	{"the memory of a process that has died is gone, and who reads it by process_vm_readv gets ESRCH", `delivery/reader-outlives-process/.*`},
	{"no bit of the pagemap tells whether a page, once shared with a child, was written since: it is moved", `move/shared-after-fork/anon`},
}

// fatal are the cases that are not tried, as what comes of them is known: the program
// that makes the puppets is killed, for want of mappings by which its memory could have
// its permissions back.
var fatal = struct{ why, title string }{
	"memory is registered without a split of its mappings, and the splits come later", `register/no-room-to-split`,
}

// Excuse says why a case cannot pass; it is empty for all others.
func Excuse(title string) string {
	if title == fatal.title {
		return fatal.why
	}
	for i, e := range excuses {
		if patterns()[i].MatchString(title) {
			return e.why
		}
	}
	return ""
}

// patterns are compiled for whom they are needed: every command starts with
// what is done before main.
var patterns = sync.OnceValue(func() (ps []*regexp.Regexp) {
	for _, e := range excuses {
		ps = append(ps, regexp.MustCompile(`^(`+e.titles+`)$`))
	}
	return ps
})
