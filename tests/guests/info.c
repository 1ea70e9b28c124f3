// Identity, limits and other facts a program asks its kernel for.
#include "guest.h"
#include <sched.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/time.h>
#include <sys/times.h>
#include <sys/utsname.h>

int main(void) {
    section("uname");
    struct utsname u;
    need(uname(&u) == 0, "uname");
    printf("%s %s\n", u.sysname, u.machine);
    CHECK(u.release[0] >= '3' && u.release[0] <= '9');
    CHECK(u.nodename[0] && u.version[0]);

    section("ids");
    CHECK(getpid() >= 1 && getppid() >= 0 && syscall(SYS_gettid) == getpid());
    uid_t r, e, s;
    gid_t gr, ge, gs;
    SHOW(getresuid(&r, &e, &s));
    SHOW(getresgid(&gr, &ge, &gs));
    printf("uid %d %d %d gid %d %d %d\n", r, e, s, gr, ge, gs);
    CHECK(r == getuid() && e == geteuid() && gr == getgid() && ge == getegid());
    CHECK(getgroups(0, NULL) >= 0);
    CHECK(getpgrp() >= 0 && getsid(0) >= 0);

    section("random bytes");
    unsigned char a[64] = {0}, b[64] = {0};
    SHOW(getrandom(a, sizeof a, 0));
    SHOW(getrandom(b, sizeof b, GRND_NONBLOCK));
    CHECK(memcmp(a, b, sizeof a) != 0);
    FAILS(getrandom(a, 1, 0x1000), EINVAL);
    FAILS(getrandom((void *)8, 8, 0), EFAULT);
    static unsigned char large[300000];
    SHOW(getrandom(large, sizeof large, 0));
    int tail = 0;
    for (size_t i = sizeof large - 64; i < sizeof large; i++) tail |= large[i];
    CHECK(tail);

    section("memory and load");
    struct sysinfo si;
    need(sysinfo(&si) == 0, "sysinfo");
    CHECK(si.totalram > 0 && si.freeram <= si.totalram && si.mem_unit >= 1 && si.uptime >= 0 && si.procs >= 1);
    CHECK(sysconf(_SC_NPROCESSORS_ONLN) >= 1);
    CHECK(sysconf(_SC_PAGESIZE) == 4096);

    section("limits");
    struct rlimit rl;
    for (int i = 0; i < RLIM_NLIMITS; i++)
        if (getrlimit(i, &rl) || rl.rlim_cur > rl.rlim_max) printf("FAIL limit %d\n", i);
    FAILS(getrlimit(99, &rl), EINVAL);
    SHOW(getrlimit(RLIMIT_NOFILE, &rl));
    CHECK(rl.rlim_cur >= 256);
    rlim_t max = rl.rlim_max;
    rl.rlim_cur = 128;
    SHOW(setrlimit(RLIMIT_NOFILE, &rl));
    int opened = 0;
    while (opened < 1000 && dup(1) >= 0) opened++;
    FAILS(dup(1), EMFILE);
    SHOW(opened);
    rl.rlim_cur = max;
    SHOW(setrlimit(RLIMIT_NOFILE, &rl));
    rl.rlim_cur = 10;
    rl.rlim_max = 5;
    FAILS(setrlimit(RLIMIT_NOFILE, &rl), EINVAL);
    SHOW(getrlimit(RLIMIT_STACK, &rl));
    CHECK(rl.rlim_cur >= 1 << 20);
    SHOW(prlimit(0, RLIMIT_CORE, NULL, &rl));

    section("scheduling");
    cpu_set_t set;
    CPU_ZERO(&set);
    SHOW(sched_getaffinity(0, sizeof set, &set));
    CHECK(CPU_COUNT(&set) >= 1);
    FAILS(sched_getaffinity(0, 1, &set), EINVAL);
    FAILS(sched_getaffinity(-1, sizeof set, &set), ESRCH);
    FAILS(sched_setaffinity(-1, sizeof set, &set), ESRCH);
    FAILS(sched_getscheduler(-1), EINVAL);
    unsigned cpu = 9999, node = 9999;
    SHOW(syscall(SYS_getcpu, &cpu, &node, NULL));
    CHECK(CPU_ISSET(cpu, &set) && node < 1024);
    CHECK(sched_getcpu() >= 0);
    SHOW(sched_yield());
    SHOW(sched_getscheduler(0));

    section("process settings");
    char name[17] = "";
    SHOW(prctl(PR_SET_NAME, "renamed-by-itself", 0, 0, 0));
    SHOW(prctl(PR_GET_NAME, name, 0, 0, 0));
    printf("<%s>\n", name);
    FAILS(prctl(99999, 0, 0, 0, 0), EINVAL);
    SHOW(prctl(PR_GET_SECUREBITS, 0, 0, 0, 0));
    SHOW(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, 1, 0, 0));
    SHOW(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, 1, 0, 0));
    SHOW(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_LOWER, 1, 0, 0));
    SHOW(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0));
    FAILS(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, 99, 0, 0), EINVAL);
    FAILS(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 1, 0), EINVAL);
    SHOW(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0));
    SHOW(prctl(PR_GET_DUMPABLE, 0, 0, 0, 0));

    section("usage");
    struct rusage ru;
    SHOW(getrusage(RUSAGE_SELF, &ru));
    CHECK(ru.ru_maxrss > 0);
    CHECK(ru.ru_utime.tv_sec >= 0 && ru.ru_utime.tv_usec < 1000000);
    FAILS(getrusage(99, &ru), EINVAL);
    struct tms tms;
    CHECK(times(&tms) > 0);

    section("unknown calls");
    FAILS(syscall(9999), ENOSYS);
    FAILS(syscall(-1), ENOSYS);
    printf("done\n");
    return 0;
}
