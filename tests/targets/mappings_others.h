/* What the threads of mappings.c do beside mmap: System V memory, huge pages, stacks that grow, malloc, threads. */
#ifndef MAPPINGS_OTHERS_H
#define MAPPINGS_OTHERS_H

#include "mappings_calls.h"

/* ------------------------------------------------------------------ System V, huge pages, stacks that grow */

static void detach(struct worker *self, struct whole *whole)
{
    long result;
    struct request r = {.address = whole->range.begin, .length = whole->range.end - whole->range.begin};
    clear_pages(whole->range);
    whole->range = (struct range){0, 0};
    call_site(self, whole->is_segment ? S_shmdt : S_munmap, &r, &result);
    if (result != 0)
        fail("shmdt failed");
}

static size_t segment_pages(size_t index)
{
    return 1 + 7 * index;
}

static void attach_segment(struct worker *self, struct whole *whole)
{
    size_t index = random_below(self, SEGMENTS);
    struct page as = {.kind = SHARED, .flags = MAY_COPY};
    struct request r = {.segment = segments[index]};
    /* Over what is in the window: unmapped like anything else there. */
    bool replaces = one_in(self, 3);
    if (replaces) {
        r.address = random_target(self, segment_pages(index), (struct range){0, 0}).begin;
        r.flags = SHM_REMAP;
    }
    long result;
    unsigned site = call_site(self, replaces ? S_shmremap : S_shmat, &r, &result);
    if (result == -1 || (replaces && result != (long)r.address))
        fail("shmat failed");
    struct range range = range_of((uintptr_t)result, segment_pages(index));
    book(self, range, site, as);
    touch_some(self, range);
    if (!replaces)
        *whole = (struct whole){range, true};
}

static void attach_huge(struct worker *self, struct whole *whole)
{
    long result;
    struct request r = {.length = 2 << 20, .protection = PROT_READ | PROT_WRITE, .fd = -1};
    r.flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB;
    unsigned site = call_site(self, S_hugetlb, &r, &result);
    if (result == -1)
        return; /* others have them all */
    *whole = (struct whole){range_of((uintptr_t)result, r.length / PAGE), false};
    book(self, whole->range, site, (struct page){.kind = ANON});
}

static void attach_or_detach(struct worker *self)
{
    struct whole *whole = &self->wholes[random_below(self, WHOLES)];
    if (whole->range.end != 0)
        detach(self, whole);
    else if (has_huge_pages && one_in(self, 3))
        attach_huge(self, whole);
    else
        attach_segment(self, whole);
}

/* These stay until all is drained: nobody hears of it when one grows, so what it grew by must be there to be found. */
static void grow_stack(struct worker *self)
{
    size_t index = random_below(self, GROWING), pages = 1 + random_below(self, 12);
    struct range *stack = &self->growing[index];
    if (stack->end == 0) {
        long result;
        struct range range = range_of(GROWING_TOP(self->index, index) - 4 * PAGE, 4);
        struct request r = {.address = range.begin, .length = odd_length(self, 4), .fd = -1};
        r.protection = PROT_READ | PROT_WRITE;
        r.flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED_NOREPLACE;
        unsigned site = call_site(self, S_growsdown, &r, &result);
        if (result != (long)range.begin)
            fail("mmap with MAP_GROWSDOWN failed");
        book(self, range, site, (struct page){.kind = STACK});
        *stack = range;
    } else if (pages_of(*stack) < RANGE_PAGES) {
        unsigned site = page_at(stack->begin)->holder - 1u;
        struct range grown = {stack->begin - pages * PAGE, stack->begin};
        *(volatile char *)grown.begin = 1;
        book(self, grown, site, (struct page){.kind = STACK});
        stack->begin = grown.begin;
    }
}

/* ------------------------------------------------------------------ malloc */

/* What glibc writes before a block, in its size's lowest bits (malloc/malloc.c). */
enum { IS_MMAPPED = 2, NON_MAIN_ARENA = 4, CHUNK_BITS = 7, ARENA_HEAP = 64 << 20 };

static size_t header_of(void *block)
{
    return ((size_t *)block)[-1];
}

static void hold_for_allocator(struct range range)
{
    set_pages(range, (struct page){.holder = NO_SITE, .kind = ALLOCATOR});
}

/* Books the heap of the arena that this thread allocates from, unless it is the main one. */
static void know_arena(void)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    void *volatile block = malloc(64);
    if (block == NULL)
        fail("malloc failed");
    if ((header_of(block) & NON_MAIN_ARENA) != 0) {
        uintptr_t heap = (uintptr_t)block & ~(uintptr_t)(ARENA_HEAP - 1);
        pthread_mutex_lock(&lock);
        if (page_at(heap)->kind != ALLOCATOR)
            hold_for_allocator(range_of(heap, ARENA_HEAP / PAGE));
        pthread_mutex_unlock(&lock);
    }
    free(block);
}

static struct range mapping_of(void *block)
{
    size_t header = header_of(block), before = ((size_t *)block)[-2];
    if ((header & IS_MMAPPED) == 0)
        return (struct range){0, 0};
    uintptr_t begin = (uintptr_t)block - 2 * sizeof(size_t) - before;
    return (struct range){begin, begin + before + (header & ~(size_t)CHUNK_BITS)};
}

/* Large blocks, which malloc maps, small ones, and large ones that realloc moves with mremap. */
static void allocate(struct worker *self)
{
    struct block *block = &self->blocks[random_below(self, BLOCKS)];
    bool is_large = one_in(self, 2);
    struct request r = {.length = is_large ? 130000 + random_below(self, 900000) : 1 + random_below(self, 60000)};
    clear_pages(block->mapping);
    if (block->address != NULL && one_in(self, 2)) {
        free(block->address);
        *block = (struct block){0};
        return;
    }
    r.block = block->address;
    unsigned variant = block->address != NULL ? 3 : (unsigned)random_below(self, 3);
    block->address = (void *)sites[(unsigned)S_malloc * VARIANTS + variant].call(&r);
    if (block->address == NULL)
        fail("malloc failed");
    block->mapping = mapping_of(block->address);
    hold_for_allocator(block->mapping);
    *(volatile char *)block->address = 1;
}

static void release_block(struct block *block)
{
    clear_pages(block->mapping);
    free(block->address);
    *block = (struct block){0};
}

/* ------------------------------------------------------------------ guests: threads that the program makes */

/* So few, and of such sizes, that libc's cache (40 MiB) never has to give a stack back. */
static const size_t stack_sizes[] = {64 << 10, 128 << 10, 256 << 10, 384 << 10};
enum { DEFAULT_GUESTS = 2 };
static _Atomic unsigned default_guests;

static pthread_t *thread_of(struct guest *guest)
{
    return &guest->thread;
}

NOINLINE static void use_stack(size_t bytes)
{
    volatile char space[8192];
    space[0] = space[sizeof space - 1] = 1;
    if (bytes > sizeof space)
        use_stack(bytes - sizeof space);
    __asm__ volatile("" ::: "memory");
}

static struct range own_stack(void)
{
    pthread_attr_t attributes;
    void *address;
    size_t size, guard;
    if (pthread_getattr_np(pthread_self(), &attributes) != 0 ||
        pthread_attr_getstack(&attributes, &address, &size) != 0 ||
        pthread_attr_getguardsize(&attributes, &guard) != 0)
        fail("a thread does not know its stack");
    pthread_attr_destroy(&attributes);
    return (struct range){(uintptr_t)address - guard, (uintptr_t)address + size};
}

static void *guest_main(void *argument)
{
    struct guest *self = argument;
    know_arena();
    self->stack = own_stack();
    struct page as = {.holder = (uint16_t)(self->site + 1), .kind = STACK};
    /* Its creator waits, so its books are free to write in. */
    if ((page_at(self->stack.begin)->flags & CACHED) != 0)
        set_pages(self->stack, as);
    else
        book(self->creator, self->stack, self->site, as);
    use_stack(20000);
    sem_post(&self->started);
    while (sem_wait(&self->ended) != 0)
        ;
    return NULL;
}

static void start_guest(struct worker *self, struct guest *guest)
{
    pthread_attr_t attributes;
    size_t size = stack_sizes[random_below(self, ARRAY_LENGTH(stack_sizes))];
    guest->is_default = one_in(self, 4);
    if (guest->is_default && atomic_fetch_add(&default_guests, 1) >= DEFAULT_GUESTS) {
        atomic_fetch_sub(&default_guests, 1);
        guest->is_default = false;
    }
    pthread_attr_init(&attributes);
    if (!guest->is_default && pthread_attr_setstacksize(&attributes, size) != 0)
        fail("no such stack size");
    sem_init(&guest->started, 0, 0);
    sem_init(&guest->ended, 0, 0);
    unsigned variant = (unsigned)random_below(self, VARIANTS);
    guest->creator = self;
    guest->site = (unsigned)S_thread * VARIANTS + variant;
    struct request r = {.guest = guest, .attributes = &attributes};
    if (sites[guest->site].call(&r) != 0)
        fail("cannot start a thread");
    while (sem_wait(&guest->started) != 0)
        ;
    pthread_attr_destroy(&attributes);
    guest->runs = true;
}

static void end_guest(struct guest *guest)
{
    /* Before it ends: then its stack may be another's at once. */
    struct page page = *page_at(guest->stack.begin);
    page.flags |= CACHED;
    set_pages(guest->stack, page);
    sem_post(&guest->ended);
    pthread_join(guest->thread, NULL);
    if (guest->is_default)
        atomic_fetch_sub(&default_guests, 1);
    guest->runs = false;
}

static void start_or_end_guest(struct worker *self)
{
    struct guest *guest = &self->guests[random_below(self, GUESTS)];
    if (guest->runs)
        end_guest(guest);
    else
        start_guest(self, guest);
}

static void end_guests(void)
{
    for (size_t i = 0; i < worker_count; i++)
        for (size_t j = 0; j < GUESTS; j++)
            if (workers[i].guests[j].runs)
                end_guest(&workers[i].guests[j]);
}

#endif
