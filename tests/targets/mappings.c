/*
 * A program that knows its own mappings: the reference that a profile is compared with, page by page.
 *
 * Threads map, remap and unmap at random, by libc's functions, by syscall(2) and by instructions of their own. Each call
 * is in a function of its own whose name says which (`site_file_2`), and the page belongs to the last one that mapped
 * it. At each quiet point the program insists that the kernel maps exactly what its books hold (see mappings_books.h).
 *
 *     mappings THREADS DIRECTORY
 *
 * A file to map is made in the directory. Commands, one a line, come in on stdin:
 *
 *     go OPS SEED      do about OPS operations, then park all threads and print the books
 *     books            print the books again
 *     drain            unmap everything, end all guests, print the books
 *     fork OPS SEED    end all guests, then fork a child that does OPS operations and prints `child PID` and its books
 *     reap             end the child; answers `reaped`
 *     exit             end, with all that is mapped
 *
 * The books are lines `SITE KIND MAPPED LIVE RESIDENT`, in bytes, of what is not all 0, then `end OPERATIONS`. KIND is
 * anon, file, shared or stack; `cached` stands for the stacks of threads that ended, which libc keeps. A child's lines
 * of what it has from its parent end in ` inherited`. Before the first command it prints `ready PID`; at that time each thread holds
 * mappings that no site accounts for.
 *
 * What counts as mapped: what mmap, mremap and shmat return, whole, and what a stack grows by itself. A thread that gets the cached
 * stack of another maps nothing: the stack becomes live as its creator's.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "mappings_others.h"

/* ------------------------------------------------------------------ one operation */

static void operate(struct worker *self)
{
    uint64_t choice = random_below(self, 1000);
    make_room(self);
    if (choice < 180)
        map_anywhere(self);
    else if (choice < 300)
        map_fixed(self);
    else if (choice < 360)
        map_without_replacing(self);
    else if (choice < 560)
        unmap_some(self);
    else if (choice < 590)
        unmap_in_vain(self);
    else if (choice < 750)
        remap_some(self);
    else if (choice < 790)
        remap_in_vain(self);
    else if (choice < 830)
        protect(self);
    else if (choice < 870)
        advise(self);
    else if (choice < 930)
        attach_or_detach(self);
    else if (choice < 980)
        allocate(self);
    else if (!is_child) /* which has its parent's stacks, but not its threads */
        choice < 985 ? grow_stack(self) : start_or_end_guest(self);
    atomic_fetch_add_explicit(&self->operations, 1, memory_order_relaxed);
}

/* ------------------------------------------------------------------ threads */

/* What is there before any round: mapped by nobody that the books name. */
static void hold_prior_mappings(struct worker *self)
{
    struct range range = range_of(window_of(self).begin, WINDOW_PAGES / 4);
    if (mmap((void *)range.begin, range.end - range.begin, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != (void *)range.begin)
        fail("the window is taken");
    set_pages(range, (struct page){.holder = NO_SITE, .kind = ANON});
}

NOINLINE static void *worker_main(void *argument)
{
    struct worker *self = argument;
    uint64_t last = 0;
    know_arena();
    hold_prior_mappings(self);
    for (;;) {
        await_round(&last, &self->random, self->index);
        for (uint64_t left = round_operations; left > 0; left--)
            operate(self);
    }
    return NULL;
}

/* ------------------------------------------------------------------ printing */

/* What a site holds, by whether it is cached and inherited. */
struct sum {
    uint64_t live, resident;
};
static struct sum sums[WHATS * VARIANTS][KINDS][2][2];

static void add_page(uintptr_t address, struct page *page)
{
    if (page->holder == NO_SITE)
        return;
    bool is_cached = (page->flags & CACHED) != 0, is_inherited = (page->flags & INHERITED) != 0;
    struct sum *sum = &sums[page->holder - 1][page->kind][is_cached][is_inherited];
    sum->live += PAGE;
    sum->resident += is_resident(address) ? PAGE : 0;
}

static void print_sum(size_t site, size_t kind, bool is_cached, bool is_inherited)
{
    struct sum sum = sums[site][kind][is_cached][is_inherited];
    uint64_t mapped = 0;
    if (!is_cached && !is_inherited)
        for (size_t i = 0; i < worker_count; i++)
            mapped += workers[i].mapped[site][kind];
    if (mapped != 0 || sum.live != 0)
        printf("%s %s %lu %lu %lu%s\n", sites[site].name, is_cached ? "cached" : kind_names[kind], mapped, sum.live,
               sum.resident, is_inherited ? " inherited" : "");
}

static void print_books(void)
{
    check_books();
    open_pagemap();
    memset(sums, 0, sizeof sums);
    for_each_page(add_page);
    close_pagemap();
    uint64_t operations = 0;
    for (size_t site = 0; site < ARRAY_LENGTH(sites); site++)
        for (size_t kind = 0; kind < ALLOCATOR; kind++)
            for (unsigned which = 0; which < 4; which++)
                print_sum(site, kind, (which & 1) != 0, (which & 2) != 0);
    for (size_t i = 0; i < worker_count; i++)
        operations += atomic_load(&workers[i].operations);
    printf("end %lu\n", operations);
    fflush(stdout);
}

/* ------------------------------------------------------------------ commands */

static void drain(void)
{
    end_guests();
    for (size_t i = 0; i < worker_count; i++) {
        struct worker *worker = &workers[i];
        for (size_t j = 0; j < SLOTS; j++)
            if (worker->slots[j].end != 0)
                unmap(worker, &worker->slots[j], worker->slots[j]);
        for (size_t j = 0; j < WHOLES; j++)
            if (worker->wholes[j].range.end != 0)
                detach(worker, &worker->wholes[j]);
        for (size_t j = 0; j < BLOCKS; j++)
            release_block(&worker->blocks[j]);
        for (size_t j = 0; j < GROWING; j++)
            if (worker->growing[j].end != 0)
                unmap(worker, NULL, worker->growing[j]);
        memset(worker->growing, 0, sizeof worker->growing);
        unmap(worker, NULL, window_of(worker));
    }
}

static pid_t child;

static void inherit(uintptr_t address, struct page *page)
{
    (void)address;
    page->flags |= INHERITED;
}

/* The child is this thread alone, and does what the first one did in its parent. */
static void be_child(uint64_t operations, uint64_t number)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    is_child = true;
    for_each_page(inherit);
    for (size_t i = 0; i < worker_count; i++) {
        memset(workers[i].mapped, 0, sizeof workers[i].mapped);
        atomic_store(&workers[i].operations, 0);
    }
    workers[0].random = seed_of(number, 0);
    while (operations-- > 0)
        operate(&workers[0]);
    printf("child %d\n", (int)getpid());
    print_books();
    for (;;)
        pause();
}

static void reap(void)
{
    if (child <= 0 || kill(child, SIGTERM) != 0 || waitpid(child, NULL, 0) != child)
        fail("there is no child to end");
    child = 0;
    printf("reaped\n");
    fflush(stdout);
}

static void obey(const char *line)
{
    unsigned long operations, number;
    if (sscanf(line, "go %lu %lu", &operations, &number) == 2) {
        run_round(operations, number);
        print_books();
    } else if (sscanf(line, "fork %lu %lu", &operations, &number) == 2) {
        end_guests();
        child = fork();
        if (child == 0)
            be_child(operations, number);
    } else if (strcmp(line, "books\n") == 0) {
        print_books();
    } else if (strcmp(line, "reap\n") == 0) {
        reap();
    } else if (strcmp(line, "drain\n") == 0) {
        drain();
        print_books();
    } else if (strcmp(line, "exit\n") == 0) {
        _exit(0);
    } else {
        fail("no such command");
    }
}

static int open_file(const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 || unlink(path) != 0)
        fail("cannot make a file to map");
    return fd;
}

/* Real files have contents; the others have pages when they are touched. */
static void open_files(const char *path)
{
    static char name[4096], page[PAGE];
    snprintf(name, sizeof name, "%s/mappings-%d", path, (int)getpid());
    file = open_file(name);
    for (size_t i = 0; i < FILE_PAGES; i++)
        if (write(file, page, sizeof page) != (ssize_t)sizeof page)
            fail("cannot write the file");
    snprintf(name, sizeof name, "/dev/shm/mappings-%d", (int)getpid());
    devshm = open_file(name);
    memfd = memfd_create("mappings", MFD_CLOEXEC);
    zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    if (ftruncate(devshm, FILE_PAGES * PAGE) != 0 || ftruncate(memfd, FILE_PAGES * PAGE) != 0 || zero < 0)
        fail("cannot make memory to map");
}

/* They are gone when this process is: marked for removal, and held by being attached once. */
static void make_segments(void)
{
    for (size_t i = 0; i < SEGMENTS; i++) {
        segments[i] = shmget(IPC_PRIVATE, segment_pages(i) * PAGE - 100, 0600);
        if (segments[i] < 0 || shmat(segments[i], NULL, 0) == (void *)-1 || shmctl(segments[i], IPC_RMID, NULL) != 0)
            fail("no System V shared memory");
    }
}

static void start_workers(void)
{
    for (size_t i = 0; i < worker_count; i++) {
        workers[i].index = i;
        workers[i].random = seed_of(0, i);
        if (pthread_create(&workers[i].thread, NULL, worker_main, &workers[i]) != 0)
            fail("cannot start a thread");
    }
    await_quiet();
}

int main(int argc, char **argv)
{
    static char input[4096], output[65536], line[256];
    setvbuf(stdin, input, _IOLBF, sizeof input);
    setvbuf(stdout, output, _IOFBF, sizeof output);
    worker_count = argc == 3 ? strtoul(argv[1], NULL, 10) : 0;
    if (worker_count < 1 || worker_count > MAX_THREADS)
        fail("usage: mappings THREADS DIRECTORY");
    /* Fixed: otherwise freeing a large block makes malloc take the next one from an arena. */
    mallopt(M_MMAP_THRESHOLD, 128 << 10);
    open_files(argv[2]);
    make_segments();
    void *huge = mmap(NULL, 2 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
    has_huge_pages = huge != MAP_FAILED && munmap(huge, 2 << 20) == 0;
    start_workers();
    open_books();
    printf("ready %d\n", (int)getpid());
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) != NULL)
        obey(line);
    return 0;
}
