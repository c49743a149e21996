/*
 * Comes by ever new stacks: N paths through a tree of calls, RATE of them a second. At the end of each, one block is
 * allocated and freed, and at every 1000th one more is kept. Then it waits for the end of its input.
 *
 *     churn N RATE
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))

enum { DEPTH = 17 };

static void *volatile kept;

NOINLINE static void churn_leaf(unsigned path)
{
    void *volatile block = malloc(100);
    free(block);
    if (path % 1000 == 0)
        kept = malloc(10);
}

static void churn_down(unsigned path, int depth);

NOINLINE static void churn_left(unsigned path, int depth)
{
    churn_down(path, depth - 1);
    __asm__ volatile("");
}

NOINLINE static void churn_right(unsigned path, int depth)
{
    churn_down(path, depth - 1);
    __asm__ volatile("");
}

NOINLINE static void churn_down(unsigned path, int depth)
{
    if (depth == 0)
        churn_leaf(path);
    else if (path >> (depth - 1) & 1)
        churn_left(path, depth);
    else
        churn_right(path, depth);
    __asm__ volatile("");
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    unsigned count = (unsigned)atoi(argv[1]), rate = (unsigned)atoi(argv[2]);
    printf("ready %d\n", (int)getpid());
    fflush(stdout);
    getchar();
    for (unsigned i = 0; i < count; i++) {
        churn_down(i, DEPTH);
        if (i % (rate / 100) == 0)
            nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
    puts("done");
    fflush(stdout);
    while (getchar() != EOF)
        ;
    return 0;
}
