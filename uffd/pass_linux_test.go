// SPDX-License-Identifier: Apache-2.0

package uffd_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd"
	"github.com/faultline-go/faultline/uffd/uapi"
)

// TestSendRecv covers C.29: a descriptor that came over a socket serves the
// other process, MOVE excepted, until that is killed.
func TestSendRecv(t *testing.T) {
	tg := newTarget(t)
	raw := tg.call("open", 1)
	tg.call("handshake", raw, 0)
	sent := tg.start("send", raw)
	tg.sock.SetReadDeadline(time.Now().Add(budget))
	payload := make([]byte, 100)
	n, f, err := uffd.Recv(tg.sock, payload)
	if err != nil || f == nil || string(payload[:n]) != "hello" {
		t.Fatalf("Recv = %q, %v, %v", payload[:n], f, err)
	}
	defer f.Close()
	tg.await(sent)
	if flags, err := unix.FcntlInt(uintptr(f.Raw()), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("not close-on-exec: %#x, %v", flags, err)
	}
	r := tg.mmap(2)
	mustRegister(t, f, r, missing)
	c := tg.touch(r.Start, mem.PageSize)
	wantFault(t, f, r.Start, 0)
	want := pattern(1, 1)
	wantDone(t, "COPY", did(f.Copy(r.Start, want, 0)), result{mem.PageSize, 0})
	if !bytes.Equal(tg.see(c, mem.PageSize), want) {
		t.Error("the thread saw other bytes")
	}
	tg.touch(page(r, 1).Start, mem.PageSize)
	wantFault(t, f, page(r, 1).Start, 0)
	if err := tg.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := tg.cmd.Process.Wait(); err != nil {
		t.Fatal(err)
	}
	wantDone(t, "COPY after SIGKILL", did(f.Copy(page(r, 1).Start, want, 0)), result{0, unix.ESRCH})
	if info, err := f.Info(); err != nil || info.Pending != 0 || info.Total != 0 {
		t.Errorf("Info after SIGKILL = %+v, %v", info, err)
	}
}

// socketPair returns two connected stream sockets.
func socketPair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range pair {
		file := os.NewFile(uintptr(fd), "socket")
		conn, err := net.FileConn(file)
		file.Close()
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = conn.(*net.UnixConn)
		conns[i].SetDeadline(time.Now().Add(budget))
		t.Cleanup(func() { conn.Close() })
	}
	return conns[0], conns[1]
}

func openHere(t *testing.T) *uffd.FD {
	t.Helper()
	f, err := uffd.Open(uffd.Options{NonBlock: true, UserModeOnly: true})
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// TestRecvOddities covers H13: extra descriptors, a wrong one, none, a split
// payload, the end. TestMain counts what stays open.
func TestRecvOddities(t *testing.T) {
	need(t)
	a, b := socketPair(t)
	f := openHere(t)
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	payload := make([]byte, 4)
	send := func(text string, fds ...int) {
		t.Helper()
		var rights []byte
		if len(fds) > 0 {
			rights = unix.UnixRights(fds...)
		}
		if _, _, err := a.WriteMsgUnix([]byte(text), rights, nil); err != nil {
			t.Fatal(err)
		}
	}

	before := len(descriptors())
	send("four more", f.Raw(), int(null.Fd()), int(null.Fd()))
	n, got, err := uffd.Recv(b, payload)
	if err != nil || got == nil || string(payload[:n]) != "four" {
		t.Fatalf("Recv with extra descriptors = %q, %v, %v", payload[:n], got, err)
	}
	if now := len(descriptors()); now != before+1 {
		t.Errorf("%d descriptors came to stay, want 1", now-before)
	}
	if err := got.Handshake(0); err != nil {
		t.Errorf("the first descriptor: %v", err)
	}
	got.Close()
	n, got, err = uffd.Recv(b, payload)
	if err != nil || got != nil || string(payload[:n]) != " mor" {
		t.Errorf("Recv of the rest = %q, %v, %v", payload[:n], got, err)
	}
	if _, _, err := uffd.Recv(b, payload); err != nil {
		t.Error(err)
	}

	send("null", int(null.Fd()))
	if _, got, err := uffd.Recv(b, payload); got != nil || err == nil || !strings.Contains(err.Error(), "/dev/null") {
		t.Errorf("Recv of another file = %v, %v", got, err)
	}
	if now := len(descriptors()); now != before {
		t.Errorf("%d descriptors came to stay, want 0", now-before)
	}

	// MSG_CTRUNC: the kernel drops what has no number.
	send("full", f.Raw())
	withoutDescriptors(t, func() { _, got, err = uffd.Recv(b, payload) })
	if got != nil || err == nil || !strings.Contains(err.Error(), "ulimit -n") {
		t.Errorf("Recv with no number free = %v, %v", got, err)
	}

	a.Close()
	if _, _, err := uffd.Recv(b, payload); !errors.Is(err, io.EOF) {
		t.Errorf("Recv at the end: %v, want io.EOF", err)
	}
	if err := uffd.Send(b, payload, f); !errors.Is(err, unix.EPIPE) {
		t.Errorf("Send to nobody: %v, want EPIPE", err)
	}
	if err := uffd.Send(b, nil, f); err == nil {
		t.Error("Send of no byte succeeds")
	}
	f.Close()
	if err := uffd.Send(b, payload, f); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Send of a closed descriptor: %v", err)
	}
}

// TestSendLarge sends more than the socket holds at once.
func TestSendLarge(t *testing.T) {
	need(t)
	a, b := socketPair(t)
	f := openHere(t)
	want := bytes.Repeat([]byte("0123456789"), 200_000)
	sent := make(chan error, 1)
	go func() { sent <- uffd.Send(a, want, f) }()
	var received []byte
	count := 0
	for buf := make([]byte, 100_000); len(received) < len(want); {
		n, got, err := uffd.Recv(b, buf)
		if err != nil {
			t.Fatal(err)
		}
		if got != nil {
			count++
			got.Close()
		}
		received = append(received, buf[:n]...)
	}
	if err := <-sent; err != nil || count != 1 || !bytes.Equal(received, want) {
		t.Errorf("Send: %v; %d descriptors; same bytes: %v", err, count, bytes.Equal(received, want))
	}
}

func TestFromProcessErrors(t *testing.T) {
	tg := newTarget(t)
	pid := tg.cmd.Process.Pid
	for _, tc := range []struct {
		name    string
		pid, fd int
		want    []string
	}{
		{"no such descriptor", pid, 999, []string{"pidfd_getfd", "no such descriptor"}},
		{"another file", pid, targetPipe, []string{"pipe:", "not a userfaultfd"}},
		{"no such process", 1 << 22, 3, []string{"pidfd_open"}},
	} {
		f, err := uffd.FromProcess(tc.pid, tc.fd)
		if f != nil || err == nil {
			t.Errorf("%s: %v, %v", tc.name, f, err)
			continue
		}
		for _, part := range tc.want {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %q does not say %q", tc.name, err, part)
			}
		}
	}
}

// TestBlocking covers B.11 and C.6: Read does not block on a blocking file,
// poll reports an error, and SetNonblock mends that.
func TestBlocking(t *testing.T) {
	tg := newTarget(t)
	f, err := uffd.FromProcess(tg.cmd.Process.Pid, int(tg.call("open", 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Handshake(0); err != nil {
		t.Fatal(err)
	}
	var msgs [2]uapi.Msg
	_, errno := f.Read(msgs[:])
	wantErrno(t, "Read of an empty queue", errno, unix.EAGAIN)
	_, errno = f.Wait(-1, 0)
	wantErrno(t, "Wait", errno, unix.EINVAL)
	r := tg.mmap(1)
	mustRegister(t, f, r, missing)
	c := tg.touch(r.Start, 1)
	awaitPending(t, f, 1)
	n, errno := f.Read(msgs[:])
	if n != 1 || errno != 0 || msgs[0].Typed() != (uapi.PageFault{Addr: r.Start}) {
		t.Errorf("Read = %d, %v, %v", n, errno, msgs[0])
	}
	if err := f.SetNonblock(); err != nil {
		t.Fatal(err)
	}
	if ready, errno := f.Wait(-1, 0); ready || errno != 0 {
		t.Errorf("Wait = %v, %v", ready, errno)
	}
	_, errno = f.Read(msgs[:])
	wantErrno(t, "Read", errno, unix.EAGAIN)
	wantErrno(t, "UNREGISTER", f.Unregister(r), 0)
	tg.see(c, 1)
}
