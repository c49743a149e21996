/*
 * The books of descriptors.c: who opened each descriptor, what it refers to, and how many of each there are.
 *
 * They lie in memory that is shared with children, because a child that shares the descriptor table (CLONE_FILES) books
 * what it opens and closes, too. A descriptor belongs to one thread at a time, which alone closes or replaces it: it
 * takes it out of a slot to own it, and puts it into one to give it away. So every count is exact without a lock around
 * the calls.
 */
#ifndef DESCRIPTORS_BOOKS_H
#define DESCRIPTORS_BOOKS_H

#include <dirent.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define ARRAY_LENGTH(array) (sizeof(array) / sizeof((array)[0]))

enum {
    MAX_THREADS = 16,
    MAX_SLOTS = 512,
    SITES_MAX = 128,
    /* Numbers below are given by the kernel, lowest first; so that it never gives one of a range that is filled by
     * dup2 and close_range, there are fewer descriptors than this. */
    FIRST_RANGE = 1000,
    RANGE_LENGTH = 64,
    /* For F_DUPFD: the lowest free number from here on. */
    HIGH_NUMBERS = 3000,
    MAX_FDS = 4096,
};

/* SECRETMEM_MAGIC of include/uapi/linux/magic.h, which older headers lack. */
enum { MAGIC_OF_SECRETMEM = 0x5345434d };

enum { PROTOCOL_MPTCP = 262 }; /* include/uapi/linux/in.h */

/* What a descriptor refers to, by the names that the profile uses. */
enum kind {
    OTHER, A_FILE, A_DIR, TCP, UDP, UNIX, A_PIPE, EVENTFD,
    EPOLL, TIMERFD, SIGNALFD, INOTIFY, MEMFD, PIDFD, IO_URING, BPF,
    KINDS,
};

static const char *const kind_names[KINDS] = {
    "other", "file", "dir", "tcp", "udp", "unix", "pipe", "eventfd",
    "epoll", "timerfd", "signalfd", "inotify", "memfd", "pidfd", "io_uring", "bpf",
};

/* Beside the sites: who else opened a descriptor. */
enum { BY_RING_ENTER = SITES_MAX, BY_RING, BY_UNTRACED_CALL, BY_EARLIER_PROGRAM, BEFORE, OWNERS };

struct book {
    _Atomic uint64_t opened;
    _Atomic int64_t open;
    /* Open since before the fork that made this process. */
    _Atomic int64_t inherited;
};

struct shared {
    struct book books[OWNERS][KINDS];
    /* By number, as packed by `owner`; 0: not open. */
    _Atomic uint32_t owners[MAX_FDS];
    /* By number: a FILE, or a DIR with the lowest bit set, that closes it. Of this process, not of its children. */
    void *_Atomic streams[MAX_FDS];
    /* Descriptors that belong to nobody at the moment; -1: an empty slot. */
    _Atomic int slots[MAX_SLOTS];
    _Atomic uint64_t operations;
};

static struct shared *shared;
static size_t slot_count;

static void fail(const char *what)
{
    fprintf(stderr, "descriptors: %s (errno %d)\n", what, errno);
    _exit(1);
}

static struct shared *new_books(void)
{
    void *memory = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        fail("no memory for the books");
    return memory;
}

/* ------------------------------------------------------------------ owners */

static uint32_t owner(unsigned site, enum kind kind, bool inherited)
{
    return (site + 1) << 16 | (uint32_t)kind << 8 | inherited;
}

static unsigned site_of(uint32_t owner)
{
    return (owner >> 16) - 1;
}

static enum kind kind_of_owner(uint32_t owner)
{
    return (enum kind)(owner >> 8 & 0xff);
}

static _Atomic int64_t *open_count(uint32_t owner)
{
    struct book *book = &shared->books[site_of(owner)][kind_of_owner(owner)];
    return owner & 1 ? &book->inherited : &book->open;
}

static uint32_t owner_of(int fd)
{
    return fd >= 0 && fd < MAX_FDS ? atomic_load(&shared->owners[fd]) : 0;
}

static enum kind kind_of(int fd)
{
    return kind_of_owner(owner_of(fd));
}

/* Books a descriptor that a call returned just now. */
static void book_opened(int fd, unsigned site, enum kind kind)
{
    if (fd < 0 || fd >= MAX_FDS)
        fail("a descriptor beyond the books");
    if (atomic_exchange(&shared->owners[fd], owner(site, kind, false)) != 0)
        fail("a number was opened that is open");
    atomic_fetch_add(&shared->books[site][kind].opened, 1);
    atomic_fetch_add(&shared->books[site][kind].open, 1);
}

/* Books a descriptor that is about to be closed, or was replaced just now. */
static void book_closed(int fd)
{
    uint32_t was = fd >= 0 && fd < MAX_FDS ? atomic_exchange(&shared->owners[fd], 0) : 0;
    if (was == 0)
        fail("a number is closed that is not open");
    atomic_fetch_sub(open_count(was), 1);
}

/* After a fork: what was opened so far is inherited. */
static void inherit_books(void)
{
    struct shared *copy = new_books();
    memcpy(copy, shared, sizeof *copy);
    shared = copy;
    for (int fd = 0; fd < MAX_FDS; fd++)
        if (copy->owners[fd] != 0)
            copy->owners[fd] |= 1;
    for (unsigned site = 0; site < OWNERS; site++) {
        for (unsigned kind = 0; kind < KINDS; kind++) {
            struct book *book = &copy->books[site][kind];
            book->inherited += book->open;
            book->open = 0;
            book->opened = 0;
        }
    }
}

/* ------------------------------------------------------------------ what the kernel says */

static enum kind kind_of_socket(int fd)
{
    int domain = 0, type = 0, protocol = 0;
    socklen_t length = sizeof(int);
    getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length);
    getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length);
    getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &length);
    if (domain == AF_UNIX)
        return UNIX;
    if (domain != AF_INET && domain != AF_INET6)
        return OTHER;
    if (protocol == IPPROTO_TCP || protocol == PROTOCOL_MPTCP)
        return TCP;
    return protocol == IPPROTO_UDP ? UDP : OTHER;
}

static enum kind kind_of_anonymous(const char *name)
{
    static const struct {
        const char *name;
        enum kind kind;
    } names[] = {
        {"[eventfd]", EVENTFD}, {"[eventpoll]", EPOLL}, {"[timerfd]", TIMERFD}, {"[signalfd]", SIGNALFD},
        {"inotify", INOTIFY},   {"[pidfd]", PIDFD},     {"[io_uring]", IO_URING}, {"bpf", BPF},
    };
    for (size_t i = 0; i < ARRAY_LENGTH(names); i++)
        if (strncmp(name, names[i].name, strlen(names[i].name)) == 0)
            return names[i].kind;
    return OTHER;
}

/* The kind, as /proc and the file itself have it. */
static enum kind kind_in_kernel(int fd)
{
    static const char anonymous[] = "anon_inode:";
    char path[64], link[512];
    struct stat status;
    struct statfs system;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(path, link, sizeof link - 1);
    if (length < 0 || fstat(fd, &status) != 0)
        fail("cannot look at a descriptor");
    link[length] = '\0';
    if (strncmp(link, anonymous, strlen(anonymous)) == 0)
        return kind_of_anonymous(link + strlen(anonymous));
    if (strncmp(link, "pidfd:", 6) == 0)
        return PIDFD;
    if (strncmp(link, "/memfd:", 7) == 0)
        return MEMFD;
    if (S_ISSOCK(status.st_mode))
        return kind_of_socket(fd);
    if (S_ISFIFO(status.st_mode))
        return A_PIPE;
    if (S_ISDIR(status.st_mode))
        return A_DIR;
    if (fstatfs(fd, &system) == 0 && system.f_type == MAGIC_OF_SECRETMEM)
        return MEMFD;
    return A_FILE;
}

/* Calls `with` for each number in /proc/self/fd but the one that lists them. */
static unsigned for_each_descriptor(void (*with)(int fd))
{
    DIR *directory = opendir("/proc/self/fd");
    if (directory == NULL)
        fail("cannot list the descriptors");
    unsigned count = 0;
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        int fd = atoi(entry->d_name);
        if (entry->d_name[0] == '.' || fd == dirfd(directory))
            continue;
        with(fd);
        count++;
    }
    closedir(directory);
    return count;
}

static void check_one(int fd)
{
    uint32_t owner = owner_of(fd);
    if (owner != 0 && kind_of_owner(owner) == kind_in_kernel(fd))
        return;
    fprintf(stderr, "descriptors: %d is %s; the books say %s by %u\n", fd, kind_names[kind_in_kernel(fd)],
            owner == 0 ? "nothing" : kind_names[kind_of_owner(owner)], site_of(owner));
    abort();
}

/* Books what is open and not in the books. */
static void book_unknown(int fd, unsigned site)
{
    if (owner_of(fd) == 0) {
        enum kind kind = kind_in_kernel(fd);
        atomic_store(&shared->owners[fd], owner(site, kind, false));
        atomic_fetch_add(&shared->books[site][kind].open, 1);
    }
}

static void book_before(int fd)
{
    book_unknown(fd, BEFORE);
}

/* Aborts unless exactly what is in the books is open, at a moment when no thread opens or closes anything. */
static void check_books(void)
{
    int64_t booked = 0;
    for (unsigned site = 0; site < OWNERS; site++)
        for (unsigned kind = 0; kind < KINDS; kind++)
            booked += shared->books[site][kind].open + shared->books[site][kind].inherited;
    unsigned count = for_each_descriptor(check_one);
    if (count != booked) {
        fprintf(stderr, "descriptors: %u are open, the books have %lld\n", count, (long long)booked);
        abort();
    }
}

/* ------------------------------------------------------------------ slots */

/* Makes the descriptor in a slot the caller's own; -1 if there is none. */
static int take(size_t slot)
{
    return atomic_exchange(&shared->slots[slot], -1);
}

/* Gives a descriptor to a slot, and returns what was there: the caller's own now. */
static int put(size_t slot, int fd)
{
    return atomic_exchange(&shared->slots[slot], fd);
}

#endif
