/*
 * Holds a block at each of 2048 stacks, and forks N children, one after the other, which hold them as well for a moment.
 *
 *     begetter N
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline, noclone))

static void *volatile kept;

NOINLINE static void begetter_leaf(void)
{
    kept = malloc(32);
    __asm__ volatile("");
}

static void begetter_down(unsigned path, int depth);

NOINLINE static void begetter_left(unsigned path, int depth)
{
    begetter_down(path, depth - 1);
    __asm__ volatile("");
}

NOINLINE static void begetter_right(unsigned path, int depth)
{
    begetter_down(path, depth - 1);
    __asm__ volatile("");
}

NOINLINE static void begetter_down(unsigned path, int depth)
{
    if (depth == 0)
        begetter_leaf();
    else if (path >> (depth - 1) & 1)
        begetter_left(path, depth);
    else
        begetter_right(path, depth);
    __asm__ volatile("");
}

int main(int argc, char **argv)
{
    int count = argc == 2 ? atoi(argv[1]) : 0;
    for (unsigned path = 0; path < 2048; path++)
        begetter_down(path, 11);
    for (int i = 0; i < count; i++) {
        pid_t child = fork();
        if (child == 0) {
            usleep(100000);
            _exit(0);
        }
        if (child < 0 || waitpid(child, NULL, 0) != child)
            return 1;
    }
    return 0;
}
