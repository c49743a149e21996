/*
 * A family of processes that know their own heaps.
 *
 *     family SEED GENERATIONS STEPS
 *
 * Each process does STEPS random operations at 8 sites (`family_site_0` …): it allocates, reallocates, and frees, also
 * blocks that it has from its parent, which goes on meanwhile and may free them, too. Now and then it forks a child,
 * GENERATIONS deep, or a child that executes this program anew. At its end it prints its books in one line:
 *
 *     books PID PARENT (SITE ALLOC_OBJECTS ALLOC_BYTES INUSE_OBJECTS INUSE_BYTES INHERITED_OBJECTS INHERITED_BYTES)*
 *
 * PARENT is 0 for a process that executed the program: nothing is inherited then. It waits for its children before.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))

enum { SITES = 8, SLOTS = 400 };

struct books {
    uint64_t alloc_objects, alloc_bytes, inuse_objects, inuse_bytes, inherited_objects, inherited_bytes;
};

struct slot {
    void *block;
    size_t size;
    int site;
    int is_inherited;
};

static struct books books[SITES];
static struct slot slots[SLOTS];
static uint64_t state;
static pid_t parent;

static uint32_t next_random(uint32_t below)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33) % below;
}

#define SITE(n)                                                                                                        \
    NOINLINE static void *family_site_##n(void *old, size_t size)                                                      \
    {                                                                                                                  \
        void *block = old != NULL ? realloc(old, size) : malloc(size);                                                 \
        __asm__ volatile("" ::: "memory");                                                                             \
        return block;                                                                                                  \
    }
SITE(0) SITE(1) SITE(2) SITE(3) SITE(4) SITE(5) SITE(6) SITE(7)

static void *(*const sites[SITES])(void *, size_t) = {
    family_site_0, family_site_1, family_site_2, family_site_3,
    family_site_4, family_site_5, family_site_6, family_site_7,
};

static void forget(struct slot *slot)
{
    struct books *site = &books[slot->site];
    if (slot->is_inherited) {
        site->inherited_objects--;
        site->inherited_bytes -= slot->size;
    } else {
        site->inuse_objects--;
        site->inuse_bytes -= slot->size;
    }
}

static void operate(void)
{
    struct slot *slot = &slots[next_random(SLOTS)];
    if (slot->block != NULL && next_random(2) == 0) {
        forget(slot);
        free(slot->block);
        slot->block = NULL;
        return;
    }
    int site = (int)next_random(SITES);
    size_t size = 1 + next_random(5000);
    if (slot->block != NULL)
        forget(slot);
    *slot = (struct slot){.block = sites[site](slot->block, size), .size = size, .site = site};
    books[site].alloc_objects++;
    books[site].alloc_bytes += size;
    books[site].inuse_objects++;
    books[site].inuse_bytes += size;
}

static void be_born(pid_t from)
{
    parent = from;
    memset(books, 0, sizeof books);
    for (int i = 0; i < SLOTS; i++) {
        struct slot *slot = &slots[i];
        slot->is_inherited = slot->block != NULL;
        if (slot->is_inherited) {
            books[slot->site].inherited_objects++;
            books[slot->site].inherited_bytes += slot->size;
        }
    }
}

static void *end_at_once(void *unused)
{
    free(malloc(1));
    return unused;
}

static void print_books(void)
{
    char line[2048];
    int length = snprintf(line, sizeof line, "books %d %d", (int)getpid(), (int)parent);
    for (int i = 0; i < SITES; i++) {
        const struct books *site = &books[i];
        length += snprintf(line + length, sizeof line - (size_t)length, " family_site_%d %lu %lu %lu %lu %lu %lu", i,
                           site->alloc_objects, site->alloc_bytes, site->inuse_objects, site->inuse_bytes,
                           site->inherited_objects, site->inherited_bytes);
    }
    line[length++] = '\n';
    /* One call: lines of several processes do not mix. */
    if (write(STDOUT_FILENO, line, (size_t)length) != length)
        _exit(1);
}

static void live(int generations, int steps, char **arguments)
{
    for (int i = 0; i < steps; i++) {
        operate();
        if (generations == 0 || next_random((uint32_t)steps / 3) != 0)
            continue;
        uint64_t seed = next_random(1u << 30);
        int executes = next_random(3) == 0;
        pid_t from = getpid();
        if (fork() != 0)
            continue;
        if (executes) {
            char seed_text[32], generations_text[32];
            snprintf(seed_text, sizeof seed_text, "%lu", seed);
            snprintf(generations_text, sizeof generations_text, "%d", generations - 1);
            execl("/proc/self/exe", arguments[0], seed_text, generations_text, arguments[3], NULL);
            _exit(1);
        }
        be_born(from);
        state = seed;
        generations--;
        i = 0;
        pthread_t thread;
        if (pthread_create(&thread, NULL, end_at_once, NULL) == 0)
            pthread_join(thread, NULL);
    }
    while (wait(NULL) > 0)
        ;
    print_books();
    _exit(0);
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    /* memtrace reads what a new program maps while that runs: give it the time. */
    usleep(1000000);
    state = strtoul(argv[1], NULL, 10);
    live(atoi(argv[2]), atoi(argv[3]), argv);
}
