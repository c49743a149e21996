/* Calls that open and close nothing: because they fail, or because of how they are made. */
#ifndef DESCRIPTORS_NOTHING_H
#define DESCRIPTORS_NOTHING_H

#include "descriptors_requests.h"

enum { NO_SUCH_NUMBER = 1 << 24 };

static void must_be(bool condition, const char *what)
{
    if (!condition)
        fail(what);
}

/* ------------------------------------------------------------------ calls that fail */

/* Requests that no kernel grants, made by the same sites as all others. */
static const struct vain {
    const char *site;
    struct request request;
} vain[] = {
    {"site_open_0", {.path = "missing"}},
    {"site_open_1", {.path = "file/inner"}},
    {"site_open_2", {.path = NULL}},
    {"site_openat_0", {.fd = NO_SUCH_NUMBER, .path = "file"}},
    {"site_openat_1", {.fd = AT_FDCWD, .path = "missing"}},
    {"site_openat2_0", {.fd = AT_FDCWD, .path = "file", .how.resolve = 1 << 20}},
    {"site_creat_0", {.path = "missing/file"}},
    {"site_fopen_0", {.path = "missing"}},
    {"site_opendir_0", {.path = "file"}},
    {"site_socket_0", {.domain = 9999, .type = SOCK_STREAM}},
    {"site_socket_2", {.domain = AF_INET, .type = 77}},
    {"site_socketpair_0", {.domain = AF_INET, .type = SOCK_STREAM}},
    {"site_accept_0", {.fd = 0}},
    {"site_accept4_0", {.fd = NO_SUCH_NUMBER}},
    {"site_recvmsg_0", {.fd = NO_SUCH_NUMBER}},
    {"site_recvmmsg_0", {.fd = NO_SUCH_NUMBER, .parcel_count = 1}},
    {"site_pipe2_0", {.flags = 0x7}},
    {"site_dup_0", {.fd = NO_SUCH_NUMBER}},
    {"site_dup_1", {.fd = -1}},
    {"site_dup2_0", {.fd = -1, .number = 0}},
    {"site_dup2_1", {.fd = 0, .number = NO_SUCH_NUMBER}},
    {"site_dup3_0", {.fd = 1, .number = 1}},
    {"site_fcntl_dupfd_0", {.fd = NO_SUCH_NUMBER}},
    {"site_fcntl_dupfd_1", {.fd = 0, .number = NO_SUCH_NUMBER}},
    {"site_eventfd_0", {.flags = 0x7}},
    {"site_timerfd_create_0", {.flags = 0x7}},
    {"site_epoll_create1_0", {.flags = 0x7}},
    {"site_inotify_init1_0", {.flags = 0x7}},
    {"site_memfd_create_0", {.flags = 1 << 24}},
    {"site_bpf_0", {.map.max_entries = 0}},
    {"site_pidfd_getfd_0", {.fd = 0, .number = 1}},
    {"site_open_tree_1", {.fd = AT_FDCWD, .path = "missing"}},
    {"site_fsmount_0", {.fd = 0}},
};

static void call_in_vain(struct worker *self)
{
    const struct vain *chosen = &vain[random_below(self, ARRAY_LENGTH(vain))];
    struct request r = chosen->request;
    must_be(site_named(chosen->site)->call(&r) == -1, "an impossible call succeeded");
}

/* The kernel has chosen two numbers when it finds that it cannot tell them. */
static void pipe_to_nowhere(struct worker *self)
{
    (void)self;
    must_be(DIRECT(pipe2, 8, 0) == -1, "a pipe was told to nobody");
}

static void clone_to_nowhere(struct worker *self)
{
    (void)self;
    long pid = end_child(syscall(SYS_clone, CLONE_PIDFD | SIGCHLD, 0, 8, 0, 0));
    must_be(pid == -1, "a pidfd was told to nobody");
}

static void close_in_vain(struct worker *self)
{
    must_be(close(-1) == -1 && close(NO_SUCH_NUMBER) == -1, "what is not open was closed");
    must_be(close_range(5, 3, 0) == -1, "an empty range was closed");
    must_be(DIRECT(close_range, self->range, self->range, 1 << 20) == -1, "a range was closed with an unknown flag");
}

/* ------------------------------------------------------------------ calls that succeed */

static void duplicate_onto_itself(struct worker *self)
{
    struct request r = {0};
    int fd = borrow(self, &r);
    if (fd < 0)
        return;
    long same = one_in(self, 2) ? dup2(fd, fd) : syscall(SYS_dup2, fd, fd);
    must_be(same == fd || starving, "dup2 onto the same number");
    give(self, fd);
}

static void change_signals(struct worker *self)
{
    struct request r = {0};
    int fd = borrow(self, &r);
    if (fd < 0)
        return;
    sigaddset(&r.signals, SIGWINCH);
    if (kind_of(fd) == SIGNALFD)
        must_be(signalfd(fd, &r.signals, 0) == fd, "a signalfd cannot be changed");
    else
        must_be(signalfd(fd, &r.signals, 0) == -1, "a signalfd was made of something else");
    give(self, fd);
}

/* These return numbers that are no descriptors. */
static void ask(struct worker *self)
{
    struct request r = {0};
    int fd = borrow(self, &r);
    if (fd < 0)
        return;
    must_be(fcntl(fd, F_GETFD) >= 0 && fcntl(fd, F_GETFL) >= 0, "fcntl does not tell flags");
    must_be(fcntl(fd, F_SETFD, one_in(self, 2) ? FD_CLOEXEC : 0) == 0, "fcntl does not set flags");
    uint32_t action = SECCOMP_RET_ALLOW;
    syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action);
    syscall(SYS_landlock_create_ruleset, NULL, 0, 1 /* LANDLOCK_CREATE_RULESET_VERSION */);
    give(self, fd);
}

static void update_map(struct worker *self)
{
    struct request r = {0};
    int fd = borrow(self, &r);
    if (fd >= 0 && kind_of(fd) == BPF) {
        uint32_t key = 0, value = 1;
        union bpf_attr element = {.map_fd = (uint32_t)fd, .key = (uintptr_t)&key, .value = (uintptr_t)&value};
        must_be(syscall(SYS_bpf, BPF_MAP_UPDATE_ELEM, &element, sizeof element) == 0, "a map does not take a value");
    }
    if (fd >= 0)
        give(self, fd);
}

/* All that is in the range stays open. */
static void mark_range(struct worker *self)
{
    long first = self->range, last = self->range + RANGE_LENGTH - 1;
    must_be(DIRECT(close_range, first, last, CLOSE_RANGE_CLOEXEC) == 0, "a range cannot be marked");
}

/* Descriptors in messages for which there is no room. */
static void read_rights(struct worker *self)
{
    struct request r = {0};
    int fd = borrow_for_mail(self, &r);
    if (fd >= 0) {
        send_rights(self, &fd, 1);
        empty_mail(self);
    }
    for (unsigned i = 0; i < r.borrowed_count; i++)
        give(self, r.borrowed[i]);
}

NOINLINE static void open_nothing(struct worker *self)
{
    static void (*const ways[])(struct worker *) = {
        call_in_vain, call_in_vain,          call_in_vain,   pipe_to_nowhere, clone_to_nowhere, close_in_vain,
        ask,          duplicate_onto_itself, change_signals, update_map,      mark_range,       read_rights,
    };
    ways[random_below(self, ARRAY_LENGTH(ways))](self);
}

#endif
