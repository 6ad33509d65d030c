// SPDX-License-Identifier: Apache-2.0

//go:build linux && (amd64 || arm64)

package runner_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/testutil"
	"github.com/faultline-go/faultline/internal/workload/measure"
	"github.com/faultline-go/faultline/runner/internal/runtest"
)

// headBytes is what a store file begins with, and no page is in.
const headBytes = 4096

// filed is a scene with more pages outside than a store keeps in memory
// before it writes them to its file.
func filed(t *testing.T, url string) *scene {
	return &scene{limit: 4 * runtest.MiB, store: url, args: []string{sufferer(t), "check", "40", "5"}}
}

// passes waits for some more passes of the program over all of its memory.
func (v *victim) passes(t *testing.T, n int) {
	t.Helper()
	for seen := len(v.numbers("ok")); len(v.numbers("ok")) < seen+n; {
		v.expect(t, "ok")
	}
}

// suffers waits for some more passes of a program whose store may have lost pages, or
// for its end: it may not have come so far, where it lost a page that it cannot do
// without.
func (v *victim) suffers(t *testing.T, n int) {
	t.Helper()
	seen := -1
	v.await(t, "a pass, or its end,", func() bool {
		if seen < 0 {
			seen = v.count("ok")
		}
		return v.eof || v.count("ok") >= seen+n
	})
}

// count returns how many lines begin with prefix. Preconditions: v.mu is held.
func (v *victim) count(prefix string) (n int) {
	for _, line := range v.lines {
		if strings.HasPrefix(line, prefix+" ") {
			n++
		}
	}
	return n
}

// over reports whether the program has ended.
func (v *victim) over() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.eof
}

var lostPage = regexp.MustCompile(`page (0x[0-9a-f]+) of pid [0-9]+ is lost: .*SIGBUS`)

// judge ends a program of a scene whose store may have lost pages, and holds
// that each of them was named to the user, and that the program got SIGBUS for
// it or never touched it. It returns how many the program touched, the one that it died
// of among them.
func (v *victim) judge(t *testing.T) int {
	t.Helper()
	if !v.over() {
		v.kill(t, v.target(t), syscall.SIGUSR1)
	}
	o := v.finish(t)
	named := make(map[uint64]bool)
	for _, n := range o.Notes {
		if m := lostPage.FindStringSubmatch(n); m != nil {
			addr, err := strconv.ParseUint(m[1], 0, 64)
			if err != nil {
				t.Error(err)
			}
			named[addr] = true
		} else {
			t.Log(n)
		}
	}
	touched := v.numbers("bus")
	for _, addr := range touched {
		if !named[addr] {
			t.Errorf("nobody was told of page %#x", addr)
		}
	}
	died := false
	switch {
	case o.Status.ExitStatus() == 0:
	case o.Status.Signaled() && o.Status.Signal() == syscall.SIGBUS && len(named) > 0:
		died = true // of a page that it cannot do without: its C library's
	default:
		t.Errorf("status %#x", o.Status)
	}
	if o.Stats == nil || o.Stats.Pages.Lost != int64(len(named)) {
		t.Errorf("%d pages were named, %+v", len(named), o.Stats)
	}
	t.Logf("%d pages lost, %d of them touched, status %#x", len(named), len(touched), o.Status)
	if died {
		return len(touched) + 1
	}
	return len(touched)
}

// A page whose place in the file is gone is lost, and is never zeros.
func TestStoreTruncated(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 5))
	for i := range runtest.Smaller(6, 2) {
		path := filepath.Join(t.TempDir(), "pages")
		v := filed(t, "file:"+path).start(t)
		v.expect(t, "ok")
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		size := rng.Int64N(st.Size())
		if i == 0 {
			size = 0
		}
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		v.suffers(t, 2)
		if n := v.judge(t); i == 0 && n == 0 {
			t.Error("the whole file was cut off, and the program did not notice")
		}
	}
}

// A flipped bit is found, whatever it hits: a page, or what is no longer used.
func TestStoreFlipped(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 6))
	path := filepath.Join(t.TempDir(), "pages")
	v := filed(t, "file:"+path).start(t)
	v.expect(t, "ok")
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	flips := 0
	for range runtest.Smaller(10, 3) {
		st, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		for range 200 {
			off := headBytes + rng.Int64N(st.Size()-headBytes)
			var b [1]byte
			if _, err := f.ReadAt(b[:], off); err != nil {
				t.Fatal(err)
			}
			b[0] ^= 1 << rng.IntN(8)
			if _, err := f.WriteAt(b[:], off); err != nil {
				t.Fatal(err)
			}
			flips++
		}
		v.suffers(t, 1)
	}
	v.suffers(t, 2)
	n := v.judge(t)
	t.Logf("%d bits were flipped", flips)
	if n == 0 {
		t.Error("none was noticed")
	}
}

// small mounts a file system in memory of a few bytes.
func small(t *testing.T, bytes int) string {
	t.Helper()
	testutil.Need(t, os.Geteuid() == 0, "needs root to mount a file system")
	dir := t.TempDir()
	if err := unix.Mount("faultline-test", dir, "tmpfs", 0, fmt.Sprintf("size=%d", bytes)); err != nil {
		testutil.Need(t, false, "mount: "+err.Error())
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// enlarge gives a file system of small more room.
func enlarge(t *testing.T, dir string, bytes int) {
	t.Helper()
	if err := unix.Mount("faultline-test", dir, "tmpfs", unix.MS_REMOUNT, fmt.Sprintf("size=%d", bytes)); err != nil {
		t.Fatal(err)
	}
}

// mustShrink holds that the program's memory comes back under its limit.
func (v *victim) mustShrink(t *testing.T, s *scene) {
	t.Helper()
	pid := []int{v.target(t)}
	allowed := s.limit + 4*runtest.MiB + s.limit/100
	size := measure.Bounded(pid)
	for until := time.Now().Add(atOnce); size > allowed && time.Now().Before(until); time.Sleep(5 * time.Millisecond) {
		size = measure.Bounded(pid)
	}
	if size > allowed {
		t.Errorf("%d MiB are resident though there is room for them outside\n%s", size>>20, runtest.Tail(runtest.Contents(t, v.stderr)))
	}
}

// warnings counts the lines that faultline has written with a text in them.
func warnings(o *runtest.Outcome, text string) (n int) {
	for _, note := range o.Notes {
		if strings.Contains(note, text) {
			n++
		}
	}
	return n
}

const (
	storeWarning = "the store takes no pages"
	growWarning  = "memory grows past the limit"
)

// mustWarnOnce ends the program of a scene whose store took no pages for a
// while: nothing may be lost, and the user has to be told, but not for ever.
func (v *victim) mustWarnOnce(t *testing.T) {
	t.Helper()
	v.kill(t, v.target(t), syscall.SIGUSR1)
	o := v.mustExit(t, 0)
	for _, n := range o.Notes {
		t.Log(n)
	}
	if n := warnings(o, storeWarning+";"); n != 1 {
		t.Errorf("%d warnings that the store is full", n)
	}
	if n := warnings(o, growWarning); n != 1 {
		t.Errorf("%d warnings that memory grows", n)
	}
}

// On a full disk the pages stay in memory; when there is room again they leave.
func TestDiskFull(t *testing.T) {
	dir := small(t, 6*runtest.MiB)
	s := filed(t, "file:"+filepath.Join(dir, "pages"))
	v := s.start(t)
	v.passes(t, 4)
	if size := measure.Bounded([]int{v.target(t)}); size < 2*s.limit {
		t.Errorf("%d bytes are resident: the disk was not full", size)
	}
	enlarge(t, dir, 64*runtest.MiB)
	v.mustShrink(t, s)
	v.passes(t, 2)
	v.mustWarnOnce(t)
}

// The same with a bound of the store's own, and room that the program makes.
func TestStoreFull(t *testing.T) {
	for _, url := range []string{"mem:?max=9MiB", "file:" + filepath.Join(t.TempDir(), "pages") + "?max=9MiB"} {
		t.Run(url[:4], func(t *testing.T) {
			s := filed(t, url)
			v := s.start(t)
			v.passes(t, 4)
			if size := measure.Bounded([]int{v.target(t)}); size < 2*s.limit {
				t.Errorf("%d bytes are resident: the store was not full", size)
			}
			v.kill(t, v.target(t), syscall.SIGUSR2)
			v.expect(t, "halved")
			v.mustShrink(t, s)
			v.passes(t, 2)
			v.mustWarnOnce(t)
		})
	}
}

// loop makes a block device of a sparse file in dir, with a file system on it
// that is mounted, and returns the device and the mount point.
func loop(t *testing.T, dir string) (mount, dev string) {
	t.Helper()
	losetup, mkfs := runtest.Tool(t, "losetup"), runtest.Tool(t, "mkfs.ext2")
	image := filepath.Join(dir, "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 96*runtest.MiB); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(losetup, "--find", "--show", image).CombinedOutput()
	testutil.Need(t, err == nil, fmt.Sprintf("needs loop devices: %v: %s", err, out))
	dev = strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command(losetup, "--detach", dev).CombinedOutput(); err != nil {
			t.Errorf("detach %s: %v: %s", dev, err, out)
		}
	})
	if out, err := exec.Command(mkfs, "-q", "-m", "0", "-N", "64", "-E", "nodiscard", dev).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext2: %v: %s", err, out)
	}
	mount = t.TempDir()
	for _, fs := range []string{"ext2", "ext4"} {
		if err = unix.Mount(dev, mount, fs, 0, "errors=continue"); err == nil {
			break
		}
	}
	testutil.Need(t, err == nil, fmt.Sprintf("needs ext2: %v", err))
	t.Cleanup(func() {
		if err := unix.Unmount(mount, 0); err != nil {
			t.Errorf("unmount %s: %v", mount, err)
		}
	})
	return mount, dev
}

// A device that says EIO when what was written reaches it, long after write(2)
// had taken it: what is under the file system is full.
func TestDeviceFull(t *testing.T) {
	dir := small(t, 8*runtest.MiB)
	mount, _ := loop(t, dir)
	s := filed(t, "file:"+filepath.Join(mount, "pages"))
	v := s.start(t)
	v.passes(t, 4)
	enlarge(t, dir, 128*runtest.MiB)
	v.mustShrink(t, s)
	v.passes(t, 2)
	v.mustWarnOnce(t)
}

// A device that fails every read and write from some moment on: it shrinks to
// nothing under the file system. What was on it and nowhere else is lost, and
// the user is told; nothing else is.
func TestDeviceGone(t *testing.T) {
	losetup := runtest.Tool(t, "losetup")
	dir := small(t, 128*runtest.MiB)
	mount, dev := loop(t, dir)
	path := filepath.Join(mount, "pages")
	v := filed(t, "file:"+path).start(t)
	v.expect(t, "ok")
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.Truncate(filepath.Join(dir, "image"), 0); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(losetup, "--set-capacity", dev).CombinedOutput(); err != nil {
		t.Fatalf("shrink %s: %v: %s", dev, err, out)
	}
	// What the kernel has of the file is not on the device that we want to
	// read from.
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Error(err)
	}
	f.Close()
	v.suffers(t, 2)
	if n := v.judge(t); n == 0 {
		t.Error("the program did not notice")
	}
}

// The name of a store file is of no use to it once it is open.
func TestStoreDirectoryRemoved(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	v := filed(t, "file:"+filepath.Join(dir, "pages")).start(t)
	v.expect(t, "ok")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	v.passes(t, 2)
	v.kill(t, v.target(t), syscall.SIGUSR1)
	quiet(t, v.mustExit(t, 0))
}

// A store that cannot be opened is one line and status 125, and no program.
func TestStoreRefused(t *testing.T) {
	bin := runtest.Command(t)
	testutil.Need(t, os.Geteuid() == 0, "needs root to make directories read-only")
	f, err := os.Open(bin)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for name, script := range map[string]string{
		// Where an unnamed file may be made, in a mount namespace of its own.
		"unwritable": `mount --make-rprivate / && for d in "$TMPDIR" /var/tmp /tmp; do mount -t tmpfs -o ro none "$d" || exit 9; done
			exec /proc/self/fd/3 run --limit 16MiB --store file: -- /bin/echo no`,
		"missing": `exec /proc/self/fd/3 run --limit 16MiB --store file:/nonexistent/pages -- /bin/echo no`,
		"tiny":    `mount --make-rprivate / && mount -t tmpfs -o nr_inodes=1 none "$TMPDIR" && exec /proc/self/fd/3 run --limit 16MiB --store "file:$TMPDIR/pages" -- /bin/echo no`,
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(runtest.Tool(t, "sh"), "-c", script)
			cmd.Env = append(os.Environ(), "TMPDIR="+t.TempDir())
			cmd.ExtraFiles = []*os.File{f}
			cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
			var stdout, stderr strings.Builder
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			_ = cmd.Run() // its status is looked at
			text := stderr.String()
			if cmd.ProcessState.ExitCode() != 125 || stdout.Len() > 0 ||
				strings.Count(text, "\n") != 1 || !strings.HasPrefix(text, "faultline: ") {
				t.Errorf("status %d, stdout %q, stderr %q", cmd.ProcessState.ExitCode(), &stdout, text)
			}
			t.Log(text)
		})
	}
}
