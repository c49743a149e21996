/*
 * A program that touches known amounts of new memory, from distinct functions.
 *
 *     growth DIRECTORY
 *
 * A file to map is made in the directory. Commands, one a line, come in on stdin:
 *
 *     go       do it all, in one thread and in four, and print the books
 *     exit     end
 *
 * The books are lines `SITE TOUCHED BRK MAPPED`, in bytes, then `end`. TOUCHED are whole pages that had no memory before,
 * whoever wrote the first byte: the program or, in read(2), the kernel. Pages of files are none of them, nor pages that were
 * touched before. MAPPED counts what a mapping was made with or enlarged by.
 * Before the first command it prints `ready PID`.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))
/* What is done around a site's call must not be taken out of it. */
#define KEEP __asm__ volatile("" ::: "memory")

enum {
    PAGE = 4096,
    MIB = 1 << 20,
    AREA = 96 * MIB,
    BLOCK = 64 << 10,
    LARGE_BLOCK = 2 * MIB,
    BLOCKS = 64 * MIB / BLOCK,
    LARGE_BLOCKS = 8,
    THREADS = 4,
    FILE_BYTES = 32 * MIB,
    SITES = 32,
};

struct book {
    const char *site;
    uint64_t touched, brk, mapped;
};

static struct book books[SITES];
static size_t book_count;
static int zero, file;

static void fail(const char *what)
{
    fprintf(stderr, "growth: %s\n", what);
    _exit(1);
}

static void enter(const char *site, uint64_t touched, uint64_t brk_bytes, uint64_t mapped)
{
    if (book_count == SITES)
        fail("there are too many sites for the books");
    books[book_count++] = (struct book){site, touched, brk_bytes, mapped};
}

static uint64_t present_pages(uintptr_t begin, uintptr_t end)
{
    static uint64_t entries[1024];
    uint64_t count = 0;
    int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    for (uintptr_t page = begin / PAGE; page < end / PAGE;) {
        uintptr_t wanted = end / PAGE - page < 1024 ? end / PAGE - page : 1024;
        if (pread(fd, entries, wanted * 8, (off_t)(page * 8)) != (ssize_t)(wanted * 8))
            fail("cannot read /proc/self/pagemap");
        for (uintptr_t i = 0; i < wanted; i++)
            count += entries[i] >> 63;
        page += wanted;
    }
    close(fd);
    return count;
}

/* ------------------------------------------------------------------ sites */

NOINLINE static char *site_map(size_t bytes, int flags)
{
    char *area = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
    KEEP;
    if (area == MAP_FAILED)
        fail("mmap failed");
    return area;
}

NOINLINE static char *site_enlarge(char *area, size_t old, size_t new)
{
    area = mremap(area, old, new, MREMAP_MAYMOVE);
    KEEP;
    if (area == MAP_FAILED)
        fail("mremap failed");
    return area;
}

NOINLINE static char *site_map_file(int protection, int flags)
{
    char *area = mmap(NULL, FILE_BYTES, protection, flags, file, 0);
    KEEP;
    if (area == MAP_FAILED)
        fail("mmap of a file failed");
    return area;
}

/* Writes a byte of each page. */
#define WRITES(name)                                              \
    NOINLINE static void name(char *area, size_t bytes)           \
    {                                                             \
        for (size_t i = 0; i < bytes; i += PAGE)                  \
            ((volatile char *)area)[i + i / PAGE % PAGE] = 1;     \
        __asm__ volatile("/* " #name " */" ::: "memory");         \
    }
WRITES(site_write)
WRITES(site_write_again)
WRITES(site_write_enlarged)
WRITES(site_write_after_dontneed)
WRITES(site_write_blocks)
WRITES(site_write_large_blocks)
WRITES(site_write_in_thread)
WRITES(site_write_few)

NOINLINE static void site_read_call(char *area, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 64 * PAGE)
        if (read(zero, area + i, 64 * PAGE) != 64 * PAGE)
            fail("cannot read zeros");
    KEEP;
}

NOINLINE static void site_read_file(const char *area, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += PAGE)
        (void)((const volatile char *)area)[i];
    KEEP;
}

static char *blocks[BLOCKS], *large_blocks[LARGE_BLOCKS];

NOINLINE static void site_malloc(void)
{
    for (size_t i = 0; i < BLOCKS; i++)
        blocks[i] = malloc(BLOCK);
    KEEP;
}

NOINLINE static void site_malloc_large(void)
{
    for (size_t i = 0; i < LARGE_BLOCKS; i++)
        large_blocks[i] = malloc(LARGE_BLOCK);
    KEEP;
}

/* ------------------------------------------------------------------ what is done */

static void map_and_write(void)
{
    char *area = site_map(AREA, MAP_PRIVATE);
    uint64_t mapped = AREA;
    site_write(area, AREA / 2);
    site_write_again(area, AREA / 2);
    site_read_call(area + AREA / 2, AREA / 2);
    enter("site_write", AREA / 2, 0, 0);
    enter("site_write_again", 0, 0, 0);
    enter("site_read_call", AREA / 2, 0, 0);

    if (madvise(area, AREA / 4, MADV_DONTNEED) != 0)
        fail("madvise failed");
    site_write_after_dontneed(area, AREA / 4);
    enter("site_write_after_dontneed", AREA / 4, 0, 0);

    area = site_enlarge(area, AREA, AREA + AREA / 2);
    site_write_enlarged(area + AREA, AREA / 2);
    enter("site_enlarge", 0, 0, AREA / 2);
    enter("site_write_enlarged", AREA / 2, 0, 0);

    char *small = site_map(MIB + 1, MAP_PRIVATE);
    mapped += MIB + PAGE;
    site_write_few(small, MIB);
    enter("site_write_few", MIB, 0, 0);
    enter("site_map", 0, 0, mapped);
}

static void map_files(void)
{
    char *private = site_map_file(PROT_READ, MAP_PRIVATE);
    char *shared = site_map_file(PROT_READ, MAP_SHARED);
    site_read_file(private, FILE_BYTES);
    site_read_file(shared, FILE_BYTES);
    enter("site_map_file", 0, 0, 2 * FILE_BYTES);
    enter("site_read_file", 0, 0, 0);
}

/* The pages that malloc itself touches, to write a block's size, are counted where malloc was called. */
static void allocate(void)
{
    uintptr_t begin = (uintptr_t)sbrk(0), low = begin - PAGE * 32;
    uint64_t before = present_pages(low, begin);
    site_malloc();
    uintptr_t end = (uintptr_t)sbrk(0);
    uint64_t own = present_pages(low, end) - before;
    enter("site_malloc", own * PAGE, end - begin, 0);
    for (size_t i = 0; i < BLOCKS; i++)
        site_write_blocks(blocks[i], BLOCK);
    uint64_t all = present_pages(low, end) - before;
    enter("site_write_blocks", (all - own) * PAGE, 0, 0);

    site_malloc_large();
    /* The block's size is in its first page: malloc touches that one. */
    enter("site_malloc_large", LARGE_BLOCKS * PAGE, 0, LARGE_BLOCKS * (LARGE_BLOCK + PAGE));
    for (size_t i = 0; i < LARGE_BLOCKS; i++)
        site_write_large_blocks(large_blocks[i] - 16 + PAGE, LARGE_BLOCK);
    enter("site_write_large_blocks", LARGE_BLOCKS * LARGE_BLOCK, 0, 0);
}

static pthread_barrier_t begin_barrier, end_barrier;
static char *of_threads;

static void *thread_main(void *argument)
{
    size_t index = (size_t)argument;
    pthread_barrier_wait(&begin_barrier);
    site_write_in_thread(of_threads + index * (AREA / THREADS), AREA / THREADS);
    pthread_barrier_wait(&end_barrier);
    return NULL;
}

NOINLINE static char *site_map_for_threads(void)
{
    char *area = mmap(NULL, AREA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    KEEP;
    if (area == MAP_FAILED)
        fail("mmap failed");
    return area;
}

static void write_in_threads(void)
{
    of_threads = site_map_for_threads();
    pthread_barrier_wait(&begin_barrier);
    pthread_barrier_wait(&end_barrier);
    enter("site_map_for_threads", 0, 0, AREA);
    enter("site_write_in_thread", AREA, 0, 0);
}

static void go(void)
{
    map_and_write();
    map_files();
    allocate();
    write_in_threads();
    for (size_t i = 0; i < book_count; i++)
        printf("%s %lu %lu %lu\n", books[i].site, books[i].touched, books[i].brk, books[i].mapped);
    printf("end\n");
    fflush(stdout);
}

static void open_file(const char *directory)
{
    static char name[4096];
    snprintf(name, sizeof name, "%s/growth-%d", directory, (int)getpid());
    file = open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    if (file < 0 || zero < 0 || unlink(name) != 0 || ftruncate(file, FILE_BYTES) != 0)
        fail("cannot make a file to map");
}

int main(int argc, char **argv)
{
    static char input[4096], output[65536], line[64];
    setvbuf(stdin, input, _IOLBF, sizeof input);
    setvbuf(stdout, output, _IOFBF, sizeof output);
    if (argc != 2)
        fail("usage: growth DIRECTORY");
    open_file(argv[1]);
    /* One fault, one page; and the heap's end moves in one direction only. */
    prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
    mallopt(M_MMAP_THRESHOLD, MIB);
    mallopt(M_TRIM_THRESHOLD, INT32_MAX);
    mallopt(M_TOP_PAD, 0);
    free(malloc(1));
    pthread_barrier_init(&begin_barrier, NULL, THREADS + 1);
    pthread_barrier_init(&end_barrier, NULL, THREADS + 1);
    for (size_t i = 0; i < THREADS; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, thread_main, (void *)i) != 0)
            fail("cannot start a thread");
    }
    printf("ready %d\n", (int)getpid());
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) != NULL) {
        if (strcmp(line, "go\n") == 0)
            go();
        else if (strcmp(line, "exit\n") == 0)
            return 0;
        else
            fail("no such command");
    }
    return 0;
}
