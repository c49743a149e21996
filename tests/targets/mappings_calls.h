/* What the threads of mappings.c do all the time: mmap, munmap, mprotect, madvise, mremap. */
#ifndef MAPPINGS_CALLS_H
#define MAPPINGS_CALLS_H

#include <errno.h>

#include "mappings_worker.h"

/* ------------------------------------------------------------------ mmap */

static struct page backing(struct worker *self, enum what what, size_t pages, struct request *r)
{
    int fds[] = {[S_file] = file, [S_fileshared] = file, [S_memfd] = memfd, [S_devshm] = devshm};
    r->protection = PROT_READ | PROT_WRITE;
    r->fd = -1;
    r->offset = 0;
    r->flags = MAP_PRIVATE | MAP_ANONYMOUS;
    struct page as = {.kind = ANON};
    switch (what) {
    case S_shared:
        r->flags = MAP_SHARED | MAP_ANONYMOUS;
        as = (struct page){.kind = SHARED, .flags = MAY_COPY};
        break;
    case S_file:
    case S_fileshared:
    case S_memfd:
    case S_devshm:
        r->flags = what == S_file ? MAP_PRIVATE : MAP_SHARED;
        r->fd = fds[what];
        r->offset = (off_t)(random_below(self, FILE_PAGES - pages + 1) * PAGE);
        as.kind = what == S_file || what == S_fileshared ? FILE_KIND : SHARED;
        as.flags = what == S_file ? 0 : MAY_COPY;
        break;
    case S_stack:
        r->flags |= MAP_STACK;
        as.kind = STACK;
        break;
    case S_reserve:
        r->flags |= MAP_NORESERVE;
        r->protection = PROT_NONE;
        break;
    default:
        break;
    }
    return as;
}

/* Has the kernel write a byte, which it refuses where the program must not; a write of the program's own would end it. */
static void touch_some(struct worker *self, struct range range)
{
    for (uint64_t i = random_below(self, 6); i > 0; i--) {
        uintptr_t page = range.begin + random_below(self, pages_of(range)) * PAGE;
        if (read(zero, (void *)page, 1) != 1 && errno != EFAULT)
            fail("cannot read zeros");
    }
}

/* What is new can be written to. Pages of files are read, too, which maps what is beside them. */
static void touch_new(struct worker *self, struct range range, const struct request *r)
{
    if (r->protection == PROT_NONE)
        return;
    touch_some(self, range);
    volatile char *byte = (volatile char *)(range.begin + random_below(self, range.end - range.begin));
    if (r->fd >= 0 && one_in(self, 2))
        (void)*byte;
    else
        *byte = 1;
}

static void map_anywhere(struct worker *self)
{
    enum what what = (enum what)random_below(self, S_reserve + 1);
    size_t pages = 1 + random_below(self, what == S_reserve ? RESERVE_PAGES : RANGE_PAGES);
    struct request r = {.length = odd_length(self, pages)};
    struct page as = backing(self, what, pages, &r);
    /* A hint: the kernel takes it if nothing is there. */
    struct range hint = random_range(self, NULL);
    if (pages <= RANGE_PAGES && one_in(self, 3))
        r.address = hint.begin;
    long result;
    unsigned site = call_site(self, what, &r, &result);
    if (result == -1)
        fail("mmap failed");
    struct range range = range_of((uintptr_t)result, pages);
    if (range.begin == r.address && range.end > window_of(self).end) {
        /* Beyond the window, where nothing else looks for it. */
        if (munmap((void *)range.begin, r.length) != 0)
            fail("munmap failed");
        self->mapped[site][as.kind] += pages * PAGE;
        return;
    }
    book(self, range, site, as);
    keep(self, range);
    touch_new(self, range, &r);
}

/* Over whatever is there: a whole mapping, a part of one, across the border of two. */
static void map_fixed(struct worker *self)
{
    struct range range = random_range(self, random_place(self));
    struct request r = {.address = range.begin, .length = odd_length(self, pages_of(range))};
    enum what what = (enum what)random_below(self, S_reserve + 1);
    struct page as = backing(self, what, pages_of(range), &r);
    r.flags |= MAP_FIXED;
    long result;
    unsigned site = call_site(self, S_fixed, &r, &result);
    if (result != (long)range.begin)
        fail("mmap with MAP_FIXED failed");
    book(self, range, site, as);
    touch_new(self, range, &r);
}

static void map_without_replacing(struct worker *self)
{
    struct range range = random_range(self, random_place(self));
    struct request r = {.address = range.begin, .length = odd_length(self, pages_of(range))};
    struct page as = backing(self, (enum what)random_below(self, S_reserve + 1), pages_of(range), &r);
    r.flags |= MAP_FIXED_NOREPLACE;
    if (!is_free(range)) {
        call_in_vain(self, S_noreplace, &r);
        return;
    }
    long result;
    unsigned site = call_site(self, S_noreplace, &r, &result);
    if (result != (long)range.begin)
        fail("mmap with MAP_FIXED_NOREPLACE failed");
    book(self, range, site, as);
    touch_new(self, range, &r);
}

/* ------------------------------------------------------------------ munmap, mprotect, madvise */

static void unmap_some(struct worker *self)
{
    struct range *slot = random_place(self);
    struct range range = slot != NULL && one_in(self, 3) ? *slot : random_range(self, slot);
    unmap(self, slot, range);
}

static void unmap_in_vain(struct worker *self)
{
    struct range range = random_range(self, random_place(self));
    struct request r = {.address = range.begin, .length = range.end - range.begin};
    if (one_in(self, 2))
        r.address += 1 + random_below(self, PAGE - 1);
    else
        r.length = 0;
    call_in_vain(self, S_munmapfail, &r);
}

/* A part of something that is one mapping for certain; empty if chance found none. `rest` is what follows in it. */
static struct range random_run(struct worker *self, const struct range *slot, size_t *rest)
{
    struct range within = slot != NULL ? *slot : window_of(self);
    struct range range = random_range(self, slot);
    uint32_t run = page_at(range.begin)->run;
    if (run == 0)
        return (struct range){0, 0};
    uintptr_t end = range.begin;
    while (end < within.end && page_at(end)->run == run && end < range.begin + RANGE_PAGES * PAGE)
        end += PAGE;
    if (range.end > end)
        range.end = end;
    while (range.begin > within.begin && page_at(range.begin - PAGE)->run == run && !one_in(self, 8))
        range.begin -= PAGE;
    *rest = (end - range.end) / PAGE;
    return range;
}

/* Pages that the kernel now treats differently are no longer in one mapping with their neighbours. */
static void split_run(struct range range)
{
    struct page page = *page_at(range.begin);
    set_pages(range, page);
}

static void protect(struct worker *self)
{
    static const int protections[] = {PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE};
    size_t rest;
    struct range range = random_run(self, random_place(self), &rest);
    if (range.end == 0)
        return;
    struct request r = {.address = range.begin, .length = odd_length(self, pages_of(range))};
    r.protection = protections[random_below(self, ARRAY_LENGTH(protections))];
    long result;
    call_site(self, S_mprotect, &r, &result);
    if (result != 0)
        fail("mprotect failed");
    split_run(range);
    touch_some(self, range);
}

static void advise(struct worker *self)
{
    static const int advices[] = {MADV_DONTNEED, MADV_SEQUENTIAL, MADV_DONTDUMP, MADV_WILLNEED};
    size_t rest;
    struct range range = random_run(self, random_place(self), &rest);
    if (range.end == 0)
        return;
    struct request r = {.address = range.begin, .length = odd_length(self, pages_of(range))};
    r.advice = advices[random_below(self, ARRAY_LENGTH(advices))];
    /* Not every kind of memory takes every advice. */
    long result;
    call_site(self, S_madvise, &r, &result);
    split_run(range);
}

/* ------------------------------------------------------------------ mremap */

/* One call of mremap for the pages `old`; `gone` are those of them that it takes away. */
struct remap {
    struct range *slot;
    struct range old, gone;
    size_t pages;
    int flags;
    struct range target; /* of MREMAP_FIXED; empty without */
};

/* Makes the call. What it returns belongs to it, whole; if it fails, all stays as it was. */
static void remap(struct worker *self, enum what what, const struct remap *c)
{
    struct page page = *page_at(c->old.begin);
    struct request r = {.address = c->old.begin, .length = odd_length(self, c->pages), .flags = c->flags};
    r.old_length = what == S_mremapcopy ? 0 : odd_length(self, pages_of(c->old));
    r.target = c->target.begin;
    if ((c->flags & MREMAP_DONTUNMAP) != 0)
        r.length = r.old_length = pages_of(c->old) * PAGE;
    clear_pages(c->gone);
    clear_pages(c->target);
    long result;
    unsigned site = call_site(self, what, &r, &result);
    if (result == -1) {
        if (c->target.end != 0 || what == S_mremapshrink)
            fail("mremap failed that must not");
        set_pages(c->gone, page);
        return;
    }
    struct range new = range_of((uintptr_t)result, c->pages);
    bool stays = new.begin == c->old.begin;
    if (!stays && c->gone.end != 0)
        cut_slot(self, c->slot, c->gone);
    else if (stays && new.end < c->old.end)
        cut_slot(self, c->slot, (struct range){new.end, c->old.end});
    else if (stays && c->slot != NULL && new.end > c->slot->end)
        c->slot->end = new.end;
    page.flags &= (uint8_t)~INHERITED;
    book(self, new, site, page);
    if (!stays)
        keep(self, new);
    if (page.kind == ANON)
        touch_some(self, new);
}

/* A range of so many pages in the window, apart from `old`. */
static struct range random_target(struct worker *self, size_t pages, struct range old)
{
    struct range window = window_of(self), target;
    do {
        target = range_of(window.begin + random_below(self, WINDOW_PAGES - pages) * PAGE, pages);
    } while (target.begin < old.end && old.begin < target.end);
    return target;
}

static void remap_some(struct worker *self)
{
    size_t rest;
    struct remap c = {.slot = random_place(self)};
    c.old = random_run(self, c.slot, &rest);
    if (c.old.end == 0 || page_at(c.old.begin)->kind == STACK)
        return;
    enum what what = S_mremapgrow + (enum what)random_below(self, S_mremapfail - S_mremapgrow);
    size_t pages = pages_of(c.old), more = 1 + random_below(self, RANGE_PAGES / 2);
    bool in_window = c.slot == NULL;
    c.pages = pages;
    switch (what) {
    case S_mremapgrow:
        c.old.end += rest * PAGE;
        c.pages += rest + more;
        if (in_window && c.old.begin + c.pages * PAGE > window_of(self).end)
            return;
        break;
    case S_mremapshrink:
        c.pages = 1 + random_below(self, pages);
        c.gone = (struct range){c.old.begin + c.pages * PAGE, c.old.end};
        break;
    case S_mremapmove:
        c.flags = MREMAP_MAYMOVE;
        c.pages += more;
        c.gone = c.old;
        if (in_window && c.old.begin + c.pages * PAGE > window_of(self).end)
            return;
        break;
    case S_mremapfixed:
        c.flags = MREMAP_MAYMOVE | MREMAP_FIXED;
        c.pages = one_in(self, 2) ? pages + more : 1 + random_below(self, pages);
        c.gone = c.old;
        c.target = random_target(self, c.pages, c.old);
        break;
    case S_mremapleave:
        c.flags = MREMAP_MAYMOVE | MREMAP_DONTUNMAP;
        break;
    default:
        c.flags = MREMAP_MAYMOVE;
        if ((page_at(c.old.begin)->flags & MAY_COPY) == 0)
            return;
    }
    remap(self, what, &c);
}

static void remap_in_vain(struct worker *self)
{
    size_t rest;
    struct range old = random_run(self, random_place(self), &rest);
    if (old.end == 0)
        return;
    struct request r = {.address = old.begin, .flags = MREMAP_MAYMOVE};
    r.old_length = r.length = old.end - old.begin;
    switch (random_below(self, 5)) {
    case 0:
        r.address++;
        break;
    case 1: /* nothing is there */
        r.address = REGION(self->index) + 2 * (uintptr_t)WINDOW_PAGES * PAGE;
        break;
    case 2: /* onto itself */
        r.flags |= MREMAP_FIXED;
        r.target = old.begin;
        break;
    case 3: /* a place without leave to move there */
        r.flags = MREMAP_FIXED;
        r.target = window_of(self).begin;
        break;
    default:
        r.length = 0;
    }
    call_in_vain(self, S_mremapfail, &r);
}

#endif
