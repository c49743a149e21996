/* The threads of mappings.c, what each of them has, and where it maps. */
#ifndef MAPPINGS_WORKER_H
#define MAPPINGS_WORKER_H

#include <semaphore.h>

#include "mappings_books.h"
#include "mappings_sites.h"
#include "rounds.h"

enum {
    MAX_THREADS = 8,
    SLOTS = 48,         /* mappings of a thread where the kernel chose */
    WHOLES = 8,         /* those that are only unmapped whole */
    BLOCKS = 8,         /* what a thread has from malloc */
    GUESTS = 3,         /* threads that a thread has made */
    GROWING = 4,        /* stacks of a thread that grow */
    SEGMENTS = 4,       /* System V shared memory */
    WINDOW_PAGES = 4096,
    RANGE_PAGES = 64,   /* the most that most operations are about */
    FILE_PAGES = 256,
    RESERVE_PAGES = 1 << 14,
};

/* Where a thread maps at addresses of its own choice: far below where the kernel chooses. */
#define REGION(worker) (0x200000000000u + (uintptr_t)(worker) * 0x1000000000u)
#define GROWING_TOP(worker, i) (REGION(worker) + 0x40000000u + (uintptr_t)(i) * 0x4000000u)

struct guest {
    pthread_t thread;
    sem_t started, ended;
    struct range stack;
    unsigned site;
    bool runs, is_default;
    struct worker *creator;
};

struct whole {
    struct range range; /* empty: nothing */
    bool is_segment;
};

struct block {
    void *address;
    struct range mapping; /* empty: from the heap or an arena */
};

struct worker {
    pthread_t thread;
    size_t index;
    uint64_t random;
    _Atomic uint64_t operations;
    uint64_t mapped[WHATS * VARIANTS][KINDS];
    struct range slots[SLOTS];
    struct whole wholes[WHOLES];
    struct block blocks[BLOCKS];
    struct guest guests[GUESTS];
    struct range growing[GROWING];
};

static struct worker workers[MAX_THREADS];
static bool is_child;
/* Each a byte larger than pages would be: the last one counts whole. */
static int file, memfd, devshm, zero;
static int segments[SEGMENTS];
static bool has_huge_pages;

static uint64_t random_below(struct worker *self, uint64_t bound)
{
    return (next_random(&self->random) >> 16) % bound;
}

static bool one_in(struct worker *self, uint64_t count)
{
    return random_below(self, count) == 0;
}

static size_t pages_of(struct range range)
{
    return (range.end - range.begin) / PAGE;
}

static struct range range_of(uintptr_t begin, size_t pages)
{
    return (struct range){begin, begin + pages * PAGE};
}

/* Of so many pages, or up to a page less one byte shorter: the kernel rounds up. */
static size_t odd_length(struct worker *self, size_t pages)
{
    return pages * PAGE - (one_in(self, 2) ? random_below(self, PAGE) : 0);
}

/* Calls one of the sites of this kind; returns which, and what it returned or -1. */
static unsigned call_site(struct worker *self, enum what what, const struct request *r, long *result)
{
    unsigned site = (unsigned)what * VARIANTS + (unsigned)random_below(self, VARIANTS);
    *result = sites[site].call(r);
    if (*result < 0 && *result > -PAGE)
        *result = -1;
    return site;
}

static void call_in_vain(struct worker *self, enum what what, const struct request *r)
{
    long result;
    call_site(self, what, r, &result);
    if (result != -1)
        fail("a call succeeded that must not");
}

static void book(struct worker *self, struct range range, unsigned site, struct page as)
{
    as.holder = (uint16_t)(site + 1);
    set_pages(range, as);
    self->mapped[site][as.kind] += range.end - range.begin;
}

/* ------------------------------------------------------------------ places */

static struct range window_of(const struct worker *self)
{
    return range_of(REGION(self->index), WINDOW_PAGES);
}

static struct range *free_slot(struct worker *self)
{
    for (size_t i = 0; i < SLOTS; i++)
        if (self->slots[i].end == 0)
            return &self->slots[i];
    return NULL;
}

/* One of this thread's slots that is in use, or NULL for its window. */
static struct range *random_place(struct worker *self)
{
    struct range *slot = &self->slots[random_below(self, SLOTS)];
    return slot->end == 0 || one_in(self, 2) ? NULL : slot;
}

static struct range random_range(struct worker *self, const struct range *slot)
{
    struct range within = slot != NULL ? *slot : window_of(self);
    uintptr_t begin = within.begin + random_below(self, pages_of(within)) * PAGE;
    size_t most = (within.end - begin) / PAGE;
    return range_of(begin, 1 + random_below(self, most < RANGE_PAGES ? most : RANGE_PAGES));
}

/* A slot has no holes: what others map may be in there the next moment. */
static void cut_slot(struct worker *self, struct range *slot, struct range hole)
{
    if (slot == NULL)
        return;
    struct range rest = {hole.end, slot->end};
    slot->end = hole.begin;
    if (slot->begin == slot->end)
        *slot = rest.begin < rest.end ? rest : (struct range){0, 0};
    else if (rest.begin < rest.end)
        *free_slot(self) = rest;
}

/* Enters what a call mapped in the window, or where the kernel chose. */
static void keep(struct worker *self, struct range range)
{
    struct range window = window_of(self);
    if (range.begin < window.begin || range.end > window.end)
        *free_slot(self) = range;
}

static void unmap(struct worker *self, struct range *slot, struct range range)
{
    long result;
    size_t length = (size_t)(range.end - range.begin);
    struct request r = {.address = range.begin, .length = odd_length(self, length / PAGE)};
    clear_pages(range);
    cut_slot(self, slot, range);
    call_site(self, S_munmap, &r, &result);
    if (result != 0)
        fail("munmap failed");
}

/* Each operation needs two free slots at most: for what is new, and for what is behind a hole. */
static void make_room(struct worker *self)
{
    size_t used = 0;
    for (size_t i = 0; i < SLOTS; i++)
        used += self->slots[i].end != 0;
    while (used + 2 > SLOTS) {
        struct range *slot = &self->slots[random_below(self, SLOTS)];
        if (slot->end != 0) {
            unmap(self, slot, *slot);
            used--;
        }
    }
}

#endif
