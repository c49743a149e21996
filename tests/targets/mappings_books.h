/*
 * The books of mappings.c: for each page of the address space who mapped it, as what. Pages that nobody's books hold are
 * those of the program itself, of its libraries, and of the allocator.
 */
#ifndef MAPPINGS_BOOKS_H
#define MAPPINGS_BOOKS_H

#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    PAGE = 4096,
    LEAF_PAGES = 1 << 18,
    LEAVES = 96,
    LEAF_SHIFT = 30,       /* the bytes of LEAF_PAGES */
    DIRECTORY = 1 << 17,   /* user space has 47 bits */
    MAPS_BYTES = 16 << 20,
    OWN_RANGES = 1024,
    PAGEMAP_CHUNK = 4096,
};

enum kind { ANON, FILE_KIND, SHARED, STACK, ALLOCATOR, KINDS };

static const char *const kind_names[KINDS] = {"anon", "file", "shared", "stack", "allocator"};

enum {
    MAY_COPY = 1,   /* a shared mapping: mremap with old size 0 makes another one of it */
    CACHED = 2,     /* the stack of a thread that ended */
    INHERITED = 4,  /* from before the fork */
    SEEN = 8,       /* in /proc/self/maps, while the two are compared */
};

/* One page; all zero if nobody holds it. */
struct page {
    uint16_t holder; /* site + 1, or NO_SITE */
    uint8_t kind;
    uint8_t flags;
    uint32_t run; /* neighbours with the same number are in one mapping of the kernel's, for certain */
};

enum { NO_SITE = 0xffff };

struct range {
    uintptr_t begin, end;
};

static struct page leaves[LEAVES][LEAF_PAGES];
static _Atomic unsigned leaves_used;
static struct page *_Atomic directory[DIRECTORY];
static _Atomic uint32_t runs_used;

static void fail(const char *what)
{
    fprintf(stderr, "mappings: %s\n", what);
    abort();
}

static struct page *page_at(uintptr_t address)
{
    struct page *_Atomic *entry = &directory[address >> LEAF_SHIFT];
    struct page *leaf = atomic_load_explicit(entry, memory_order_acquire);
    if (leaf == NULL) {
        unsigned index = atomic_fetch_add(&leaves_used, 1);
        if (index >= LEAVES)
            fail("mappings are in too many places for the books");
        /* Another thread may have been first: its leaf counts, and this one stays unused. */
        if (atomic_compare_exchange_strong(entry, &leaf, leaves[index]))
            leaf = leaves[index];
    }
    return &leaf[address / PAGE % LEAF_PAGES];
}

/*
 * A page that is unmapped is taken out of the books before, and one that is mapped entered afterwards: between the
 * two it may become another thread's.
 */
static void set_pages(struct range range, struct page page)
{
    page.run = atomic_fetch_add(&runs_used, 1) + 1;
    for (uintptr_t at = range.begin; at < range.end; at += PAGE)
        *page_at(at) = page;
}

static void clear_pages(struct range range)
{
    for (uintptr_t at = range.begin; at < range.end; at += PAGE)
        *page_at(at) = (struct page){0};
}

static bool is_free(struct range range)
{
    for (uintptr_t at = range.begin; at < range.end; at += PAGE)
        if (page_at(at)->holder != 0)
            return false;
    return true;
}

/* ------------------------------------------------------------------ against /proc/self/maps */

/* What was mapped before the books were opened. */
static struct range own_ranges[OWN_RANGES];
static size_t own_count;

static char *read_maps(void)
{
    static char text[MAPS_BYTES];
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    size_t length = 0;
    ssize_t got;
    while ((got = read(fd, text + length, sizeof text - 1 - length)) > 0)
        length += (size_t)got;
    if (fd < 0 || got < 0 || length == sizeof text - 1)
        fail("cannot read /proc/self/maps");
    close(fd);
    text[length] = '\0';
    return text;
}

/*
 * The next line of the text: what it maps, and whether that is nobody's: the program's own heap or stack, which grow, or
 * what the kernel maps for the probes of a tracer.
 */
static char *next_mapping(char *text, struct range *range, bool *is_nobodys)
{
    if (*text == '\0')
        return NULL;
    char *end = strchr(text, '\n');
    *end = '\0';
    if (sscanf(text, "%lx-%lx", &range->begin, &range->end) != 2)
        fail("cannot parse /proc/self/maps");
    *is_nobodys = strstr(text, "[heap]") != NULL || strstr(text, "[stack]") != NULL || strstr(text, "[uprobes") != NULL;
    return end + 1;
}

static void open_books(void)
{
    struct range range;
    bool is_nobodys;
    for (char *text = read_maps(); (text = next_mapping(text, &range, &is_nobodys)) != NULL;) {
        if (own_count == OWN_RANGES)
            fail("there are too many mappings to begin with");
        own_ranges[own_count++] = range;
    }
}

static bool is_own(uintptr_t address)
{
    for (size_t i = 0; i < own_count; i++)
        if (address >= own_ranges[i].begin && address < own_ranges[i].end)
            return true;
    return false;
}

/* The pages that `visit` is called for are those in the books. */
static void for_each_page(void (*visit)(uintptr_t, struct page *))
{
    for (uintptr_t i = 0; i < DIRECTORY; i++) {
        struct page *leaf = atomic_load(&directory[i]);
        for (uintptr_t j = 0; leaf != NULL && j < LEAF_PAGES; j++)
            if (leaf[j].holder != 0)
                visit((i << LEAF_SHIFT) + j * PAGE, &leaf[j]);
    }
}

static void complain(const char *what, uintptr_t address, const struct page *page)
{
    fprintf(stderr, "mappings: page %#lx of holder %u, a %s: %s\n", address, page->holder, kind_names[page->kind], what);
    abort();
}

static void check_seen(uintptr_t address, struct page *page)
{
    if ((page->flags & SEEN) == 0)
        complain("in the books, but not mapped", address, page);
    page->flags &= (uint8_t)~SEEN;
}

/* Insists that the kernel maps what is in the books, page by page, and nothing else but what was there before. */
static void check_books(void)
{
    struct range range;
    bool is_nobodys;
    for (char *text = read_maps(); (text = next_mapping(text, &range, &is_nobodys)) != NULL;) {
        if (range.begin >> 47 != 0)
            continue; /* [vsyscall] */
        for (uintptr_t at = range.begin; at < range.end; at += PAGE) {
            struct page *page = page_at(at);
            if (page->holder != 0)
                page->flags |= SEEN;
            else if (!is_nobodys && !is_own(at))
                complain("mapped, but not in the books", at, page);
        }
    }
    for_each_page(check_seen);
}

/* ------------------------------------------------------------------ resident pages */

static int pagemap = -1;
static uint64_t pagemap_entries[PAGEMAP_CHUNK];
static uintptr_t pagemap_chunk; /* which one is in `pagemap_entries`, plus 1 */

/* Anew each time: a descriptor that was inherited is of the parent's memory. */
static void open_pagemap(void)
{
    pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (pagemap < 0)
        fail("cannot open /proc/self/pagemap");
    pagemap_chunk = 0;
}

static void close_pagemap(void)
{
    close(pagemap);
}

/* Whether a page is present: bit 63 of its entry (Documentation/admin-guide/mm/pagemap.rst). */
static bool is_resident(uintptr_t address)
{
    uintptr_t chunk = address / PAGE / PAGEMAP_CHUNK;
    if (chunk + 1 != pagemap_chunk) {
        off_t offset = (off_t)(chunk * sizeof pagemap_entries);
        if (pread(pagemap, pagemap_entries, sizeof pagemap_entries, offset) != (ssize_t)sizeof pagemap_entries)
            fail("cannot read /proc/self/pagemap");
        pagemap_chunk = chunk + 1;
    }
    return pagemap_entries[address / PAGE % PAGEMAP_CHUNK] >> 63 != 0;
}

#endif
