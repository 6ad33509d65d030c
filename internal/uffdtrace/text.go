// SPDX-License-Identifier: Apache-2.0

package uffdtrace

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/faultline-go/faultline/uffd/uapi"
)

const (
	// maxMessages and maxWoken bound what a line shows; JSON has all.
	maxMessages = 8
	maxWoken    = 4
)

// seconds writes a time as strace does.
func seconds(d time.Duration) string {
	return fmt.Sprintf("%d.%06d", d/time.Second, d%time.Second/time.Microsecond)
}

func head(tid int, at time.Duration) string {
	return fmt.Sprintf("[pid %d] %s ", tid, seconds(at))
}

// line is the line of a call: what was passed and read, the result, how long it
// took, and whom it woke.
func (c *Call) line(o *outcome) string {
	var b strings.Builder
	b.WriteString(head(c.TID, c.Start))
	b.WriteString(c.Name + "(" + strings.Join(c.arguments(), ", ") + ") = " + c.result())
	fmt.Fprintf(&b, " <%s>", seconds(c.End-c.Start))
	if len(o.again) > 0 {
		b.WriteString(" again ")
		for i, f := range o.again[:min(len(o.again), maxWoken)] {
			if i > 0 {
				b.WriteString(", ")
			}
			b.WriteString(f.name())
		}
		more(&b, len(o.again)-maxWoken)
	}
	if len(o.woken) > 0 {
		b.WriteString(" wakes ")
		for i, w := range o.woken[:min(len(o.woken), maxWoken)] {
			if i > 0 {
				b.WriteString(", ")
			}
			fmt.Fprintf(&b, "%s after %s", w.name(), seconds(w.after))
		}
		more(&b, len(o.woken)-maxWoken)
	}
	b.WriteByte('\n')
	return b.String()
}

func more(b *strings.Builder, n int) {
	if n > 0 {
		fmt.Fprintf(b, " and %d more", n)
	}
}

func (c *Call) result() string {
	switch {
	case c.Ended:
		return "?"
	case c.Errno.restarts():
		return "? " + c.Errno.String()
	case c.Errno != 0:
		return "-1 " + c.Errno.String()
	}
	return strconv.FormatInt(c.Ret, 10)
}

// arguments returns what stands in the parentheses.
func (c *Call) arguments() []string {
	num := func(i int) string { return strconv.Itoa(int(int32(c.Args[i]))) }
	count := func(i int) string { return strconv.FormatUint(c.Args[i], 10) }
	switch c.Name {
	case "userfaultfd":
		return []string{openFlags(c.Args[0], true)}
	case "ioctl":
		return c.ioctlArguments()
	case "read", "readv":
		return []string{num(0), c.read(), count(2)}
	case "preadv":
		return []string{num(0), c.read(), count(2), strconv.FormatInt(int64(c.Args[3]), 10)}
	case "preadv2":
		return []string{num(0), c.read(), count(2), strconv.FormatInt(int64(c.Args[3]), 10), fmt.Sprintf("%#x", c.Args[5])}
	case "pread64":
		return []string{num(0), c.read(), count(2), strconv.FormatInt(int64(c.Args[3]), 10)}
	case "close", "dup":
		return []string{num(0)}
	case "dup2":
		return []string{num(0), num(1)}
	case "dup3":
		return []string{num(0), num(1), openFlags(c.Args[2], false)}
	case "fcntl":
		return []string{num(0), duplicate(c.Args[1]), num(2)}
	case "close_range":
		return []string{strconv.FormatUint(uint64(uint32(c.Args[0])), 10), strconv.FormatUint(uint64(uint32(c.Args[1])), 10), fmt.Sprintf("%#x", uint32(c.Args[2]))}
	case "pidfd_getfd":
		return []string{num(0), num(1), fmt.Sprintf("%#x", uint32(c.Args[2]))}
	case "sendmsg", "recvmsg":
		return []string{num(0), c.passed(), fmt.Sprintf("%#x", uint32(c.Args[2]))}
	case "sendmmsg", "recvmmsg":
		return []string{num(0), c.passed(), count(2), fmt.Sprintf("%#x", uint32(c.Args[3]))}
	}
	return []string{fmt.Sprintf("%#x", c.Args[0]), "..."}
}

func (c *Call) ioctlArguments() []string {
	request, _ := c.request()
	args := []string{strconv.Itoa(c.fd()), requestName(request)}
	if request == uapi.USERFAULTFD_IOC_NEW {
		return append(args, openFlags(c.Args[2], true))
	}
	a, ok := c.argument()
	if !ok {
		return append(args, fmt.Sprintf("%#x", c.Args[2]))
	}
	var b strings.Builder
	b.WriteByte('{')
	writeFields(&b, a.given)
	if told := c.answer(&a); len(told) > 0 {
		b.WriteString(" => ")
		writeFields(&b, told)
	}
	b.WriteByte('}')
	return append(args, b.String())
}

func writeFields(b *strings.Builder, fs []field) {
	for i, f := range fs {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(f.name + "=" + f.String())
	}
}

// requestName returns the C name of an ioctl request, or its number.
func requestName(request uint32) string {
	if request == uapi.USERFAULTFD_IOC_NEW {
		return "USERFAULTFD_IOC_NEW"
	}
	if name, ok := uapi.RequestName(request); ok {
		return name
	}
	return fmt.Sprintf("%#x", request)
}

// openFlags names the flags of a new descriptor.
func openFlags(v uint64, userfaultfd bool) string {
	v = uint64(uint32(v))
	var names []string
	for _, f := range []struct {
		bit  uint64
		name string
		only bool // a flag of userfaultfd(2) alone
	}{{0o2000000, "O_CLOEXEC", false}, {0o4000, "O_NONBLOCK", true}, {uapi.UFFD_USER_MODE_ONLY, "UFFD_USER_MODE_ONLY", true}} {
		if v&f.bit != 0 && (userfaultfd || !f.only) {
			names, v = append(names, f.name), v&^f.bit
		}
	}
	if v != 0 || len(names) == 0 {
		names = append(names, strings.TrimSuffix(fmt.Sprintf("%#x", v), "x0"))
	}
	return strings.Join(names, "|")
}

// duplicate names the commands of fcntl(2) that make a descriptor.
func duplicate(cmd uint64) string {
	switch uint32(cmd) {
	case 0:
		return "F_DUPFD"
	case 1030:
		return "F_DUPFD_CLOEXEC"
	}
	return fmt.Sprintf("%#x", uint32(cmd))
}

// read returns the messages of a read, or where they should have gone.
func (c *Call) read() string {
	if len(c.Messages) == 0 {
		return fmt.Sprintf("%#x", c.Args[1])
	}
	var b strings.Builder
	b.WriteByte('[')
	for i := range c.Messages[:min(len(c.Messages), maxMessages)] {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(messageText(&c.Messages[i]))
	}
	more(&b, len(c.Messages)-maxMessages)
	b.WriteByte(']')
	return b.String()
}

func messageText(m *uapi.Msg) string {
	switch m.Event {
	case uapi.UFFD_EVENT_PAGEFAULT:
		addr, flags, tid := m.Fault()
		if tid == 0 {
			return fmt.Sprintf("PAGEFAULT{flags=%v, address=%v}", flags, addr)
		}
		return fmt.Sprintf("PAGEFAULT{flags=%v, address=%v, ptid=%d}", flags, addr, tid)
	case uapi.UFFD_EVENT_FORK:
		return fmt.Sprintf("FORK{ufd=%d}", m.ForkFD())
	case uapi.UFFD_EVENT_REMAP:
		from, to, n := m.Remap()
		return fmt.Sprintf("REMAP{from=%v, to=%v, len=%d}", from, to, n)
	case uapi.UFFD_EVENT_REMOVE, uapi.UFFD_EVENT_UNMAP:
		r := m.Range()
		return fmt.Sprintf("%v{start=%v, end=%v}", m.Event, r.Start, r.End)
	}
	return fmt.Sprintf("%v{%#x, %#x, %#x}", m.Event, m.Word[0], m.Word[1], m.Word[2])
}

// passed returns what is known of a message on a socket.
func (c *Call) passed() string {
	if len(c.Passed) == 0 {
		return fmt.Sprintf("%#x", c.Args[1])
	}
	return "{" + userfaultfds(c.Passed) + "}"
}

func userfaultfds(fds []int) string {
	names := make([]string, len(fds))
	for i, fd := range fds {
		names[i] = strconv.Itoa(fd)
	}
	return "userfaultfd " + strings.Join(names, ", ")
}

// line is the line of a process, empty if it has nothing to do with a
// userfaultfd.
func (p *Process) line() string {
	if len(p.Holds)+len(p.Closed) == 0 {
		return ""
	}
	var parts []string
	switch p.Change {
	case Started:
		parts = append(parts, "starts")
	case Forked:
		parts = append(parts, fmt.Sprintf("forked by %d", p.Parent))
	case Execed:
		parts = append(parts, "exec")
	case Exited:
		if p.Signal != "" {
			parts = append(parts, "killed by "+p.Signal)
		} else {
			parts = append(parts, fmt.Sprintf("exited with %d", p.Code))
		}
	}
	if len(p.Holds) > 0 {
		parts = append(parts, "has "+userfaultfds(p.Holds))
	}
	if len(p.Closed) > 0 {
		parts = append(parts, "closes "+userfaultfds(p.Closed))
	}
	return head(p.PID, p.At) + "+++ " + strings.Join(parts, ", ") + " +++\n"
}

// line is the line of a descriptor, empty if other lines have told of it.
func (d *Descriptor) line() string {
	switch {
	case d.By != Found:
		return ""
	case d.Closed:
		return fmt.Sprintf("%s+++ has no userfaultfd %d any more +++\n", head(d.PID, d.At), d.FD)
	}
	return fmt.Sprintf("%s+++ has userfaultfd %d +++\n", head(d.PID, d.At), d.FD)
}

func (n *Note) line() string { return head(n.PID, n.At) + "--- " + n.Text + " ---\n" }
