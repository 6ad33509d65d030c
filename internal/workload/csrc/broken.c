// SPDX-License-Identifier: Apache-2.0
//
// broken zero|stale|torn|flip|lost|glance
//
// Breaks a page on purpose, as a faulty pager would, and verifies it: proof
// that the other programs would notice. It aborts where it should and exits
// with 0 where the damage went unseen.

#include "check.h"

int main(int argc, char **argv)
{
	const char *kind = argc == 2 ? argv[1] : "";
	uint64_t *p = anon(4 * PAGE), *page = p + WORDS, old[WORDS];

	step = kind;
	range_write(p, 0, 4, 1);
	memcpy(old, page, PAGE);
	range_write(p, 0, 4, 2);
	if (!strcmp(kind, "zero"))
		MUST(madvise(page, PAGE, MADV_DONTNEED) == 0);
	else if (!strcmp(kind, "stale") || !strcmp(kind, "glance"))
		memcpy(page, old, PAGE);
	else if (!strcmp(kind, "torn"))
		memcpy(page + WORDS / 2, old + WORDS / 2, PAGE / 2);
	else if (!strcmp(kind, "flip"))
		page[137] ^= 1UL << 40;
	else if (!strcmp(kind, "lost"))
		memcpy(page, p, PAGE); // another page's contents
	else
		return 2;
	if (!strcmp(kind, "glance"))
		page_glance(page, 1, 2);
	else
		range_check(p, 0, 4, 2);
	return 0;
}
