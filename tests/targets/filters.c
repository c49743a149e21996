/*
 * Blocks of chosen sizes at chosen moments, for tests of what memtrace leaves out on purpose.
 *
 * Commands, one a line, come in on stdin; each is answered with `done`:
 *
 *     small     site_small allocates 100 blocks of 1023 bytes, and frees half of them
 *     large     site_large allocates 100 blocks of 1024 bytes, and frees half of them
 *     shrink    site_shrink reallocates the large ones to 100 bytes
 *     grow      site_grow reallocates all blocks that are left to 5000 bytes
 *     wrapped   site_wrapped allocates 100 blocks of 3000 bytes through functions that are an allocator's by their name
 *     drain     frees all
 *
 * Before the first command it prints `ready PID`. At the end of stdin it exits.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))

enum { BLOCKS = 100, MAX_BLOCKS = 1000 };

static struct {
    void *address;
    size_t size;
} blocks[MAX_BLOCKS];
static int count;

static void keep(void *address, size_t size)
{
    if (address == NULL || count == MAX_BLOCKS)
        abort();
    blocks[count].address = address;
    blocks[count++].size = size;
}

#define SITE(name, size)                            \
    NOINLINE static void name(void)                 \
    {                                               \
        for (int i = 0; i < BLOCKS; i++) {          \
            void *block = malloc(size);             \
            if (i % 2 == 0)                         \
                free(block);                        \
            else                                    \
                keep(block, size);                  \
        }                                           \
    }

SITE(site_small, 1023)
SITE(site_large, 1024)

NOINLINE static void site_shrink(void)
{
    for (int i = 0; i < count; i++)
        if (blocks[i].size == 1024)
            blocks[i].address = realloc(blocks[i].address, blocks[i].size = 100);
}

NOINLINE static void site_grow(void)
{
    for (int i = 0; i < count; i++)
        blocks[i].address = realloc(blocks[i].address, blocks[i].size = 5000);
}

/* The names are those of functions inside of glibc. */
NOINLINE static void *_int_malloc(size_t size)
{
    void *block = malloc(size);
    __asm__ volatile("" : "+r"(block));
    return block;
}

static inline __attribute__((always_inline)) void *_mid_memalign(size_t size)
{
    void *block = _int_malloc(size);
    __asm__ volatile("" : "+r"(block));
    return block;
}

NOINLINE static void site_wrapped(void)
{
    for (int i = 0; i < BLOCKS; i++)
        keep(_mid_memalign(3000), 3000);
}

static void drain(void)
{
    while (count > 0)
        free(blocks[--count].address);
}

int main(void)
{
    static const struct {
        const char *name;
        void (*obey)(void);
    } commands[] = {
        {"small\n", site_small}, {"large\n", site_large},     {"shrink\n", site_shrink},
        {"grow\n", site_grow},   {"wrapped\n", site_wrapped}, {"drain\n", drain},
    };
    static char input[4096], output[4096], line[64];
    setvbuf(stdin, input, _IOLBF, sizeof input);
    setvbuf(stdout, output, _IOLBF, sizeof output);
    printf("ready %d\n", (int)getpid());
    while (fgets(line, sizeof line, stdin) != NULL) {
        for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
            if (strcmp(line, commands[i].name) == 0)
                commands[i].obey();
        printf("done\n");
    }
    return 0;
}
