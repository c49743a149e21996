/* The arguments of every call: what a thread of descriptors.c asks for, and the list of its sites. */
#ifndef DESCRIPTORS_REQUESTS_H
#define DESCRIPTORS_REQUESTS_H

#include <sys/wait.h>

#include "descriptors_worker.h"

struct site {
    const char *name;
    int (*call)(struct request *); /* how many descriptors it opened; -1: it failed */
    enum kind kind;                /* of what it opens, unless `prepare` knows better */
    int close_on_exec;             /* what to set in `flags` for it; 0: it knows no such thing */
    /* Completes the request; false if there is nothing to ask for at the moment. */
    bool (*prepare)(struct worker *, struct request *);
    enum { BY_ANY, BY_VISITOR, BY_SHARING_CHILD } who;
    bool is_refused;
};

static const struct site *site_named(const char *name);
static int open_by(struct worker *self, const struct site *site, struct request *r);

/* ------------------------------------------------------------------ descriptors that calls need */

static void lend(struct request *r, int fd)
{
    r->borrowed[r->borrowed_count++] = fd;
}

/* Takes a descriptor out of a slot for the time of the call; -1 if none is found. */
static int borrow(struct worker *self, struct request *r)
{
    for (int attempt = 0; attempt < 8; attempt++) {
        int fd = take(random_below(self, slot_count));
        if (fd >= 0) {
            lend(r, fd);
            return fd;
        }
    }
    return -1;
}

/* Opens what a call needs by another call, which counts like any other. */
static int open_for(struct worker *self, struct request *r, const char *site, struct request *needed)
{
    if (open_by(self, site_named(site), needed) != 1)
        return -1;
    lend(r, needed->opened[0]);
    return needed->opened[0];
}

/* ------------------------------------------------------------------ paths */

static const struct place {
    const char *path;
    int flags;
    enum kind kind;
} places[] = {
    {"file", O_RDONLY, A_FILE},
    {"file", O_RDWR | O_APPEND, A_FILE},
    {"file", O_PATH, A_FILE},
    {"created", O_WRONLY | O_CREAT | O_TRUNC, A_FILE},
    {"link", O_RDONLY, A_FILE},
    {"fifo", O_RDWR | O_NONBLOCK, A_PIPE},
    {".", O_RDONLY | O_DIRECTORY, A_DIR},
    {"inner", O_RDONLY, A_DIR},
    {".", O_PATH, A_DIR},
    {"/dev/null", O_WRONLY, A_FILE},
    {"/dev/zero", O_RDONLY, A_FILE},
    {"/proc/self/status", O_RDONLY, A_FILE},
};

static bool prepare_path(struct worker *self, struct request *r)
{
    const struct place *place = &places[random_below(self, ARRAY_LENGTH(places))];
    r->path = place->path;
    r->flags |= place->flags;
    r->fd = one_in(self, 2) ? work_directory : AT_FDCWD;
    r->kinds[0] = place->kind;
    r->how.flags = (uint64_t)r->flags;
    r->how.mode = place->flags & O_CREAT ? 0600 : 0;
    return true;
}

static bool prepare_file(struct worker *self, struct request *r)
{
    (void)self;
    r->path = "file";
    return true;
}

static bool prepare_directory(struct worker *self, struct request *r)
{
    r->path = one_in(self, 2) ? "." : "inner";
    return true;
}

static bool prepare_handle(struct worker *self, struct request *r)
{
    (void)self;
    r->fd = work_directory;
    r->handle = &file_handle.handle;
    return true;
}

static bool prepare_tree(struct worker *self, struct request *r)
{
    bool is_file = one_in(self, 2);
    r->fd = work_directory;
    r->path = is_file ? "file" : "inner";
    r->kinds[0] = is_file ? A_FILE : A_DIR;
    return true;
}

/* The master of a pseudoterminal; -1 if this machine grants none. */
static int terminal = -1;

static void make_terminal(void)
{
    terminal = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (terminal >= 0 && unlockpt(terminal) != 0)
        fail("cannot unlock a pseudoterminal");
}

static bool prepare_terminal(struct worker *self, struct request *r)
{
    (void)self;
    r->fd = terminal;
    return terminal >= 0;
}

static bool prepare_namespace(struct worker *self, struct request *r)
{
    struct request namespace = {.path = "/proc/self/ns/net", .flags = O_RDONLY, .kinds = {A_FILE}};
    r->fd = open_for(self, r, "site_open_0", &namespace);
    return r->fd >= 0;
}

/* Which takes a privilege. */
static bool prepare_cloned_tree(struct worker *self, struct request *r)
{
    r->flags |= OPEN_TREE_CLONE;
    return prepare_tree(self, r);
}

static bool prepare_mount(struct worker *self, struct request *r)
{
    struct request context = {0};
    r->fd = open_for(self, r, "site_fsopen_0", &context);
    return r->fd >= 0 && fsconfig(r->fd, FSCONFIG_CMD_CREATE, NULL, NULL, 0) == 0;
}

/* ------------------------------------------------------------------ sockets */

static struct socket_type {
    int domain, type, protocol;
    enum kind kind;
    bool is_refused;
} socket_types[] = {
    {AF_INET, SOCK_STREAM, 0, TCP, false},
    {AF_INET6, SOCK_STREAM, 0, TCP, false},
    {AF_INET, SOCK_STREAM, PROTOCOL_MPTCP, TCP, false},
    {AF_INET, SOCK_DGRAM, 0, UDP, false},
    {AF_INET6, SOCK_DGRAM, IPPROTO_UDP, UDP, false},
    {AF_UNIX, SOCK_STREAM, 0, UNIX, false},
    {AF_UNIX, SOCK_DGRAM, 0, UNIX, false},
    {AF_NETLINK, SOCK_RAW, 0, OTHER, false},
    {AF_INET, SOCK_RAW, IPPROTO_ICMP, OTHER, false},
    {AF_PACKET, SOCK_DGRAM, 0, OTHER, false},
};

static bool prepare_socket(struct worker *self, struct request *r)
{
    const struct socket_type *type = &socket_types[random_below(self, ARRAY_LENGTH(socket_types))];
    r->domain = type->domain;
    r->type = type->type | r->flags | (one_in(self, 2) ? SOCK_NONBLOCK : 0);
    r->protocol = type->protocol;
    r->kinds[0] = type->kind;
    return !type->is_refused;
}

static bool prepare_socketpair(struct worker *self, struct request *r)
{
    static const int types[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};
    r->domain = AF_UNIX;
    r->type = types[random_below(self, ARRAY_LENGTH(types))] | r->flags;
    return true;
}

/* So that a closed connection keeps no port: there are many. */
static void reset_on_close(int fd)
{
    struct linger linger = {.l_onoff = 1, .l_linger = 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
}

static bool prepare_accept(struct worker *self, struct request *r)
{
    struct listener *listener = &self->listeners[random_below(self, LISTENERS)];
    if (listener->fd < 0)
        return false;
    r->fd = listener->fd;
    r->kinds[0] = listener->kind;
    if (listener->pending < PENDING_MAX) {
        struct request socket = {.domain = listener->domain, .type = SOCK_STREAM, .kinds = {listener->kind}};
        int client = open_for(self, r, "site_socket_0", &socket);
        if (client < 0)
            return false;
        reset_on_close(client);
        if (connect(client, &listener->address.any, listener->length) != 0)
            fail("cannot connect to the listener");
        listener->pending++;
    }
    return true;
}

/* ------------------------------------------------------------------ messages */

static void send_rights(struct worker *self, const int *fds, unsigned count)
{
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(RIGHTS_MAX * sizeof(int))] = {0};
    struct iovec data = {.iov_base = "x", .iov_len = 1};
    struct msghdr header = {
        .msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = CMSG_SPACE(count * sizeof(int)),
    };
    struct cmsghdr *part = CMSG_FIRSTHDR(&header);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(count * sizeof(int));
    memcpy(CMSG_DATA(part), fds, count * sizeof(int));
    if (sendmsg(self->mail[0], &header, 0) != 1)
        fail("cannot send descriptors");
}

/* As `borrow`, of what may be sent: the kernel sends no rings. */
static int borrow_for_mail(struct worker *self, struct request *r)
{
    int fd = borrow(self, r);
    return fd >= 0 && kind_of(fd) == IO_URING ? -1 : fd;
}

/* Sends up to RIGHTS_MAX descriptors, and makes room for all of them, or for fewer. */
static bool prepare_parcel(struct worker *self, struct request *r)
{
    struct parcel *parcel = &r->parcels[r->parcel_count++];
    unsigned wanted = 1 + (unsigned)random_below(self, RIGHTS_MAX), count = 0;
    int fds[RIGHTS_MAX];
    for (; count < wanted; count++) {
        fds[count] = borrow_for_mail(self, r);
        if (fds[count] < 0)
            break;
        parcel->kinds[count] = kind_of(fds[count]);
    }
    if (count == 0)
        return false;
    send_rights(self, fds, count);
    unsigned room = one_in(self, 4) ? (unsigned)random_below(self, count) : count;
    parcel->data = (struct iovec){.iov_base = &parcel->byte, .iov_len = 1};
    parcel->header = (struct msghdr){
        .msg_iov = &parcel->data,
        .msg_iovlen = 1,
        .msg_control = parcel->control,
        .msg_controllen = room == 0 ? 0 : CMSG_LEN(room * sizeof(int)),
    };
    return true;
}

static bool prepare_message(struct worker *self, struct request *r)
{
    r->fd = self->mail[1];
    r->flags |= MSG_DONTWAIT | (one_in(self, 5) ? MSG_PEEK : 0);
    return prepare_parcel(self, r);
}

static bool prepare_messages(struct worker *self, struct request *r)
{
    r->fd = self->mail[1];
    r->flags |= MSG_DONTWAIT;
    unsigned count = 1 + (unsigned)random_below(self, PARCELS_MAX);
    for (unsigned i = 0; i < count; i++)
        if (!prepare_parcel(self, r))
            return false;
    return true;
}

static bool prepare_peer(struct worker *self, struct request *r)
{
    r->fd = self->mail[1];
    return true;
}

/* Messages that were only looked at, or not at all, take their descriptors with them: reading opens nothing. */
static void empty_mail(struct worker *self)
{
    char byte;
    while (recv(self->mail[1], &byte, 1, MSG_DONTWAIT) == 1)
        continue;
}

/* ------------------------------------------------------------------ duplicates */

static bool prepare_dup(struct worker *self, struct request *r)
{
    r->fd = borrow(self, r);
    r->kinds[0] = kind_of(r->fd);
    return r->fd >= 0;
}

static bool prepare_dupfd(struct worker *self, struct request *r)
{
    static const int numbers[] = {0, 50, HIGH_NUMBERS};
    r->number = numbers[random_below(self, ARRAY_LENGTH(numbers))];
    return prepare_dup(self, r);
}

/* Onto a number of the thread's own range, open or free, or onto another descriptor. */
static bool prepare_dup_onto(struct worker *self, struct request *r)
{
    if (one_in(self, 3))
        r->number = borrow(self, r);
    else
        r->number = self->range + (int)random_below(self, RANGE_LENGTH);
    return prepare_dup(self, r) && r->number >= 0;
}

static bool prepare_getfd(struct worker *self, struct request *r)
{
    struct request process = {.kinds = {PIDFD}};
    r->number = borrow(self, r);
    r->kinds[0] = kind_of(r->number);
    r->fd = open_for(self, r, "site_pidfd_open_0", &process);
    return r->number >= 0 && r->fd >= 0;
}

/* ------------------------------------------------------------------ files that are nowhere */

static bool prepare_signals(struct worker *self, struct request *r)
{
    (void)self;
    sigaddset(&r->signals, SIGUSR2);
    return true;
}

static bool prepare_event(struct worker *self, struct request *r)
{
    (void)self;
    r->event = (struct perf_event_attr){
        .type = PERF_TYPE_SOFTWARE, .size = sizeof r->event, .config = PERF_COUNT_SW_DUMMY, .disabled = 1,
    };
    return true;
}

static bool prepare_map(struct worker *self, struct request *r)
{
    (void)self;
    r->map.map_type = BPF_MAP_TYPE_ARRAY;
    r->map.key_size = 4;
    r->map.value_size = 4;
    r->map.max_entries = 1;
    return true;
}

static bool prepare_queue(struct worker *self, struct request *r)
{
    snprintf(r->name, sizeof r->name, "/descriptors-%d-%zu", (int)getpid(), (size_t)(self - workers));
    r->flags |= O_RDWR | O_CREAT | O_EXCL;
    return true;
}

static bool prepare_child(struct worker *self, struct request *r)
{
    r->stack = self->stack;
    r->clone = (struct clone_args){.flags = CLONE_PIDFD, .pidfd = (uintptr_t)r->opened, .exit_signal = SIGCHLD};
    return true;
}

static bool prepare_filter(struct worker *self, struct request *r)
{
    static struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    static const struct sock_fprog program = {.len = 1, .filter = &allow};
    (void)self;
    r->filter = &program;
    return true;
}

/* ------------------------------------------------------------------ the sites */

static struct site sites[] = {
#define ENTRY(name, number, ...) {"site_" #name "_" #number, site_##name##_##number, __VA_ARGS__, BY_ANY, false},
#define ENTRIES(name, ...) ENTRY(name, 0, __VA_ARGS__) ENTRY(name, 1, __VA_ARGS__)
#define THREE_ENTRIES(name, ...) ENTRIES(name, __VA_ARGS__) ENTRY(name, 2, __VA_ARGS__)
    THREE_ENTRIES(open, A_FILE, O_CLOEXEC, prepare_path)
    ENTRIES(openat, A_FILE, O_CLOEXEC, prepare_path)
    ENTRIES(openat2, A_FILE, O_CLOEXEC, prepare_path)
    ENTRIES(creat, A_FILE, 0, prepare_file)
    ENTRIES(open_by_handle_at, A_FILE, O_CLOEXEC, prepare_handle)
    ENTRIES(fopen, A_FILE, 0, prepare_file)
    ENTRIES(opendir, A_DIR, 0, prepare_directory)
    THREE_ENTRIES(socket, OTHER, SOCK_CLOEXEC, prepare_socket)
    ENTRIES(socketpair, UNIX, SOCK_CLOEXEC, prepare_socketpair)
    ENTRIES(accept, TCP, 0, prepare_accept)
    ENTRIES(accept4, TCP, SOCK_CLOEXEC, prepare_accept)
    THREE_ENTRIES(recvmsg, OTHER, MSG_CMSG_CLOEXEC, prepare_message)
    ENTRIES(recvmmsg, OTHER, MSG_CMSG_CLOEXEC, prepare_messages)
    ENTRIES(peer_pidfd, PIDFD, 0, prepare_peer)
    ENTRIES(pipe, A_PIPE, 0, NULL)
    ENTRIES(pipe2, A_PIPE, O_CLOEXEC, NULL)
    ENTRIES(dup, OTHER, 0, prepare_dup)
    ENTRIES(dup2, OTHER, 0, prepare_dup_onto)
    ENTRIES(dup3, OTHER, O_CLOEXEC, prepare_dup_onto)
    ENTRIES(fcntl_dupfd, OTHER, 0, prepare_dupfd)
    ENTRIES(fcntl_dupfd_cloexec, OTHER, 0, prepare_dupfd)
    ENTRIES(pidfd_getfd, OTHER, 0, prepare_getfd)
    THREE_ENTRIES(eventfd, EVENTFD, EFD_CLOEXEC, NULL)
    ENTRIES(timerfd_create, TIMERFD, TFD_CLOEXEC, NULL)
    ENTRIES(signalfd, SIGNALFD, SFD_CLOEXEC, prepare_signals)
    ENTRIES(epoll_create1, EPOLL, EPOLL_CLOEXEC, NULL)
    ENTRIES(epoll_create, EPOLL, 0, NULL)
    ENTRIES(inotify_init1, INOTIFY, IN_CLOEXEC, NULL)
    ENTRIES(inotify_init, INOTIFY, 0, NULL)
    ENTRIES(fanotify_init, OTHER, FAN_CLOEXEC, NULL)
    ENTRIES(memfd_create, MEMFD, MFD_CLOEXEC, NULL)
    ENTRIES(memfd_secret, MEMFD, O_CLOEXEC, NULL)
    ENTRIES(userfaultfd, OTHER, O_CLOEXEC, NULL)
    ENTRIES(perf_event_open, OTHER, PERF_FLAG_FD_CLOEXEC, prepare_event)
    ENTRIES(bpf, BPF, 0, prepare_map)
    ENTRIES(io_uring_setup, IO_URING, 0, NULL)
    ENTRIES(landlock_create_ruleset, OTHER, 0, NULL)
    ENTRIES(mq_open, A_FILE, O_CLOEXEC, prepare_queue)
    ENTRIES(terminal_peer, A_FILE, O_CLOEXEC, prepare_terminal)
    ENTRIES(namespace_of_users, A_FILE, 0, prepare_namespace)
    ENTRY(open_tree_attr, 0, A_DIR, O_CLOEXEC, prepare_tree)
    ENTRY(open_tree, 0, A_DIR, O_CLOEXEC, prepare_tree)
    ENTRY(open_tree, 1, A_DIR, O_CLOEXEC, prepare_cloned_tree)
    ENTRIES(fsopen, OTHER, FSOPEN_CLOEXEC, NULL)
    ENTRIES(fspick, OTHER, FSPICK_CLOEXEC, NULL)
    ENTRIES(fsmount, A_DIR, FSMOUNT_CLOEXEC, prepare_mount)
    ENTRIES(pidfd_open, PIDFD, 0, NULL)
    ENTRIES(clone, PIDFD, 0, prepare_child)
    ENTRIES(clone3, PIDFD, 0, prepare_child)
    {"site_seccomp_0", site_seccomp_0, OTHER, 0, prepare_filter, BY_VISITOR, false},
    {"site_sharing_child_open_0", site_sharing_child_open_0, A_FILE, O_CLOEXEC, prepare_path, BY_SHARING_CHILD, false},
    {"site_sharing_child_open_1", site_sharing_child_open_1, A_FILE, 0, prepare_path, BY_SHARING_CHILD, false},
    {"site_sharing_child_socket_0", site_sharing_child_socket_0, OTHER, 0, prepare_socket, BY_SHARING_CHILD, false},
    {"site_sharing_child_pipe_0", site_sharing_child_pipe_0, A_PIPE, 0, NULL, BY_SHARING_CHILD, false},
};

_Static_assert(ARRAY_LENGTH(sites) <= SITES_MAX, "room in the books for every site");

static const struct site *site_named(const char *name)
{
    for (size_t i = 0; i < ARRAY_LENGTH(sites); i++)
        if (strcmp(sites[i].name, name) == 0)
            return &sites[i];
    fail(name);
    return NULL;
}

/* ------------------------------------------------------------------ one call */

/* While it is found out which calls this machine grants: why the last one was refused. */
static bool probing;
static int refusal;

/* Whether a call may fail with this, in a program that holds many descriptors. */
static bool is_shortage(int error)
{
    return error == EMFILE || error == ENFILE || error == ENOMEM || error == EAGAIN || error == ENOSPC ||
           error == ENOBUFS || error == EINTR || atomic_load(&starving);
}

/* Makes a call whose request is complete, and books what it opened. */
NOINLINE static int open_by(struct worker *self, const struct site *site, struct request *r)
{
    int count = site->call(r);
    if (count < 0) {
        refusal = errno;
        if (!probing && !is_shortage(refusal))
            fail(site->name);
        return count;
    }
    for (size_t i = 0; i < LISTENERS; i++)
        if (site->prepare == prepare_accept && self->listeners[i].fd == r->fd)
            self->listeners[i].pending--;
    for (int i = 0; i < count; i++) {
        int fd = r->opened[i];
        if (site->prepare == prepare_dup_onto && owner_of(fd) != 0)
            book_closed(fd);
        book_opened(fd, (unsigned)(site - sites), r->kinds[i]);
    }
    if (r->stream != NULL)
        atomic_store(&shared->streams[r->opened[0]], r->stream);
    return count;
}

/* Undoes what a request needed. */
static void finish(struct worker *self, const struct site *site, const struct request *r)
{
    for (unsigned i = 0; i < r->borrowed_count; i++)
        give(self, r->borrowed[i]);
    if (r->parcel_count > 0)
        empty_mail(self);
    if (r->child > 0)
        waitpid(r->child, NULL, 0);
    if (site->prepare == prepare_queue)
        mq_unlink(r->name);
}

static struct request new_request(struct worker *self, const struct site *site)
{
    struct request r = {.flags = one_in(self, 2) ? site->close_on_exec : 0};
    for (size_t i = 0; i < OPENED_MAX; i++)
        r.kinds[i] = site->kind;
    return r;
}

/* Opens by a site, and gives away what it opened. What dup2 filled is in a range or was borrowed. */
NOINLINE static bool open_and_give(struct worker *self, const struct site *site)
{
    struct request r = new_request(self, site);
    int count = site->prepare == NULL || site->prepare(self, &r) ? open_by(self, site, &r) : 0;
    if (site->prepare != prepare_dup_onto)
        for (int i = 0; i < count; i++)
            give(self, r.opened[i]);
    finish(self, site, &r);
    return count > 0;
}

#endif
