// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/faultline-go/faultline/internal/size"
	"github.com/faultline-go/faultline/mem"
)

// runSince is the kernel that first has everything faultline run needs: the
// youngest part is UFFDIO_MOVE.
const runSince = "6.8"

// olderThan compares the first two numbers of a kernel release. A release
// that cannot be read counts as old.
func (p *probe) olderThan(version string) bool {
	have, want := majorMinor(p.release), majorMinor(version)
	return have[0] < want[0] || have[0] == want[0] && have[1] < want[1]
}

func majorMinor(release string) (v [2]int) {
	for i, part := range strings.SplitN(release, ".", 3) {
		if i == len(v) {
			break
		}
		if end := strings.IndexFunc(part, func(r rune) bool { return r < '0' || r > '9' }); end >= 0 {
			part = part[:end]
		}
		v[i], _ = strconv.Atoi(part)
	}
	return v
}

func findKernel(p *probe) finding {
	if p.olderThan(runSince) {
		return warn("boot Linux "+runSince+" or newer", "Linux %s, older than %s; the features below decide", p.release, runSince)
	}
	return ok("Linux %s", p.release)
}

func findArch(*probe) finding {
	switch runtime.GOARCH {
	case "amd64", "arm64":
		return ok("%s", runtime.GOARCH)
	}
	return no("use an amd64 or arm64 machine", "%s", runtime.GOARCH)
}

func findPageSize(*probe) finding {
	if n := os.Getpagesize(); n != mem.PageSize {
		return no("boot a kernel built with pages of 4 KiB", "pages of %s", size.Format(uint64(n)))
	}
	return ok("pages of 4KiB")
}

// capability returns a check of one capability by its number.
func capability(bit uint, name string, missing Status, consequence string) func(*probe) finding {
	return func(p *probe) finding {
		s := p.status()
		switch {
		case !s.known:
			return warn("mount -t proc proc /proc", "could not tell: /proc is not mounted")
		case s.has(bit):
			return ok("effective")
		}
		return finding{status: missing, found: "not effective: " + consequence, fix: asRoot(name)}
	}
}

func findPagemapScan(p *probe) finding {
	err := scanPagemap()
	switch {
	case err == nil:
		return ok("works")
	case os.IsPermission(err):
		return warn("see the checks of ptrace", "%v", err)
	case p.olderThan("6.7"):
		return warn("boot Linux 6.7 or newer", "needs Linux 6.7, this is %s", p.release)
	}
	return warn("use a kernel with CONFIG_PROC_PAGE_MONITOR", "%v", err)
}

func findPopulate(p *probe) finding {
	b, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return no("free some memory", "mmap: %v", err)
	}
	defer unix.Munmap(b)
	if err := unix.Madvise(b, unix.MADV_POPULATE_WRITE); err != nil {
		return warn("boot Linux 5.14 or newer", "madvise: %v", err)
	}
	return ok("works")
}

func findHugepages(p *probe) finding {
	const dir = "sys/kernel/mm/hugepages"
	var found []string
	entries, _ := fs.ReadDir(p.root, dir)
	for _, e := range entries {
		kib, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(e.Name(), "hugepages-"), "kB"), 10, 40)
		if err != nil {
			continue
		}
		found = append(found, fmt.Sprintf("%s of %s reserved, %s free",
			or(p.read(path.Join(dir, e.Name(), "nr_hugepages")), "?"), size.Format(kib<<10),
			or(p.read(path.Join(dir, e.Name(), "free_hugepages")), "?")))
	}
	// The active word stands in brackets.
	_, thp, _ := strings.Cut(p.read("sys/kernel/mm/transparent_hugepage/enabled"), "[")
	thp, _, _ = strings.Cut(thp, "]")
	found = append(found, "transparent: "+or(thp, "not in this kernel"))
	return ok("%s", strings.Join(found, "; "))
}

func findCgroupMemory(*probe) finding {
	m, err := size.Memory()
	switch {
	case err != nil:
		return warn("mount -t proc proc /proc", "could not tell: %v", err)
	case m.Limit == 0:
		return ok("no limit; the machine has %s", size.Format(m.Total))
	}
	return ok("limit %s of %s", size.Format(m.Limit), size.Format(m.Total))
}

// rlimit returns a check that warns of a soft limit below want.
func rlimit(resource int, flag string, want uint64, format func(uint64) string) func(*probe) finding {
	return func(*probe) finding {
		var r unix.Rlimit
		if err := unix.Getrlimit(resource, &r); err != nil {
			return warn("", "could not tell: %v", err)
		}
		switch {
		case r.Cur == unix.RLIM_INFINITY:
			return ok("unlimited")
		case r.Cur < want:
			return warn(fmt.Sprintf("ulimit %s %d", flag, want), "%s", format(r.Cur))
		}
		return ok("%s", format(r.Cur))
	}
}

func count(n uint64) string { return strconv.FormatUint(n, 10) }

// storeDir is where pages go by default: unlike /tmp it is not memory on any
// common distribution.
const storeDir = "/var/tmp"

// enoughSpace is the free space below which the store is worth a warning.
const enoughSpace = 1 << 30

// fileSystems names those that matter by the magic number of statfs(2).
var fileSystems = map[int64]string{
	unix.EXT4_SUPER_MAGIC:      "ext4",
	unix.XFS_SUPER_MAGIC:       "xfs",
	unix.BTRFS_SUPER_MAGIC:     "btrfs",
	unix.F2FS_SUPER_MAGIC:      "f2fs",
	unix.OVERLAYFS_SUPER_MAGIC: "overlayfs",
	unix.NFS_SUPER_MAGIC:       "nfs",
	unix.FUSE_SUPER_MAGIC:      "fuse",
	unix.TMPFS_MAGIC:           "tmpfs",
	unix.RAMFS_MAGIC:           "ramfs",
	0x2fc12fc1:                 "zfs",
}

func findStore(*probe) finding { return storeAt(storeDir) }

func storeAt(dir string) finding {
	const elsewhere = "faultline run --store file:/path/on/a/disk ..."
	var fsinfo unix.Statfs_t
	if err := unix.Statfs(dir, &fsinfo); err != nil {
		return warn("mkdir -m 1777 "+dir+", or "+elsewhere, "%s: %v", dir, err)
	}
	// The magic number is 32 bits wide, whatever the field.
	magic := int64(uint32(fsinfo.Type))
	name := fileSystems[magic]
	if name == "" {
		name = fmt.Sprintf("file system %#x", magic)
	}
	free := fsinfo.Bavail * uint64(fsinfo.Bsize)
	found := fmt.Sprintf("%s: %s, %s free", dir, name, size.Format(free))
	// An unnamed file leaves nothing behind, even if we are killed here.
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	switch {
	case err == nil:
		unix.Close(fd)
	case unix.Access(dir, unix.W_OK) != nil:
		return warn(elsewhere, "%s, but a file cannot be made in it: %v", found, err)
	}
	switch {
	case name == "tmpfs" || name == "ramfs":
		return warn(elsewhere, "%s: this is memory, so moving pages there gains only what compression gains", found)
	case name == "nfs" || name == "fuse":
		return warn(elsewhere, "%s: each page that comes back waits for it", found)
	case free < enoughSpace:
		return warn("free some space, or "+elsewhere, "%s", found)
	}
	return ok("%s", found)
}
