/*
 * The vDSO: clock functions that answer from a data page and the TSC, without leaving the guest.
 * Interface: vdso(7), clock_gettime(2), gettimeofday(2), time(2), getcpu(2).
 * The constants KVMLET_* are generated from the Rust side, which owns the layout.
 */
#include <stddef.h>
#include <stdint.h>

#include "vdso_layout.h"

struct timestamp {
	int64_t sec;
	uint64_t nsec;
};

struct vdso_data {
	uint32_t seq;
	uint32_t mode;
	uint64_t tsc_base;
	uint64_t mult;
	uint64_t mult_raw;
	struct timestamp base[KVMLET_CLOCK_SLOTS];
	uint32_t coarse_res_ns;
	uint32_t hres_ns;
	int32_t tz_minuteswest;
	int32_t tz_dsttime;
	uint32_t cpu;
	uint32_t node;
	uint64_t generation;
};

#define SAME_OFFSET(field) \
	_Static_assert(offsetof(struct vdso_data, field) == KVMLET_OFF_##field, #field)
SAME_OFFSET(seq);
SAME_OFFSET(mode);
SAME_OFFSET(tsc_base);
SAME_OFFSET(mult);
SAME_OFFSET(mult_raw);
SAME_OFFSET(base);
SAME_OFFSET(coarse_res_ns);
SAME_OFFSET(hres_ns);
SAME_OFFSET(tz_minuteswest);
SAME_OFFSET(tz_dsttime);
SAME_OFFSET(cpu);
SAME_OFFSET(node);
SAME_OFFSET(generation);
_Static_assert(sizeof(struct vdso_data) == KVMLET_SIZEOF_DATA, "size");
_Static_assert(sizeof(struct timestamp) == KVMLET_SIZEOF_TIMESTAMP, "timestamp");

/* struct timespec, timeval and timezone of the x86-64 ABI. */
struct kernel_timespec {
	int64_t tv_sec;
	int64_t tv_nsec;
};
struct kernel_timeval {
	int64_t tv_sec;
	int64_t tv_usec;
};
struct kernel_timezone {
	int32_t tz_minuteswest;
	int32_t tz_dsttime;
};

enum {
	SYS_gettimeofday = 96,
	SYS_time = 201,
	SYS_clock_gettime = 228,
	SYS_clock_getres = 229,
};

#define NS_PER_SEC 1000000000ULL
#define BIT(clock) (1U << (clock))
#define HRES_CLOCKS                                                      \
	(BIT(KVMLET_CLOCK_REALTIME) | BIT(KVMLET_CLOCK_MONOTONIC) |      \
	 BIT(KVMLET_CLOCK_BOOTTIME) | BIT(KVMLET_CLOCK_TAI))
#define COARSE_CLOCKS \
	(BIT(KVMLET_CLOCK_REALTIME_COARSE) | BIT(KVMLET_CLOCK_MONOTONIC_COARSE))
#define RAW_CLOCKS BIT(KVMLET_CLOCK_MONOTONIC_RAW)

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define inline_always static inline __attribute__((always_inline))
#define PUBLIC __attribute__((visibility("default")))

/*
 * One page before the image; placed by the linker script. Not const, although only the host writes
 * it: the compiler may keep what it read of a const object across a barrier.
 */
extern struct vdso_data vvar_page __attribute__((visibility("hidden")));

inline_always uint32_t load_once(const uint32_t *p)
{
	return *(const volatile uint32_t *)p;
}

/* x86 keeps loads in order, so that only the compiler must be held back. */
inline_always void read_barrier(void)
{
	__asm__ volatile("" ::: "memory");
}

inline_always long syscall2(long number, long a, long b)
{
	long ret;
	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "0"(number), "D"(a), "S"(b)
			 : "rcx", "r11", "memory");
	return ret;
}

/* lfence keeps the TSC read from moving before earlier loads: it must not be older than the data. */
inline_always uint64_t rdtsc_ordered(void)
{
	uint32_t low, high;
	__asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high)::"memory");
	return (uint64_t)high << 32 | low;
}

inline_always uint32_t begin_read(const struct vdso_data *vd)
{
	uint32_t seq;
	while (unlikely((seq = load_once(&vd->seq)) & 1))
		__builtin_ia32_pause();
	read_barrier();
	return seq;
}

inline_always int must_retry(const struct vdso_data *vd, uint32_t seq)
{
	read_barrier();
	return unlikely(load_once(&vd->seq) != seq);
}

/* A TSC behind the base (another CPU's) reads as the base: time never runs backwards. */
inline_always uint64_t elapsed_ns(const struct vdso_data *vd, uint64_t mult)
{
	uint64_t tsc = rdtsc_ordered();
	uint64_t base = vd->tsc_base;
	uint64_t ticks = likely(tsc > base) ? tsc - base : 0;
	return (uint64_t)(((unsigned __int128)ticks * mult) >> KVMLET_SHIFT);
}

/* Returns 0 when the page sends the caller to the system call. */
inline_always int read_hres(const struct vdso_data *vd, uint32_t clock, int is_raw,
			    struct timestamp *out)
{
	uint32_t seq;
	uint64_t nsec;
	int64_t sec;

	do {
		seq = begin_read(vd);
		if (unlikely(vd->mode != KVMLET_MODE_TSC))
			return 0;
		nsec = elapsed_ns(vd, is_raw ? vd->mult_raw : vd->mult);
		nsec += vd->base[clock].nsec;
		sec = vd->base[clock].sec;
	} while (must_retry(vd, seq));

	/* A base is at most 100 ms old as a rule: avoid the division when it would give 0. */
	if (unlikely(nsec >= NS_PER_SEC)) {
		sec += (int64_t)(nsec / NS_PER_SEC);
		nsec %= NS_PER_SEC;
	}
	out->sec = sec;
	out->nsec = nsec;
	return 1;
}

/* The time of the last tick; ticks are counted on CLOCK_MONOTONIC. */
inline_always int read_coarse(const struct vdso_data *vd, uint32_t clock, struct timestamp *out)
{
	uint32_t source = clock == KVMLET_CLOCK_REALTIME_COARSE ? KVMLET_CLOCK_REALTIME
								: KVMLET_CLOCK_MONOTONIC;
	uint32_t seq, res_ns;
	uint64_t ns, mono_ns;
	int64_t sec;

	do {
		seq = begin_read(vd);
		res_ns = vd->coarse_res_ns;
		if (unlikely(vd->mode != KVMLET_MODE_TSC || res_ns == 0))
			return 0;
		ns = elapsed_ns(vd, vd->mult);
		mono_ns = (uint64_t)vd->base[KVMLET_CLOCK_MONOTONIC].sec * NS_PER_SEC +
			  vd->base[KVMLET_CLOCK_MONOTONIC].nsec + ns;
		ns += vd->base[source].nsec;
		sec = vd->base[source].sec;
	} while (must_retry(vd, seq));

	/* One second is lent so that going back to the tick cannot go below zero. */
	ns += NS_PER_SEC - mono_ns % res_ns;
	out->sec = sec - 1 + (int64_t)(ns / NS_PER_SEC);
	out->nsec = ns % NS_PER_SEC;
	return 1;
}

PUBLIC int __vdso_clock_gettime(int32_t clock, struct kernel_timespec *ts)
{
	const struct vdso_data *vd = &vvar_page;
	struct timestamp now;
	int answered = 0;

	if (likely((uint32_t)clock < KVMLET_CLOCK_SLOTS)) {
		uint32_t bit = BIT((uint32_t)clock);
		if (likely(bit & HRES_CLOCKS))
			answered = read_hres(vd, (uint32_t)clock, 0, &now);
		else if (bit & RAW_CLOCKS)
			answered = read_hres(vd, KVMLET_CLOCK_MONOTONIC_RAW, 1, &now);
		else if (bit & COARSE_CLOCKS)
			answered = read_coarse(vd, (uint32_t)clock, &now);
	}
	if (unlikely(!answered))
		return (int)syscall2(SYS_clock_gettime, clock, (long)ts);
	ts->tv_sec = now.sec;
	ts->tv_nsec = (int64_t)now.nsec;
	return 0;
}

PUBLIC int __vdso_gettimeofday(struct kernel_timeval *tv, struct kernel_timezone *tz)
{
	const struct vdso_data *vd = &vvar_page;
	struct timestamp now;

	if (likely(tv != NULL)) {
		if (unlikely(!read_hres(vd, KVMLET_CLOCK_REALTIME, 0, &now)))
			return (int)syscall2(SYS_gettimeofday, (long)tv, (long)tz);
		tv->tv_sec = now.sec;
		tv->tv_usec = (int64_t)((uint32_t)now.nsec / 1000);
	}
	if (unlikely(tz != NULL)) {
		tz->tz_minuteswest = vd->tz_minuteswest;
		tz->tz_dsttime = vd->tz_dsttime;
	}
	return 0;
}

/* Linux differs: its time() may lag clock_gettime() by up to a tick. */
PUBLIC int64_t __vdso_time(int64_t *t)
{
	struct timestamp now;

	if (unlikely(!read_hres(&vvar_page, KVMLET_CLOCK_REALTIME, 0, &now)))
		return syscall2(SYS_time, (long)t, 0);
	if (t)
		*t = now.sec;
	return now.sec;
}

PUBLIC int __vdso_clock_getres(int32_t clock, struct kernel_timespec *res)
{
	const struct vdso_data *vd = &vvar_page;
	uint32_t bit = (uint32_t)clock < KVMLET_CLOCK_SLOTS ? BIT((uint32_t)clock) : 0;
	uint32_t ns;

	if (unlikely(load_once(&vd->mode) != KVMLET_MODE_TSC))
		bit = 0;
	if (bit & (HRES_CLOCKS | RAW_CLOCKS))
		ns = vd->hres_ns;
	else if (bit & COARSE_CLOCKS)
		ns = vd->coarse_res_ns;
	else
		return (int)syscall2(SYS_clock_getres, clock, (long)res);
	if (res) {
		res->tv_sec = 0;
		res->tv_nsec = ns;
	}
	return 0;
}

PUBLIC long __vdso_getcpu(uint32_t *cpu, uint32_t *node, void *unused)
{
	(void)unused;
	if (cpu)
		*cpu = vvar_page.cpu;
	if (node)
		*node = vvar_page.node;
	return 0;
}

/* The plain names, weak, as Linux exports them. */
#define WEAK_ALIAS(name) \
	extern __typeof__(__vdso_##name) name \
		__attribute__((weak, alias("__vdso_" #name), visibility("default")))
WEAK_ALIAS(clock_gettime);
WEAK_ALIAS(gettimeofday);
WEAK_ALIAS(time);
WEAK_ALIAS(clock_getres);
WEAK_ALIAS(getcpu);
