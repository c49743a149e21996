/*
 * A program that knows how far an estimate of its heap may be off.
 *
 * The same mixed work, with sizes from 16 bytes to 1 MiB, is done in RUNS runs. Each run has three call sites of its
 * own, functions whose names say which (`site_malloc_03`), so that a profile of the process shows each run for itself.
 * Of the blocks from malloc and calloc some are freed at once, the others are kept; of the kept ones some are
 * reallocated, once or twice, and from then on belong to the site of the reallocation.
 *
 *     sampling DISTANCE
 *
 * DISTANCE is the mean distance between two samples (bytes). Commands, one a line, come in on stdin:
 *
 *     go SEED    do the work and print the books
 *     drain      free every block and print the books
 *
 * The books are lines `SITE ALLOC_OBJECTS ALLOC_BYTES INUSE_OBJECTS INUSE_BYTES`, each followed on the line by the
 * variances that these four have when they are estimated from samples: a block of s bytes that is drawn with the
 * probability p = 1 - e^(-s/DISTANCE) and then stands for 1/p blocks adds (1-p)/p and s^2 (1-p)/p. Then comes `end 0`.
 * Before the first command it prints `ready PID`. At the end of stdin it exits.
 */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))

enum { RUNS = 10, ALLOCATIONS = 24000 };
enum kind { MALLOC, CALLOC, REALLOC, KINDS };

static void fail(const char *what)
{
    fprintf(stderr, "sampling: %s\n", what);
    _exit(1);
}

/* ------------------------------------------------------------------ the call sites */

/* The empty assembly makes the bodies differ, so that no two sites are folded into one. */
#define SITE(kind, number, call)                                            \
    NOINLINE static void *site_##kind##_##number(void *old, size_t size)    \
    {                                                                       \
        (void)old;                                                          \
        void *block = call;                                                 \
        __asm__ volatile("/* " #kind " " #number " */" : "+r"(block));      \
        return block;                                                       \
    }

#define RUN(number)                             \
    SITE(malloc, number, malloc(size))          \
    SITE(calloc, number, calloc(1, size))       \
    SITE(realloc, number, realloc(old, size))

RUN(00) RUN(01) RUN(02) RUN(03) RUN(04) RUN(05) RUN(06) RUN(07) RUN(08) RUN(09)

static const struct site {
    const char *name;
    void *(*call)(void *old, size_t size);
} sites[RUNS][KINDS] = {
#define ENTRY(kind, number) {"site_" #kind "_" #number, site_##kind##_##number}
#define ENTRIES(number) {ENTRY(malloc, number), ENTRY(calloc, number), ENTRY(realloc, number)},
    ENTRIES(00) ENTRIES(01) ENTRIES(02) ENTRIES(03) ENTRIES(04)
    ENTRIES(05) ENTRIES(06) ENTRIES(07) ENTRIES(08) ENTRIES(09)
};

/* ------------------------------------------------------------------ books */

struct block {
    void *address;
    size_t size;
    enum kind kind;
};

struct book {
    double objects, bytes, objects_variance, bytes_variance;
};

static struct block kept[RUNS][ALLOCATIONS];
static size_t kept_count[RUNS];
static struct book allocated[RUNS][KINDS];
static double distance;

static void add(struct book *book, size_t size)
{
    double p = -expm1(-(double)size / distance), spread = (1 - p) / p;
    book->objects += 1;
    book->bytes += (double)size;
    book->objects_variance += spread;
    book->bytes_variance += (double)size * (double)size * spread;
}

static void print_books(void)
{
    for (int run = 0; run < RUNS; run++) {
        struct book live[KINDS] = {0};
        for (size_t i = 0; i < kept_count[run]; i++)
            add(&live[kept[run][i].kind], kept[run][i].size);
        for (int kind = 0; kind < KINDS; kind++) {
            const struct book *all = &allocated[run][kind], *now = &live[kind];
            printf("%s %.0f %.0f %.0f %.0f %.9g %.9g %.9g %.9g\n", sites[run][kind].name, all->objects, all->bytes,
                   now->objects, now->bytes, all->objects_variance, all->bytes_variance, now->objects_variance,
                   now->bytes_variance);
        }
    }
    printf("end 0\n");
}

/* ------------------------------------------------------------------ the work */

static uint64_t random_state;

/* Knuth's MMIX generator: every run does the same. */
static uint64_t random_below(uint64_t bound)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (random_state >> 33) % bound;
}

/* Few of the smallest: they cost an estimate the most of its precision. */
static size_t random_size(void)
{
    uint64_t choice = random_below(100);
    if (choice < 1)
        return 16 + random_below(16);
    if (choice < 7)
        return 32 + random_below(96);
    if (choice < 40)
        return 128 + random_below(896);
    if (choice < 85)
        return 1024 + random_below(7168);
    if (choice < 99)
        return 8192 + random_below(57344);
    return 65536 + random_below((1 << 20) - 65536 + 1);
}

static void *allocate(int run, enum kind kind, void *old, size_t size)
{
    void *block = sites[run][kind].call(old, size);
    if (block == NULL)
        fail("an allocation failed");
    add(&allocated[run][kind], size);
    return block;
}

static void work(int run)
{
    for (int i = 0; i < ALLOCATIONS; i++) {
        enum kind kind = random_below(2) == 0 ? MALLOC : CALLOC;
        size_t size = random_size();
        void *address = allocate(run, kind, NULL, size);
        bool keep = random_below(8) < (size < 1024 ? 4 : 1);
        if (keep)
            kept[run][kept_count[run]++] = (struct block){address, size, kind};
        else
            free(address);
    }
    for (size_t i = 0; i < kept_count[run]; i++) {
        struct block *block = &kept[run][i];
        for (uint64_t times = random_below(3); times > 0; times--) {
            size_t size = random_size() % 16384 + 16;
            block->address = allocate(run, REALLOC, block->address, size);
            block->size = size;
            block->kind = REALLOC;
        }
    }
}

static void drain(void)
{
    for (int run = 0; run < RUNS; run++) {
        for (size_t i = 0; i < kept_count[run]; i++)
            free(kept[run][i].address);
        kept_count[run] = 0;
    }
}

int main(int argc, char **argv)
{
    static char input[4096], output[65536], line[256];
    setvbuf(stdin, input, _IOLBF, sizeof input);
    setvbuf(stdout, output, _IOFBF, sizeof output);
    distance = argc > 1 ? strtod(argv[1], NULL) : 0;
    if (!(distance > 0))
        fail("usage: sampling DISTANCE");
    printf("ready %d\n", (int)getpid());
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) != NULL) {
        unsigned long long seed;
        if (sscanf(line, "go %llu", &seed) == 1) {
            for (int run = 0; run < RUNS; run++) {
                random_state = seed;
                work(run);
            }
        } else if (strcmp(line, "drain\n") == 0) {
            drain();
        } else {
            fail("no such command");
        }
        print_books();
        fflush(stdout);
    }
    return 0;
}
