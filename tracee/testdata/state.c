// SPDX-License-Identifier: Apache-2.0

// Prints all that a program inherits and can ask for, but for what names the
// process itself. Two runs that differ in nothing else must print the same.
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

extern char **environ;

int main(int argc, char **argv)
{
	char line[4096], path[64], to[4096];
	int fds = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
	FILE *f = fdopen(fds, "r");
	while (fgets(line, sizeof line, f))
		if (!strncmp(line, "Sig", 3) && line[3] != 'Q' || !strncmp(line, "ShdPnd", 6) || !strncmp(line, "Cap", 3) ||
		    !strncmp(line, "NoNewPrivs", 10) || !strncmp(line, "Seccomp", 7) || !strncmp(line, "Groups", 6) ||
		    !strncmp(line, "Cpus_allowed", 12) || !strncmp(line, "Uid", 3) || !strncmp(line, "Umask", 5))
			fputs(line, stdout);
	fclose(f);
	for (int i = 0; i < argc; i++)
		printf("argv %s\n", argv[i]);
	for (char **e = environ; *e; e++)
		printf("env %s\n", *e);
	for (int fd = 0; fd < 1024; fd++) {
		int fl = fcntl(fd, F_GETFL), cl = fcntl(fd, F_GETFD);
		if (fl < 0)
			continue;
		snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
		ssize_t n = readlink(path, to, sizeof to - 1);
		to[n > 0 ? n : 0] = 0;
		// The number of a pipe differs from run to run.
		printf("fd %d flags %x cloexec %d %.5s\n", fd, fl, cl, to);
	}
	for (int i = 0; i < 16; i++) {
		struct rlimit r;
		getrlimit(i, &r);
		printf("limit %d %lu %lu\n", i, (long)r.rlim_cur, (long)r.rlim_max);
	}
	struct itimerval it;
	getitimer(ITIMER_REAL, &it);
	printf("timer %ld\n", (long)it.it_value.tv_sec);
	int death = -1, reaper = -1;
	prctl(PR_GET_PDEATHSIG, &death);
	prctl(PR_GET_CHILD_SUBREAPER, &reaper);
	printf("group %d session %d nice %d sched %d slack %d death %d reaper %d dumpable %d personality %x\n",
	       getpgrp(), getsid(0), getpriority(PRIO_PROCESS, 0), sched_getscheduler(0),
	       prctl(PR_GET_TIMERSLACK), death, reaper, prctl(PR_GET_DUMPABLE), personality(0xffffffff));
	printf("cwd %s\n", getcwd(to, sizeof to));
	return 0;
}
