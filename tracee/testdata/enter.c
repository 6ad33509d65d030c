// SPDX-License-Identifier: Apache-2.0

// enter IGNORED BLOCKED PROGRAM [ARG...]: runs a program with these signals
// ignored and blocked (commas between), and a few other things changed.
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	if (argc < 4)
		return 125;
	for (char *p = strtok(argv[1], ","); p; p = strtok(NULL, ","))
		signal(atoi(p), SIG_IGN);
	sigset_t set;
	sigemptyset(&set);
	for (char *p = strtok(argv[2], ","); p; p = strtok(NULL, ","))
		sigaddset(&set, atoi(p));
	sigprocmask(SIG_SETMASK, &set, NULL);
	struct rlimit r = {333, 4000};
	setrlimit(RLIMIT_NOFILE, &r);
	r.rlim_cur = 7 << 20, r.rlim_max = 9 << 20;
	setrlimit(RLIMIT_STACK, &r);
	umask(027);
	nice(3);
	dup2(open("/dev/zero", O_RDONLY), 9);
	fcntl(open("/dev/null", O_RDONLY), F_SETFD, FD_CLOEXEC);
	execvp(argv[3], argv + 3);
	perror(argv[3]);
	return 127;
}
