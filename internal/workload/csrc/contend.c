// SPDX-License-Identifier: Apache-2.0

// contend MIB ROUNDS: writes and reads memory, of which the kernel locks one page
// after the other meanwhile, as it does when it migrates or reclaims: threads say
// again and again that it is cold (MADV_COLD).
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#ifndef MADV_COLD
#define MADV_COLD 20
#endif

static char *memory;
static size_t size;
static volatile int over;

static void *lock(void *arg)
{
	(void)arg;
	while (!over)
		madvise(memory, size, MADV_COLD);
	return NULL;
}

int main(int argc, char **argv)
{
	if (argc != 3) {
		fprintf(stderr, "usage: contend MIB ROUNDS\n");
		return 2;
	}
	size = strtoul(argv[1], NULL, 10) << 20;
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pthread_t t[2];
	if (memory == MAP_FAILED || pthread_create(&t[0], NULL, lock, NULL) || pthread_create(&t[1], NULL, lock, NULL))
		return 1;
	size_t wrong = 0;
	for (int round = 0; round < atoi(argv[2]); round++) {
		for (size_t i = 0; i < size; i += 512) {
			uint64_t *w = (uint64_t *)(memory + i);
			wrong += round && *w != i * 0x9e3779b97f4a7c15u + round - 1;
			*w = i * 0x9e3779b97f4a7c15u + round;
		}
	}
	over = 1;
	for (int i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
	printf("%zu words are wrong\n", wrong);
	return wrong != 0;
}
