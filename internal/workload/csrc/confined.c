// SPDX-License-Identifier: Apache-2.0

// confined HOW MIB: a program that takes rights from itself before it fills its
// memory, as servers and sandboxes do.
//
// HOW is
//   uid      another user, without any capability
//   root     another user below another root, an empty one
//   userns   a user namespace of its own
//   refuse   a seccomp filter that refuses all but a few calls
//   kill     a seccomp filter that kills for all but a few calls
//   mdwe     memory that was writable never becomes executable
#define _GNU_SOURCE
#include <errno.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef PR_SET_MDWE // since Linux 6.3
#define PR_SET_MDWE 65
#define PR_MDWE_REFUSE_EXEC_GAIN 1
#endif

enum { NOBODY = 65534, PAGE = 4096 };

static void need(int ok, const char *what)
{
	if (!ok) {
		perror(what);
		exit(1);
	}
}

static void other_user(void)
{
	need(setgroups(0, NULL) == 0, "setgroups");
	need(setresgid(NOBODY, NOBODY, NOBODY) == 0, "setresgid");
	need(setresuid(NOBODY, NOBODY, NOBODY) == 0, "setresuid");
}

static void other_root(void)
{
	char dir[] = "/tmp/confined-XXXXXX";
	need(mkdtemp(dir) != NULL, dir);
	need(chdir(dir) == 0 && rmdir(dir) == 0 && chroot(".") == 0, "chroot");
	other_user();
}

// filter lets through what the rest of this program needs.
static void filter(uint32_t otherwise)
{
	static const int allowed[] = { SYS_mmap, SYS_munmap, SYS_brk, SYS_write, SYS_exit_group, SYS_fstat, SYS_newfstatat, SYS_getrandom };
	enum { N = sizeof allowed / sizeof *allowed };
	struct sock_filter prog[N * 2 + 2] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
	};
	for (int i = 0; i < N; i++) {
		prog[2 * i + 1] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[i], 0, 1);
		prog[2 * i + 2] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	}
	prog[2 * N + 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, otherwise);
	struct sock_fprog p = { 2 * N + 2, prog };
	need(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "no_new_privs");
	need(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &p) == 0, "seccomp");
}

int main(int argc, char **argv)
{
	if (argc != 3) {
		fprintf(stderr, "usage: confined HOW MIB\n");
		return 2;
	}
	const char *how = argv[1];
	size_t words = strtoul(argv[2], NULL, 10) << 17;
	if (!strcmp(how, "uid"))
		other_user();
	else if (!strcmp(how, "root"))
		other_root();
	else if (!strcmp(how, "userns"))
		need(unshare(CLONE_NEWUSER) == 0, "unshare");
	else if (!strcmp(how, "refuse"))
		filter(SECCOMP_RET_ERRNO | EPERM);
	else if (!strcmp(how, "kill"))
		filter(SECCOMP_RET_KILL_PROCESS);
	else if (!strcmp(how, "mdwe"))
		need(prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0) == 0, "prctl(PR_SET_MDWE)");
	else
		return 2;
	uint64_t *m = mmap(NULL, words * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	need(m != MAP_FAILED, "mmap");
	for (size_t i = 0; i < words; i++)
		m[i] = i * 0x9e3779b97f4a7c15u;
	size_t wrong = 0;
	for (int round = 0; round < 3; round++)
		for (size_t i = 0; i < words; i += 64)
			wrong += m[i] != i * 0x9e3779b97f4a7c15u;
	printf("%s: %zu of %zu words are wrong\n", how, wrong, words);
	return wrong != 0;
}
