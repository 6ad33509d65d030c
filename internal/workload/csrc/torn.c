// SPDX-License-Identifier: Apache-2.0
//
// Looks for pages that are torn, old or foreign in memory that the program serves
// itself by userfaultfd(2), under as much traffic as there can be.
//
//	torn SECONDS [SEED]
//
// There is private anonymous memory and memory of a memfd. Every page verifies
// itself, see check.h. Eight threads read, write and count in pages at random, by
// themselves and by system calls; two push pages out at random, by write protection
// and MADV_DONTNEED, by a hole in the file, or by UFFDIO_MOVE; one serves. What a
// thread does in a page has to outlast that: a thread that checks or writes a
// whole page holds a lock against others that do, while the counters are not
// locked at all, and nobody who serves or pushes out takes that lock.
//
// It prints one JSON object of counts.

#define DIE_STATUS 1
#include "check.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>

enum { PAGES = 192, AREAS = 2, ALL = AREAS * PAGES, THREADS = 8, EVICTORS = 2 };
enum { ANON, SHMEM };

// UFFDIO_MOVE, which older headers lack.
struct move {
	uint64_t dst, src, len, mode;
	int64_t move;
};
#define MOVE _IOWR(UFFDIO, 5, struct move)

static int fd, memfd, stop_fd;
static char *base[AREAS], *window;
static int stop;

// A page, as who serves sees it.
static struct page {
	pthread_mutex_t service; // of there and copy
	int there;
	char *copy; // the content while it is not there

	pthread_mutex_t content; // of all words but the counter
	uint64_t gen;
	uint64_t count; // what the counter must be; atomic
} pages[ALL];

static uint64_t faults, protections, evictions, moves, accesses;

#define COUNT(what) __atomic_add_fetch(&(what), 1, __ATOMIC_RELAXED)

static uint64_t *at(int i) { return (uint64_t *)(base[i / PAGES] + (uint64_t)(i % PAGES) * PAGE); }

static int index_of(uint64_t a)
{
	for (int k = 0; k < AREAS; k++)
		if (a - (uint64_t)base[k] < PAGES * PAGE)
			return k * PAGES + (int)((a - (uint64_t)base[k]) / PAGE);
	die("a message for %#lx, which is not registered", a);
}

static void protect(int i, int on)
{
	struct uffdio_writeprotect w = {{(uint64_t)at(i), PAGE}, on ? UFFDIO_WRITEPROTECT_MODE_WP : 0};
	int r;
	while ((r = ioctl(fd, UFFDIO_WRITEPROTECT, &w)) != 0 && errno == EAGAIN) {
	}
	MUST(r == 0);
}

// bring puts a page in place, at times protected: then the first write is told.
static void bring(int i, int protected)
{
	struct page *p = &pages[i];
	struct uffdio_copy c = {(uint64_t)at(i), (uint64_t)p->copy, PAGE, protected ? UFFDIO_COPY_MODE_WP : 0, 0};
	int r;
	while ((r = ioctl(fd, UFFDIO_COPY, &c)) != 0 && errno == EAGAIN) {
	}
	MUST(r == 0 && c.copy == (int64_t)PAGE);
	memset(p->copy, 0xee, PAGE);
	p->there = 1;
}

static void resolve(const struct uffd_msg *m, uint64_t *random)
{
	int i = index_of(m->arg.pagefault.address);
	struct page *p = &pages[i];
	struct uffdio_range r = {(uint64_t)at(i), PAGE};
	pthread_mutex_lock(&p->service);
	if (m->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP)
		COUNT(protections);
	else
		COUNT(faults);
	if (!p->there)
		bring(i, next_random(random) % 4 == 0);
	else if (m->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP)
		protect(i, 0);
	else
		MUST(ioctl(fd, UFFDIO_WAKE, &r) == 0); // another message was faster
	pthread_mutex_unlock(&p->service);
}

static void *serve(void *unused)
{
	uint64_t random = seed + 1000;
	for (;;) {
		struct pollfd p[2] = {{fd, POLLIN, 0}, {stop_fd, POLLIN, 0}};
		MUST(poll(p, 2, -1) > 0);
		struct uffd_msg m[16];
		ssize_t n = read(fd, m, sizeof m);
		if (n < 0 && errno == EAGAIN) {
			if (p[1].revents)
				return unused;
			continue;
		}
		MUST(n > 0 && n % (ssize_t)sizeof *m == 0);
		for (size_t k = 0; k < n / sizeof *m; k++) {
			MUST(m[k].event == UFFD_EVENT_PAGEFAULT);
			resolve(&m[k], &random);
		}
	}
}

// move_out takes a page by UFFDIO_MOVE into a slot of the window. It returns 0 if
// the kernel cannot, for the moment.
static int move_out(int i, char *slot)
{
	struct move m = {(uint64_t)slot, (uint64_t)at(i), PAGE, 0, 0};
	if (ioctl(fd, MOVE, &m)) {
		MUST(errno == EBUSY || errno == EAGAIN);
		return 0;
	}
	memcpy(pages[i].copy, slot, PAGE);
	MUST(madvise(slot, PAGE, MADV_DONTNEED) == 0);
	COUNT(moves);
	return 1;
}

static void evict(int i, char *slot, uint64_t *random)
{
	struct page *p = &pages[i];
	pthread_mutex_lock(&p->service);
	if (p->there && i / PAGES == ANON && next_random(random) % 2 == 0) {
		p->there = !move_out(i, slot);
	} else if (p->there) {
		// From here on nobody changes it.
		protect(i, 1);
		memcpy(p->copy, at(i), PAGE);
		if (i / PAGES == ANON)
			MUST(madvise(at(i), PAGE, MADV_DONTNEED) == 0);
		else
			MUST(fallocate(memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(i % PAGES) * PAGE, PAGE) == 0);
		p->there = 0;
		protect(i, 0); // a marker may be left, and those who wait begin anew
		COUNT(evictions);
	}
	pthread_mutex_unlock(&p->service);
}

static void *evictor(void *arg)
{
	uint64_t random = seed + 2000 + (uint64_t)arg;
	char *slot = window + (uint64_t)arg * PAGE;
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED))
		evict((int)(next_random(&random) % ALL), slot, &random);
	return NULL;
}

// The words behind the counter, which system calls read and write.
enum { FROM = 3 * 8 };

// by_call has a system call write or read a page. A call may do less than it is
// asked for.
static void by_call(int file, uint64_t *p, int writes)
{
	for (uint64_t done = FROM; done < PAGE;) {
		ssize_t n = writes ? pread(file, (char *)p + done, PAGE - done, (off_t)done)
				   : pwrite(file, (char *)p + done, PAGE - done, (off_t)done);
		MUST(n > 0);
		done += (uint64_t)n;
	}
}

static void use(int i, int file, uint64_t how)
{
	struct page *p = &pages[i];
	uint64_t local[WORDS];
	pthread_mutex_lock(&p->content);
	switch (how) {
	case 0:
		// What the call is to write to the page.
		memset(local, 0, sizeof local);
		page_write(local, (uint64_t)i, p->gen + 1);
		MUST(pwrite(file, local, PAGE, 0) == (ssize_t)PAGE);
		at(i)[0] = local[0];
		at(i)[1] = local[1];
		by_call(file, at(i), 1);
		p->gen++;
		break;
	case 1:
		by_call(file, at(i), 0);
		MUST(pread(file, local, PAGE, 0) == (ssize_t)PAGE);
		local[0] = at(i)[0];
		local[1] = at(i)[1];
		page_check(local, (uint64_t)i, p->gen);
		break;
	case 2: case 3: case 4: case 5:
		page_check(at(i), (uint64_t)i, p->gen);
		page_write(at(i), (uint64_t)i, ++p->gen);
		break;
	default:
		page_check(at(i), (uint64_t)i, p->gen);
	}
	pthread_mutex_unlock(&p->content);
}

static void *toucher(void *arg)
{
	uint64_t random = seed + 3000 + (uint64_t)arg;
	int file = memfd_create("torn-call", MFD_CLOEXEC);
	MUST(file >= 0 && ftruncate(file, PAGE) == 0);
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		int i = (int)(next_random(&random) % ALL);
		if (next_random(&random) % 4 == 0) {
			__atomic_add_fetch(&at(i)[2], 1, __ATOMIC_SEQ_CST);
			COUNT(pages[i].count);
		} else {
			use(i, file, next_random(&random) % 16);
		}
		COUNT(accesses);
	}
	close(file);
	return NULL;
}

static void watch(void *p, uint64_t n)
{
	struct uffdio_register r = {{(uint64_t)p, n}, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP, 0};
	MUST(ioctl(fd, UFFDIO_REGISTER, &r) == 0);
}

static void prepare(void)
{
	memfd = memfd_create("torn", MFD_CLOEXEC);
	MUST(memfd >= 0 && ftruncate(memfd, PAGES * PAGE) == 0);
	base[ANON] = anon(PAGES * PAGE);
	base[SHMEM] = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	MUST(base[SHMEM] != MAP_FAILED);
	window = anon(EVICTORS * PAGE);
	char *copies = anon(ALL * PAGE);
	for (int i = 0; i < ALL; i++) {
		pages[i].copy = copies + (uint64_t)i * PAGE;
		pthread_mutex_init(&pages[i].service, NULL);
		pthread_mutex_init(&pages[i].content, NULL);
		page_write((uint64_t *)pages[i].copy, (uint64_t)i, 0);
	}
	fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	MUST(fd >= 0);
	struct uffdio_api api = {UFFD_API, UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM, 0};
	MUST(ioctl(fd, UFFDIO_API, &api) == 0);
	for (int k = 0; k < AREAS; k++)
		watch(base[k], PAGES * PAGE);
	watch(window, EVICTORS * PAGE);
	stop_fd = eventfd(0, EFD_CLOEXEC);
	MUST(stop_fd >= 0);
}

int main(int argc, char **argv)
{
	if (argc != 2 && argc != 3)
		return 2;
	struct timespec left = {(time_t)number(argv[1], "SECONDS"), 0};
	if (argc == 3)
		seed = number(argv[2], "SEED");
	step = "torn";
	prepare();
	pthread_t server, all[THREADS + EVICTORS];
	MUST(pthread_create(&server, NULL, serve, NULL) == 0);
	for (long k = 0; k < THREADS + EVICTORS; k++) {
		int evicts = k >= THREADS;
		MUST(pthread_create(&all[k], NULL, evicts ? evictor : toucher, (void *)(evicts ? k - THREADS : k)) == 0);
	}
	while (nanosleep(&left, &left) != 0) {
	}
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	for (int k = 0; k < THREADS + EVICTORS; k++)
		pthread_join(all[k], NULL);
	for (int i = 0; i < ALL; i++) {
		page_check(at(i), (uint64_t)i, pages[i].gen);
		if (at(i)[2] != pages[i].count)
			die("page %d was counted in %lu times, and has %lu", i, pages[i].count, at(i)[2]);
	}
	MUST(write(stop_fd, &(uint64_t){1}, 8) == 8);
	pthread_join(server, NULL);
	printf("{\"accesses\":%lu,\"faults\":%lu,\"protections\":%lu,\"evictions\":%lu,\"moves\":%lu}\n",
	       accesses, faults, protections, evictions, moves);
	return 0;
}
