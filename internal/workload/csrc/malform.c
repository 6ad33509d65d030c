// SPDX-License-Identifier: Apache-2.0
//
// Makes malformed calls of userfaultfd(2) and its requests, at random, among
// some that are right, and prints what each came to: errno and the words of the
// answer. The same seed makes the same calls, so that what one kernel prints can
// be compared with what another does.
//
//	malform SEED CALLS [INDEX,...]
//
// With a list of indices only these of the calls are made, in order, so that a
// difference can be traced to a few of them.
//
// A second thread touches the memory and changes it (malform_act.h). Nothing
// depends on time: the first waits until the second is done, or until a
// descriptor says why it is not.

#define DIE_STATUS 3
#include "check.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

// What older headers lack.
#define DEVICE_NEW 0xaa00u
#define POISON 0xc020aa08u
#define MOVE 0xc028aa05u

// Memory lies where nothing else does, at the same place in every run: a number
// of areas, each with a hole behind it.
#define BASE 0x200000000000UL
#define AREA_PAGES 12UL
#define STRIDE 32UL // pages from one area to the next

enum {
	ANON, ANON2, SHMEM, SHMEM_PRIVATE, SHARED_ANON, READ_ONLY, NO_ACCESS,
	FILE_PRIVATE, FILE_SHARED, // of a file that is not memory, and not open for writing
	DATA, // where sources and arguments are
	AREAS
};

static uint64_t state;
static int memfd = -1, file = -1;

static uint64_t roll(void) { return next_random(&state); }
static uint64_t below(uint64_t n) { return roll() % n; }
static int one_in(uint64_t n) { return below(n) == 0; }

static uint64_t area(uint64_t a) { return BASE + a * STRIDE * PAGE; }

// name prints an address so that all runs print the same.
static uint64_t name(uint64_t a)
{
	return a - BASE < AREAS * STRIDE * PAGE ? a - BASE : a;
}

static void map_area(int a)
{
	int prot = PROT_READ | PROT_WRITE, flags = MAP_FIXED, fd = -1;
	switch (a) {
	case SHMEM: flags |= MAP_SHARED, fd = memfd; break;
	case SHMEM_PRIVATE: flags |= MAP_PRIVATE, fd = memfd; break;
	case SHARED_ANON: flags |= MAP_SHARED | MAP_ANONYMOUS; break;
	case READ_ONLY: flags |= MAP_PRIVATE | MAP_ANONYMOUS, prot = PROT_READ; break;
	case NO_ACCESS: flags |= MAP_PRIVATE | MAP_ANONYMOUS, prot = PROT_NONE; break;
	case FILE_PRIVATE: flags |= MAP_PRIVATE, fd = file; break;
	case FILE_SHARED: flags |= MAP_SHARED, fd = file, prot = PROT_READ; break;
	default: flags |= MAP_PRIVATE | MAP_ANONYMOUS;
	}
	MUST(mmap((void *)area(a), AREA_PAGES * PAGE, prot, flags, fd, 0) == (void *)area(a));
}

// good is a page of an area, most often of one that can be registered.
static uint64_t good(void)
{
	uint64_t a = one_in(8) ? below(DATA) : below(SHARED_ANON + 1);
	return area(a) + below(AREA_PAGES) * PAGE;
}

// anywhere is an address of any kind.
static uint64_t anywhere(void)
{
	switch (below(24)) {
	case 0: return 0;
	case 1: return good() + 1 + below(PAGE - 1);
	case 2: return below(1UL << 47);
	case 3: return (1UL << 47) - PAGE * (1 + below(4));
	case 4: return (1UL << 47) - PAGE + PAGE * below(4);
	case 5: return 0xffff888000000000UL + below(1UL << 30) * PAGE;
	case 6: return -PAGE * (1 + below(4));
	case 7: return roll();
	case 8: return area(below(AREAS)) + AREA_PAGES * PAGE + below(STRIDE - AREA_PAGES) * PAGE;
	case 9: return area(DATA) + below(AREA_PAGES) * PAGE;
	}
	return good();
}

static uint64_t length(void)
{
	switch (below(20)) {
	case 0: return 0;
	case 1: return 1 + below(PAGE - 1);
	case 2: return below(AREA_PAGES * PAGE);
	case 3: return roll();
	case 4: return -PAGE * below(8);
	case 5: return 1UL << below(64);
	case 6: return (1UL << 47) - PAGE * below(3);
	case 7: return STRIDE * PAGE * (1 + below(3));
	case 8: return AREA_PAGES * PAGE;
	}
	return (1 + below(4)) * PAGE;
}

// mode has mostly bits that a request knows.
static uint64_t mode(uint64_t known)
{
	switch (below(12)) {
	case 0: return roll();
	case 1: return 1UL << below(64);
	case 2: return 0;
	}
	return roll() & known;
}

static uint64_t source(void)
{
	return one_in(4) ? anywhere() : area(DATA) + below(AREA_PAGES - 1) * PAGE + (one_in(4) ? below(PAGE) : 0);
}

// --- descriptors ------------------------------------------------------------

enum { MOST = 6 };

static struct {
	int fd; // -1: none
	int file; // that it is a number of
} open_fds[MOST];

static int files;
static char spoken[1 << 20]; // by file: the handshake is done

static int other_fds[4]; // a pipe, /dev/null, a memfd, a number that is closed
static int device = -1;

static int any_fd(void)
{
	switch (below(32)) {
	case 0: return -1 - (int)below(3);
	case 1: return other_fds[below(4)];
	case 2: return (int)roll();
	case 3: return device;
	}
	for (uint64_t i = below(MOST), n = 0; n < MOST; n++, i++)
		if (open_fds[i % MOST].fd >= 0)
			return open_fds[i % MOST].fd;
	return other_fds[3];
}

static int slot_of(int fd)
{
	for (int i = 0; i < MOST; i++)
		if (fd >= 0 && open_fds[i].fd == fd)
			return i;
	return -1;
}

static int free_slot(void)
{
	for (int i = 0; i < MOST; i++)
		if (open_fds[i].fd < 0)
			return i;
	return -1;
}

static int result(long r) { return r < 0 ? errno : 0; }

static void handshake(int fd, uint64_t api, uint64_t features);

// adopt takes a new descriptor. It has to be non-blocking before it is read.
static void adopt(int fd, uint64_t flags)
{
	if (fd < 0)
		return;
	if (!(flags & O_NONBLOCK)) {
		struct pollfd p = {fd, POLLIN, 0};
		int n = poll(&p, 1, 0);
		int on = 1;
		int how = one_in(2) ? ioctl(fd, FIONBIO, &on) : fcntl(fd, F_SETFL, O_NONBLOCK);
		printf("  blocking: poll %d %#x, mended %d, flags %#x\n", n, p.revents, how, fcntl(fd, F_GETFL));
	}
	int i = free_slot();
	if (i < 0) {
		close(fd);
		return;
	}
	open_fds[i].fd = fd;
	open_fds[i].file = files++;
	MUST(files < (int)sizeof spoken);
	if (!one_in(4))
		handshake(fd, UFFD_API, one_in(2) ? 0 : roll() & 0x1ff7f);
}

static void create(void)
{
	uint64_t flags = 0;
	switch (below(8)) {
	case 0: flags = roll(); break;
	case 1: flags = 1UL << below(32); break;
	default: flags = O_NONBLOCK | (roll() & (O_CLOEXEC | UFFD_USER_MODE_ONLY));
	}
	if (one_in(8))
		flags &= ~(uint64_t)O_NONBLOCK;
	int by_device = device >= 0 && one_in(4);
	int fd = by_device ? ioctl(device, DEVICE_NEW, flags) : (int)syscall(SYS_userfaultfd, flags);
	printf("%s %#lx: fd %d errno %d\n", by_device ? "new" : "userfaultfd", flags, fd, result(fd));
	adopt(fd, flags);
}

// --- requests ---------------------------------------------------------------

// The argument of a request is put where it can be had or where it cannot: the
// end of DATA is followed by a hole.
static uint64_t place(size_t n)
{
	switch (below(24)) {
	case 0: return 0;
	case 1: return area(DATA) + AREA_PAGES * PAGE - below(n + 1);
	case 2: return 0xffff888000000000UL;
	case 3: return roll();
	case 4: return area(DATA) + AREA_PAGES * PAGE;
	case 5: return area(NO_ACCESS);
	}
	return area(DATA) + (AREA_PAGES - 1) * PAGE + below(64) * 8 + (one_in(8) ? below(8) : 0);
}

static int request(int fd, unsigned long req, uint64_t *w, size_t n)
{
	// Memory of ours is put into the place by the kernel, which finds out
	// how much of it is there.
	uint64_t at = place(n * 8);
	struct iovec from = {w, n * 8}, to = {(void *)at, n * 8};
	process_vm_writev(getpid(), &from, 1, &to, 1, 0);
	int i = slot_of(fd);
	errno = 0;
	long r = ioctl(fd, req, at);
	int err = r < 0 ? errno : 0;
	process_vm_readv(getpid(), &from, 1, &to, 1, 0);
	// Whether the file has a page, too, under one that a private mapping has of
	// its own, nobody outside of the kernel can tell.
	if (req == UFFDIO_CONTINUE && err == EFAULT && w[3] == (uint64_t)-EFAULT && w[0] - area(SHMEM_PRIVATE) < AREA_PAGES * PAGE)
		err = EEXIST, w[3] = -EEXIST;
	printf("ioctl %d %#lx at %#lx: %ld errno %d;", fd, req, name(at), r, err);
	for (size_t k = 0; k < n; k++)
		printf(" %#lx", name(w[k]));
	printf("\n");
	if (i >= 0 && req == UFFDIO_API && r == 0)
		spoken[open_fds[i].file] = 1;
	return err;
}

// Write protection that takes itself off would be for any memory, ours too.
#define FEATURES (UFFD_API_FEATURES | 0x1ffffUL)
#define ASYNC (1UL << 15)

static void handshake(int fd, uint64_t api, uint64_t features)
{
	uint64_t w[3] = {api, features & ~ASYNC, roll()};
	printf("  asked for %#lx\n", w[1]);
	request(fd, UFFDIO_API, w, 3);
}

static void malformed_request(int fd)
{
	uint64_t w[5] = {anywhere(), source(), length(), mode(3), 0x5a5a};
	static const unsigned long known[] = {UFFDIO_API, UFFDIO_REGISTER, UFFDIO_UNREGISTER, UFFDIO_WAKE,
		UFFDIO_COPY, UFFDIO_ZEROPAGE, MOVE, UFFDIO_WRITEPROTECT, UFFDIO_CONTINUE, POISON};
	unsigned long req = known[below(10)];
	switch (below(5)) {
	case 0: req = 0xaa00 | below(64); break; // no size
	case 1: req ^= 1UL << (16 + below(14)); break; // another size
	case 2: req ^= 1UL << (30 + below(2)); break; // another direction
	case 3: req = (roll() & 0xffffffff) | 1UL << 31; break;
	case 4: req = (unsigned long[]){0x5401, 0x541b, 0x5450, 0x5451, 0x5421 | 1UL << 40, 0x540f}[below(6)];
	}
	if (req == FIOCLEX || req == FIONCLEX || (req & 0xffffffff) == FIONBIO || (req & 0xffffffff) == DEVICE_NEW)
		return;
	request(fd, req, w, 5);
}

static void any_request(void)
{
	int fd = any_fd();
	uint64_t a = anywhere(), n = length();
	switch (below(14)) {
	case 0:
		handshake(fd, one_in(4) ? roll() : UFFD_API, one_in(4) ? roll() : roll() & FEATURES);
		return;
	case 1:
		malformed_request(fd);
		return;
	case 2: case 3: case 4: {
		if (a < area(DATA) + AREA_PAGES * PAGE && a + n > area(DATA) && a + n > a)
			a = good(), n = PAGE; // that we use ourselves
		uint64_t w[4] = {a, n, mode(7), 0x5a5a};
		request(fd, UFFDIO_REGISTER, w, 4);
		return;
	}
	case 5: {
		uint64_t w[2] = {a, n};
		request(fd, one_in(2) ? UFFDIO_UNREGISTER : UFFDIO_WAKE, w, 2);
		return;
	}
	case 6: case 7: case 8: {
		uint64_t w[5] = {a, source(), n, mode(3), 0x5a5a};
		request(fd, UFFDIO_COPY, w, 5);
		return;
	}
	case 9: {
		uint64_t w[5] = {a, one_in(2) ? good() : source(), n, mode(3), 0x5a5a};
		request(fd, MOVE, w, 5);
		return;
	}
	case 10: {
		uint64_t w[3] = {a, n, mode(3)};
		request(fd, UFFDIO_WRITEPROTECT, w, 3);
		return;
	}
	}
	uint64_t w[4] = {a, n, mode(3), 0x5a5a};
	static const unsigned long reqs[] = {UFFDIO_ZEROPAGE, UFFDIO_CONTINUE, POISON};
	request(fd, reqs[below(3)], w, 4);
}

// --- reads, polls and the rest ----------------------------------------------

static unsigned char messages[2048] __attribute__((aligned(8)));

static void print_message(const unsigned char *b)
{
	uint64_t w[4];
	memcpy(w, b, sizeof w);
	printf("  message %#lx %#lx %#lx %#lx\n", w[0], name(w[1]), name(w[2]), w[3] & ~0xffffffffUL);
}

static void any_read(void)
{
	int fd = any_fd();
	if (slot_of(fd) < 0 && fd == other_fds[0])
		return; // the pipe, which blocks
	size_t n = one_in(4) ? below(sizeof messages) : 32 * below(8);
	uint64_t at = one_in(4) ? place(32) : (uint64_t)messages;
	if (at != (uint64_t)messages && n > 64)
		n = 64;
	long r;
	switch (below(6)) {
	case 0: {
		struct iovec v[3] = {{messages, below(40)}, {messages + 64, below(80)}, {(void *)at, n}};
		int k = one_in(8) ? (int)roll() : (int)below(4);
		r = readv(fd, v, k);
		printf("readv %d %d of %lu %lu %lu: %ld errno %d\n", fd, k, v[0].iov_len, v[1].iov_len, n, r, result(r));
		return;
	}
	case 1:
		if (fd == device)
			return; // ours is a pipe
		r = pread(fd, messages, n, one_in(2) ? 0 : (off_t)roll());
		printf("pread %d %lu: %ld errno %d\n", fd, n, r, result(r));
		return;
	case 2:
		if (fd == device)
			return;
		memset(messages, 0x33, sizeof messages);
		r = write(fd, messages, fd == other_fds[1] ? 0 : n);
		printf("write %d %lu: %ld errno %d\n", fd, n, r, result(r));
		return;
	}
	if (one_in(16))
		n = roll() >> below(64), at = 0;
	r = syscall(SYS_read, fd, at, n);
	printf("read %d %lu: %ld errno %d\n", fd, n, r, result(r));
	for (long k = 0; at == (uint64_t)messages && k + 32 <= r; k += 32)
		print_message(messages + k);
}

static void any_poll(void)
{
	struct pollfd p[4];
	nfds_t n = below(5);
	for (nfds_t i = 0; i < n; i++) {
		p[i] = (struct pollfd){any_fd(), one_in(4) ? (short)roll() : POLLIN, 0x55};
		if (p[i].events & POLLRDNORM)
			p[i].events |= POLLIN;
	}
	uint64_t at = one_in(8) ? place(8) : (uint64_t)p;
	long r = syscall(SYS_poll, at, one_in(16) ? roll() : n, 0);
	printf("poll: %ld errno %d;", r, result(r));
	for (nfds_t i = 0; i < n; i++)
		printf(" %d %#x", p[i].fd, p[i].revents);
	printf("\n");
}

#include "malform_act.h"

static void any_descriptor_call(void)
{
	int fd = any_fd(), i = slot_of(fd);
	if (i < 0)
		return;
	switch (below(5)) {
	case 0: {
		int r = close(fd);
		printf("close %d: %d errno %d\n", fd, r, result(r));
		open_fds[i].fd = -1;
		return;
	}
	case 1: {
		int k = free_slot();
		if (k < 0)
			return;
		int r = one_in(2) ? dup(fd) : fcntl(fd, F_DUPFD_CLOEXEC, (int)below(64));
		printf("dup %d: %d errno %d\n", fd, r, result(r));
		open_fds[k].fd = r;
		open_fds[k].file = open_fds[i].file;
		return;
	}
	case 2: {
		int k = (int)below(MOST), to = open_fds[k].fd;
		if (to < 0 || to == fd)
			return;
		int r = dup2(fd, to);
		printf("dup2 %d %d: %d errno %d\n", fd, to, r, result(r));
		open_fds[k].file = open_fds[i].file;
		return;
	}
	case 3:
		printf("fcntl %d: %#x %#x\n", fd, fcntl(fd, F_GETFL), fcntl(fd, F_GETFD));
		return;
	default: {
		char path[64], link[64];
		snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
		ssize_t n = readlink(path, link, sizeof link);
		void *m = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0);
		printf("link %d: %.*s; mmap %d\n", fd, (int)(n < 0 ? 0 : n), link, m == MAP_FAILED ? errno : 0);
	}
	}
}

int main(int argc, char **argv)
{
	if (argc != 3 && argc != 4)
		return 2;
	uint64_t first = number(argv[1], "SEED");
	uint64_t calls = number(argv[2], "CALLS");
	setvbuf(stdout, NULL, _IOLBF, 1 << 16);
	memfd = memfd_create("malform", MFD_CLOEXEC);
	file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	MUST(memfd >= 0 && ftruncate(memfd, AREA_PAGES * PAGE) == 0 && file >= 0);
	for (int a = 0; a < AREAS; a++)
		map_area(a);
	for (uint64_t i = 0; i < AREA_PAGES; i++)
		memset((char *)area(DATA) + i * PAGE, (int)(0x40 + i), PAGE);
	int p[2];
	MUST(pipe(p) == 0);
	other_fds[0] = p[0];
	other_fds[1] = open("/dev/null", O_RDWR);
	other_fds[2] = memfd;
	other_fds[3] = 900;
	device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	for (int i = 0; i < MOST; i++)
		open_fds[i].fd = -1;
	actor_start();
	char *next = argc == 4 ? argv[3] : NULL;
	for (uint64_t i = 0; i < calls; i++) {
		if (next) {
			if (strtoul(next, NULL, 10) != i)
				continue;
			if ((next = strchr(next, ',')) == NULL)
				calls = 0; // that was the last
			else
				next++;
		}
		// What a call is does not depend on those that came before it.
		state = mix64(mix64(first + 1) + i);
		switch (below(16)) {
		case 0: create(); break;
		case 1: any_read(); break;
		case 2: any_poll(); break;
		case 3: any_descriptor_call(); break;
		case 4: case 5: case 6: any_act(); break;
		default: any_request();
		}
	}
	return 0;
}
