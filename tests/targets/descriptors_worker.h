/* A thread of descriptors.c, what it keeps for itself, and how it closes descriptors. */
#ifndef DESCRIPTORS_WORKER_H
#define DESCRIPTORS_WORKER_H

#include <arpa/inet.h>
#include <pthread.h>
#include <sys/un.h>

#include "descriptors_sites.h"
#include "rounds.h"

enum { LISTENERS = 3, PENDING_MAX = 64 };

/* A socket that a thread connects to and accepts from. */
struct listener {
    int fd; /* -1: this machine has no such sockets */
    int domain;
    enum kind kind;
    union {
        struct sockaddr any;
        struct sockaddr_in in;
        struct sockaddr_in6 in6;
        struct sockaddr_un un;
    } address;
    socklen_t length;
    unsigned pending; /* connections that were not accepted, for want of a number */
};

struct worker {
    pthread_t thread;
    uint64_t random;
    struct listener listeners[LISTENERS];
    int mail[2]; /* a pair of sockets: what it sends into the first it receives from the second */
    int range;   /* the first of its RANGE_LENGTH numbers, which dup2 alone fills */
    _Alignas(16) char stack[CHILD_STACK];
};

static struct worker workers[MAX_THREADS];

/* The directory that all paths are relative to, and a handle of a file in it. */
static int work_directory = -1;
static struct {
    struct file_handle handle;
    unsigned char bytes[MAX_HANDLE_SZ];
} file_handle;

/* Whether numbers are scarce, so that any call may be refused one. */
static _Atomic bool starving;

/* In a child of a raw clone no stream can be made: another thread may have held a lock of malloc's. */
static bool in_raw_child;

static uint64_t random_below(struct worker *self, uint64_t bound)
{
    return (next_random(&self->random) >> 16) % bound;
}

static bool one_in(struct worker *self, unsigned n)
{
    return random_below(self, n) == 0;
}

/* ------------------------------------------------------------------ closing */

/* The stream that a number was opened with, which is gone then; NULL if there is none. */
static char *take_stream(int fd)
{
    return atomic_exchange(&shared->streams[fd], NULL);
}

static void close_stream(char *stream)
{
    bool is_directory = (uintptr_t)stream & 1;
    if ((is_directory ? closedir((DIR *)(stream - 1)) : fclose((FILE *)stream)) != 0)
        fail("a stream does not close");
}

/* Closes by a stream that is made for it; false if this descriptor can have none. */
static bool close_by_stream(int fd, enum kind kind)
{
    int mode = fcntl(fd, F_GETFL) & O_ACCMODE;
    if (kind == A_DIR) {
        DIR *directory = fdopendir(fd);
        return directory != NULL && closedir(directory) == 0;
    }
    FILE *stream = fdopen(fd, mode == O_WRONLY ? "w" : "r");
    return stream != NULL && fclose(stream) == 0;
}

/* Closes what the caller owns, in one of the ways there are. */
NOINLINE static void close_one(struct worker *self, int fd)
{
    enum kind kind = kind_of(fd);
    long result = 0;
    book_closed(fd);
    char *stream = take_stream(fd);
    if (stream != NULL) {
        close_stream(stream);
        return;
    }
    switch (random_below(self, 6)) {
    case 0:
        result = syscall(SYS_close, fd);
        break;
    case 1:
        result = DIRECT(close, fd);
        break;
    case 2:
        result = close_range((unsigned)fd, (unsigned)fd, 0);
        break;
    case 3:
        result = !in_raw_child && close_by_stream(fd, kind) ? 0 : close(fd);
        break;
    default:
        result = close(fd);
    }
    if (result != 0)
        fail("an open descriptor does not close");
}

/* Gives a descriptor to a random slot, and closes what was in it. */
static void give(struct worker *self, int fd)
{
    int evicted = put(random_below(self, slot_count), fd);
    if (evicted >= 0)
        close_one(self, evicted);
}

/* Closes part of the thread's own range, holes and all. */
static void close_part_of_range(struct worker *self)
{
    int first = self->range + (int)random_below(self, RANGE_LENGTH);
    int last = first + (int)random_below(self, (uint64_t)(self->range + RANGE_LENGTH - first));
    for (int fd = first; fd <= last; fd++)
        if (owner_of(fd) != 0)
            book_closed(fd);
    long result = one_in(self, 2) ? close_range((unsigned)first, (unsigned)last, 0)
                                  : DIRECT(close_range, first, last, 0);
    if (result != 0)
        fail("a range does not close");
}

#endif
