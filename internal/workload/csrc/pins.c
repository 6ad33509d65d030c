// SPDX-License-Identifier: Apache-2.0
//
// pins DIRECTORY BALLAST_MIB SEED [STEP...]
//
// Lets the kernel and devices hold references to pages of memory that is
// being pushed out: direct I/O, vmsplice, io_uring with registered buffers,
// process_vm_readv. A page that moves while it is pinned is lost: what is
// written into it never shows. DIRECTORY is where temporary files go.
//
// Pressure comes from BALLAST_MIB of memory, cycled between submission and
// completion, and all the time by a second thread.

#include "check.h"
#include <fcntl.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <sys/uio.h>

enum { N = 512, CHUNK = 16 }; // pages: 2 MiB in all, 64 KiB a transfer

static struct ballast ballast, other_ballast;
static const char *directory;
static int stop;

static void pressure(void) { ballast_cycle(&ballast); }
static char *at(void *base, uint64_t page) { return (char *)base + page * PAGE; }

static void *cycle(void *unused)
{
	(void)unused;
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED))
		ballast_cycle(&other_ballast);
	return 0;
}

// open_file makes a file without a name. It is opened by name once more where
// the flags ask for direct I/O, which O_TMPFILE files may refuse.
static int open_file(int flags)
{
	char name[4096];
	snprintf(name, sizeof name, "%s/pins-XXXXXX", directory);
	int fd = mkstemp(name);
	MUST(fd >= 0);
	int direct = open(name, O_RDWR | O_CLOEXEC | flags);
	int saved = errno;
	MUST(unlink(name) == 0 && close(fd) == 0);
	errno = saved;
	return direct;
}

static void direct_io(void)
{
	int fd = open_file(O_DIRECT);
	if (fd < 0 && errno == EINVAL) {
		lacking("O_DIRECT in the directory");
		return;
	}
	MUST(fd >= 0);
	void *raw, *raw2;
	MUST(posix_memalign(&raw, PAGE, N * PAGE) == 0 && posix_memalign(&raw2, PAGE, N * PAGE) == 0);
	range_write(raw2, 1 << 22, N, 1);
	for (uint64_t gen = 1; gen < 6; gen++) {
		range_write(raw, 0, N, gen);
		pressure();
		for (uint64_t i = 0; i < N; i += CHUNK)
			MUST(pwrite(fd, at(raw, i), CHUNK * PAGE, i * PAGE) == CHUNK * (ssize_t)PAGE);
		pressure();
		for (uint64_t i = 0; i < N; i += CHUNK) {
			MUST(pread(fd, at(raw2, i), CHUNK * PAGE, i * PAGE) == CHUNK * (ssize_t)PAGE);
			range_check(at(raw2, i), i, CHUNK, gen);
		}
		pressure();
		range_check(raw2, 0, N, gen);
		range_check(raw, 0, N, gen);
	}
	free(raw);
	free(raw2);
	close(fd);
}

// spliced gives pages to a pipe, pushes them out, and compares what comes out
// of the pipe and what is left in memory.
static void spliced(unsigned flags)
{
	int ends[2];
	MUST(pipe(ends) == 0);
	void *p = anon(N * PAGE), *q = anon(N * PAGE);
	for (uint64_t gen = 1; gen < 4; gen++) {
		range_write(p, 0, N, gen);
		range_write(q, 1 << 22, N, gen);
		pressure();
		for (uint64_t i = 0; i < N; i += CHUNK / 2) {
			struct iovec v = { at(p, i), CHUNK / 2 * PAGE };
			MUST(vmsplice(ends[1], &v, 1, flags) == CHUNK / 2 * (ssize_t)PAGE);
			if (i % 64 == 0)
				pressure();
			for (uint64_t k = 0; k < CHUNK / 2; k++)
				MUST(read(ends[0], at(q, i + k), PAGE) == (ssize_t)PAGE);
		}
		pressure();
		range_check(q, 0, N, gen);
		range_check(p, 0, N, gen);
	}
	MUST(munmap(p, N * PAGE) == 0 && munmap(q, N * PAGE) == 0);
	close(ends[0]);
	close(ends[1]);
}

static void vmsplice_plain(void) { spliced(0); }
static void vmsplice_gift(void) { spliced(SPLICE_F_GIFT); }

// vmsplice out of a pipe copies into memory that is out.
static void vmsplice_read(void)
{
	int ends[2];
	MUST(pipe(ends) == 0);
	void *p = anon(N * PAGE), *q = anon(N * PAGE);
	range_write(p, 0, N, 1);
	range_write(q, 1 << 22, N, 1);
	pressure();
	for (uint64_t i = 0; i < N; i += CHUNK / 2) {
		struct iovec v = { at(q, i), CHUNK / 2 * PAGE };
		MUST(write(ends[1], at(p, i), v.iov_len) == (ssize_t)v.iov_len);
		MUST(vmsplice(ends[0], &v, 1, 0) == (ssize_t)v.iov_len);
	}
	pressure();
	range_check(q, 0, N, 1);
	MUST(munmap(p, N * PAGE) == 0 && munmap(q, N * PAGE) == 0);
	close(ends[0]);
	close(ends[1]);
}

static void process_vm(void)
{
	void *p = anon(N * PAGE), *q = anon(N * PAGE);
	for (uint64_t gen = 1; gen < 5; gen++) {
		range_write(p, 0, N, gen);
		range_write(q, 1 << 22, N, gen);
		pressure();
		for (uint64_t i = 0; i < N; i += CHUNK) {
			struct iovec from = { at(p, i), CHUNK * PAGE }, to = { at(q, i), CHUNK * PAGE };
			ssize_t n = gen % 2 ? process_vm_readv(getpid(), &to, 1, &from, 1, 0)
					    : process_vm_writev(getpid(), &from, 1, &to, 1, 0);
			if (n < 0 && (errno == EPERM || errno == ENOSYS)) {
				lacking("process_vm_readv on itself");
				goto out;
			}
			MUST(n == CHUNK * (ssize_t)PAGE);
		}
		pressure();
		range_check(q, 0, N, gen);
		range_check(p, 0, N, gen);
	}
out:
	MUST(munmap(p, N * PAGE) == 0 && munmap(q, N * PAGE) == 0);
}

#include "pins_ring.h"

static const struct named steps[] = {
	{ "direct-io", direct_io },
	{ "vmsplice", vmsplice_plain },
	{ "vmsplice-gift", vmsplice_gift },
	{ "vmsplice-read", vmsplice_read },
	{ "process-vm", process_vm },
	{ "ring-fixed", ring_fixed },
	{ "ring-pending", ring_pending },
	{ "ring-direct", ring_direct },
	{ 0 },
};

int main(int argc, char **argv)
{
	if (argc < 4) {
		fprintf(stderr, "usage: pins DIRECTORY BALLAST_MIB SEED [STEP...]\n");
		return 2;
	}
	directory = argv[1];
	uint64_t mib = number(argv[2], "BALLAST_MIB");
	seed = number(argv[3], "SEED");
	ballast_make(&ballast, mib - mib / 2);
	ballast_make(&other_ballast, mib / 2);
	pthread_t second;
	if (mib / 2)
		MUST((errno = pthread_create(&second, 0, cycle, 0)) == 0);
	int status = run_steps(steps, argv + 4);
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	if (mib / 2)
		MUST(pthread_join(second, 0) == 0);
	return status;
}
