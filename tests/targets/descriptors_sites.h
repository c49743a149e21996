/*
 * The call sites of descriptors.c: functions of their own whose names say which call they make.
 *
 * Of each call there is one site that makes it through the C library and one through syscall(2), or one with the
 * instruction in the site itself. A site books nothing: children use the same ones for tables of their own.
 */
#ifndef DESCRIPTORS_SITES_H
#define DESCRIPTORS_SITES_H

#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <linux/openat2.h>
#include <linux/perf_event.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <mqueue.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/pidfd.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <termios.h>

#include "descriptors_books.h"

enum {
    RIGHTS_MAX = 5,  /* descriptors in a message */
    PARCELS_MAX = 3, /* messages at once */
    OPENED_MAX = RIGHTS_MAX * PARCELS_MAX,
    USER_MODE_ONLY = 1, /* UFFD_USER_MODE_ONLY, include/uapi/linux/userfaultfd.h */
    PEERPIDFD = 77, /* SO_PEERPIDFD, include/uapi/asm-generic/socket.h */
    OF_WHICH_USERS = 0xb701, /* NS_GET_USERNS, include/uapi/linux/nsfs.h */
    OPEN_TREE_ATTR = 467, /* its system call, arch/x86/entry/syscalls/syscall_64.tbl */
    CHILD_STACK = 16384,
};

/* A message that descriptors come in. */
struct parcel {
    struct msghdr header;
    struct iovec data;
    char byte;
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(RIGHTS_MAX * sizeof(int))];
    enum kind kinds[RIGHTS_MAX]; /* what was sent */
};

/* The arguments of one call, whichever it is, and what it opened. */
struct request {
    const char *path;
    int fd;     /* a descriptor that the call uses */
    int number; /* dup2, dup3: onto which; F_DUPFD: from which on */
    int flags;
    int domain, type, protocol;
    struct open_how how;
    struct perf_event_attr event;
    union bpf_attr map;
    struct io_uring_params ring;
    struct file_handle *handle;
    const struct sock_fprog *filter;
    struct parcel parcels[PARCELS_MAX];
    unsigned parcel_count;
    pid_t child; /* to be waited for; 0: none */
    void *stream; /* as in struct shared */
    struct clone_args clone;
    char *stack;  /* of CHILD_STACK bytes, for a child that shares the memory */
    sigset_t signals;
    char name[64]; /* of a message queue */

    /* What the call opened, and of which kind it must be. */
    int opened[OPENED_MAX];
    enum kind kinds[OPENED_MAX];
    /* What was taken out of slots for the call, to be put back after it. */
    int borrowed[OPENED_MAX + 2];
    unsigned borrowed_count;
};

/* ------------------------------------------------------------------ ways to make a call */

/* The bare instruction: whoever inlines this is the innermost frame of the call. */
ALWAYS_INLINE long direct(long number, long a, long b, long c, long d, long e)
{
    register long fourth __asm__("r10") = d;
    register long fifth __asm__("r8") = e;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fourth), "r"(fifth)
                     : "rcx", "r11", "memory");
    if (result < 0) {
        errno = (int)-result;
        return -1;
    }
    return result;
}

#define DIRECT(number, ...) DIRECT_5(number, __VA_ARGS__, 0, 0, 0, 0, 0)
#define DIRECT_5(number, a, b, c, d, e, ...) \
    direct(SYS_##number, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e))

/* A child of a call that returns twice has nothing to do. */
ALWAYS_INLINE long end_child(long pid)
{
    if (pid == 0)
        DIRECT(exit_group, 0);
    return pid;
}

/* ------------------------------------------------------------------ what a call opened */

ALWAYS_INLINE int opened_one(struct request *r, long fd)
{
    r->opened[0] = (int)fd;
    return fd < 0 ? -1 : 1;
}

/* One that the call stored. */
ALWAYS_INLINE int opened_there(long result)
{
    return result < 0 ? -1 : 1;
}

ALWAYS_INLINE int opened_pair(long result)
{
    return result < 0 ? -1 : 2;
}

ALWAYS_INLINE int opened_with_child(struct request *r, long pid)
{
    r->child = pid > 0 ? (pid_t)pid : 0;
    return pid < 0 ? -1 : 1;
}

/* Descriptors that came in a message: appends them to those that came before. */
static int unpack(struct request *r, unsigned parcel, int count)
{
    struct msghdr *header = &r->parcels[parcel].header;
    for (struct cmsghdr *part = CMSG_FIRSTHDR(header); part != NULL; part = CMSG_NXTHDR(header, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
            continue;
        size_t received = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < received; i++, count++) {
            memcpy(&r->opened[count], CMSG_DATA(part) + i * sizeof(int), sizeof(int));
            r->kinds[count] = r->parcels[parcel].kinds[i];
        }
    }
    return count;
}

static int opened_by_message(struct request *r, long result)
{
    return result < 0 ? -1 : unpack(r, 0, 0);
}

static int opened_by_messages(struct request *r, struct mmsghdr *messages, long result)
{
    int count = 0;
    for (long i = 0; i < result; i++) {
        r->parcels[i].header = messages[i].msg_hdr;
        count = unpack(r, (unsigned)i, count);
    }
    return result < 0 ? -1 : count;
}

/* ------------------------------------------------------------------ the sites */

/*
 * The empty assembly makes the bodies differ, so that no two sites are folded into one, and keeps the call from being
 * the last thing that the function does.
 */
#define SITE_WITH(name, number, opened, ...)                            \
    NOINLINE static int site_##name##_##number(struct request *r)       \
    {                                                                   \
        long result = (__VA_ARGS__);                                    \
        __asm__ volatile("/* " #name " " #number " */" : "+r"(result)); \
        return opened;                                                  \
    }

#define SITE(name, number, ...) SITE_WITH(name, number, opened_one(r, result), __VA_ARGS__)
#define PAIR_SITE(name, number, ...) SITE_WITH(name, number, opened_pair(result), __VA_ARGS__)
#define CHILD_SITE(name, number, ...) SITE_WITH(name, number, opened_with_child(r, result), __VA_ARGS__)
#define MESSAGE_SITE(name, number, ...) SITE_WITH(name, number, opened_by_message(r, result), __VA_ARGS__)

/* The path of a file, whatever it is. */
SITE(open, 0, open(r->path, r->flags, 0600))
SITE(open, 1, syscall(SYS_open, r->path, r->flags, 0600))
SITE(open, 2, DIRECT(open, r->path, r->flags, 0600))
SITE(openat, 0, openat(r->fd, r->path, r->flags, 0600))
SITE(openat, 1, DIRECT(openat, r->fd, r->path, r->flags, 0600))
SITE(openat2, 0, syscall(SYS_openat2, r->fd, r->path, &r->how, sizeof r->how))
SITE(openat2, 1, DIRECT(openat2, r->fd, r->path, &r->how, sizeof r->how))
SITE(creat, 0, creat(r->path, 0600))
SITE(creat, 1, syscall(SYS_creat, r->path, 0600))
SITE(open_by_handle_at, 0, open_by_handle_at(r->fd, r->handle, r->flags))
SITE(open_by_handle_at, 1, syscall(SYS_open_by_handle_at, r->fd, r->handle, r->flags))

/* Sockets. */
SITE(socket, 0, socket(r->domain, r->type, r->protocol))
SITE(socket, 1, syscall(SYS_socket, r->domain, r->type, r->protocol))
SITE(socket, 2, DIRECT(socket, r->domain, r->type, r->protocol))
PAIR_SITE(socketpair, 0, socketpair(r->domain, r->type, 0, r->opened))
PAIR_SITE(socketpair, 1, DIRECT(socketpair, r->domain, r->type, 0, r->opened))
SITE(accept, 0, accept(r->fd, NULL, NULL))
SITE(accept, 1, syscall(SYS_accept, r->fd, NULL, NULL))
SITE(accept4, 0, accept4(r->fd, NULL, NULL, r->flags))
SITE(accept4, 1, DIRECT(accept4, r->fd, 0, 0, r->flags))
MESSAGE_SITE(recvmsg, 0, recvmsg(r->fd, &r->parcels[0].header, r->flags))
MESSAGE_SITE(recvmsg, 1, syscall(SYS_recvmsg, r->fd, &r->parcels[0].header, r->flags))
MESSAGE_SITE(recvmsg, 2, DIRECT(recvmsg, r->fd, &r->parcels[0].header, r->flags))
SITE_WITH(peer_pidfd, 0, opened_there(result),
          getsockopt(r->fd, SOL_SOCKET, PEERPIDFD, r->opened, &(socklen_t){sizeof *r->opened}))
SITE_WITH(peer_pidfd, 1, opened_there(result),
          DIRECT(getsockopt, r->fd, SOL_SOCKET, PEERPIDFD, r->opened, &(socklen_t){sizeof *r->opened}))

#define RECVMMSG_SITE(number, call)                                   \
    NOINLINE static int site_recvmmsg_##number(struct request *r)     \
    {                                                                 \
        struct mmsghdr messages[PARCELS_MAX];                         \
        memset(messages, 0, sizeof messages);                         \
        for (unsigned i = 0; i < r->parcel_count; i++)                \
            messages[i].msg_hdr = r->parcels[i].header;               \
        long result = call;                                           \
        __asm__ volatile("/* recvmmsg " #number " */" : "+r"(result)); \
        return opened_by_messages(r, messages, result);               \
    }

RECVMMSG_SITE(0, recvmmsg(r->fd, messages, r->parcel_count, r->flags, NULL))
RECVMMSG_SITE(1, DIRECT(recvmmsg, r->fd, messages, r->parcel_count, r->flags, 0))

/* Pipes and duplicates. */
PAIR_SITE(pipe, 0, pipe(r->opened))
PAIR_SITE(pipe, 1, syscall(SYS_pipe, r->opened))
PAIR_SITE(pipe2, 0, pipe2(r->opened, r->flags))
PAIR_SITE(pipe2, 1, DIRECT(pipe2, r->opened, r->flags))
SITE(dup, 0, dup(r->fd))
SITE(dup, 1, DIRECT(dup, r->fd))
SITE(dup2, 0, dup2(r->fd, r->number))
SITE(dup2, 1, syscall(SYS_dup2, r->fd, r->number))
SITE(dup3, 0, dup3(r->fd, r->number, r->flags))
SITE(dup3, 1, DIRECT(dup3, r->fd, r->number, r->flags))
SITE(fcntl_dupfd, 0, fcntl(r->fd, F_DUPFD, r->number))
SITE(fcntl_dupfd, 1, syscall(SYS_fcntl, r->fd, F_DUPFD, r->number))
SITE(fcntl_dupfd_cloexec, 0, fcntl(r->fd, F_DUPFD_CLOEXEC, r->number))
SITE(fcntl_dupfd_cloexec, 1, DIRECT(fcntl, r->fd, F_DUPFD_CLOEXEC, r->number))
SITE(pidfd_getfd, 0, pidfd_getfd(r->fd, r->number, 0))
SITE(pidfd_getfd, 1, DIRECT(pidfd_getfd, r->fd, r->number, 0))

/* Files that are nowhere. */
SITE(eventfd, 0, eventfd(3, r->flags))
SITE(eventfd, 1, syscall(SYS_eventfd, 3))
SITE(eventfd, 2, DIRECT(eventfd2, 3, r->flags))
SITE(timerfd_create, 0, timerfd_create(CLOCK_MONOTONIC, r->flags))
SITE(timerfd_create, 1, DIRECT(timerfd_create, CLOCK_REALTIME, r->flags))
SITE(signalfd, 0, signalfd(-1, &r->signals, r->flags))
SITE(signalfd, 1, syscall(SYS_signalfd, -1, &r->signals, 8))
SITE(epoll_create1, 0, epoll_create1(r->flags))
SITE(epoll_create1, 1, syscall(SYS_epoll_create1, r->flags))
SITE(epoll_create, 0, epoll_create(1))
SITE(epoll_create, 1, DIRECT(epoll_create, 1))
SITE(inotify_init1, 0, inotify_init1(r->flags))
SITE(inotify_init1, 1, DIRECT(inotify_init1, r->flags))
SITE(inotify_init, 0, inotify_init())
SITE(inotify_init, 1, syscall(SYS_inotify_init))
SITE(fanotify_init, 0, fanotify_init(FAN_CLASS_NOTIF | r->flags, O_RDONLY))
SITE(fanotify_init, 1, syscall(SYS_fanotify_init, FAN_CLASS_NOTIF | r->flags, O_RDONLY))
SITE(memfd_create, 0, memfd_create("held", (unsigned)r->flags))
SITE(memfd_create, 1, DIRECT(memfd_create, "held", r->flags))
SITE(memfd_secret, 0, syscall(SYS_memfd_secret, r->flags))
SITE(memfd_secret, 1, DIRECT(memfd_secret, r->flags))
SITE(userfaultfd, 0, syscall(SYS_userfaultfd, USER_MODE_ONLY | r->flags))
SITE(userfaultfd, 1, DIRECT(userfaultfd, USER_MODE_ONLY | r->flags))
SITE(perf_event_open, 0, syscall(SYS_perf_event_open, &r->event, 0, -1, -1, r->flags))
SITE(perf_event_open, 1, DIRECT(perf_event_open, &r->event, 0, -1, -1, r->flags))
SITE(bpf, 0, syscall(SYS_bpf, BPF_MAP_CREATE, &r->map, sizeof r->map))
SITE(bpf, 1, DIRECT(bpf, BPF_MAP_CREATE, &r->map, sizeof r->map))
SITE(io_uring_setup, 0, syscall(SYS_io_uring_setup, 1, &r->ring))
SITE(io_uring_setup, 1, DIRECT(io_uring_setup, 1, &r->ring))
SITE(landlock_create_ruleset, 0, syscall(SYS_landlock_create_ruleset, (uint64_t[]){1}, 8, 0))
SITE(landlock_create_ruleset, 1, DIRECT(landlock_create_ruleset, (uint64_t[]){1}, 8, 0))
SITE(mq_open, 0, mq_open(r->name, r->flags, 0600, &(struct mq_attr){.mq_maxmsg = 1, .mq_msgsize = 8}))
SITE(mq_open, 1, syscall(SYS_mq_open, r->name + 1, r->flags, 0600, &(struct mq_attr){.mq_maxmsg = 1, .mq_msgsize = 8}))
SITE(seccomp, 0, syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, r->filter))

/* By ioctl. */
SITE(terminal_peer, 0, ioctl(r->fd, TIOCGPTPEER, O_RDWR | O_NOCTTY | r->flags))
SITE(terminal_peer, 1, DIRECT(ioctl, r->fd, TIOCGPTPEER, O_RDWR | O_NOCTTY | r->flags))
SITE(namespace_of_users, 0, ioctl(r->fd, OF_WHICH_USERS))
SITE(namespace_of_users, 1, syscall(SYS_ioctl, r->fd, OF_WHICH_USERS))

/* File systems. */
SITE(open_tree, 0, open_tree(r->fd, r->path, (unsigned)r->flags))
SITE(open_tree, 1, syscall(SYS_open_tree, r->fd, r->path, r->flags))
SITE(open_tree_attr, 0, syscall(OPEN_TREE_ATTR, r->fd, r->path, r->flags, NULL, 0))
SITE(fsopen, 0, fsopen("tmpfs", (unsigned)r->flags))
SITE(fsopen, 1, DIRECT(fsopen, "tmpfs", r->flags))
SITE(fspick, 0, fspick(AT_FDCWD, "/", (unsigned)r->flags))
SITE(fspick, 1, syscall(SYS_fspick, AT_FDCWD, "/", r->flags))
SITE(fsmount, 0, fsmount(r->fd, (unsigned)r->flags, 0))
SITE(fsmount, 1, syscall(SYS_fsmount, r->fd, r->flags, 0))

/* Processes. */
SITE(pidfd_open, 0, pidfd_open(getpid(), 0))
SITE(pidfd_open, 1, DIRECT(pidfd_open, getpid(), 0))

static int end_at_once(void *unused)
{
    (void)unused;
    _exit(0);
}

#define IN_THIS_MEMORY (CLONE_PIDFD | CLONE_VM | CLONE_VFORK | SIGCHLD)

CHILD_SITE(clone, 0, clone(end_at_once, r->stack + CHILD_STACK, IN_THIS_MEMORY, NULL, r->opened))
CHILD_SITE(clone, 1, end_child(syscall(SYS_clone, CLONE_PIDFD | SIGCHLD, 0, r->opened, 0, 0)))
CHILD_SITE(clone3, 0, end_child(syscall(SYS_clone3, &r->clone, sizeof r->clone)))
CHILD_SITE(clone3, 1, end_child(DIRECT(clone3, &r->clone, sizeof r->clone)))

/* The C library's streams, which close what they opened. */
#define STREAM_SITE(name, number, stream_type, call, descriptor, bit)    \
    NOINLINE static int site_##name##_##number(struct request *r)        \
    {                                                                    \
        stream_type *stream = call;                                      \
        __asm__ volatile("/* " #name " " #number " */" : "+r"(stream)); \
        if (stream == NULL)                                              \
            return -1;                                                   \
        r->stream = (char *)stream + (bit);                              \
        return opened_one(r, descriptor(stream));                        \
    }

STREAM_SITE(fopen, 0, FILE, fopen(r->path, "r"), fileno, 0)
STREAM_SITE(fopen, 1, FILE, fopen(r->path, "re"), fileno, 0)
STREAM_SITE(opendir, 0, DIR, opendir(r->path), dirfd, 1)
STREAM_SITE(opendir, 1, DIR, fdopendir(open(r->path, O_RDONLY | O_DIRECTORY)), dirfd, 1)

/* Of a child that shares the table, but not the memory. */
SITE(sharing_child_open, 0, open(r->path, r->flags))
SITE(sharing_child_open, 1, DIRECT(open, r->path, r->flags))
SITE(sharing_child_socket, 0, socket(r->domain, r->type, r->protocol))
PAIR_SITE(sharing_child_pipe, 0, pipe(r->opened))

#endif
