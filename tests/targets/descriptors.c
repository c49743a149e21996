/*
 * A program that knows its own descriptors: the reference that a profile is compared with, by site and kind.
 *
 * Threads open and close descriptors at random by every call that opens or closes some, from sites that are functions
 * of their own (descriptors_sites.h), replace them, send them to themselves, have children that share the descriptor
 * table and others that do not, and make calls that open nothing. descriptors_books.h has the books.
 *
 *     descriptors THREADS SLOTS DIRECTORY
 *
 * SLOTS bounds what is open; files are made in DIRECTORY. Commands, one a line, come in on stdin:
 *
 *     go OPS SEED             do about OPS operations, then park all threads
 *     unshare OPS SEED        the same; now and then a thread gets a table of its own, which is not in the books
 *     starve OPS SEED         the same, with too few numbers to open all that is asked for
 *     ring OPS SEED           open and close by an io_uring
 *     reopen WHAT             open a number anew that was closed: see descriptors_reopen.h
 *     drain                   close all that was opened
 *     books                   do nothing
 *     forget                  begin the books anew: what is open by now is from before
 *     fork                    go on in a child; answers `forked PID`
 *     exec                    execute this program anew; answers as at the start
 *     exit                    end; a child's parent then goes on: `joined PID`
 *
 * Each of the first eight prints the books: lines `SITE KIND OPENED OPEN`, `inherited SITE KIND OPEN` for what is from
 * before the fork, and `end OPERATIONS`. Before it does so it compares the books with /proc/self/fd, and aborts if they
 * differ. In place of a site there may be
 *
 *     io_uring     a thread of the kernel opened it
 *     untraced     opened by a call that nobody would list
 *     before       it was open when the program was `ready`
 *     earlier      the program that executed this one left it open; then the books begin with this program, and
 *                  `before` is what it opened elsewhere than at a site
 *
 * At the start it prints `refused SITE ERRNO` for each call that this machine does not grant, then `ready PID`.
 */
#define _GNU_SOURCE
#include <malloc.h>
#include <sys/resource.h>

#include "descriptors_children.h"
#include "descriptors_reopen.h"
#include "descriptors_ring.h"

/* The argument after DIRECTORY of the program that was executed by itself. */
#define AGAIN "again"

enum { VISITOR_EVERY = 512, VISITOR_OPERATIONS = 3, CHILD_EVERY = 200, PRIOR = 12, ATTEMPTS = 32 };

/* Makes the calls that commands ask for, while all threads are parked. */
static struct worker commander;

/* ------------------------------------------------------------------ one operation */

static const struct site *random_site(struct worker *self)
{
    for (;;) {
        const struct site *site = &sites[random_below(self, ARRAY_LENGTH(sites))];
        if (!site->is_refused && site->who == BY_ANY)
            return site;
    }
}

NOINLINE static void open_or_close(struct worker *self)
{
    int fd = take(random_below(self, slot_count));
    if (fd >= 0 && one_in(self, atomic_load(&starving) ? 5 : 3)) {
        close_one(self, fd);
        return;
    }
    if (fd >= 0)
        give(self, fd);
    open_and_give(self, random_site(self));
}

/* Some stack for the unwinder to walk: `depth` more frames. */
NOINLINE static void operate(struct worker *self, unsigned depth)
{
    if (depth > 0) {
        operate(self, depth - 1);
        __asm__ volatile("" : : : "memory");
        return;
    }
    uint64_t choice = random_below(self, 100);
    if (choice < 12)
        open_nothing(self);
    else if (choice < 15)
        close_part_of_range(self);
    else if (!atomic_load(&starving) && one_in(self, CHILD_EVERY))
        have_child(self);
    else
        open_or_close(self);
    atomic_fetch_add_explicit(&shared->operations, 1, memory_order_relaxed);
}

/* ------------------------------------------------------------------ threads */

/* A thread that lives for a few operations, while the worker that started it waits for it. */
NOINLINE static void *visitor_main(void *argument)
{
    struct worker *self = argument;
    const struct site *seccomp = site_named("site_seccomp_0");
    if (probing || !seccomp->is_refused)
        open_and_give(self, seccomp);
    for (int i = 0; i < VISITOR_OPERATIONS && !probing; i++)
        operate(self, 1);
    return NULL;
}

NOINLINE static void receive_visitor(struct worker *self)
{
    pthread_t visitor;
    if (pthread_create(&visitor, NULL, visitor_main, self) != 0)
        fail("cannot start a thread");
    pthread_join(visitor, NULL);
}

NOINLINE static void *worker_main(void *argument)
{
    struct worker *self = argument;
    for (uint64_t last = 0;;) {
        await_round(&last, &self->random, (size_t)(self - workers));
        for (uint64_t done = 0; done < round_operations; done++) {
            operate(self, (unsigned)random_below(self, 8));
            if (done % VISITOR_EVERY == VISITOR_EVERY / 2)
                receive_visitor(self);
        }
    }
    return NULL;
}

/* Also in a child, where no thread but the caller is left. */
static void start_workers(void)
{
    pthread_mutex_init(&parking_lock, NULL);
    pthread_cond_init(&parking_changed, NULL);
    round_number = parked = 0;
    for (size_t i = 0; i < worker_count; i++)
        if (pthread_create(&workers[i].thread, NULL, worker_main, &workers[i]) != 0)
            fail("cannot start a thread");
    await_quiet();
}

/* ------------------------------------------------------------------ commands */

static const char *name_of(unsigned owner)
{
    switch (owner) {
    case BY_RING_ENTER:
        return "site_ring_enter_0";
    case BY_RING:
        return "io_uring";
    case BY_UNTRACED_CALL:
        return "untraced";
    case BY_EARLIER_PROGRAM:
        return "earlier";
    case BEFORE:
        return "before";
    default:
        return sites[owner].name;
    }
}

static void print_books(void)
{
    check_books();
    for (unsigned owner = 0; owner < OWNERS; owner++) {
        for (unsigned kind = 0; kind < KINDS; kind++) {
            struct book *book = &shared->books[owner][kind];
            if (book->opened != 0 || book->open != 0)
                printf("%s %s %llu %lld\n", name_of(owner), kind_names[kind], (unsigned long long)book->opened,
                       (long long)book->open);
            if (book->inherited != 0)
                printf("inherited %s %s %lld\n", name_of(owner), kind_names[kind], (long long)book->inherited);
        }
    }
    printf("end %llu\n", (unsigned long long)shared->operations);
}

/* Leaves no more than a few numbers that are not taken. */
static void starve(uint64_t operations, uint64_t seed)
{
    struct rlimit limit, few;
    unsigned open = 0;
    for (int fd = 0; fd < FIRST_RANGE; fd++)
        open += owner_of(fd) != 0;
    getrlimit(RLIMIT_NOFILE, &limit);
    few = (struct rlimit){.rlim_cur = open + 5, .rlim_max = limit.rlim_max};
    atomic_store(&starving, true);
    setrlimit(RLIMIT_NOFILE, &few);
    run_round(operations, seed);
    setrlimit(RLIMIT_NOFILE, &limit);
    atomic_store(&starving, false);
}

static void drain(void)
{
    for (size_t i = 0; i < slot_count; i++) {
        int fd = take(i);
        if (fd >= 0)
            close_one(&commander, fd);
    }
    for (int fd = FIRST_RANGE; fd < FIRST_RANGE + MAX_THREADS * RANGE_LENGTH; fd++)
        if (owner_of(fd) != 0)
            close_one(&commander, fd);
}

/* The child goes on with all that was open; the parent waits until it has ended. */
static void go_on_in_child(void)
{
    pid_t pid = fork();
    if (pid == 0) {
        inherit_books();
        start_workers();
        printf("forked %d\n", (int)getpid());
    } else if (pid > 0) {
        await_end(pid);
        printf("joined %d\n", (int)pid);
    } else {
        fail("cannot fork");
    }
}

/* In the directory that it works in by now. */
static void begin_again(void)
{
    char threads[16], slots[16];
    snprintf(threads, sizeof threads, "%zu", worker_count);
    snprintf(slots, sizeof slots, "%zu", slot_count);
    execl(THIS_PROGRAM, "descriptors", threads, slots, ".", AGAIN, NULL);
    fail("cannot execute this program");
}

/* Begins the books anew: whatever is open is from before. */
static void begin_books(void)
{
    memset(shared->books, 0, sizeof shared->books);
    memset(shared->owners, 0, sizeof shared->owners);
    for_each_descriptor(book_before);
    check_books();
}

static void obey(const char *line)
{
    unsigned long long operations, number;
    char what[32];
    if (sscanf(line, "go %llu %llu", &operations, &number) == 2) {
        run_round(operations, number);
    } else if (sscanf(line, "unshare %llu %llu", &operations, &number) == 2) {
        atomic_store(&unsharing, true);
        run_round(operations, number);
        atomic_store(&unsharing, false);
    } else if (sscanf(line, "starve %llu %llu", &operations, &number) == 2) {
        starve(operations, number);
    } else if (sscanf(line, "ring %llu %llu", &operations, &number) == 2) {
        commander.random = seed_of(number, 0);
        work_by_ring(&commander, operations);
    } else if (sscanf(line, "reopen %31s", what) == 1) {
        reopen(&commander, what);
    } else if (strcmp(line, "drain\n") == 0) {
        drain();
    } else if (strcmp(line, "forget\n") == 0) {
        begin_books();
    } else if (strcmp(line, "books\n") != 0) {
        fail("no such command");
    }
    print_books();
}

/* ------------------------------------------------------------------ before the first command */

static void make_files(const char *directory)
{
    if (chdir(directory) != 0)
        fail("cannot change to the directory");
    close(open("file", O_RDWR | O_CREAT, 0600));
    mkdir("inner", 0700);
    mkfifo("fifo", 0600);
    if (symlink("file", "link") != 0 && errno != EEXIST)
        fail("cannot make a link");
    work_directory = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int mount;
    file_handle.handle.handle_bytes = MAX_HANDLE_SZ;
    name_to_handle_at(work_directory, "file", &file_handle.handle, &mount, 0);
}

static struct listener listen_on(int domain)
{
    struct listener listener = {.domain = domain, .kind = domain == AF_UNIX ? UNIX : TCP};
    listener.length = domain == AF_UNIX ? sizeof(sa_family_t)
                    : domain == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
    listener.address.any.sa_family = (sa_family_t)domain;
    if (domain == AF_INET)
        listener.address.in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (domain == AF_INET6)
        listener.address.in6.sin6_addr = in6addr_loopback;
    /* The kernel chooses the port, or the name. */
    listener.fd = socket(domain, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (listener.fd < 0 || bind(listener.fd, &listener.address.any, listener.length) != 0) {
        printf("refused listener_%d %d\n", domain, errno);
        close(listener.fd);
        listener.fd = -1;
        return listener;
    }
    reset_on_close(listener.fd);
    listener.length = sizeof listener.address;
    getsockname(listener.fd, &listener.address.any, &listener.length);
    if (listen(listener.fd, 2 * PENDING_MAX) != 0)
        fail("cannot listen");
    return listener;
}

static void equip(struct worker *self, size_t index)
{
    static const int domains[LISTENERS] = {AF_INET, AF_INET6, AF_UNIX};
    self->random = seed_of(0, index);
    self->range = FIRST_RANGE + (int)index * RANGE_LENGTH;
    for (size_t i = 0; i < LISTENERS; i++)
        self->listeners[i] = listen_on(domains[i]);
    if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, self->mail) != 0)
        fail("cannot make a pair of sockets");
}

/* Descriptors from before the first command, as any program has some. */
NOINLINE static void hold_prior(struct worker *self)
{
    for (int i = 0; i < PRIOR; i++) {
        int fds[5] = {eventfd(0, 0), open("file", O_RDONLY | O_CLOEXEC), socket(AF_INET, SOCK_STREAM, 0)};
        if (pipe(&fds[3]) != 0)
            fail("cannot make a pipe");
        for (size_t j = 0; j < ARRAY_LENGTH(fds); j++) {
            book_before(fds[j]);
            give(self, fds[j]);
        }
    }
}

/* What the program that executed this one left open is this one's to close. Numbers in the ranges are for dup2. */
static void adopt(int fd)
{
    book_unknown(fd, BY_EARLIER_PROGRAM);
    if (fd <= STDERR_FILENO || (fd >= FIRST_RANGE && fd < HIGH_NUMBERS))
        return;
    for (size_t slot = 0; slot < slot_count; slot++) {
        int empty = -1;
        if (atomic_compare_exchange_strong(&shared->slots[slot], &empty, fd))
            return;
    }
}

/* Finds out which calls this machine grants: those that succeed once in several attempts. */
static void probe_sites(struct worker *self)
{
    probing = true;
    for (size_t i = 0; i < ARRAY_LENGTH(socket_types); i++) {
        struct socket_type *type = &socket_types[i];
        int fd = socket(type->domain, type->type, type->protocol);
        type->is_refused = fd < 0;
        if (fd < 0)
            printf("refused socket_%d_%d_%d %d\n", type->domain, type->type, type->protocol, errno);
        else
            close(fd);
    }
    for (size_t i = 0; i < ARRAY_LENGTH(sites); i++) {
        bool granted = sites[i].who == BY_SHARING_CHILD;
        refusal = 0;
        for (int attempt = 0; attempt < ATTEMPTS && !granted; attempt++) {
            if (sites[i].who == BY_ANY) {
                granted = open_and_give(self, &sites[i]);
            } else {
                /* The filter stays with the thread. */
                receive_visitor(self);
                granted = refusal == 0;
            }
        }
        sites[i].is_refused = !granted;
        if (!granted)
            printf("refused %s %d\n", sites[i].name, refusal);
    }
    probing = false;
}

static void prepare(const char *directory, bool is_again)
{
    shared = new_books();
    for (size_t i = 0; i < slot_count; i++)
        shared->slots[i] = -1;
    if (is_again)
        for_each_descriptor(adopt);
    make_files(directory);
    make_ring();
    make_terminal();
    make_fault_device();
    hold_for_reopening();
    for (size_t i = 0; i < worker_count; i++)
        equip(&workers[i], i);
    commander.random = seed_of(1, 0);
    for_each_descriptor(book_before);
    hold_prior(&commander);
    probe_sites(&workers[0]);
    if (!is_again)
        begin_books();
    start_workers();
    printf("ready %d\n", (int)getpid());
    fflush(stdout);
}

int main(int argc, char **argv)
{
    static char input[4096], output[65536], line[256];
    if (argc == 2 && strcmp(argv[1], END_AT_ONCE) == 0)
        return 0;
    setvbuf(stdin, input, _IOLBF, sizeof input);
    setvbuf(stdout, output, _IOFBF, sizeof output);
    signal(SIGPIPE, SIG_IGN);
    /* Before it makes a ninth arena, glibc looks for the number of processors, in a file: not at a site. */
    mallopt(M_ARENA_MAX, 2);
    worker_count = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
    slot_count = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;
    if (argc < 4 || worker_count < 1 || worker_count > MAX_THREADS || slot_count < 64 || slot_count > MAX_SLOTS)
        fail("usage: descriptors THREADS SLOTS DIRECTORY");
    struct rlimit limit = {.rlim_cur = MAX_FDS, .rlim_max = MAX_FDS};
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0)
        fail("cannot have as many descriptors as it takes");
    prepare(argv[3], argc > 4 && strcmp(argv[4], AGAIN) == 0);
    while (fgets(line, sizeof line, stdin) != NULL) {
        if (strcmp(line, "exit\n") == 0)
            return 0;
        if (strcmp(line, "fork\n") == 0)
            go_on_in_child();
        else if (strcmp(line, "exec\n") == 0)
            begin_again();
        else
            obey(line);
        fflush(stdout);
    }
    return 0;
}
