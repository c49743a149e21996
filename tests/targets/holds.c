/*
 * A program whose memory is known: at the start it takes, and touches, 32 MiB from malloc in blocks of 1,000 bytes; at `hold`
 * 64 MiB more, 32 MiB mapped without a file, 16 MiB of a file, and 256 KiB of the stacks of each of 8 threads. It also takes
 * a block of 256 MiB then, which it does not touch.
 *
 *     holds DIRECTORY
 *
 * A file to map is made in the directory. It prints `ready PID`, and after `hold` on stdin `held`. It ends with its input.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))

enum { MIB = 1 << 20, BLOCK = 1000, HEAP_BEFORE = 32 * MIB, HEAP = 64 * MIB, UNTOUCHED = 256 * MIB, ANON = 32 * MIB, FILE_BYTES = 16 * MIB, STACK = 256 << 10, THREADS = 8 };

static pthread_barrier_t started;
static int file;

static void fail(const char *what)
{
    fprintf(stderr, "holds: %s\n", what);
    _exit(1);
}

NOINLINE static void hold_heap(size_t all)
{
    for (size_t bytes = 0; bytes < all; bytes += BLOCK) {
        char *block = malloc(BLOCK);
        if (block == NULL)
            fail("malloc failed");
        memset(block, 1, BLOCK);
        __asm__ volatile("" ::"r"(block) : "memory");
    }
}

NOINLINE static void hold_untouched(void)
{
    char *block = malloc(UNTOUCHED);
    if (block == NULL)
        fail("malloc of a large block failed");
    __asm__ volatile("" ::"r"(block) : "memory");
}

NOINLINE static void hold_anon(void)
{
    char *area = mmap(NULL, ANON, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED)
        fail("mmap failed");
    memset(area, 1, ANON);
    __asm__ volatile("" ::"r"(area) : "memory");
}

NOINLINE static void hold_file(void)
{
    const volatile char *area = mmap(NULL, FILE_BYTES, PROT_READ, MAP_SHARED, file, 0);
    if (area == MAP_FAILED)
        fail("mmap of a file failed");
    for (size_t i = 0; i < FILE_BYTES; i += 4096)
        (void)area[i];
}

NOINLINE static void *hold_stack(void *unused)
{
    volatile char space[STACK];
    for (size_t i = 0; i < sizeof space; i += 4096)
        space[i] = 1;
    pthread_barrier_wait(&started);
    for (;;)
        pause();
    return unused;
}

static void hold(void)
{
    hold_heap(HEAP);
    hold_untouched();
    hold_anon();
    hold_file();
    pthread_barrier_init(&started, NULL, THREADS + 1);
    for (size_t i = 0; i < THREADS; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, hold_stack, NULL) != 0)
            fail("cannot start a thread");
    }
    pthread_barrier_wait(&started);
}

int main(int argc, char **argv)
{
    char line[64], name[4096];
    static char page[4096];
    if (argc != 2)
        fail("usage: holds DIRECTORY");
    snprintf(name, sizeof name, "%s/holds-%d", argv[1], (int)getpid());
    file = open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (file < 0 || unlink(name) != 0)
        fail("cannot make a file to map");
    for (size_t i = 0; i < FILE_BYTES; i += sizeof page)
        if (write(file, page, sizeof page) != (ssize_t)sizeof page)
            fail("cannot write the file");
    hold_heap(HEAP_BEFORE);
    printf("ready %d\n", (int)getpid());
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) != NULL) {
        if (strcmp(line, "hold\n") != 0)
            fail("no such command");
        hold();
        printf("held\n");
        fflush(stdout);
    }
    return 0;
}
