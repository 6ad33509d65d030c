// SPDX-License-Identifier: Apache-2.0
//
// What the workload programs share: pages that verify themselves, a way to
// die that says which page was wrong and how, and a ballast that pushes other
// pages out of a bounded memory.
//
// A page is 512 words. Its first half cannot be compressed and its second
// half compresses to nothing, so that a store sees half-compressible pages.
//
//	word 0         the page's number, xor a constant
//	word 1         its generation: how many times it has been written
//	word 2         a counter that threads increment atomically
//	word 3         key: a mix of seed, number and generation
//	words 4..255   pseudo-random, each derived from the key and its index
//	words 256..510 the key, repeated
//	word 511       the key, inverted
//
// A lost page reads as zeros, an old copy has an old generation, and a page
// made of two copies has words that disagree with the key.

#ifndef CHECK_H
#define CHECK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096UL
#define WORDS (PAGE / 8)
#define RANDOM_FROM 4
#define REPEAT_FROM 256
#define MAGIC 0x70616765a55a1234UL
#define MIB (1UL << 20)
#define MIB_PAGES (MIB / PAGE)

static uint64_t seed = 1;
static const char *step = "start";

// die reports a failed check and aborts; a program may define DIE_STATUS to
// exit with that status instead.
static void __attribute__((noreturn, format(printf, 1, 2), unused))
die(const char *format, ...)
{
	char line[512];
	va_list args;
	va_start(args, format);
	int n = snprintf(line, sizeof line, "%s: %s: ", program_invocation_short_name, step);
	n += vsnprintf(line + n, sizeof line - n - 1, format, args);
	va_end(args);
	if (n > (int)sizeof line - 2)
		n = sizeof line - 2;
	line[n++] = '\n';
	if (write(2, line, n) != n)
		abort();
#ifdef DIE_STATUS
	_exit(DIE_STATUS);
#else
	abort();
#endif
}

#define MUST(condition) \
	do { if (!(condition)) die("line %d: %s: %s", __LINE__, #condition, strerror(errno)); } while (0)

// mix64 spreads every bit of z over the whole result.
static inline uint64_t mix64(uint64_t z)
{
	z ^= z >> 33;
	z *= 0xff51afd7ed558ccdUL;
	z ^= z >> 33;
	z *= 0xc4ceb9fe1a85ec53UL;
	return z ^ z >> 33;
}

// next_random is a generator whose state is a plain counter.
static inline uint64_t next_random(uint64_t *state)
{
	return mix64(*state += 0x9e3779b97f4a7c15UL);
}

static inline uint64_t page_key(uint64_t page, uint64_t gen)
{
	return mix64(mix64(seed + page * 0x9e3779b97f4a7c15UL) + gen) | 1;
}

static inline uint64_t body_word(uint64_t key, uint64_t i)
{
	return i < REPEAT_FROM ? mix64(key + i * 0x9e3779b97f4a7c15UL) : key;
}

// page_write fills p in full; the counter word is left alone.
static inline void page_write(uint64_t *p, uint64_t page, uint64_t gen)
{
	uint64_t key = page_key(page, gen);
	p[0] = page ^ MAGIC;
	p[1] = gen;
	p[3] = key;
	for (uint64_t i = RANDOM_FROM; i < REPEAT_FROM; i++)
		p[i] = body_word(key, i);
	for (uint64_t i = REPEAT_FROM; i < WORDS - 1; i++)
		p[i] = key;
	p[WORDS - 1] = ~key;
}

// page_wrong says how p differs from what it should hold, and dies.
static void __attribute__((noreturn, noinline, unused))
page_wrong(const uint64_t *p, uint64_t page, uint64_t gen, uint64_t word)
{
	uint64_t saw = p[word], zeros = 0, old = 0;
	uint64_t old_key = page_key(page, p[1]);
	for (uint64_t i = 0; i < WORDS; i++)
		zeros += p[i] == 0;
	for (uint64_t i = RANDOM_FROM; i < WORDS - 1; i++)
		old += p[i] == body_word(old_key, i);
	const char *how = "torn or foreign page";
	if (zeros >= WORDS - 1)
		how = "zero page";
	else if (p[1] != gen && p[0] == (page ^ MAGIC) && old == WORDS - 1 - RANDOM_FROM)
		how = "stale page";
	die("%s: page %lu at %p, word %lu: saw %#lx; generation is %lu, want %lu; "
	    "%lu words are zero", how, page, (const void *)p, word, saw, p[1], gen, zeros);
}

// page_check verifies every word of p and returns a checksum of it.
static inline uint64_t page_check(const uint64_t *p, uint64_t page, uint64_t gen)
{
	uint64_t key = page_key(page, gen), bad = 0;
	bad |= (p[0] ^ page ^ MAGIC) | (p[1] ^ gen) | (p[3] ^ key) | (p[WORDS - 1] ^ ~key);
	for (uint64_t i = RANDOM_FROM; i < REPEAT_FROM; i++)
		bad |= p[i] ^ body_word(key, i);
	for (uint64_t i = REPEAT_FROM; i < WORDS - 1; i++)
		bad |= p[i] ^ key;
	if (bad)
		page_wrong(p, page, gen, 0);
	return key;
}

// page_glance verifies some words of p, one in each part: a check cheap
// enough not to be what a benchmark measures.
static inline uint64_t page_glance(const uint64_t *p, uint64_t page, uint64_t gen)
{
	uint64_t key = page_key(page, gen);
	uint64_t bad = (p[0] ^ page ^ MAGIC) | (p[1] ^ gen) | (p[3] ^ key) | (p[WORDS - 1] ^ ~key);
	bad |= (p[100] ^ body_word(key, 100)) | (p[200] ^ body_word(key, 200)) | (p[400] ^ key);
	if (bad)
		page_wrong(p, page, gen, 0);
	return key;
}

static void __attribute__((unused)) range_write(void *base, uint64_t first, uint64_t pages, uint64_t gen)
{
	for (uint64_t i = 0; i < pages; i++)
		page_write((uint64_t *)base + i * WORDS, first + i, gen);
}

static void __attribute__((unused)) range_check(const void *base, uint64_t first, uint64_t pages, uint64_t gen)
{
	for (uint64_t i = 0; i < pages; i++)
		page_check((const uint64_t *)base + i * WORDS, first + i, gen);
}

static int __attribute__((unused)) page_is_zero(const uint64_t *p)
{
	uint64_t any = 0;
	for (uint64_t i = 0; i < WORDS; i++)
		any |= p[i];
	return any == 0;
}

static void __attribute__((unused)) range_check_zero(const void *base, uint64_t pages)
{
	for (uint64_t i = 0; i < pages; i++) {
		const uint64_t *p = (const uint64_t *)base + i * WORDS;
		if (!page_is_zero(p))
			die("page %lu at %p should be zero; words 0 and 1 are %#lx, %#lx",
			    i, (const void *)p, p[0], p[1]);
	}
}

// anon maps private anonymous memory, or dies.
static void __attribute__((unused)) *anon(uint64_t bytes)
{
	void *p = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	MUST(p != MAP_FAILED);
	return p;
}

// The ballast is memory that the program cycles through so that whatever else
// it has becomes cold.
struct ballast {
	uint64_t *base;
	uint64_t pages, gen;
};

#define BALLAST_PAGE (1UL << 40)

static void __attribute__((unused)) ballast_make(struct ballast *b, uint64_t mib)
{
	b->pages = mib * MIB_PAGES;
	b->gen = 1;
	if (b->pages == 0)
		return;
	b->base = anon(b->pages * PAGE);
	range_write(b->base, BALLAST_PAGE, b->pages, b->gen);
}

static void __attribute__((unused)) ballast_free(struct ballast *b)
{
	if (b->pages)
		MUST(munmap(b->base, b->pages * PAGE) == 0);
	b->pages = 0;
}

// ballast_cycle goes over the ballast twice, verifying and rewriting: an
// eviction policy that resists a single scan gives in to the second.
static void __attribute__((unused)) ballast_cycle(struct ballast *b)
{
	for (int pass = 0; pass < 2; pass++) {
		for (uint64_t i = 0; i < b->pages; i++) {
			uint64_t *p = b->base + i * WORDS;
			page_check(p, BALLAST_PAGE + i, b->gen);
			page_write(p, BALLAST_PAGE + i, b->gen + 1);
		}
		b->gen++;
	}
}

static uint64_t __attribute__((unused)) number(const char *text, const char *what)
{
	char *end;
	errno = 0;
	uint64_t v = strtoull(text, &end, 10);
	if (errno || end == text || *end || *text == '-') {
		fprintf(stderr, "%s: %s: not a number: %s\n", program_invocation_short_name, what, text);
		exit(2);
	}
	return v;
}

// A named step of a program.
struct named {
	const char *name;
	void (*run)(void);
};

// run_steps runs the steps named in argv, or all of them, and prints a line
// for each. It returns 2 for a name that is not in the table.
static int __attribute__((unused)) run_steps(const struct named *table, char **argv)
{
	if (!*argv) {
		for (const struct named *s = table; s->name; s++) {
			step = s->name;
			s->run();
			printf("ok %s\n", s->name);
			fflush(stdout);
		}
		return 0;
	}
	for (; *argv; argv++) {
		const struct named *s = table;
		while (s->name && strcmp(s->name, *argv))
			s++;
		if (!s->name) {
			fprintf(stderr, "%s: no step %s\n", program_invocation_short_name, *argv);
			return 2;
		}
		step = s->name;
		s->run();
		printf("ok %s\n", s->name);
		fflush(stdout);
	}
	return 0;
}

// lacking prints that the kernel or the machine has no such thing. It goes to
// stdout on purpose: a run that skips what another run did is a difference.
static void __attribute__((unused)) lacking(const char *what)
{
	printf("lacking %s\n", what);
}

#endif
