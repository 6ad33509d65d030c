// SPDX-License-Identifier: Apache-2.0

// Echoes the lines that it reads from the terminal, as "read: LINE". Counts
// SIGINT, as "interrupted", and SIGCONT, as "continued"; "quit" ends it with
// status 6.
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static void on(int sig)
{
	if (sig == SIGINT)
		write(1, "interrupted\n", 12);
	else
		write(1, "continued\n", 10);
}

int main(void)
{
	signal(SIGINT, on);
	signal(SIGCONT, on);
	write(1, "ready\n", 6);
	char line[256];
	for (;;) {
		ssize_t n = read(0, line, sizeof line);
		if (n <= 0)
			return n < 0 ? errno : 0;
		if (n == 5 && !memcmp(line, "quit\n", 5))
			return 6;
		write(1, "read: ", 6);
		write(1, line, n);
	}
}
