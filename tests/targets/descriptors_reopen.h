/* Numbers that descriptors.c closes and has opened anew at once, by a call of another sort. */
#ifndef DESCRIPTORS_REOPEN_H
#define DESCRIPTORS_REOPEN_H

#include <linux/userfaultfd.h>

#include "descriptors_ring.h"

/* USERFAULTFD_IOC_NEW opens a descriptor (Linux 6.1): an ioctl that memtrace does not know as an opening. */
static int fault_device = -1;

static void make_fault_device(void)
{
    fault_device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (fault_device < 0)
        printf("refused untraced %d\n", errno);
}

NOINLINE static int open_untraced(void)
{
    return ioctl(fault_device, USERFAULTFD_IOC_NEW, O_CLOEXEC);
}

NOINLINE static int open_traced(struct worker *self, const char *name)
{
    struct request r = {.path = "file"};
    const struct site *site = site_named(name);
    r.kinds[0] = site->kind;
    if (open_by(self, site, &r) != 1)
        fail("a site opens nothing");
    return r.opened[0];
}

/* Descriptors from before the first command that only `reopen` closes. */
static int prior[4];
static size_t prior_count;

static void hold_for_reopening(void)
{
    for (; prior_count < ARRAY_LENGTH(prior); prior_count++)
        prior[prior_count] = eventfd(0, EFD_CLOEXEC);
}

/* Opens descriptors until no number below `fd` is free, so that it is the next once it is closed. */
static size_t fill_below(struct worker *self, int fd, int *fillers)
{
    size_t count = 0;
    for (int number = 0; number < fd; number++)
        if (owner_of(number) == 0)
            fillers[count++] = open_traced(self, "site_eventfd_0");
    return count;
}

/*
 *     reopen traced      what was open before is closed, a site opens the number
 *     reopen before      what was open before is closed, an untraced call opens the number
 *     reopen untraced    what a site opened is closed, an untraced call opens the number
 *     reopen ring        the same; an io_uring closes it
 */
NOINLINE static void reopen(struct worker *self, const char *what)
{
    static int fillers[FIRST_RANGE];
    bool is_prior = strcmp(what, "traced") == 0 || strcmp(what, "before") == 0;
    if (is_prior && prior_count == 0)
        fail("all that was open before is closed");
    int fd = is_prior ? prior[--prior_count] : open_traced(self, "site_eventfd_1");
    size_t count = fill_below(self, fd, fillers);
    if (strcmp(what, "ring") == 0)
        close_by_ring(self, fd);
    else
        close_one(self, fd);
    int again;
    if (strcmp(what, "traced") == 0) {
        again = open_traced(self, "site_open_0");
    } else {
        again = open_untraced();
        book_opened(again, BY_UNTRACED_CALL, OTHER);
    }
    if (again != fd)
        fail("another number was opened than the one that was closed");
    while (count > 0)
        close_one(self, fillers[--count]);
    give(self, again);
}

#endif
