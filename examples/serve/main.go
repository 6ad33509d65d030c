// SPDX-License-Identifier: Apache-2.0

//go:build linux

// Command serve shows how package uffd serves the memory of another process.
//
//	go run ./examples/serve
//
// It starts itself a second time. The child maps 64 pages, makes a userfaultfd
// for them and sends that to the parent over a socket. It then touches its
// memory, drops some of it, unmaps some of it, and checks every byte; what it
// finds comes from the parent, one fault at a time.
//
// That the two are processes is the point. A goroutine that sleeps on a
// missing page cannot be preempted: if its own process were to serve it, a
// garbage collection would stop the goroutine that serves while it waits for
// the one that sleeps, and neither would ever go on.
package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"github.com/faultline-go/faultline/mem"
	"github.com/faultline-go/faultline/uffd"
)

const (
	pages    = 64
	childEnv = "FAULTLINE_EXAMPLE_CHILD"
	childFD  = 3 // the child's end of the socket: the first of ExtraFiles
)

// content returns what page i is full of.
func content(i int) byte { return 'A' + byte(i%26) }

func main() {
	role := parent
	if os.Getenv(childEnv) != "" {
		role = child
	}
	if err := role(); err != nil {
		fmt.Fprintln(os.Stderr, "serve:", err)
		os.Exit(1)
	}
}

// parent starts the child and serves it until it has ended.
func parent() error {
	ours, theirs, err := socketpair()
	if err != nil {
		return err
	}
	defer ours.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{theirs}
	// Without us it would go on with zeros where its data should be. The
	// kernel looks at the thread that started it, which must not end early.
	runtime.LockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return err
	}

	// The end of the child ends the manager's wait: nothing is queued on the
	// descriptor when a process is gone.
	stopped, stop, err := os.Pipe()
	if err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		return err
	}
	defer stopped.Close()
	ended := make(chan error, 1)
	go func() {
		ended <- cmd.Wait()
		stop.Close()
	}()

	err = receive(ours, int(stopped.Fd()))
	if err != nil {
		// Whoever still sleeps on a page would sleep for ever.
		cmd.Process.Kill()
	}
	if status := <-ended; err == nil {
		err = status
	}
	return err
}

// receive takes the child's descriptor over and serves it.
func receive(sock *net.UnixConn, stopped int) error {
	payload := make([]byte, 256)
	n, fd, err := uffd.Recv(sock, payload)
	if err != nil {
		return err
	}
	if fd == nil {
		return fmt.Errorf("%d bytes came without a descriptor", n)
	}
	defer fd.Close()
	var object mem.Range
	if err := json.Unmarshal(payload[:n], &object); err != nil {
		return fmt.Errorf("the child's range: %w", err)
	}
	m := newManager(fd, object)
	if err := m.run(stopped); err != nil {
		return err
	}
	fmt.Printf("%d faults, %d pages were there already, %d times put off, %d events\n",
		m.faults, m.raced, m.putOff, m.events)
	return nil
}

// socketpair returns two connected sockets, one of them for a child.
func socketpair() (*net.UnixConn, *os.File, error) {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "theirs")
	conn, err := connOf(pair[0])
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return conn, theirs, nil
}

// connOf returns the UNIX socket whose descriptor is raw, which it takes over.
func connOf(raw int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(raw), "socket")
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	unix, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil, fmt.Errorf("descriptor %d is not a UNIX socket", raw)
	}
	return unix, nil
}
