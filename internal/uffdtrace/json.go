// SPDX-License-Identifier: Apache-2.0

package uffdtrace

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/faultline-go/faultline/uffd/uapi"
)

// Schema names the form of a trace as JSON.
const Schema = "faultline/trace/1"

// Values of the member event.
const (
	eventCall       = "call"
	eventDescriptor = "descriptor"
	eventProcess    = "process"
	eventNote       = "note"
	eventSummary    = "summary"
)

// jsonCall is a call. Addresses are strings, since JSON's numbers may not hold
// them.
type jsonCall struct {
	Schema     string        `json:"schema"`
	Event      string        `json:"event"`
	TimeNs     int64         `json:"time_ns"`
	DurationNs int64         `json:"duration_ns"`
	PID        int           `json:"pid"`
	TID        int           `json:"tid"`
	Call       string        `json:"call"`
	Request    string        `json:"request,omitempty"`
	Args       []string      `json:"args"`
	FD         *int          `json:"fd,omitempty"`
	Flags      string        `json:"flags,omitempty"`
	File       File          `json:"descriptor,omitempty"`
	Given      fields        `json:"given,omitempty"`
	Told       fields        `json:"told,omitempty"`
	Messages   []jsonMessage `json:"messages,omitempty"`
	Passed     []int         `json:"passed,omitempty"`
	Ret        *int64        `json:"ret,omitempty"`
	Errno      string        `json:"errno,omitempty"`
	Again      []jsonFault   `json:"again,omitempty"`
	Woken      []jsonFault   `json:"woken,omitempty"`
}

// fields is an object with a member for each word, in their order.
type fields []field

// MarshalJSON implements [json.Marshaler].
func (fs fields) MarshalJSON() ([]byte, error) {
	b := []byte{'{'}
	for i, f := range fs {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendQuote(b, f.name)
		b = append(b, ':')
		switch f.form {
		case asSize:
			b = strconv.AppendUint(b, f.value, 10)
		case asResult:
			b = strconv.AppendInt(b, int64(f.value), 10)
		default: // hexadecimal, or names joined by |
			b = strconv.AppendQuote(b, f.String())
		}
	}
	return append(b, '}'), nil
}

// jsonMessage has those members that its kind has.
type jsonMessage struct {
	Message string   `json:"message"`
	Flags   string   `json:"flags,omitempty"`
	Address string   `json:"address,omitempty"`
	TID     uint32   `json:"ptid,omitempty"`
	FD      *int32   `json:"ufd,omitempty"`
	From    string   `json:"from,omitempty"`
	To      string   `json:"to,omitempty"`
	Len     uint64   `json:"len,omitempty"`
	Start   string   `json:"start,omitempty"`
	End     string   `json:"end,omitempty"`
	Words   []string `json:"words,omitempty"` // of an unknown kind
}

// jsonFault is a fault that was read again, or that has ended.
type jsonFault struct {
	Kind    string `json:"kind"`
	Address string `json:"address"`
	TID     uint32 `json:"ptid,omitempty"`
	AfterNs *int64 `json:"after_ns,omitempty"`
}

type jsonDescriptor struct {
	Schema string `json:"schema"`
	Event  string `json:"event"`
	TimeNs int64  `json:"time_ns"`
	PID    int    `json:"pid"`
	FD     int    `json:"fd"`
	File   File   `json:"descriptor"`
	Change string `json:"change"`
	By     string `json:"by"`
	Last   bool   `json:"last,omitempty"`
}

type jsonProcess struct {
	Schema string `json:"schema"`
	Event  string `json:"event"`
	TimeNs int64  `json:"time_ns"`
	PID    int    `json:"pid"`
	Change Change `json:"change"`
	Parent int    `json:"parent,omitempty"`
	Holds  []int  `json:"holds,omitempty"`
	Closed []int  `json:"closed,omitempty"`
	Status *int   `json:"status,omitempty"`
	Signal string `json:"signal,omitempty"`
}

type jsonNote struct {
	Schema string `json:"schema"`
	Event  string `json:"event"`
	TimeNs int64  `json:"time_ns"`
	PID    int    `json:"pid"`
	Text   string `json:"text"`
}

// encode returns v as one line.
func encode(v any) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(fmt.Sprintf("uffdtrace: %T has no JSON: %v", v, err)) // numbers and strings only
	}
	return b.String()
}

func (c *Call) json(o *outcome) string {
	j := jsonCall{
		Schema: Schema, Event: eventCall, TimeNs: int64(c.Start), DurationNs: int64(c.End - c.Start),
		PID: c.PID, TID: c.TID, Call: c.Name, Args: c.raw(), File: c.File, Passed: c.Passed,
	}
	request, ok := c.request()
	if ok {
		j.Request = requestName(request)
	}
	switch {
	case c.Name == "userfaultfd":
		j.Flags = openFlags(c.Args[0], true)
	case request == uapi.USERFAULTFD_IOC_NEW && ok:
		j.Flags = openFlags(c.Args[2], true)
	}
	if c.Name != "userfaultfd" && c.Name != "close_range" {
		fd := c.fd()
		j.FD = &fd
	}
	if a, ok := c.argument(); ok {
		j.Given, j.Told = a.given, c.answer(&a)
	}
	for i := range c.Messages {
		j.Messages = append(j.Messages, toJSON(&c.Messages[i]))
	}
	switch {
	case c.Ended:
	case c.Errno != 0:
		j.Errno = c.Errno.String()
	default:
		j.Ret = &c.Ret
	}
	for i := range o.again {
		j.Again = append(j.Again, o.again[i].json())
	}
	for i := range o.woken {
		f := o.woken[i].json()
		after := int64(o.woken[i].after)
		f.AfterNs = &after
		j.Woken = append(j.Woken, f)
	}
	return encode(j)
}

// arity is how many arguments each call has.
var arity = map[string]int{
	"userfaultfd": 1, "ioctl": 3, "read": 3, "readv": 3, "pread64": 4, "preadv": 4, "preadv2": 6,
	"close": 1, "close_range": 3, "dup": 1, "dup2": 2, "dup3": 3, "fcntl": 3, "pidfd_getfd": 3,
	"sendmsg": 3, "sendmmsg": 4, "recvmsg": 3, "recvmmsg": 5,
}

// raw returns the arguments as they were in registers.
func (c *Call) raw() (args []string) {
	for _, a := range c.Args[:arity[c.Name]] {
		args = append(args, fmt.Sprintf("%#x", a))
	}
	return args
}

func (f *fault) json() jsonFault {
	return jsonFault{Kind: f.kind.String(), Address: f.addr.String(), TID: f.tid}
}

func toJSON(m *uapi.Msg) jsonMessage {
	j := jsonMessage{Message: m.Event.String()}
	switch m.Event {
	case uapi.UFFD_EVENT_PAGEFAULT:
		addr, flags, tid := m.Fault()
		j.Flags, j.Address, j.TID = flags.String(), addr.String(), tid
	case uapi.UFFD_EVENT_FORK:
		fd := m.ForkFD()
		j.FD = &fd
	case uapi.UFFD_EVENT_REMAP:
		from, to, n := m.Remap()
		j.From, j.To, j.Len = from.String(), to.String(), n
	case uapi.UFFD_EVENT_REMOVE, uapi.UFFD_EVENT_UNMAP:
		r := m.Range()
		j.Start, j.End = r.Start.String(), r.End.String()
	default:
		for _, w := range m.Word {
			j.Words = append(j.Words, fmt.Sprintf("%#x", w))
		}
	}
	return j
}

func (d *Descriptor) json() string {
	change := "made"
	if d.Closed {
		change = "closed"
	}
	return encode(jsonDescriptor{Schema, eventDescriptor, int64(d.At), d.PID, d.FD, d.File, change, d.By, d.Last})
}

func (p *Process) json() string {
	j := jsonProcess{
		Schema: Schema, Event: eventProcess, TimeNs: int64(p.At), PID: p.PID, Change: p.Change,
		Parent: p.Parent, Holds: p.Holds, Closed: p.Closed, Signal: p.Signal,
	}
	if p.Change == Exited && p.Signal == "" {
		j.Status = &p.Code
	}
	return encode(j)
}

func (n *Note) json() string {
	return encode(jsonNote{Schema, eventNote, int64(n.At), n.PID, n.Text})
}

func (s *summary) json() string { return encode(s) }
