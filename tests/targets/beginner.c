/*
 * Allocates before and after main: what only a tracer that was there from the first instruction sees. Prints its
 * arguments and ends with status 7.
 */
#include <stdio.h>
#include <stdlib.h>

#define NOINLINE __attribute__((noinline, noclone))

static void *volatile kept;

NOINLINE static void beginner_exit(void)
{
    kept = malloc(3003);
}

__attribute__((constructor)) NOINLINE static void beginner_constructor(void)
{
    kept = malloc(1001);
    atexit(beginner_exit);
}

NOINLINE static void beginner_main(void)
{
    kept = malloc(2002);
    kept = malloc(2002);
}

int main(int argc, char **argv)
{
    beginner_main();
    if (argc == 3)
        printf("%s, %s\n", argv[1], argv[2]);
    fflush(stdout);
    return 7;
}
