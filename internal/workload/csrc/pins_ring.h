// SPDX-License-Identifier: Apache-2.0
//
// The steps of pins about io_uring, with raw system calls: no library is
// needed to build or run it.

struct ring {
	int fd;
	unsigned *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail, *cq_mask;
	struct io_uring_sqe *sqes;
	struct io_uring_cqe *cqes;
	void *sq, *cq;
	size_t sq_bytes, cq_bytes, sqe_bytes;
};

static void *ring_map(int fd, size_t bytes, off_t what)
{
	void *p = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, what);
	MUST(p != MAP_FAILED);
	return p;
}

// ring_open returns 0, after saying so, where io_uring is not to be had.
static int ring_open(struct ring *r, unsigned entries)
{
	struct io_uring_params p = { 0 };
	r->fd = syscall(SYS_io_uring_setup, entries, &p);
	if (r->fd < 0 && (errno == ENOSYS || errno == EPERM)) {
		lacking("io_uring");
		return 0;
	}
	MUST(r->fd >= 0);
	r->sq_bytes = p.sq_off.array + p.sq_entries * sizeof(unsigned);
	r->cq_bytes = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
	r->sqe_bytes = p.sq_entries * sizeof(struct io_uring_sqe);
	char *sq = r->sq = ring_map(r->fd, r->sq_bytes, IORING_OFF_SQ_RING);
	char *cq = r->cq = ring_map(r->fd, r->cq_bytes, IORING_OFF_CQ_RING);
	r->sqes = ring_map(r->fd, r->sqe_bytes, IORING_OFF_SQES);
	r->sq_tail = (unsigned *)(sq + p.sq_off.tail);
	r->sq_mask = (unsigned *)(sq + p.sq_off.ring_mask);
	r->sq_array = (unsigned *)(sq + p.sq_off.array);
	r->cq_head = (unsigned *)(cq + p.cq_off.head);
	r->cq_tail = (unsigned *)(cq + p.cq_off.tail);
	r->cq_mask = (unsigned *)(cq + p.cq_off.ring_mask);
	r->cqes = (struct io_uring_cqe *)(cq + p.cq_off.cqes);
	return 1;
}

static void ring_close(struct ring *r)
{
	MUST(munmap(r->sqes, r->sqe_bytes) == 0);
	MUST(munmap(r->sq, r->sq_bytes) == 0 && munmap(r->cq, r->cq_bytes) == 0);
	MUST(close(r->fd) == 0);
}

static void ring_submit(struct ring *r, int op, int fd, void *p, size_t bytes, off_t offset)
{
	unsigned tail = *r->sq_tail, slot = tail & *r->sq_mask;
	r->sqes[slot] = (struct io_uring_sqe){ .opcode = op, .fd = fd, .off = offset,
		.addr = (uintptr_t)p, .len = bytes, .user_data = (uintptr_t)p };
	r->sq_array[slot] = slot;
	__atomic_store_n(r->sq_tail, tail + 1, __ATOMIC_RELEASE);
	MUST(syscall(SYS_io_uring_enter, r->fd, 1, 0, 0, 0, 0) == 1);
}

// ring_wait takes one completion, which must be of the whole transfer.
static void ring_wait(struct ring *r, size_t bytes)
{
	unsigned head = *r->cq_head;
	while (head == __atomic_load_n(r->cq_tail, __ATOMIC_ACQUIRE)) {
		int n = syscall(SYS_io_uring_enter, r->fd, 0, 1, IORING_ENTER_GETEVENTS, 0, 0);
		MUST(n >= 0 || errno == EINTR);
	}
	struct io_uring_cqe c = r->cqes[head & *r->cq_mask];
	__atomic_store_n(r->cq_head, head + 1, __ATOMIC_RELEASE);
	if (c.res != (int)bytes)
		die("io_uring: result %d, want %zu", c.res, bytes);
}

// Buffers are registered once, which pins them, and stay so through many
// rounds of pressure, reads and writes by the kernel, and touches by the program.
static void ring_fixed(void)
{
	struct ring r;
	enum { PINNED = 128 }; // pages
	if (!ring_open(&r, 8))
		return;
	char *p = anon(PINNED * PAGE), *source = anon(PINNED * PAGE);
	struct iovec v = { p, PINNED * PAGE };
	range_write(p, 0, PINNED / 2, 1); // half of them never touched before
	pressure();
	int err = syscall(SYS_io_uring_register, r.fd, IORING_REGISTER_BUFFERS, &v, 1);
	if (err && (errno == ENOMEM || errno == EPERM)) {
		lacking("RLIMIT_MEMLOCK for registered buffers");
		goto out;
	}
	MUST(err == 0);
	int fd = open_file(0);
	MUST(fd >= 0);
	pressure();
	range_check(p, 0, PINNED / 2, 1);
	range_check_zero(at(p, PINNED / 2), PINNED / 2);
	for (uint64_t gen = 2; gen < 8; gen++) {
		range_write(source, 0, PINNED, gen);
		MUST(pwrite(fd, source, PINNED * PAGE, 0) == PINNED * (ssize_t)PAGE);
		pressure();
		for (uint64_t i = 0; i < PINNED; i += CHUNK)
			ring_submit(&r, IORING_OP_READ_FIXED, fd, at(p, i), CHUNK * PAGE, i * PAGE);
		for (uint64_t i = 0; i < PINNED; i += CHUNK)
			ring_wait(&r, CHUNK * PAGE);
		range_check(p, 0, PINNED, gen);
		pressure();
		range_check(p, 0, PINNED, gen);

		// And the other way: what the program writes must be what goes out.
		range_write(p, 0, PINNED, gen + 100);
		pressure();
		for (uint64_t i = 0; i < PINNED; i += CHUNK)
			ring_submit(&r, IORING_OP_WRITE_FIXED, fd, at(p, i), CHUNK * PAGE, i * PAGE);
		for (uint64_t i = 0; i < PINNED; i += CHUNK)
			ring_wait(&r, CHUNK * PAGE);
		MUST(pread(fd, source, PINNED * PAGE, 0) == PINNED * (ssize_t)PAGE);
		range_check(source, 0, PINNED, gen + 100);
	}
	MUST(syscall(SYS_io_uring_register, r.fd, IORING_UNREGISTER_BUFFERS, 0, 0) == 0);
	pressure();
	range_check(p, 0, PINNED, 107);
	close(fd);
out:
	MUST(munmap(p, PINNED * PAGE) == 0 && munmap(source, PINNED * PAGE) == 0);
	ring_close(&r);
}

// A read of an empty pipe is submitted; its target goes out before it is done.
static void ring_pending(void)
{
	struct ring r;
	int ends[2];
	if (!ring_open(&r, 4))
		return;
	MUST(pipe(ends) == 0);
	char *p = anon(CHUNK * PAGE), *source = anon(CHUNK * PAGE);
	for (uint64_t gen = 1; gen < 8; gen++) {
		range_write(p, 1 << 22, CHUNK, gen);
		range_write(source, 0, CHUNK, gen);
		ring_submit(&r, IORING_OP_READ, ends[0], p, 8 * PAGE, -1);
		pressure();
		MUST(write(ends[1], source, 8 * PAGE) == 8 * (ssize_t)PAGE);
		ring_wait(&r, 8 * PAGE);
		range_check(p, 0, 8, gen);
		range_check(at(p, 8), (1 << 22) + 8, CHUNK - 8, gen);
		pressure();
		range_check(p, 0, 8, gen);
	}
	MUST(munmap(p, CHUNK * PAGE) == 0 && munmap(source, CHUNK * PAGE) == 0);
	close(ends[0]);
	close(ends[1]);
	ring_close(&r);
}

// Direct reads in flight pin their pages while the pressure goes on.
static void ring_direct(void)
{
	struct ring r;
	if (!ring_open(&r, N / CHUNK))
		return;
	int fd = open_file(O_DIRECT);
	if (fd < 0 && errno == EINVAL) {
		lacking("O_DIRECT in the directory");
		ring_close(&r);
		return;
	}
	MUST(fd >= 0);
	char *p = anon(N * PAGE), *source = anon(N * PAGE);
	for (uint64_t gen = 1; gen < 6; gen++) {
		range_write(source, 0, N, gen);
		range_write(p, 1 << 22, N, gen);
		pressure();
		MUST(pwrite(fd, source, N * PAGE, 0) == N * (ssize_t)PAGE);
		for (uint64_t i = 0; i < N; i += CHUNK)
			ring_submit(&r, IORING_OP_READ, fd, at(p, i), CHUNK * PAGE, i * PAGE);
		pressure();
		for (uint64_t i = 0; i < N; i += CHUNK)
			ring_wait(&r, CHUNK * PAGE);
		range_check(p, 0, N, gen);
		pressure();
		range_check(p, 0, N, gen);
	}
	MUST(munmap(p, N * PAGE) == 0 && munmap(source, N * PAGE) == 0);
	close(fd);
	ring_close(&r);
}
