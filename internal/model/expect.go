// SPDX-License-Identifier: Apache-2.0

package model

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/vkernel"
)

// expectUsage is how the forms of expect are written.
var expectUsage = []string{
	"expect ok|ERRNO",
	"expect message WORD...",
	"expect THREAD asleep|done|ERRNO|SIGNAL|TEXT",
	"expect page PAGE none|zero|present|marker|poison[,protected]",
	"expect vma RANGE PERMS [um] [uw] [ui]",
	"expect no-vma RANGE",
}

// expectation is what an expect step wants to be so.
type expectation struct {
	what  string // ok, message, thread, page, vma, no-vma
	name  string // of the thread
	place operand
	want  string
	words []string // of a message
}

// expectation understands the words after expect.
func (p *parser) expectation(words []string) (*expectation, error) {
	bad := fmt.Errorf("usage: %s", strings.Join(expectUsage, "; "))
	if len(words) == 0 {
		return nil, bad
	}
	x := &expectation{what: words[0], words: words[1:]}
	switch {
	case p.kinds[words[0]] == kindThread && len(words) == 2:
		x.what, x.name, x.want = "thread", words[0], words[1]
		if x.want[0] == '"' {
			text, err := strconv.Unquote(x.want)
			if err != nil {
				return nil, bad
			}
			x.want = strconv.Quote(text)
		}
		return x, nil
	case words[0] == "message" && len(words) > 1:
		return x, nil
	case words[0] == "no-vma" && len(words) == 2, words[0] == "page" && len(words) == 3, words[0] == "vma" && len(words) >= 3:
		x.want = strings.Join(words[2:], " ")
		var err error
		x.place, err = p.place(kindRange, words[1])
		return x, err
	case len(words) == 1 && (words[0] == "ok" || isErrno(words[0])):
		x.what, x.want = "ok", words[0]
		return x, nil
	}
	return nil, bad
}

func isErrno(w string) bool {
	return len(w) > 2 && w[0] == 'E' && strings.ToUpper(w) == w
}

// expect fails the run if something is not as expected.
func (m *machine) expect(x *expectation) {
	var got, want string
	switch x.what {
	case "ok":
		want, got = x.want, m.lastErrno()
	case "message":
		m.expectMessage(x)
		return
	case "thread":
		want, got = x.want, m.task(x.name).status(x.want)
	case "page":
		want, got = x.want, m.procs[0].pageState(x.place.r.Start)
	default:
		m.expectVMA(x)
		return
	}
	if got != want {
		m.fail("expected %s, but it is %s", want, got)
	}
}

func (m *machine) lastErrno() string {
	switch {
	case m.last.call == "":
		m.fail("no call has ended whose result could be expected")
	case m.last.errno != 0:
		return vkernel.ErrnoName(m.last.errno)
	}
	return "ok"
}

// expectMessage wants one of the messages that were read last to have all the
// words.
func (m *machine) expectMessage(x *expectation) {
	seen := m.last.read
	if m.last.revents != "" {
		seen = []string{m.last.revents}
	}
	for _, text := range seen {
		have := strings.Fields(text)
		if !slices.ContainsFunc(x.words, func(w string) bool { return !slices.Contains(have, w) }) {
			return
		}
	}
	got := strings.Join(seen, "; ")
	if got == "" {
		got = "nothing"
	}
	m.fail("expected a message with %s, but what was read is %s", strings.Join(x.words, " "), got)
}

// status says how a task is, in the terms of what is wanted.
func (t *task) status(want string) string {
	switch {
	case t.busy:
		return "asleep"
	case t.out.errno != "":
		return t.out.errno
	case want == "done", want == "ok":
		return want
	case t.out.loaded:
		return strconv.Quote(t.out.text)
	}
	return "done"
}

// expectVMA wants a VMA that is exactly the range, or none in it.
func (m *machine) expectVMA(x *expectation) {
	r := x.place.r
	var near []string
	for _, v := range m.procs[0].vmas() {
		if !v.r.Overlaps(r) {
			continue
		}
		if x.what == "vma" && v.r == r && strings.TrimSpace(v.perms+" "+v.flags) == x.want {
			return
		}
		near = append(near, m.vmaLine(v))
	}
	if len(near) == 0 {
		near = []string{"nothing"}
		if x.what == "no-vma" {
			return
		}
	}
	want := strings.TrimSpace(m.span(r) + " " + x.want)
	m.fail("expected %s %s, but there is %s", x.what, want, strings.Join(near, "; "))
}

func doPages(m *machine, _ *task, st *step) {
	p, place := m.procs[0], st.args[0]
	if len(st.args) > 1 {
		p = m.task(st.args[1].name).proc
	}
	var lines []string
	for a := place.r.Start; a < place.r.End; a += mem.Addr(place.region.unit) {
		lines = append(lines, fmt.Sprintf("%-12s %s", m.place(a), p.pageState(a)))
	}
	m.say(Event{Kind: KindShow, Process: p.name, Text: strings.Join(lines, "\n")})
}
