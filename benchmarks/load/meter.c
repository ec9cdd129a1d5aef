/* Clocks, /proc, and durations that are kept as a histogram. */
#define _GNU_SOURCE
#include "load.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static double seconds_of(clockid_t clock) {
    struct timespec t;
    return clock_gettime(clock, &t) ? 0 : (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

double now(void) {
    return seconds_of(CLOCK_MONOTONIC);
}

/* Each power of two has 64 buckets; below 128 ns there is one for each nanosecond. */
void note(struct histogram *h, double seconds) {
    uint64_t ns = seconds > 0 ? (uint64_t)(seconds * 1e9) : 0;
    int power = ns < 128 ? 6 : 63 - __builtin_clzll(ns);
    size_t index = ns < 128 ? ns : (size_t)(power - 6) * 64 + (ns >> (power - 6));
    h->count[index < BUCKETS ? index : BUCKETS - 1]++;
    h->total++;
}

double quantile(const struct histogram *h, double share) {
    long wanted = (long)(share * (double)(h->total - 1)) + 1, seen = 0;
    for (size_t i = 0; h->total && i < BUCKETS; i++)
        if ((seen += h->count[i]) >= wanted)
            return (i < 128 ? (double)i : (double)((i % 64 + 64) << (i / 64 - 1))) / 1e6;
    return 0;
}

/* Hands each process of the list "1,2,3" to `take`, and adds up. */
static double sum(const char *pids, double (*take)(pid_t)) {
    double all = 0;
    for (const char *p = pids; p && *p; p += strcspn(p, ","), p += *p == ',')
        all += take((pid_t)atoi(p));
    return all;
}

static double cpu_of(pid_t pid) {
    clockid_t clock; /* finer than the ticks of 10 ms in /proc/PID/stat, and with all threads */
    return clock_getcpuclockid(pid, &clock) ? 0 : seconds_of(clock);
}

static double rss_of(pid_t pid) {
    char path[64];
    long pages = 0;
    snprintf(path, sizeof path, "/proc/%d/statm", (int)pid);
    FILE *f = fopen(path, "r");
    if (!f)
        return 0;
    if (fscanf(f, "%*d %ld", &pages) != 1)
        pages = 0;
    fclose(f);
    return (double)pages * (double)sysconf(_SC_PAGESIZE) / 1024;
}

double server_cpu(const char *pids) {
    return sum(pids, cpu_of);
}

long server_rss(const char *pids) {
    return (long)sum(pids, rss_of);
}

double own_cpu(void) {
    return seconds_of(CLOCK_PROCESS_CPUTIME_ID);
}
