/* The shared library that targets/stacks.cpp is linked with. */
#include "stacks_library.h"

#include <stdlib.h>

#define NOINLINE __attribute__((noinline, noclone))

void (*library_hold)(void);

NOINLINE static void *library_inner(size_t size)
{
    volatile char room[40];
    room[0] = 1;
    void *block = malloc(size);
    if (library_hold != NULL)
        library_hold();
    return room[0] ? block : NULL;
}

void *library_allocate(size_t size)
{
    volatile char room[72];
    room[0] = 1;
    void *block = library_inner(size);
    return room[0] ? block : NULL;
}

void *library_call(void *(*callback)(size_t), size_t size)
{
    volatile char room[24];
    room[0] = 1;
    void *block = callback(size);
    return room[0] ? block : NULL;
}

int library_compute(int value)
{
    volatile int copy = value;
    for (int i = 0; i < 3; i++)
        copy = copy * 3 + i;
    return copy;
}

int library_compute_once(int value)
{
    return library_compute(value) + 1;
}
