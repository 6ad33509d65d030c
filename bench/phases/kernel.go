// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	zramControl = "/sys/class/zram-control"

	// patience is how long the kernel may take to make a device appear or to
	// let go of a cgroup whose last process has ended.
	patience = 5 * time.Second

	// priority puts the swap of the bench before any that the machine has.
	priority = "32767"
)

// An undo is what must be done to leave the machine as it was. Its steps run
// last first, all of them, whatever fails.
type undo []func() error

func (u *undo) push(step func() error) { *u = append(*u, step) }

func (u *undo) run() (err error) {
	for i := len(*u) - 1; i >= 0; i-- {
		err = errors.Join(err, (*u)[i]())
	}
	return err
}

// withSwap calls f while there is swap and a memory cgroup, and takes both
// down afterwards, whatever f returns. f gets the beginning of a command line
// that runs the rest of it inside the cgroup.
func withSwap(ctx context.Context, o *options, f func(enter []string) error) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("swap and a memory cgroup need root: run as root, or with -side ours")
	}
	var u undo
	defer func() { err = errors.Join(err, u.run()) }()

	if dir, ok := strings.CutPrefix(o.swap, "file:"); ok {
		err = swapOnFile(ctx, &u, dir, o.mib)
	} else {
		err = swapOnZRAM(ctx, &u, o.mib)
	}
	if err != nil {
		return err
	}
	procs, err := limitCgroup(&u, o.limit)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	return f([]string{"/bin/sh", "-c", `echo $$ >"$0" && exec "$@"`, procs})
}

// swapName says what the swap is, for the report.
func swapName(swap string) string {
	if swap == "zram" {
		return "zram (lz4)"
	}
	return swap
}

// swapOnZRAM adds a zram device with lz4, twice as large as the working set,
// and swaps to it.
func swapOnZRAM(ctx context.Context, u *undo, mib int) error {
	// Reading this file makes the device.
	b, err := os.ReadFile(filepath.Join(zramControl, "hot_add"))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("no zram in this kernel: modprobe zram, or use -swap file:DIR: %w", err)
	}
	if err != nil {
		return fmt.Errorf("add a zram device: %w", err)
	}
	id := strings.TrimSpace(string(b))
	sys, device := "/sys/block/zram"+id, "/dev/zram"+id
	u.push(func() error {
		return errors.Join(
			writeFile(filepath.Join(sys, "reset"), "1"),
			writeFile(filepath.Join(zramControl, "hot_remove"), id),
			gone(sys))
	})
	if err := writeFile(filepath.Join(sys, "comp_algorithm"), "lz4"); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(sys, "disksize"), strconv.Itoa(2*mib)+"M"); err != nil {
		return err
	}
	err = eventually(func() error { _, err := os.Stat(device); return err })
	if err != nil {
		return fmt.Errorf("device node of zram%s: %w", id, err)
	}
	return swapOn(ctx, u, device)
}

// swapOnFile makes a swap file in dir, twice as large as the working set.
func swapOnFile(ctx context.Context, u *undo, dir string, mib int) (err error) {
	f, err := os.CreateTemp(dir, "faultline-bench-*.swap") // mode 0600
	if err != nil {
		return fmt.Errorf("swap file: %w", err)
	}
	u.push(func() error { return os.Remove(f.Name()) })
	err = errors.Join(syscall.Fallocate(int(f.Fd()), 0, 0, int64(2*mib)<<20), f.Close())
	if err != nil {
		return fmt.Errorf("swap file %s: %w", f.Name(), err)
	}
	return swapOn(ctx, u, f.Name())
}

// swapOn formats path and turns it on.
func swapOn(ctx context.Context, u *undo, path string) error {
	if err := tool(ctx, "mkswap", path); err != nil {
		return err
	}
	if err := tool(ctx, "swapon", "-p", priority, path); err != nil {
		return err
	}
	u.push(func() error {
		// Not under ctx: this must happen after a signal too.
		if err := tool(context.Background(), "swapoff", path); err != nil {
			return err
		}
		b, err := os.ReadFile("/proc/swaps")
		if err == nil && strings.Contains(string(b), path+" ") {
			err = fmt.Errorf("%s is still swapped to: run swapoff %s", path, path)
		}
		return err
	})
	return nil
}

// tool runs one of the system's administration commands, which are not on
// everybody's PATH.
func tool(ctx context.Context, name string, args ...string) error {
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err != nil {
			path, err = exec.LookPath(filepath.Join(dir, name))
		}
	}
	if err != nil {
		return fmt.Errorf("%s, of util-linux: %w", name, err)
	}
	if out, err := exec.CommandContext(ctx, path, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// limitCgroup makes a memory cgroup with a limit and returns the file that
// takes the process ids of its members.
func limitCgroup(u *undo, mib int) (procs string, err error) {
	root, limit, err := memoryController("/sys/fs/cgroup")
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, fmt.Sprintf("faultline-bench-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", fmt.Errorf("memory cgroup: %w", err)
	}
	u.push(func() error {
		// The last member may not be quite dead yet.
		err := eventually(func() error { return os.Remove(dir) })
		return errors.Join(err, gone(dir))
	})
	if err := writeFile(filepath.Join(dir, limit), strconv.Itoa(mib<<20)); err != nil {
		return "", err
	}
	return filepath.Join(dir, "cgroup.procs"), nil
}

// memoryController finds the memory controller below the mount point of
// cgroups: the directory to make one in, and the name of the limit's file. It
// knows version 1 and version 2.
func memoryController(mount string) (root, limit string, err error) {
	v1 := filepath.Join(mount, "memory")
	if _, err := os.Stat(filepath.Join(v1, "memory.limit_in_bytes")); err == nil {
		return v1, "memory.limit_in_bytes", nil
	}
	control := filepath.Join(mount, "cgroup.subtree_control")
	b, err := os.ReadFile(control)
	if err != nil {
		return "", "", fmt.Errorf("no memory controller, of version 1 or 2, below %s: %w", mount, err)
	}
	for _, name := range strings.Fields(string(b)) {
		if name == "memory" {
			return mount, "memory.max", nil
		}
	}
	return "", "", fmt.Errorf("the memory controller is off: echo +memory >%s", control)
}

func writeFile(path, text string) error {
	if err := os.WriteFile(path, []byte(text), 0); err != nil {
		return fmt.Errorf("write %q: %w", text, err) // err names the file
	}
	return nil
}

// gone returns an error if path still exists.
func gone(path string) error {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("left behind: %s", path)
}

// eventually calls f until it returns nil or patience is over.
func eventually(f func() error) error {
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if err := f(); err == nil || time.Now().After(end) {
			return err
		}
	}
}
