// SPDX-License-Identifier: Apache-2.0

package model

import (
	"fmt"
	"slices"
	"strings"

	"github.com/faultline-go/faultline/uffd/uapi"
	"github.com/faultline-go/faultline/vkernel"
)

// verb is a command of the language.
type verb struct {
	name   string
	params []kind
	spare  kind // one more operand, which may be left out
	opts   []string
	some   string // what the usage calls them, if they are too many to list
	// looks is set if no thread is needed: the command looks at the machine
	// or acts on it from outside.
	looks bool
	check func(p *parser, st *step) error // after the operands
	run   func(m *machine, t *task, st *step)
}

// verbs is the language. It is filled by init, since expect asks it too.
var verbs map[string]*verb

const (
	dontWake   = "DONTWAKE"
	modeWP     = "WP"
	allowHoles = "ALLOW_SRC_HOLES"
	missing    = "MISSING"
	minor      = "MINOR"
)

func init() {
	verbs = map[string]*verb{}
	for _, list := range [][]verb{memoryVerbs, accessVerbs, descriptorVerbs, lookVerbs} {
		for i := range list {
			verbs[list[i].name] = &list[i]
		}
	}
}

// memoryKinds are the kinds of memory that map makes.
var memoryKinds = []string{"anon", "shmem", "private-shmem", "hugetlb", "private-hugetlb"}

var memoryVerbs = []verb{
	{name: "map", params: []kind{newRegion, kindNumber}, opts: append(slices.Clip(memoryKinds), "read-only", "populate"), check: checkMap, run: doMap},
	{name: "alias", params: []kind{newRegion, kindRegion}, check: checkAlias, run: doAlias},
	{name: "munmap", params: []kind{kindRange}, run: func(m *machine, t *task, st *step) {
		r := st.args[0].r
		m.call(t, "munmap", func() (int64, error) { return errnoOnly(t.th.Munmap(r.Start, r.Len())) })
	}},
	{name: "mremap", params: []kind{kindRange, newRegion}, spare: kindNumber, opts: []string{"DONTUNMAP"}, check: checkMremap, run: doMremap},
	{name: "mremap-over", params: []kind{kindRange, kindRange}, run: doMremapOver},
	{name: "mprotect", params: []kind{kindRange}, opts: []string{"none", "read", "write"}, check: needOption, run: doMprotect},
	{name: "madvise", params: []kind{kindRange}, opts: adviceNames(), check: needOption, run: doMadvise},
	{name: "fork", params: []kind{newProcess}, run: doFork},
	{name: "thread", params: []kind{newThread}, run: func(m *machine, t *task, st *step) {
		m.addTask(st.args[0].name, t.proc)
	}},
}

var accessVerbs = []verb{
	{name: "load", params: []kind{kindAddr}, spare: kindNumber, check: checkLoad, run: doLoad},
	{name: "store", params: []kind{kindAddr, kindText}, run: doStore},
	{name: "syscall-load", params: []kind{kindAddr}, spare: kindNumber, check: checkLoad, run: doSyscallLoad},
	{name: "syscall-store", params: []kind{kindAddr, kindText}, run: doSyscallStore},
}

var descriptorVerbs = []verb{
	{name: "open", params: []kind{newFD}, opts: []string{"blocking", "USER_MODE_ONLY"}, run: doOpen},
	{name: "api", params: []kind{kindFD}, opts: featureNames(), some: "FEATURE", run: doAPI},
	{name: "register", params: []kind{kindFD, kindRange}, opts: []string{missing, modeWP, minor}, run: doRegister},
	{name: "unregister", params: []kind{kindFD, kindRange}, run: func(m *machine, t *task, st *step) {
		m.ioctl(t, st, uapi.UFFDIO_UNREGISTER, "UNREGISTER", noResult, rangeWords(st)...)
	}},
	{name: "wake", params: []kind{kindFD, kindRange}, run: func(m *machine, t *task, st *step) {
		m.ioctl(t, st, uapi.UFFDIO_WAKE, "WAKE", noResult, rangeWords(st)...)
	}},
	{name: "read", params: []kind{kindFD}, spare: kindNumber, check: checkRead, run: doRead},
	{name: "copy", params: []kind{kindFD, kindRange, kindText}, opts: []string{dontWake, modeWP}, check: checkCopy, run: doCopy},
	{name: "zeropage", params: []kind{kindFD, kindRange}, opts: []string{dontWake}, run: func(m *machine, t *task, st *step) {
		mode := bit(st, dontWake, uint64(uapi.UFFDIO_ZEROPAGE_MODE_DONTWAKE))
		m.ioctl(t, st, uapi.UFFDIO_ZEROPAGE, "ZEROPAGE", 3, append(rangeWords(st), mode, 0)...)
	}},
	{name: "continue", params: []kind{kindFD, kindRange}, opts: []string{dontWake, modeWP}, run: func(m *machine, t *task, st *step) {
		mode := bit(st, dontWake, uint64(uapi.UFFDIO_CONTINUE_MODE_DONTWAKE)) | bit(st, modeWP, uint64(uapi.UFFDIO_CONTINUE_MODE_WP))
		m.ioctl(t, st, uapi.UFFDIO_CONTINUE, "CONTINUE", 3, append(rangeWords(st), mode, 0)...)
	}},
	{name: "poison", params: []kind{kindFD, kindRange}, opts: []string{dontWake}, run: func(m *machine, t *task, st *step) {
		mode := bit(st, dontWake, uint64(uapi.UFFDIO_POISON_MODE_DONTWAKE))
		m.ioctl(t, st, uapi.UFFDIO_POISON, "POISON", 3, append(rangeWords(st), mode, 0)...)
	}},
	{name: "protect", params: []kind{kindFD, kindRange}, run: func(m *machine, t *task, st *step) {
		m.ioctl(t, st, uapi.UFFDIO_WRITEPROTECT, "WRITEPROTECT", noResult, append(rangeWords(st), uint64(uapi.UFFDIO_WRITEPROTECT_MODE_WP))...)
	}},
	{name: "unprotect", params: []kind{kindFD, kindRange}, opts: []string{dontWake}, run: func(m *machine, t *task, st *step) {
		mode := bit(st, dontWake, uint64(uapi.UFFDIO_WRITEPROTECT_MODE_DONTWAKE))
		m.ioctl(t, st, uapi.UFFDIO_WRITEPROTECT, "WRITEPROTECT", noResult, append(rangeWords(st), mode)...)
	}},
	{name: "move", params: []kind{kindFD, kindRange, kindAddr}, opts: []string{dontWake, allowHoles}, run: doMove},
	{name: "close", params: []kind{kindFD}, run: func(m *machine, t *task, st *step) {
		fd := m.fd(st.args[0])
		m.call(t, "close", func() (int64, error) { return errnoOnly(t.th.Close(fd)) })
	}},
	{name: "poll", params: []kind{kindFD}, run: doPoll},
}

var lookVerbs = []verb{
	{name: "adopt", params: []kind{newFD}, looks: true, run: func(m *machine, _ *task, st *step) {
		if m.forkFD < 0 {
			m.fail("no FORK message was read whose descriptor could be adopted")
		}
		m.fds[st.args[0].name], m.forkFD = m.forkFD, -1
	}},
	{name: "signal", params: []kind{kindThread}, looks: true, run: func(m *machine, _ *task, st *step) {
		m.task(st.args[0].name).th.Signal(10)
	}},
	{name: "kill", params: []kind{kindThread}, looks: true, run: func(m *machine, _ *task, st *step) {
		m.task(st.args[0].name).proc.p.Kill()
	}},
	{name: "fdinfo", params: []kind{kindFD}, looks: true, run: func(m *machine, _ *task, st *step) {
		info := m.procs[0].p.Fdinfo(m.fd(st.args[0]))
		if info == "" {
			info = "there is no such descriptor any more"
		}
		m.say(Event{Kind: KindShow, Text: strings.ReplaceAll(strings.TrimSpace(info), "\t", " ")})
	}},
	{name: "maps", spare: kindThread, looks: true, run: func(m *machine, _ *task, st *step) {
		p := m.procs[0]
		if len(st.args) > 0 {
			p = m.task(st.args[0].name).proc
		}
		m.say(Event{Kind: KindShow, Process: p.name, Text: strings.Join(append([]string{"VMAs of " + p.name + ":"}, m.layoutLines(p)...), "\n  ")})
	}},
	{name: "pages", params: []kind{kindRange}, spare: kindThread, looks: true, run: doPages},
	{name: "expect", looks: true, run: func(m *machine, _ *task, st *step) { m.expect(st.expect) }},
}

// Usage lists the commands of the language, in the order of the manual.
func Usage() (lines []string) {
	for _, list := range [][]verb{memoryVerbs, accessVerbs, descriptorVerbs, lookVerbs} {
		for i := range list {
			if list[i].name != "expect" {
				lines = append(lines, list[i].usage())
			}
		}
	}
	return append(lines, expectUsage...)
}

func featureNames() (names []string) {
	for _, f := range uapi.FeatureTable() {
		names = append(names, f.Name)
	}
	return names
}

// advice is what madvise knows here.
var advice = []struct {
	name string
	n    int
}{
	{"DONTNEED", vkernel.MadvDontNeed}, {"FREE", vkernel.MadvFree}, {"REMOVE", vkernel.MadvRemove},
	{"DONTFORK", vkernel.MadvDontFork}, {"DOFORK", vkernel.MadvDoFork},
	{"POPULATE_READ", vkernel.MadvPopulateRead}, {"POPULATE_WRITE", vkernel.MadvPopulateWrite},
}

func adviceNames() (names []string) {
	for _, a := range advice {
		names = append(names, a.name)
	}
	return names
}

func needOption(_ *parser, st *step) error {
	if len(st.opts) == 0 || st.verb.name == "madvise" && len(st.opts) > 1 {
		return fmt.Errorf("usage: %s, with one of them", st.verb.usage())
	}
	return nil
}
