/*
 * The program that `cargo xtask bench` traces: malloc and free in a loop, 16 frames deep.
 *
 *     cc -O2 -g -fomit-frame-pointer -fno-optimize-sibling-calls -pthread pair.c -o pair
 *
 * It reads commands on stdin and answers each with one line on stdout:
 *
 *   run MS    malloc+free pairs of 64 to 127 bytes for MS milliseconds
 *             -> run PAIRS WALL_NANOSECONDS CPU_NANOSECONDS (of this thread)
 *   threads N MS
 *             the same in each of N threads at once
 *             -> threads PAIRS WALL_NANOSECONDS CPU_NANOSECONDS (of all of them)
 *   hold N    allocate N blocks of 64 to 127 bytes from 64 call paths, and keep them
 *             -> hold N
 *
 * At the end of stdin it exits.
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define NOINLINE __attribute__((noinline, noclone))

enum { PAIRS_PER_CLOCK_CHECK = 256, MAX_THREADS = 256 };

static uint64_t now(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* 64 to 127, from a linear congruential generator (Knuth, MMIX). */
static __thread uint64_t random_state = 1;
static size_t block_size(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return 64 + (random_state >> 58);
}

struct result {
    uint64_t pairs, wall, cpu;
};

/* The innermost frame: main is the 16th above it, itself included. */
NOINLINE static void pairs(uint64_t milliseconds, struct result *result)
{
    uint64_t wall = now(CLOCK_MONOTONIC), cpu = now(CLOCK_THREAD_CPUTIME_ID);
    uint64_t end = wall + milliseconds * 1000000u, n = 0, t;
    do {
        for (int i = 0; i < PAIRS_PER_CLOCK_CHECK; i++) {
            char *volatile block = malloc(block_size());
            free(block);
        }
        n += PAIRS_PER_CLOCK_CHECK;
        t = now(CLOCK_MONOTONIC);
    } while (t < end);
    *result = (struct result){ n, t - wall, now(CLOCK_THREAD_CPUTIME_ID) - cpu };
}

/* A frame that its caller cannot leave out: it has work to do after the call. */
#define FRAME(name, inner) \
    NOINLINE static void name(uint64_t milliseconds, struct result *result) \
    { \
        inner(milliseconds, result); \
        __asm__ volatile("" ::: "memory"); \
    }
FRAME(frame_2, pairs)
FRAME(frame_3, frame_2)
FRAME(frame_4, frame_3)
FRAME(frame_5, frame_4)
FRAME(frame_6, frame_5)
FRAME(frame_7, frame_6)
FRAME(frame_8, frame_7)
FRAME(frame_9, frame_8)
FRAME(frame_10, frame_9)
FRAME(frame_11, frame_10)
FRAME(frame_12, frame_11)
FRAME(frame_13, frame_12)
FRAME(frame_14, frame_13)
FRAME(frame_15, frame_14)

struct worker {
    pthread_t thread;
    pthread_barrier_t *start;
    uint64_t milliseconds;
    struct result result;
};

static void *worker_main(void *argument)
{
    struct worker *self = argument;
    pthread_barrier_wait(self->start);
    frame_15(self->milliseconds, &self->result);
    return NULL;
}

/* The sums over all threads; the time that passed is that from when all had begun until the last had ended. */
static struct result run_threads(unsigned count, uint64_t milliseconds)
{
    static struct worker workers[MAX_THREADS];
    pthread_barrier_t start;
    struct result sum = { 0 };
    if (count > MAX_THREADS || pthread_barrier_init(&start, NULL, count + 1) != 0)
        abort();
    for (unsigned i = 0; i < count; i++) {
        workers[i] = (struct worker){ .start = &start, .milliseconds = milliseconds };
        if (pthread_create(&workers[i].thread, NULL, worker_main, &workers[i]) != 0)
            abort();
    }
    pthread_barrier_wait(&start);
    uint64_t begin = now(CLOCK_MONOTONIC);
    for (unsigned i = 0; i < count; i++) {
        pthread_join(workers[i].thread, NULL);
        sum.pairs += workers[i].result.pairs;
        sum.cpu += workers[i].result.cpu;
    }
    sum.wall = now(CLOCK_MONOTONIC) - begin;
    pthread_barrier_destroy(&start);
    return sum;
}

static void **held;

NOINLINE static void keep_one(void)
{
    void **block = malloc(block_size());
    if (block == NULL)
        abort();
    *block = held;
    held = block;
}

static void keep(uint64_t path, unsigned levels);

NOINLINE static void keep_even(uint64_t path, unsigned levels)
{
    keep(path, levels);
    __asm__ volatile("# even" ::: "memory");
}

NOINLINE static void keep_odd(uint64_t path, unsigned levels)
{
    keep(path, levels);
    __asm__ volatile("# odd" ::: "memory");
}

/* Each bit of `path` chooses one of two callers: `levels` bits make 2 ^ levels paths to the one malloc. */
NOINLINE static void keep(uint64_t path, unsigned levels)
{
    if (levels == 0)
        keep_one();
    else if (path & 1)
        keep_odd(path >> 1, levels - 1);
    else
        keep_even(path >> 1, levels - 1);
    __asm__ volatile("# kept" ::: "memory");
}

int main(void)
{
    char line[64];
    uint64_t n, threads;
    setvbuf(stdout, NULL, _IOLBF, 0);
    while (fgets(line, sizeof line, stdin) != NULL) {
        if (sscanf(line, "run %" SCNu64, &n) == 1) {
            struct result r;
            frame_15(n, &r);
            printf("run %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", r.pairs, r.wall, r.cpu);
        } else if (sscanf(line, "threads %" SCNu64 " %" SCNu64, &threads, &n) == 2) {
            struct result r = run_threads((unsigned)threads, n);
            printf("threads %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", r.pairs, r.wall, r.cpu);
        } else if (sscanf(line, "hold %" SCNu64, &n) == 1) {
            for (uint64_t i = 0; i < n; i++)
                keep(i, 6);
            printf("hold %" PRIu64 "\n", n);
        }
    }
    return 0;
}
