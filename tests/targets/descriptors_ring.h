/* Descriptors that an io_uring opens and closes for descriptors.c. */
#ifndef DESCRIPTORS_RING_H
#define DESCRIPTORS_RING_H

#include "descriptors_requests.h"

enum { OF_RING_PIPE = 62 }; /* IORING_OP_PIPE, include/uapi/linux/io_uring.h */

static struct {
    int fd;
    _Atomic unsigned *submission_tail, *completion_head, *completion_tail;
    unsigned submission_mask, completion_mask;
    unsigned *submissions; /* indexes into entries */
    struct io_uring_sqe *entries;
    struct io_uring_cqe *completions;
} ring = {.fd = -1};

static void *map_ring(size_t length, off_t what)
{
    void *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring.fd, what);
    if (memory == MAP_FAILED)
        fail("cannot map a ring");
    return memory;
}

/* Its descriptor is among those from before the first command. */
static void make_ring(void)
{
    struct io_uring_params params = {0};
    ring.fd = (int)syscall(SYS_io_uring_setup, PENDING_MAX, &params);
    if (ring.fd < 0) {
        printf("refused io_uring %d\n", errno);
        return;
    }
    size_t submission_length = params.sq_off.array + params.sq_entries * sizeof *ring.submissions;
    size_t completion_length = params.cq_off.cqes + params.cq_entries * sizeof *ring.completions;
    char *submission = map_ring(submission_length, IORING_OFF_SQ_RING);
    char *completion = map_ring(completion_length, IORING_OFF_CQ_RING);
    ring.entries = map_ring(params.sq_entries * sizeof *ring.entries, IORING_OFF_SQES);
    ring.submission_tail = (void *)(submission + params.sq_off.tail);
    ring.submission_mask = *(unsigned *)(submission + params.sq_off.ring_mask);
    ring.submissions = (void *)(submission + params.sq_off.array);
    ring.completion_head = (void *)(completion + params.cq_off.head);
    ring.completion_tail = (void *)(completion + params.cq_off.tail);
    ring.completion_mask = *(unsigned *)(completion + params.cq_off.ring_mask);
    ring.completions = (void *)(completion + params.cq_off.cqes);
    /* Two places in a table of the ring's own, where what it opens is no descriptor. */
    int none[] = {-1, -1};
    if (syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_FILES, none, ARRAY_LENGTH(none)) != 0)
        fail("a ring does not take a table");
}

/* The result of the next thing that was done, if there is one. */
static bool next_result(int *result)
{
    unsigned head = atomic_load(ring.completion_head);
    if (atomic_load(ring.completion_tail) == head)
        return false;
    *result = ring.completions[head & ring.completion_mask].res;
    atomic_store(ring.completion_head, head + 1);
    return true;
}

/* Has one operation done, and returns its first result. */
NOINLINE static int site_ring_enter_0(const struct io_uring_sqe *operation)
{
    unsigned tail = atomic_load(ring.submission_tail), index = tail & ring.submission_mask;
    ring.entries[index] = *operation;
    ring.submissions[index] = index;
    atomic_store(ring.submission_tail, tail + 1);
    if (syscall(SYS_io_uring_enter, ring.fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) != 1)
        fail("a ring does not take an operation");
    int result;
    while (!next_result(&result))
        continue;
    __asm__ volatile("/* ring_enter 0 */" : "+r"(result));
    return result;
}

static struct io_uring_sqe open_operation(struct worker *self, enum kind *kind)
{
    const struct place *place = &places[random_below(self, ARRAY_LENGTH(places))];
    *kind = place->kind;
    return (struct io_uring_sqe){
        .opcode = IORING_OP_OPENAT,
        .fd = work_directory,
        .addr = (uintptr_t)place->path,
        .len = 0600,
        .open_flags = (unsigned)place->flags,
    };
}

static struct io_uring_sqe socket_operation(struct worker *self, enum kind *kind)
{
    bool is_udp = one_in(self, 2);
    *kind = is_udp ? UDP : TCP;
    return (struct io_uring_sqe){
        .opcode = IORING_OP_SOCKET, .fd = AF_INET, .off = is_udp ? SOCK_DGRAM : SOCK_STREAM,
    };
}

/* Opens into the ring's own table: the result is 0, but no descriptor. */
static void open_into_ring(struct worker *self)
{
    enum kind kind;
    struct io_uring_sqe operation = open_operation(self, &kind);
    operation.file_index = 1 + (unsigned)random_below(self, 2);
    if (site_ring_enter_0(&operation) != 0)
        fail("a ring does not open into its table");
}

/* Whether this kernel's rings know sockets (since Linux 5.19). */
static bool rings_know_sockets = true;

/* With `of_ring`, a thread of the kernel does it; else this thread does, in most cases. */
static void open_by_ring(struct worker *self, bool of_ring)
{
    enum kind kind;
    bool is_socket = rings_know_sockets && one_in(self, 3);
    struct io_uring_sqe operation = is_socket ? socket_operation(self, &kind) : open_operation(self, &kind);
    if (of_ring)
        operation.flags = IOSQE_ASYNC;
    int fd = site_ring_enter_0(&operation);
    if (is_socket && fd == -EINVAL) {
        rings_know_sockets = false;
        return;
    }
    if (fd < 0)
        fail("a ring does not open");
    book_opened(fd, of_ring ? BY_RING : BY_RING_ENTER, kind);
    give(self, fd);
}

/* What this kernel's rings know: pipes (since Linux 6.16), accepts that go on (5.19). */
static bool rings_know_pipes = true, rings_go_on = true;

static void pipe_by_ring(struct worker *self, bool of_ring)
{
    int ends[2];
    struct io_uring_sqe operation = {.opcode = OF_RING_PIPE, .addr = (uintptr_t)ends};
    operation.flags = of_ring ? IOSQE_ASYNC : 0;
    int result = site_ring_enter_0(&operation);
    rings_know_pipes = result != -EINVAL;
    for (int i = 0; i < 2 && result == 0; i++) {
        book_opened(ends[i], of_ring ? BY_RING : BY_RING_ENTER, A_PIPE);
        give(self, ends[i]);
    }
}

/* Descriptors that come in a message. */
static void receive_by_ring(struct worker *self, bool of_ring)
{
    struct request r = {0};
    if (prepare_parcel(self, &r)) {
        struct io_uring_sqe operation = {
            .opcode = IORING_OP_RECVMSG, .fd = self->mail[1], .addr = (uintptr_t)&r.parcels[0].header, .len = 1,
        };
        operation.flags = of_ring ? IOSQE_ASYNC : 0;
        if (site_ring_enter_0(&operation) < 0)
            fail("a ring does not receive");
        int count = unpack(&r, 0, 0);
        for (int i = 0; i < count; i++) {
            book_opened(r.opened[i], of_ring ? BY_RING : BY_RING_ENTER, r.kinds[i]);
            give(self, r.opened[i]);
        }
    }
    for (unsigned i = 0; i < r.borrowed_count; i++)
        give(self, r.borrowed[i]);
}

/* An accept that goes on: of all connections that wait, until it is cancelled. */
static void accept_by_ring(struct worker *self)
{
    enum { NAME = 1 };
    struct request r = {0};
    if (prepare_accept(self, &r)) {
        struct io_uring_sqe operation = {
            .opcode = IORING_OP_ACCEPT, .fd = r.fd, .ioprio = IORING_ACCEPT_MULTISHOT, .user_data = NAME,
        };
        int fd = site_ring_enter_0(&operation);
        rings_go_on = fd != -EINVAL;
        for (bool is_more = rings_go_on; is_more; is_more = next_result(&fd)) {
            if (fd < 0)
                fail("a ring does not accept");
            book_opened(fd, BY_RING_ENTER, r.kinds[0]);
            give(self, fd);
            for (size_t i = 0; i < LISTENERS; i++)
                self->listeners[i].pending -= self->listeners[i].fd == r.fd;
        }
    }
    if (r.fd > 0 && rings_go_on) {
        struct io_uring_sqe cancel = {.opcode = IORING_OP_ASYNC_CANCEL, .addr = NAME};
        int result;
        site_ring_enter_0(&cancel);
        while (!next_result(&result))
            continue;
    }
    for (unsigned i = 0; i < r.borrowed_count; i++)
        give(self, r.borrowed[i]);
}

/* Has the ring close a descriptor that is the caller's own. */
static void close_by_ring(struct worker *self, int fd)
{
    struct io_uring_sqe operation = {.opcode = IORING_OP_CLOSE, .fd = fd, .flags = one_in(self, 2) ? IOSQE_ASYNC : 0};
    book_closed(fd);
    if (site_ring_enter_0(&operation) != 0)
        fail("a ring does not close");
}

NOINLINE static void work_by_ring(struct worker *self, uint64_t operations)
{
    for (uint64_t i = 0; i < operations && ring.fd >= 0; i++) {
        int fd = take(random_below(self, slot_count));
        /* A ring closes no rings. */
        if (fd >= 0 && (shared->streams[fd] != NULL || kind_of(fd) == IO_URING || one_in(self, 2)))
            give(self, fd);
        else if (fd >= 0)
            close_by_ring(self, fd);
        open_by_ring(self, one_in(self, 2));
        if (one_in(self, 10))
            open_into_ring(self);
        if (rings_know_pipes && one_in(self, 10))
            pipe_by_ring(self, one_in(self, 2));
        if (one_in(self, 10))
            receive_by_ring(&workers[0], one_in(self, 2));
        if (rings_go_on && one_in(self, 10))
            accept_by_ring(&workers[0]);
        atomic_fetch_add(&shared->operations, 1);
    }
}

#endif
