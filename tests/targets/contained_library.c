/*
 * A library that has, in the container's image, the path of another one of the host's. What allocates is `contained_inner`,
 * which is in no table of symbols once the library is stripped: only the debug file names it.
 */
#include <stdlib.h>

#define NOINLINE __attribute__((noinline, noclone))

static void *volatile kept;

NOINLINE static void contained_inner(void)
{
    kept = malloc(1000);
    __asm__ volatile("");
}

__attribute__((visibility("default"))) void contained_library(void)
{
    contained_inner();
    __asm__ volatile("");
}
