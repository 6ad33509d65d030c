// SPDX-License-Identifier: Apache-2.0

package provided

import "regexp"

// excuses are the cases that cannot pass, by the reason, as patterns of all of
// their titles. That each of them does fail is tested.
var excuses = []struct{ why, titles string }{
	{"it is about memory of huge pages, which cannot be registered",
		`([a-km-z].*/|lock/(all|grows.*|on-fault)/)(private-)?hugetlb`},
	{"it looks at bits of the pagemap, which knows nothing of protection by us",
		`async/(no-message|scan)/.*|continue/protected/shmem|copy/over-markers/.*|fill/by-any-descriptor-small/.*` +
			`|fill/mode-wp-needs-wp/.*|fork/(clears|event-keeps)-protection/.*|unregister/clears-protection/.*` +
			`|writeprotect/(lifted-in-part|survives-mprotect|thp|unpopulated.*)/.*`},
	{"the event of fork(2) is there for everybody", `handshake/fork-needs-privilege`},
	{"the call and the device are there for everybody", `create/(device-without-privilege|privilege-before-flags)`},
	{"a descriptor is a pipe, which cannot tell epoll(7) of an error", `poll/edges-before-handshake/.*`},
	{"who traces it is us", `delivery/ptrace/.*`},
	{"who looks is a process that has registered nothing", `delivery/(from-another-process|no-retry)/.*`},
	{"it is wrong", // each is to be mended
		`move/shared-after-fork/anon|register/what-cannot-be|self-mem/(read/.*|write/(anon|private-shmem))` +
			`|writeprotect/stops-at-the-first/.*`},
}

// Excuse says why a case cannot pass; it is empty for all others.
func Excuse(title string) string {
	for i, e := range excuses {
		if patterns[i].MatchString(title) {
			return e.why
		}
	}
	return ""
}

var patterns = func() (ps []*regexp.Regexp) {
	for _, e := range excuses {
		ps = append(ps, regexp.MustCompile(`^(`+e.titles+`)$`))
	}
	return ps
}()
