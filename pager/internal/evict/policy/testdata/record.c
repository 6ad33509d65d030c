// SPDX-License-Identifier: Apache-2.0
//
// Records which heap pages a program touches, in order, at nearly full speed.
//
//   cc -O2 -shared -fPIC -o record.so record.c -lpthread
//   RECORD_OUT=raw RECORD_WINDOW=256 LD_PRELOAD=./record.so PROGRAM ARG...
//
// Only RECORD_WINDOW heap pages are ever mapped, the last ones recorded. A
// touch of any other one is a userfaultfd message: a thread notes the page
// number, moves the content back in and the oldest page of the window out, to
// a shadow area of the same size (UFFDIO_MOVE, Linux 6.8). So a page that is
// used all the time still comes up once every RECORD_WINDOW records.
//
// The heap is one arena of 1 GiB in the brk area. Programs that bring their
// own allocator must be told to use malloc (PYTHONMALLOC=malloc), and must
// not fork. The output is a sequence of 64-bit page numbers.
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef UFFDIO_MOVE // headers older than Linux 6.8
struct uffdio_move { __u64 dst, src, len, mode; __s64 move; };
#define UFFDIO_MOVE _IOWR(0xAA, 0x05, struct uffdio_move)
#define UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES 2
#define UFFD_FEATURE_MOVE (1 << 16)
#endif

#define PAGE 4096ul
#define HEAP (1ul << 30)

static int uffd, out;
static uint64_t base, shadow, npages;
static uint8_t *seen; // by page: it has content in the shadow area
static uint64_t ring[1 << 16], head, window = 256;
static uint64_t buf[8192];
static size_t nbuf;

static void die(const char *what) {
	dprintf(2, "record: %s: %s\n", what, strerror(errno));
	_exit(99);
}

static int move(uint64_t dst, uint64_t src) {
	struct uffdio_move m = {.dst = dst, .src = src, .len = PAGE,
		.mode = UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES};
	return ioctl(uffd, UFFDIO_MOVE, &m);
}

static void flush(void) {
	if (nbuf && write(out, buf, nbuf * 8) != (ssize_t)(nbuf * 8)) die("RECORD_OUT");
	nbuf = 0;
}

static void *serve(void *unused) {
	struct uffd_msg msg;
	while (read(uffd, &msg, sizeof msg) == sizeof msg) {
		if (msg.event != UFFD_EVENT_PAGEFAULT) continue;
		uint64_t a = msg.arg.pagefault.address & -PAGE, i = (a - base) / PAGE;
		uint64_t *slot = &ring[head++ % window];
		// A pinned page stays mapped and is missing from the record: rare.
		if (*slot) {
			uint64_t j = (*slot - base) / PAGE;
			if (move(shadow + j * PAGE, *slot) == 0) seen[j] = 1;
			else if (errno != EBUSY) die("UFFDIO_MOVE out");
		}
		*slot = a;
		buf[nbuf++] = a / PAGE;
		if (nbuf == sizeof buf / 8) flush();
		if (seen[i]) {
			if (move(a, shadow + i * PAGE)) die("UFFDIO_MOVE in");
			seen[i] = 0;
		} else {
			struct uffdio_zeropage z = {.range = {a, PAGE}};
			struct uffdio_range w = {a, PAGE};
			if (ioctl(uffd, UFFDIO_ZEROPAGE, &z)) ioctl(uffd, UFFDIO_WAKE, &w);
		}
	}
	return unused;
}

__attribute__((destructor)) static void stop(void) { flush(); }

__attribute__((constructor)) static void start(void) {
	const char *name = getenv("RECORD_OUT"), *w = getenv("RECORD_WINDOW");
	if (!name) return;
	if (w) window = strtoul(w, 0, 0);
	if (window < 16 || window > sizeof ring / 8) die("RECORD_WINDOW");
	unsetenv("LD_PRELOAD");
	if ((out = open(name, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0644)) < 0) die(name);
	out = fcntl(out, F_DUPFD_CLOEXEC, 900);
	mallopt(M_ARENA_MAX, 1);
	mallopt(M_MMAP_THRESHOLD, 1 << 30);
	mallopt(M_MMAP_MAX, 0);
	mallopt(M_TRIM_THRESHOLD, 2047 << 20);
	mallopt(M_TOP_PAD, HEAP);
	void *volatile first = malloc(1 << 20); // volatile: the compiler drops the pair
	free(first);
	mallopt(M_TOP_PAD, 1 << 20);
	// The first pages hold what was there before us.
	base = ((uint64_t)sbrk(0) - HEAP + PAGE) & -PAGE;
	npages = ((uint64_t)sbrk(0) - base) / PAGE;
	seen = mmap(0, npages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	shadow = (uint64_t)mmap(0, npages * PAGE, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	uffd = fcntl(syscall(SYS_userfaultfd, O_CLOEXEC), F_DUPFD_CLOEXEC, 901);
	struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_MOVE};
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api)) die("userfaultfd");
	madvise((void *)base, npages * PAGE, MADV_NOHUGEPAGE);
	madvise((void *)base, npages * PAGE, MADV_DONTNEED);
	madvise((void *)shadow, npages * PAGE, MADV_NOHUGEPAGE);
	struct uffdio_register r = {.range = {base, npages * PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
	// UFFDIO_MOVE wants its destination registered, and we move both ways.
	struct uffdio_register s = {.range = {shadow, npages * PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
	if (ioctl(uffd, UFFDIO_REGISTER, &r) || ioctl(uffd, UFFDIO_REGISTER, &s)) die("UFFDIO_REGISTER");
	pthread_t t;
	if (pthread_create(&t, 0, serve, 0)) die("pthread_create");
}
