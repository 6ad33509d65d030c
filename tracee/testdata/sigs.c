// SPDX-License-Identifier: Apache-2.0

// sigs HOW THREADS: prints "ready PID", then "got N" for each signal that it
// gets, by a handler or by sigwait(3) as HOW says, and ends with SIGTERM.
// Stop signals keep their default action.
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void got(int sig)
{
	char line[16];
	if (write(1, line, sprintf(line, "got %d\n", sig)) < 0 || sig == SIGTERM)
		_exit(0);
}

static void *idle(void *arg)
{
	for (;;)
		pause();
	return arg;
}

int main(int argc, char **argv)
{
	sigset_t all;
	sigfillset(&all);
	sigdelset(&all, SIGTSTP);
	sigdelset(&all, SIGTTIN);
	sigdelset(&all, SIGTTOU);
	// A handler runs in one thread at a time, so that lines stay whole.
	struct sigaction sa = {.sa_handler = got, .sa_mask = all, .sa_flags = SA_RESTART};
	int wait = !strcmp(argv[1], "sigwait");
	for (int sig = 1; sig <= 64 && !wait; sig++)
		if (sigismember(&all, sig) > 0)
			sigaction(sig, &sa, NULL);
	if (wait)
		sigprocmask(SIG_SETMASK, &all, NULL);
	for (int i = atoi(argv[2]); i > 0; i--) {
		pthread_t t;
		pthread_create(&t, NULL, idle, NULL);
	}
	char line[32];
	if (write(1, line, sprintf(line, "ready %d\n", getpid())) < 0)
		return 1;
	for (int sig;;) {
		if (!wait)
			pause();
		else if (sigwait(&all, &sig) == 0)
			got(sig);
	}
}
