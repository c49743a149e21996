/*
 * A program that knows its own heap: the reference that a profile is compared with, site by site.
 *
 * Threads allocate, reallocate and free at random through every allocation function of glibc, from
 * 80 call sites. Each site is a function of its own whose name says which (`site_calloc_03`), and
 * has books: objects and bytes allocated, objects and bytes live. A byte counts as requested, not
 * as rounded. A block that is reallocated moves to the books of the reallocating site; when the
 * call fails it stays where it was. Nothing here keeps its books in memory from malloc.
 *
 *     ground_truth THREADS SLOTS
 *
 * SLOTS bounds the blocks that a thread holds. Commands, one a line, come in on stdin:
 *
 *     go OPS SEED    do about OPS operations, then park all threads and print the books
 *     start SEED     work until `stop`; answers `started`
 *     count          answers `count OPERATIONS`
 *     stop           park all threads and print the books
 *     drain          free every block, print the books
 *     exit           end
 *
 * The books are lines `SITE ALLOC_OBJECTS ALLOC_BYTES INUSE_OBJECTS INUSE_BYTES`, then `end OPERATIONS`.
 * Before the first command it prints `ready PID`. At that time each thread already holds blocks
 * that no site accounts for; they are freed and reallocated along the way like all others.
 *
 * Built with -DWITHOUT_PVALLOC it has no sites for pvalloc, which not every allocator has; with
 * -DWITHOUT_STRNDUP none for strndup, whose stack ends in a C library without unwind tables; with
 * -DALLOCATOR_PREFIX=my_ it allocates with my_malloc and so on, of private_allocator.h.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "rounds.h"

#ifdef ALLOCATOR_PREFIX
#include "private_allocator.h"
#endif

#define NOINLINE __attribute__((noinline, noclone))
#define ARRAY_LENGTH(array) (sizeof(array) / sizeof((array)[0]))

enum {
    MAX_THREADS = 16,
    MAX_SLOTS = 1 << 17,
    INBOX_SLOTS = 256,
    PRIOR_BLOCKS = 64,
    SITES_MAX = 96,
    NO_SITE = 0xffff,
    VISITOR_EVERY = 8192,
    VISITOR_BLOCKS = 3,
    TEXT_BYTES = 400,
};

static void fail(const char *what)
{
    fprintf(stderr, "ground_truth: %s\n", what);
    _exit(1);
}

/* ------------------------------------------------------------------ the call sites */

struct request {
    size_t size;      /* what the books say: for calloc and reallocarray, count * unit */
    size_t count;     /* calloc, reallocarray */
    size_t unit;      /* calloc, reallocarray */
    size_t alignment; /* posix_memalign, aligned_alloc, memalign */
    void *old;        /* realloc, reallocarray */
};

/* What posix_memalign must leave alone when it fails. */
#define UNTOUCHED ((void *)0x5a5a5a5a5a5a5a5a)

/* A text of TEXT_BYTES characters for strndup to copy a part of. */
static char text[TEXT_BYTES + 1];

/*
 * The empty assembly makes the bodies differ, so that no two sites are folded into one, and keeps
 * the call from being the last thing that the function does.
 */
#define SITE(kind, number, call)                                            \
    NOINLINE static void *site_##kind##_##number(const struct request *r)   \
    {                                                                       \
        void *block = call;                                                 \
        __asm__ volatile("/* " #kind " " #number " */" : "+r"(block));      \
        return block;                                                       \
    }

#define EIGHT_SITES(kind, call)                                                                 \
    SITE(kind, 00, call) SITE(kind, 01, call) SITE(kind, 02, call) SITE(kind, 03, call)         \
    SITE(kind, 04, call) SITE(kind, 05, call) SITE(kind, 06, call) SITE(kind, 07, call)

EIGHT_SITES(malloc, malloc(r->size))
EIGHT_SITES(calloc, calloc(r->count, r->unit))
EIGHT_SITES(realloc, realloc(r->old, r->size))
EIGHT_SITES(reallocarray, reallocarray(r->old, r->count, r->unit))
EIGHT_SITES(aligned_alloc, aligned_alloc(r->alignment, r->size))
EIGHT_SITES(memalign, memalign(r->alignment, r->size))
EIGHT_SITES(valloc, valloc(r->size))
#ifndef WITHOUT_PVALLOC
EIGHT_SITES(pvalloc, pvalloc(r->size))
#endif
#ifndef WITHOUT_STRNDUP
EIGHT_SITES(strndup, strndup(text, r->size - 1))
#endif

#define POSIX_SITE(number)                                                          \
    NOINLINE static void *site_posix_memalign_##number(const struct request *r)     \
    {                                                                               \
        void *block = UNTOUCHED;                                                    \
        int error = posix_memalign(&block, r->alignment, r->size);                  \
        __asm__ volatile("/* posix_memalign " #number " */" : "+r"(error));         \
        if (error == 0)                                                             \
            return block;                                                           \
        if (block != UNTOUCHED)                                                     \
            fail("posix_memalign failed and changed its result");                   \
        return NULL;                                                                \
    }

POSIX_SITE(00) POSIX_SITE(01) POSIX_SITE(02) POSIX_SITE(03)
POSIX_SITE(04) POSIX_SITE(05) POSIX_SITE(06) POSIX_SITE(07)

enum kind { MALLOC, CALLOC, REALLOC, REALLOCARRAY, POSIX_MEMALIGN, ALIGNED_ALLOC, MEMALIGN, VALLOC, PVALLOC, STRNDUP };

static const struct site {
    const char *name;
    enum kind kind;
    void *(*call)(const struct request *);
} sites[] = {
#define ENTRY(KIND, kind, number) {"site_" #kind "_" #number, KIND, site_##kind##_##number},
#define EIGHT_ENTRIES(KIND, kind)                                                                       \
    ENTRY(KIND, kind, 00) ENTRY(KIND, kind, 01) ENTRY(KIND, kind, 02) ENTRY(KIND, kind, 03)             \
    ENTRY(KIND, kind, 04) ENTRY(KIND, kind, 05) ENTRY(KIND, kind, 06) ENTRY(KIND, kind, 07)
    EIGHT_ENTRIES(MALLOC, malloc)
    EIGHT_ENTRIES(CALLOC, calloc)
    EIGHT_ENTRIES(REALLOC, realloc)
    EIGHT_ENTRIES(REALLOCARRAY, reallocarray)
    EIGHT_ENTRIES(POSIX_MEMALIGN, posix_memalign)
    EIGHT_ENTRIES(ALIGNED_ALLOC, aligned_alloc)
    EIGHT_ENTRIES(MEMALIGN, memalign)
    EIGHT_ENTRIES(VALLOC, valloc)
#ifndef WITHOUT_PVALLOC
    EIGHT_ENTRIES(PVALLOC, pvalloc)
#endif
#ifndef WITHOUT_STRNDUP
    EIGHT_ENTRIES(STRNDUP, strndup)
#endif
};

_Static_assert(ARRAY_LENGTH(sites) <= SITES_MAX, "room in the books for every site");

/* ------------------------------------------------------------------ books and threads */

struct block {
    void *address; /* NULL: an empty slot */
    size_t size;
    unsigned site; /* NO_SITE: allocated before the first command */
};

struct book {
    uint64_t alloc_objects, alloc_bytes;
    /* A thread's share: negative in one that frees what others allocate. */
    int64_t inuse_objects, inuse_bytes;
};

struct worker {
    pthread_t thread;
    uint64_t random;
    _Atomic uint64_t operations;
    struct book books[SITES_MAX];
    struct block slots[MAX_SLOTS];
    pthread_mutex_t inbox_lock;
    struct block inbox[INBOX_SLOTS];
    size_t inbox_length;
};

static struct worker workers[MAX_THREADS];
static size_t slot_count;

static uint64_t random_below(struct worker *self, uint64_t bound)
{
    return (next_random(&self->random) >> 16) % bound;
}

static void book_allocated(struct worker *self, unsigned site, size_t size)
{
    struct book *book = &self->books[site];
    book->alloc_objects++;
    book->alloc_bytes += size;
    book->inuse_objects++;
    book->inuse_bytes += (int64_t)size;
}

static void book_released(struct worker *self, const struct block *block)
{
    if (block->site == NO_SITE)
        return;
    struct book *book = &self->books[block->site];
    book->inuse_objects--;
    book->inuse_bytes -= (int64_t)block->size;
}

/* ------------------------------------------------------------------ requests */

static size_t random_size(struct worker *self)
{
    uint64_t choice = random_below(self, 1024);
    if (choice < 24)
        return 0;
    if (choice < 800)
        return 1 + random_below(self, 512);
    if (choice < 1020)
        return 1 + random_below(self, 8192);
    /* Above M_MMAP_THRESHOLD: a mapping of its own, which realloc moves with mremap. */
    return 128 * 1024 + random_below(self, 128 * 1024);
}

/* A size that no allocator can serve: refused by a check, or only by mmap. */
static size_t impossible_size(struct worker *self)
{
    static const size_t sizes[] = {SIZE_MAX, SIZE_MAX - 4096, (size_t)PTRDIFF_MAX + 1, PTRDIFF_MAX, (size_t)1 << 50};
    return sizes[random_below(self, ARRAY_LENGTH(sizes))];
}

static struct request random_request(struct worker *self, enum kind kind, void *old)
{
    static const size_t counts[] = {0, 1, 2, 3, 7, 16};
    struct request r = {.old = old, .size = random_size(self)};
    r.alignment = (size_t)8 << random_below(self, 10);
    switch (kind) {
    case CALLOC:
    case REALLOCARRAY:
        r.count = counts[random_below(self, ARRAY_LENGTH(counts))];
        r.unit = random_size(self) / 4;
        r.size = r.count * r.unit;
        break;
    case STRNDUP:
        r.size = 1 + random_below(self, TEXT_BYTES);
        break;
    default:
        break;
    }
    return r;
}

static struct request failing_request(struct worker *self, enum kind kind, void *old)
{
    struct request r = random_request(self, kind, old);
    r.size = impossible_size(self);
    r.count = 8;
    r.unit = impossible_size(self);
    if (kind == POSIX_MEMALIGN && random_below(self, 2) == 0) {
        r.size = 64;
        r.alignment = 24; /* no power of two: EINVAL */
    }
    return r;
}

/* ------------------------------------------------------------------ one operation */

static unsigned random_site(struct worker *self, bool reallocating)
{
    for (;;) {
        unsigned site = (unsigned)random_below(self, ARRAY_LENGTH(sites));
        bool reallocates = sites[site].kind == REALLOC || sites[site].kind == REALLOCARRAY;
        if (reallocates || !reallocating)
            return site;
    }
}

static void allocate(struct worker *self, struct block *slot)
{
    unsigned site = random_site(self, false);
    struct request r = random_request(self, sites[site].kind, NULL);
    void *address = sites[site].call(&r);
    if (address == NULL)
        fail("an allocation failed");
    *slot = (struct block){address, r.size, site};
    book_allocated(self, site, r.size);
}

static void release(struct worker *self, struct block *slot)
{
    book_released(self, slot);
    void *address = slot->address;
    slot->address = NULL;
    free(address);
}

/* With size 0, realloc frees the block and returns NULL. */
static void reallocate(struct worker *self, struct block *slot)
{
    unsigned site = random_site(self, true);
    struct request r = random_request(self, sites[site].kind, slot->address);
    book_released(self, slot);
    slot->address = sites[site].call(&r);
    if (slot->address != NULL) {
        slot->size = r.size;
        slot->site = site;
        book_allocated(self, site, r.size);
    } else if (r.size != 0) {
        fail("a reallocation failed");
    }
}

/* A call that fails changes no books; a failed realloc leaves the block where it was. */
static void call_in_vain(struct worker *self, struct block *slot)
{
    unsigned site = random_site(self, slot->address != NULL);
    if (sites[site].kind == STRNDUP) {
        free(NULL);
        return;
    }
    struct request r = failing_request(self, sites[site].kind, slot->address);
    if (sites[site].call(&r) != NULL)
        fail("an impossible allocation succeeded");
}

static void hand_over(struct worker *self, struct block *slot)
{
    struct worker *heir = &workers[random_below(self, worker_count)];
    bool taken = false;
    pthread_mutex_lock(&heir->inbox_lock);
    if (heir->inbox_length < INBOX_SLOTS) {
        heir->inbox[heir->inbox_length++] = *slot;
        taken = true;
    }
    pthread_mutex_unlock(&heir->inbox_lock);
    if (taken)
        slot->address = NULL;
    else
        release(self, slot);
}

/* Frees or keeps what another thread allocated. */
static void take_over(struct worker *self, struct block *slot)
{
    struct block taken = {0};
    pthread_mutex_lock(&self->inbox_lock);
    if (self->inbox_length > 0)
        taken = self->inbox[--self->inbox_length];
    pthread_mutex_unlock(&self->inbox_lock);
    if (taken.address == NULL)
        allocate(self, slot);
    else if (random_below(self, 2) == 0)
        release(self, &taken);
    else
        *slot = taken;
}

/* Some stack for the unwinder to walk: `depth` more frames, each with a frame size of its own. */
NOINLINE static void operate(struct worker *self, struct block *slot, unsigned depth)
{
    if (depth > 0) {
        operate(self, slot, depth - 1);
        __asm__ volatile("" : : : "memory");
        return;
    }
    uint64_t choice = random_below(self, 100);
    if (choice < 4)
        call_in_vain(self, slot);
    else if (slot->address == NULL)
        choice < 30 ? take_over(self, slot) : allocate(self, slot);
    else if (choice < 60)
        release(self, slot);
    else if (choice < 85)
        reallocate(self, slot);
    else
        hand_over(self, slot);
}

/* ------------------------------------------------------------------ threads */

/* A thread that lives for a few allocations, while the worker that started it waits for it. */
NOINLINE static void *visitor_main(void *argument)
{
    struct worker *self = argument;
    for (int i = 0; i < VISITOR_BLOCKS; i++)
        operate(self, &self->slots[random_below(self, slot_count)], 1);
    return NULL;
}

NOINLINE static void receive_visitor(struct worker *self)
{
    pthread_t visitor;
    if (pthread_create(&visitor, NULL, visitor_main, self) != 0)
        fail("cannot start a thread");
    pthread_join(visitor, NULL);
    atomic_fetch_add_explicit(&self->operations, VISITOR_BLOCKS, memory_order_relaxed);
}

NOINLINE static void *worker_main(void *argument)
{
    struct worker *self = argument;
    uint64_t last = 0;
    for (;;) {
        await_round(&last, &self->random, (size_t)(self - workers));
        for (uint64_t done = 0; done < atomic_load_explicit(&round_operations, memory_order_relaxed); done++) {
            operate(self, &self->slots[random_below(self, slot_count)], (unsigned)random_below(self, 8));
            atomic_fetch_add_explicit(&self->operations, 1, memory_order_relaxed);
            if (done % VISITOR_EVERY == VISITOR_EVERY / 2)
                receive_visitor(self);
        }
    }
    return NULL;
}

/* ------------------------------------------------------------------ commands */

static uint64_t count_operations(void)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < worker_count; i++)
        sum += atomic_load(&workers[i].operations);
    return sum;
}

static void print_books(void)
{
    for (size_t site = 0; site < ARRAY_LENGTH(sites); site++) {
        struct book sum = {0};
        for (size_t i = 0; i < worker_count; i++) {
            const struct book *book = &workers[i].books[site];
            sum.alloc_objects += book->alloc_objects;
            sum.alloc_bytes += book->alloc_bytes;
            sum.inuse_objects += book->inuse_objects;
            sum.inuse_bytes += book->inuse_bytes;
        }
        printf("%s %llu %llu %lld %lld\n", sites[site].name, (unsigned long long)sum.alloc_objects,
               (unsigned long long)sum.alloc_bytes, (long long)sum.inuse_objects, (long long)sum.inuse_bytes);
    }
    printf("end %llu\n", (unsigned long long)count_operations());
}

static void drain(void)
{
    for (size_t i = 0; i < worker_count; i++) {
        struct worker *worker = &workers[i];
        for (size_t j = 0; j < slot_count; j++)
            if (worker->slots[j].address != NULL)
                release(worker, &worker->slots[j]);
        while (worker->inbox_length > 0)
            release(worker, &worker->inbox[--worker->inbox_length]);
    }
}

static void obey(const char *line)
{
    unsigned long long operations, seed;
    if (sscanf(line, "go %llu %llu", &operations, &seed) == 2) {
        run_round(operations, seed);
        print_books();
    } else if (sscanf(line, "start %llu", &seed) == 1) {
        begin_round(UINT64_MAX, seed);
        printf("started\n");
    } else if (strcmp(line, "count\n") == 0) {
        printf("count %llu\n", (unsigned long long)count_operations());
    } else if (strcmp(line, "stop\n") == 0) {
        atomic_store(&round_operations, 0);
        await_quiet();
        print_books();
    } else if (strcmp(line, "drain\n") == 0) {
        drain();
        print_books();
    } else if (strcmp(line, "exit\n") == 0) {
        exit(0);
    } else {
        fail("no such command");
    }
    fflush(stdout);
}

NOINLINE static void hold_prior_blocks(struct worker *worker)
{
    for (size_t i = 0; i < PRIOR_BLOCKS && i < slot_count; i++)
        worker->slots[i] = (struct block){malloc(100 + i), 100 + i, NO_SITE};
}

int main(int argc, char **argv)
{
    static char input[4096], output[65536], line[256];
    setvbuf(stdin, input, _IOLBF, sizeof input);
    setvbuf(stdout, output, _IOFBF, sizeof output);
    worker_count = argc > 1 ? strtoul(argv[1], NULL, 10) : 4;
    slot_count = argc > 2 ? strtoul(argv[2], NULL, 10) : 1024;
    if (worker_count < 1 || worker_count > MAX_THREADS || slot_count < 1 || slot_count > MAX_SLOTS)
        fail("usage: ground_truth THREADS SLOTS");

    memset(text, 'x', TEXT_BYTES);
    for (size_t i = 0; i < worker_count; i++) {
        pthread_mutex_init(&workers[i].inbox_lock, NULL);
        hold_prior_blocks(&workers[i]);
        if (pthread_create(&workers[i].thread, NULL, worker_main, &workers[i]) != 0)
            fail("cannot start a thread");
    }
    await_quiet();
    printf("ready %d\n", (int)getpid());
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) != NULL)
        obey(line);
    return 0;
}
