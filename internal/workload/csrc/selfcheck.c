// SPDX-License-Identifier: Apache-2.0
//
// selfcheck MIB SEED
//
// Verifies and rewrites MIB of memory for ever, a line "ok N" after each pass.
// It is made to be killed: a program whose pager has died must never compute
// on zeros or old pages, and this one exits with status 99 and says so on
// stderr as soon as it sees one.

#define DIE_STATUS 99
#include "check.h"

int main(int argc, char **argv)
{
	if (argc != 3) {
		fprintf(stderr, "usage: selfcheck MIB SEED\n");
		return 2;
	}
	uint64_t pages = number(argv[1], "MIB") * MIB_PAGES;
	seed = number(argv[2], "SEED");
	uint64_t *p = anon(pages * PAGE);
	range_write(p, 0, pages, 1);
	for (uint64_t gen = 1;; gen++) {
		char line[32];
		step = gen % 2 ? "forward" : "scattered";
		for (uint64_t i = 0; i < pages; i++) {
			// 509 is prime, so that this visits every page once.
			uint64_t page = gen % 2 || pages % 509 == 0 ? i : i * 509 % pages;
			page_check(p + page * WORDS, page, gen);
			page_write(p + page * WORDS, page, gen + 1);
		}
		// One write for a line, so that a kill cannot cut it in two.
		int n = snprintf(line, sizeof line, "ok %lu\n", gen);
		MUST(write(1, line, n) == n);
	}
}
