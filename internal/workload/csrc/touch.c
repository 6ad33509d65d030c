// SPDX-License-Identifier: Apache-2.0
//
// touch [--times] [--latency] [--light] [--repeat N] MIB THREADS SEED [PHASE...]
//
// Fills, reads, rewrites and verifies MIB of self-verifying pages in several
// orders. Prints one line per phase to stdout, the same for every run with
// the same arguments; aborts at the first page that is not what it should be.
//
// --times    prints "time PHASE NS ACCESSES" to stderr: wall time per access
// --latency  prints "latency PHASE SLOW P50 P90 P99 MAX" to stderr: of the
//            accesses that took over two microseconds, which are faults
// --light    reads check a few words of a page instead of all
// --repeat   runs the list of phases N times
//
// With several threads, phases that write by page split the memory between
// them; strided, random, hot and count go over all of it from every thread.

#include "check.h"
#include <pthread.h>
#include <time.h>

enum { MAX_THREADS = 512, SLOW_NS = 2000 };

static uint64_t *memory;
static uint32_t *generation; // of each page; 0 is never filled
static uint64_t pages, threads, counted;
static int light, times, latency;

struct work {
	pthread_t thread;
	const struct phase *phase;
	uint64_t index, first, count; // this thread's part of the phase's accesses
	uint64_t random, sum;
	uint32_t *slow;
	uint64_t slow_count;
};

struct phase {
	const char *name;
	void (*touch)(struct work *, uint64_t i); // i counts this phase's accesses
	uint64_t laps;                            // accesses, in multiples of pages
};

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000UL + t.tv_nsec;
}

static uint64_t *at(uint64_t page) { return memory + page * WORDS; }

static void read_page(struct work *w, uint64_t page)
{
	if (light)
		w->sum += page_glance(at(page), page, generation[page]);
	else
		w->sum += page_check(at(page), page, generation[page]);
}

static void write_page(struct work *w, uint64_t page)
{
	if (light)
		page_glance(at(page), page, generation[page]);
	else
		page_check(at(page), page, generation[page]);
	generation[page]++;
	page_write(at(page), page, generation[page]);
	w->sum += generation[page];
}

// fill writes without looking: what was there does not matter.
static void fill(struct work *w, uint64_t i)
{
	at(i)[2] = 0;
	generation[i]++;
	page_write(at(i), i, generation[i]);
	w->sum += i;
}

static void seqread(struct work *w, uint64_t i) { read_page(w, i); }
static void seqwrite(struct work *w, uint64_t i) { write_page(w, i); }
static void reverse(struct work *w, uint64_t i) { read_page(w, pages - 1 - i); }

static void verify(struct work *w, uint64_t i)
{
	w->sum += page_check(at(i), i, generation[i]);
}

// strided takes every 7th page and wraps; it visits every page once.
static void strided(struct work *w, uint64_t i)
{
	uint64_t lap = pages / 7;
	read_page(w, pages % 7 ? i * 7 % pages : i % lap * 7 + i / lap);
}

static void uniform(struct work *w, uint64_t i)
{
	(void)i;
	read_page(w, next_random(&w->random) % pages);
}

// hot: nine accesses of ten go to a tenth of the pages, which lie apart so
// that no neighbour of a hot page is hot.
static void hot(struct work *w, uint64_t i)
{
	uint64_t r = next_random(&w->random);
	(void)i;
	read_page(w, (r >> 40) % 10 ? r % (pages / 10) * 10 : r % pages);
}

// randwrite rewrites random pages of the thread's own part.
static void randwrite(struct work *w, uint64_t i)
{
	(void)i;
	write_page(w, w->first + next_random(&w->random) % w->count);
}

// count increments counters that all threads share: an increment that lands
// in a page on its way out and is lost shows in the total.
static void count(struct work *w, uint64_t i)
{
	(void)i;
	__atomic_fetch_add(at(next_random(&w->random) % pages) + 2, 1, __ATOMIC_RELAXED);
}

static const struct phase phases[] = {
	{ "fill", fill, 1 },       { "seqread", seqread, 1 }, { "seqwrite", seqwrite, 1 },
	{ "reverse", reverse, 1 }, { "strided", strided, 1 }, { "random", uniform, 1 },
	{ "hot", hot, 2 },         { "randwrite", randwrite, 1 }, { "count", count, 1 },
	{ "verify", verify, 1 },   { 0 },
};

static void *worker(void *argument)
{
	struct work *w = argument;
	uint64_t end = w->first + w->count, before = 0;
	for (uint64_t i = w->first; i < end; i++) {
		if (latency)
			before = now();
		w->phase->touch(w, i);
		if (latency) {
			uint64_t took = now() - before;
			if (took > SLOW_NS)
				w->slow[w->slow_count++] = took > UINT32_MAX ? UINT32_MAX : took;
		}
	}
	return 0;
}

static int by_value(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return (x > y) - (x < y);
}

static void print_latency(const struct phase *p, uint32_t *all, uint64_t n)
{
	qsort(all, n, sizeof *all, by_value);
	if (n)
		fprintf(stderr, "latency %s %lu %u %u %u %u\n", p->name, n, all[n / 2],
			all[n * 9 / 10], all[n * 99 / 100], all[n - 1]);
}

static void check_counters(void)
{
	uint64_t total = 0;
	for (uint64_t i = 0; i < pages; i++)
		total += at(i)[2];
	if (total != counted)
		die("counters add up to %lu, want %lu: increments were lost", total, counted);
}

static void run_phase(const struct phase *p, uint64_t round)
{
	static struct work works[MAX_THREADS];
	uint64_t accesses = p->laps * pages, sum = 0, slow = 0;
	uint32_t *record = latency ? anon(accesses * sizeof *record) : 0;

	step = p->name;
	if (p->touch == fill)
		counted = 0;
	uint64_t began = now();
	for (uint64_t t = 0; t < threads; t++) {
		struct work *w = &works[t];
		uint64_t first = accesses * t / threads;
		*w = (struct work){ .phase = p, .index = t, .first = first,
			.count = accesses * (t + 1) / threads - first,
			.random = mix64(seed + t * 1000003 + round * 7919 + (uint64_t)(p - phases)),
			.slow = latency ? record + first : 0 };
		if (threads == 1)
			worker(w);
		else
			MUST((errno = pthread_create(&w->thread, 0, worker, w)) == 0);
	}
	for (uint64_t t = 0; t < threads; t++) {
		if (threads > 1)
			pthread_join(works[t].thread, 0);
		sum += works[t].sum;
	}
	uint64_t took = now() - began;
	if (p->touch == count) {
		counted += accesses;
		check_counters();
	}
	printf("%s accesses=%lu sum=%016lx\n", p->name, accesses, sum);
	if (times)
		fprintf(stderr, "time %s %.1f %lu\n", p->name, (double)took / accesses, accesses);
	if (!latency)
		return;
	for (uint64_t t = 0; t < threads; t++) {
		memmove(record + slow, works[t].slow, works[t].slow_count * sizeof *record);
		slow += works[t].slow_count;
	}
	print_latency(p, record, slow);
	munmap(record, accesses * sizeof *record);
}

static const struct phase *find(const char *name)
{
	for (const struct phase *p = phases; p->name; p++)
		if (!strcmp(p->name, name))
			return p;
	fprintf(stderr, "touch: no phase %s\n", name);
	exit(2);
}

int main(int argc, char **argv)
{
	uint64_t repeat = 1;
	int i = 1;
	for (; i < argc && !strncmp(argv[i], "--", 2); i++) {
		if (!strcmp(argv[i], "--times"))
			times = 1;
		else if (!strcmp(argv[i], "--latency"))
			latency = 1;
		else if (!strcmp(argv[i], "--light"))
			light = 1;
		else if (!strcmp(argv[i], "--repeat") && i + 1 < argc)
			repeat = number(argv[++i], "--repeat");
		else
			argc = 0;
	}
	if (argc - i < 3) {
		fprintf(stderr, "usage: touch [--times] [--latency] [--light] [--repeat N] "
			"MIB THREADS SEED [PHASE...]\n");
		return 2;
	}
	pages = number(argv[i], "MIB") * MIB_PAGES;
	threads = number(argv[i + 1], "THREADS");
	seed = number(argv[i + 2], "SEED");
	argv += i + 3;
	if (pages == 0 || threads == 0 || threads > MAX_THREADS || threads > pages) {
		fprintf(stderr, "touch: MIB and THREADS must be positive\n");
		return 2;
	}
	if (*argv && strcmp(*argv, "fill")) {
		fprintf(stderr, "touch: the first phase must be fill\n");
		return 2;
	}
	memory = anon(pages * PAGE);
	generation = anon(pages * sizeof *generation);
	for (uint64_t round = 0; round < repeat; round++) {
		for (char **name = argv; *name; name++)
			run_phase(find(*name), round);
		for (const struct phase *p = phases; !*argv && p->name; p++)
			run_phase(p, round);
	}
	return 0;
}
