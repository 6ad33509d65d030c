// SPDX-License-Identifier: Apache-2.0

//go:build linux && amd64

package realtest

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/faultline-go/faultline/internal/sandbox"
)

// firmware assembles the guest and returns its file.
func firmware(t *testing.T) string {
	t.Helper()
	as, objcopy := installed(t, "as", "binutils"), installed(t, "objcopy", "binutils")
	object, rom := filepath.Join(t.TempDir(), "guest.o"), filepath.Join(public, "guest.rom")
	if out, err := exec.Command(as, "--32", "-o", object, "testdata/guest.s").CombinedOutput(); err != nil {
		t.Fatalf("assemble the guest: %v\n%s", err, out)
	}
	if out, err := exec.Command(objcopy, "-O", "binary", "-j", ".text", object, rom).CombinedOutput(); err != nil {
		t.Fatalf("assemble the guest: %v\n%s", err, out)
	}
	if err := os.Chmod(rom, 0o644); err != nil {
		t.Fatal(err)
	}
	return rom
}

// TestMigrate moves a virtual machine that changes and checks its memory all the
// time from one QEMU to another, which fetches pages when the machine faults on
// them (post-copy). The guest says if one is wrong, and goes on for as long as
// none is.
func TestMigrate(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	qemu := installed(t, "qemu-system-x86_64", "qemu-system-x86")
	rom := firmware(t)
	for _, tc := range guests {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			from := startMachine(t, sandbox.Options{}, true, qemu, tc.args(rom))
			from.passes(2) // the first word is that memory is filled
			tc.refused(t, qemu, rom, postcopy)
			to := startMachine(t, tc.o, false, qemu, tc.args(rom, "-incoming", "defer"))
			from.do("migrate-set-capabilities", postcopy)
			to.do("migrate-set-capabilities", postcopy)
			// As slow as it can be, so that the guest is faster.
			from.do("migrate-set-parameters", values{"max-bandwidth": 1 << 20, "max-postcopy-bandwidth": 16 << 20})
			from.do("migrate", to.incoming())
			from.do("migrate-start-postcopy", nil)
			from.migrated()
			to.migrated()
			ram, _ := from.do("query-migrate", nil)["ram"].(values)
			if n, _ := ram["postcopy-requests"].(float64); n == 0 {
				t.Errorf("no page was asked for: %v", ram)
			} else {
				t.Logf("%.0f pages were asked for", n)
			}
			to.passes(2) // of which one began after the other machine had stopped
			from.quit()
			to.quit()
		})
	}
}

// TestSnapshot has the memory of a virtual machine copied while the machine
// changes it: QEMU protects it, and copies a page before it is written to. The
// copy, started as a machine of its own, finds a page that was written to before.
func TestSnapshot(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	qemu := installed(t, "qemu-system-x86_64", "qemu-system-x86")
	rom := firmware(t)
	for _, tc := range guests {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			tc.refused(t, qemu, rom, snapshot)
			from := startMachine(t, tc.o, false, qemu, tc.args(rom))
			from.passes(2)
			to := startMachine(t, sandbox.Options{}, true, qemu, tc.args(rom, "-incoming", "defer"))
			from.do("migrate-set-capabilities", snapshot)
			to.do("migrate-set-capabilities", events)
			from.do("migrate-set-parameters", values{"max-bandwidth": 64 << 20})
			from.do("migrate", to.incoming())
			from.passes(1) // it is not stopped for the copy
			from.migrated()
			to.migrated()
			to.passes(2)
			from.passes(2)
			from.quit()
			to.quit()
		})
	}
}

// guest is a machine and the surroundings of the QEMU that is to have the call
// from us.
type guest struct {
	name string
	o    sandbox.Options
	ram  []string
}

var guests = []guest{
	{"private memory", refusedEPERM, []string{"-machine", "pc,accel=tcg"}},
	{"shared memory, user in a container", userContainer, []string{
		"-object", "memory-backend-memfd,id=ram,size=64M,share=on", "-machine", "pc,accel=tcg,memory-backend=ram"}},
}

func (g guest) args(rom string, more ...string) []string {
	return slices.Concat([]string{"-m", "64", "-nodefaults", "-no-user-config", "-display", "none",
		"-bios", rom, "-debugcon", "stdio"}, g.ram, more)
}

// refused has QEMU say that it can do nothing of the kind without us.
func (g guest) refused(t *testing.T, qemu, rom string, capabilities values) {
	t.Helper()
	if g.o.User == 0 {
		return // root may open the device
	}
	m := startMachine(t, g.o, true, qemu, g.args(rom, "-incoming", "defer"))
	if _, refused := m.try("migrate-set-capabilities", capabilities); refused == "" {
		t.Errorf("possible without us: %v", capabilities)
	}
	m.quit()
}

var (
	events   = values{"capabilities": []values{{"capability": "events", "state": true}}}
	postcopy = values{"capabilities": []values{
		{"capability": "postcopy-ram", "state": true}, {"capability": "events", "state": true},
	}}
	snapshot = values{"capabilities": []values{
		{"capability": "background-snapshot", "state": true}, {"capability": "events", "state": true},
	}}
)

// machine is a QEMU.
type machine struct {
	qmp
	cmd  *exec.Cmd
	says chan byte // by the guest
	log  strings.Builder
}

// machines counts them, and sockets.
var machines atomic.Int64

func startMachine(t *testing.T, o sandbox.Options, bare bool, qemu string, args []string) *machine {
	t.Helper()
	// QEMU comes to us, so that nobody has to look whether it is there yet.
	socket := filepath.Join(public, fmt.Sprintf("qmp-%d", machines.Add(1)))
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(socket, 0o666); err != nil {
		t.Fatal(err)
	}
	m := &machine{qmp: qmp{t: t}, says: make(chan byte, 1<<16), cmd: command(t, o, bare, qemu, append(slices.Clip(args), "-qmp", "unix:"+socket)...)}
	m.cmd.Stderr = &m.log
	stdout, err := m.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if m.cmd.ProcessState == nil {
			m.cmd.Process.Kill()
			m.cmd.Wait()
			t.Logf("%s", &m.log)
		}
	})
	go func() {
		defer close(m.says)
		defer l.Close() // it comes no more
		m.listen(stdout)
	}()
	m.accept(l)
	return m
}

// listen reads what the guest says.
func (m *machine) listen(console io.Reader) {
	b := make([]byte, 4096)
	for {
		n, err := console.Read(b)
		for _, c := range b[:n] {
			if c != '.' {
				m.says <- c
				continue
			}
			select {
			case m.says <- c:
			default: // nobody waits for this many
			}
		}
		if err != nil {
			return
		}
	}
}

// passes waits until the guest has gone over its memory n times more.
func (m *machine) passes(n int) {
	m.t.Helper()
	n += len(m.says) // said before
	for n > 0 {
		switch c, ok := <-m.says; {
		case !ok:
			m.t.Fatalf("QEMU has ended\n%s", &m.log)
		case c == '!':
			m.t.Fatal("the guest has found a wrong page")
		}
		n--
	}
}

// incoming has it wait for a migration, and returns where.
func (m *machine) incoming() values {
	m.t.Helper()
	socket := filepath.Join(public, fmt.Sprintf("migrate-%d", machines.Add(1)))
	uri := values{"uri": "unix:" + socket}
	m.do("migrate-incoming", uri)
	if err := os.Chmod(socket, 0o777); err != nil {
		m.t.Fatal(err)
	}
	return uri
}

func (m *machine) do(command string, args values) values {
	m.t.Helper()
	got, refused := m.try(command, args)
	if refused != "" {
		m.t.Fatalf("%s: %s", command, refused)
	}
	return got
}

// migrated waits for the end of the migration.
func (m *machine) migrated() {
	m.t.Helper()
	for {
		switch status := m.event("MIGRATION")["status"]; status {
		case "completed":
			return
		case "failed", "postcopy-paused", "cancelled":
			m.t.Fatalf("the migration has %v", status)
		}
	}
}

// quit ends QEMU, which must end well.
func (m *machine) quit() {
	m.t.Helper()
	m.do("quit", nil)
	for range m.says {
	}
	if err := m.cmd.Wait(); err != nil {
		m.t.Errorf("QEMU: %v\n%s", err, &m.log)
	}
}
