/*
 * A program that knows its own heap, and allocates with the functions that only its allocator has: jemalloc's mallocx
 * and its kin, or with -DMIMALLOC those of mimalloc. It is linked with that allocator.
 *
 * It speaks as ground_truth.c does: `ready PID`, then `go OPS SEED`, `drain` and `exit`, and the books as answer.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))

enum { SLOTS = 512, IMPOSSIBLE_EVERY = 64 };

static void fail(const char *what)
{
    fprintf(stderr, "own_functions: %s\n", what);
    _exit(1);
}

/* No allocator can serve this one. */
static const size_t impossible = (size_t)1 << 60;

/* A site gets a block, or NULL, and a size; it returns the block. */
#define SITE(name, call)                                   \
    NOINLINE static void *site_##name(void *old, size_t size) \
    {                                                      \
        void *block = call;                                \
        (void)old;                                         \
        __asm__ volatile("/* " #name " */" : "+r"(block)); \
        return block;                                      \
    }

/* What becomes of the old block when a call fails. */
enum kind { NEW, OLD_STAYS, OLD_IS_FREED, IN_PLACE };

#ifdef MIMALLOC

typedef struct mi_heap_s mi_heap_t;
mi_heap_t *mi_heap_new(void);
void *mi_zalloc(size_t), *mi_malloc_aligned(size_t, size_t), *mi_mallocn(size_t, size_t), *mi_expand(void *, size_t);
void *mi_reallocf(void *, size_t), *mi_rezalloc(void *, size_t), *mi_recalloc(void *, size_t, size_t);
void *mi_heap_malloc(mi_heap_t *, size_t), *mi_heap_zalloc(mi_heap_t *, size_t);
void *mi_heap_calloc(mi_heap_t *, size_t, size_t), *mi_heap_malloc_aligned(mi_heap_t *, size_t, size_t);
void *mi_heap_realloc(mi_heap_t *, void *, size_t), *mi_heap_reallocf(mi_heap_t *, void *, size_t);
void *mi_heap_recalloc(mi_heap_t *, void *, size_t, size_t);
void mi_free(void *), mi_free_size(void *, size_t);

static mi_heap_t *heap;

SITE(zalloc, mi_zalloc(size))
SITE(malloc_aligned, mi_malloc_aligned(size, 64))
SITE(mallocn, mi_mallocn(size, 3))
SITE(heap_malloc, mi_heap_malloc(heap, size))
SITE(heap_zalloc, mi_heap_zalloc(heap, size))
SITE(heap_calloc, mi_heap_calloc(heap, 3, size))
SITE(heap_malloc_aligned, mi_heap_malloc_aligned(heap, size, 128))
SITE(rezalloc, mi_rezalloc(old, size))
SITE(recalloc, mi_recalloc(old, 3, size))
SITE(heap_realloc, mi_heap_realloc(heap, old, size))
SITE(heap_recalloc, mi_heap_recalloc(heap, old, 3, size))
SITE(reallocf, mi_reallocf(old, size))
SITE(heap_reallocf, mi_heap_reallocf(heap, old, size))
SITE(expand, mi_expand(old, size))

static const struct site {
    const char *name;
    enum kind kind;
    size_t factor; /* what the books say: this times the size */
    void *(*call)(void *, size_t);
} sites[] = {
    {"site_zalloc", NEW, 1, site_zalloc},
    {"site_malloc_aligned", NEW, 1, site_malloc_aligned},
    {"site_mallocn", NEW, 3, site_mallocn},
    {"site_heap_malloc", NEW, 1, site_heap_malloc},
    {"site_heap_zalloc", NEW, 1, site_heap_zalloc},
    {"site_heap_calloc", NEW, 3, site_heap_calloc},
    {"site_heap_malloc_aligned", NEW, 1, site_heap_malloc_aligned},
    {"site_rezalloc", OLD_STAYS, 1, site_rezalloc},
    {"site_recalloc", OLD_STAYS, 3, site_recalloc},
    {"site_heap_realloc", OLD_STAYS, 1, site_heap_realloc},
    {"site_heap_recalloc", OLD_STAYS, 3, site_heap_recalloc},
    {"site_reallocf", OLD_IS_FREED, 1, site_reallocf},
    {"site_heap_reallocf", OLD_IS_FREED, 1, site_heap_reallocf},
    {"site_expand", IN_PLACE, 1, site_expand},
};

static void free_one_way(void *block, size_t size)
{
    (void)size;
    mi_free(block);
}

static void free_another_way(void *block, size_t size)
{
    mi_free_size(block, size);
}

#else

void *mallocx(size_t, int), *rallocx(void *, size_t, int);
size_t xallocx(void *, size_t, size_t, int);
void dallocx(void *, int), sdallocx(void *, size_t, int);
enum { ZERO = 0x40, ALIGN_64 = 6 };

SITE(mallocx, mallocx(size, 0))
SITE(mallocx_zero, mallocx(size, ZERO))
SITE(mallocx_aligned, mallocx(size, ALIGN_64))
SITE(rallocx, rallocx(old, size, 0))
SITE(xallocx, xallocx(old, size, 0, 0) >= size ? old : NULL)

static const struct site {
    const char *name;
    enum kind kind;
    size_t factor;
    void *(*call)(void *, size_t);
} sites[] = {
    {"site_mallocx", NEW, 1, site_mallocx},
    {"site_mallocx_zero", NEW, 1, site_mallocx_zero},
    {"site_mallocx_aligned", NEW, 1, site_mallocx_aligned},
    {"site_rallocx", OLD_STAYS, 1, site_rallocx},
    {"site_xallocx", IN_PLACE, 1, site_xallocx},
};

static void free_one_way(void *block, size_t size)
{
    (void)size;
    dallocx(block, 0);
}

/* The size must be one of the block's class: free is the third way. */
static void free_another_way(void *block, size_t size)
{
    (void)size;
    free(block);
}

#endif

enum { SITES = sizeof sites / sizeof sites[0] };

static struct block {
    void *address;
    size_t size;
    unsigned site;
} slots[SLOTS];

static struct book {
    unsigned long long alloc_objects, alloc_bytes;
    long long inuse_objects, inuse_bytes;
} books[SITES];

static uint64_t state, operations;

static size_t below(size_t bound)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (size_t)(state >> 16) % bound;
}

static void book_released(const struct block *slot)
{
    books[slot->site].inuse_objects--;
    books[slot->site].inuse_bytes -= (long long)slot->size;
}

static void release(struct block *slot)
{
    void *address = slot->address;
    book_released(slot);
    slot->address = NULL;
    (below(2) == 0 ? free_one_way : free_another_way)(address, slot->size);
}

static void operate(void)
{
    struct block *slot = &slots[below(SLOTS)];
    if (slot->address != NULL && below(2) == 0) {
        release(slot);
        return;
    }
    unsigned site;
    do
        site = (unsigned)below(SITES);
    while ((sites[site].kind == NEW) != (slot->address == NULL));
    int in_vain = below(IMPOSSIBLE_EVERY) == 0;
    size_t size = in_vain ? impossible : 1 + below(below(50) == 0 ? 200000 : 1000);
    void *address = sites[site].call(slot->address, size);
    if (in_vain && address != NULL)
        fail("an impossible allocation succeeded");
    if (address == NULL) {
        if (!in_vain && sites[site].kind != IN_PLACE)
            fail("an allocation failed");
        if (sites[site].kind == OLD_IS_FREED) {
            book_released(slot);
            slot->address = NULL;
        }
        return;
    }
    if (slot->address != NULL)
        book_released(slot);
    *slot = (struct block){address, size * sites[site].factor, site};
    books[site].alloc_objects++;
    books[site].alloc_bytes += slot->size;
    books[site].inuse_objects++;
    books[site].inuse_bytes += (long long)slot->size;
}

static void print_books(void)
{
    for (unsigned site = 0; site < SITES; site++)
        printf("%s %llu %llu %lld %lld\n", sites[site].name, books[site].alloc_objects, books[site].alloc_bytes,
               books[site].inuse_objects, books[site].inuse_bytes);
    printf("end %llu\n", (unsigned long long)operations);
}

int main(void)
{
    static char line[256];
#ifdef MIMALLOC
    heap = mi_heap_new();
#endif
    printf("ready %d\n", (int)getpid());
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) != NULL) {
        unsigned long long wanted, seed;
        if (sscanf(line, "go %llu %llu", &wanted, &seed) == 2) {
            state = seed * 0x9e3779b97f4a7c15u | 1;
            for (; wanted > 0; wanted--, operations++)
                operate();
        } else if (strcmp(line, "drain\n") == 0) {
            for (unsigned i = 0; i < SLOTS; i++)
                if (slots[i].address != NULL)
                    release(&slots[i]);
        } else if (strcmp(line, "exit\n") == 0) {
            return 0;
        } else {
            fail("no such command");
        }
        print_books();
        fflush(stdout);
    }
    return 0;
}
