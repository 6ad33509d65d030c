// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64

package realtest

import (
	"encoding/json"
	"net"
	"testing"
	"time"
)

// values are the arguments of a command, and what it returns.
type values = map[string]any

// qmp is a connection by which QEMU takes commands.
type qmp struct {
	t      *testing.T
	enc    *json.Encoder
	dec    *json.Decoder
	events []message
}

type message struct {
	QMP    values
	Return values
	Error  *struct{ Desc string }
	Event  string
	Data   values
}

// accept waits for QEMU to connect.
func (q *qmp) accept(l net.Listener) {
	q.t.Helper()
	deadline := time.Now().Add(budget)
	c, err := l.Accept()
	if err != nil {
		q.t.Fatalf("QEMU does not come: %v", err)
	}
	q.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(deadline)
	q.enc, q.dec = json.NewEncoder(c), json.NewDecoder(c)
	if q.read().QMP == nil {
		q.t.Fatal("QEMU does not greet")
	}
	if _, refused := q.try("qmp_capabilities", nil); refused != "" {
		q.t.Fatal(refused)
	}
}

func (q *qmp) read() (m message) {
	q.t.Helper()
	if err := q.dec.Decode(&m); err != nil {
		q.t.Fatalf("read from QEMU: %v", err)
	}
	return m
}

// try makes a command. refused is why QEMU does not do it.
func (q *qmp) try(command string, args values) (got values, refused string) {
	q.t.Helper()
	request := values{"execute": command}
	if args != nil {
		request["arguments"] = args
	}
	if err := q.enc.Encode(request); err != nil {
		q.t.Fatalf("write to QEMU: %v", err)
	}
	for {
		m := q.read()
		switch {
		case m.Event != "":
			q.events = append(q.events, m)
		case m.Error != nil:
			return nil, m.Error.Desc
		default:
			return m.Return, ""
		}
	}
}

// event waits for an event, which may have come already.
func (q *qmp) event(name string) values {
	q.t.Helper()
	for {
		for len(q.events) > 0 {
			m := q.events[0]
			q.events = q.events[1:]
			if m.Event == name {
				return m.Data
			}
		}
		q.events = append(q.events, q.read())
	}
}
