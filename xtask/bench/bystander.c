/*
 * A program that asks much of the kernel, in one way at a time: what `cargo xtask bench bystander` runs beside a traced
 * program, and `cargo xtask bench handles` traces.
 *
 *     cc -O2 -g -fomit-frame-pointer -fno-optimize-sibling-calls -pthread bystander.c -o bystander
 *
 * It reads commands `WORKLOAD MS` on stdin, does that for MS milliseconds, and answers each with one line on stdout:
 *
 *     WORKLOAD OPERATIONS WALL_NANOSECONDS CPU_NANOSECONDS (of all its threads)
 *
 * At the end of stdin it exits.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, PER_CLOCK_CHECK = 16, MAPPED = 16 * PAGE, TOUCHED = 4 * PAGE, FAULTS = 256, MESSAGE = 64 };

static int zero, null, file, pipe_ends[2], connection;
static const char *path;
static char buffer[PAGE];

static void check(int is_right, const char *what)
{
    if (!is_right) {
        perror(what);
        _exit(1);
    }
}

static uint64_t now(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ------------------------------------------------------------------ the workloads: each returns how many operations it did */

static unsigned do_getppid(void)
{
    syscall(SYS_getppid);
    return 1;
}

static unsigned do_dd(void)
{
    check(read(zero, buffer, 512) == 512 && write(null, buffer, 512) == 512, "dd");
    return 1;
}

static unsigned do_pipe(void)
{
    check(write(pipe_ends[1], buffer, 1) == 1 && read(pipe_ends[0], buffer, 1) == 1, "pipe");
    return 1;
}

static unsigned do_pread(void)
{
    check(pread(file, buffer, PAGE, 0) == PAGE, "pread");
    return 1;
}

static unsigned do_open(void)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    check(fd >= 0 && close(fd) == 0, "open");
    return 1;
}

static unsigned do_mmap(void)
{
    volatile char *area = mmap(NULL, MAPPED, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(area != MAP_FAILED, "mmap");
    for (size_t i = 0; i < TOUCHED; i += PAGE)
        area[i] = 1;
    check(munmap((void *)area, MAPPED) == 0, "munmap");
    return 1;
}

static unsigned do_fault(void)
{
    static volatile char *area;
    if (area == NULL) {
        area = mmap(NULL, FAULTS * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        check(area != MAP_FAILED, "mmap");
    }
    check(madvise((void *)area, FAULTS * PAGE, MADV_DONTNEED) == 0, "madvise");
    for (size_t i = 0; i < FAULTS * PAGE; i += PAGE)
        area[i] = 1;
    return FAULTS;
}

static unsigned do_tcp(void)
{
    check(send(connection, buffer, MESSAGE, 0) == MESSAGE, "send");
    check(recv(connection, buffer, MESSAGE, MSG_WAITALL) == MESSAGE, "recv");
    return 1;
}

static void *end_at_once(void *unused)
{
    return unused;
}

static unsigned do_thread(void)
{
    pthread_t thread;
    check(pthread_create(&thread, NULL, end_at_once, NULL) == 0 && pthread_join(thread, NULL) == 0, "thread");
    return 1;
}

static const struct workload {
    const char *name;
    unsigned (*work)(void);
} workloads[] = {
    {"getppid", do_getppid}, {"dd", do_dd},       {"pipe", do_pipe}, {"pread", do_pread},   {"open", do_open},
    {"mmap", do_mmap},       {"fault", do_fault}, {"tcp", do_tcp},   {"thread", do_thread},
};

/* ------------------------------------------------------------------ what they work with */

static void *echo(void *argument)
{
    char message[MESSAGE];
    int peer = *(int *)argument;
    for (;;) {
        ssize_t got = recv(peer, message, sizeof message, MSG_WAITALL);
        if (got != (ssize_t)sizeof message || send(peer, message, sizeof message, 0) != (ssize_t)sizeof message)
            return NULL;
    }
}

static void connect_to_echo(void)
{
    static int peer;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int on = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    check(bind(listener, (struct sockaddr *)&address, length) == 0 && listen(listener, 1) == 0, "listen");
    check(getsockname(listener, (struct sockaddr *)&address, &length) == 0, "getsockname");
    connection = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    check(connect(connection, (struct sockaddr *)&address, length) == 0, "connect");
    peer = accept(listener, NULL, NULL);
    check(peer >= 0, "accept");
    setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    pthread_t thread;
    check(pthread_create(&thread, NULL, echo, &peer) == 0, "pthread_create");
}

static void run(const struct workload *workload, uint64_t milliseconds)
{
    uint64_t wall = now(CLOCK_MONOTONIC), cpu = now(CLOCK_PROCESS_CPUTIME_ID);
    uint64_t end = wall + milliseconds * 1000000u, operations = 0, t;
    do {
        for (int i = 0; i < PER_CLOCK_CHECK; i++)
            operations += workload->work();
        t = now(CLOCK_MONOTONIC);
    } while (t < end);
    cpu = now(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    printf("%s %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", workload->name, operations, t - wall, cpu);
}

int main(int argc, char **argv)
{
    char line[64], name[32];
    uint64_t milliseconds;
    check(argc == 1, "arguments");
    path = argv[0];
    zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    null = open("/dev/null", O_WRONLY | O_CLOEXEC);
    file = open(path, O_RDONLY | O_CLOEXEC);
    check(zero >= 0 && null >= 0 && file >= 0 && pipe2(pipe_ends, O_CLOEXEC) == 0, "open");
    connect_to_echo();
    setvbuf(stdout, NULL, _IOLBF, 0);
    while (fgets(line, sizeof line, stdin) != NULL) {
        if (sscanf(line, "%31s %" SCNu64, name, &milliseconds) != 2)
            continue;
        for (size_t i = 0; i < sizeof workloads / sizeof workloads[0]; i++)
            if (strcmp(workloads[i].name, name) == 0)
                run(&workloads[i], milliseconds);
    }
    return 0;
}
